"""The configuration tree: one frozen, typed model for every setting of every stage.

A stage's name is its key here, in pipeline.yaml, on the command line and in the workspace. Every section but
`workspace` and `execution` enters the fingerprints of the stages that read it (two keys of `execution` can: see
docs/decisions.md, 39 and 54). The sections of the stages are declared by subject in `data.py`, `regions.py` and
`training.py`; `X as X` marks what other files import from here. `loading.py` loads and overrides a configuration.
"""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import Field, field_validator

from regionclip_core.config.data import CocoSplit as CocoSplit
from regionclip_core.config.data import ConceptsConfig as ConceptsConfig
from regionclip_core.config.data import DataConfig as DataConfig
from regionclip_core.config.data import FolderSplit as FolderSplit
from regionclip_core.config.data import LvisSplit as LvisSplit
from regionclip_core.config.data import Split as Split
from regionclip_core.config.data import TarsSplit as TarsSplit
from regionclip_core.config.data import WorldSplit as WorldSplit
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.regions import EvaluateConfig as EvaluateConfig
from regionclip_core.config.regions import FusionConfig as FusionConfig
from regionclip_core.config.regions import LabelsConfig as LabelsConfig
from regionclip_core.config.regions import LaterRoundsConfig as LaterRoundsConfig
from regionclip_core.config.regions import PairsConfig as PairsConfig
from regionclip_core.config.regions import ProposalsConfig as ProposalsConfig
from regionclip_core.config.regions import Resize as Resize
from regionclip_core.config.section import Section, Share
from regionclip_core.config.training import DETECTORS as DETECTORS
from regionclip_core.config.training import RPN_FIELDS as RPN_FIELDS
from regionclip_core.config.training import ClipArchitecture as ClipArchitecture
from regionclip_core.config.training import FinetuneConfig as FinetuneConfig
from regionclip_core.config.training import OptimConfig as OptimConfig
from regionclip_core.config.training import PretrainConfig as PretrainConfig
from regionclip_core.config.training import RpnConfig as RpnConfig
from regionclip_core.config.training import TeacherConfig as TeacherConfig
from regionclip_core.config.training import TeacherTraining as TeacherTraining


class ExecutionConfig(Section):
    """Where and with what the run executes. It is no part of a fingerprint, with two exceptions: `train_workers` where
    `pretrain.gather_regions` is false, and a `precision` other than `auto`."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: workers that live through the run. `local`: everything in this process, for a debugger."""
    address: str | None = None
    """Ray cluster address; null starts Ray on this machine."""
    dashboard: bool = False
    """Start Ray's dashboard on this machine and print its link: 1 s and 210 MB more. A cluster has its own."""
    workers: int | None = Field(None, ge=1, le=10**5)
    """Shard workers; null takes one per available CPU (or per GPU for stages that use one), also of machines that join
    a cluster during the run. A number is what the run asks a cluster for, whatever it has now: set it to make an
    autoscaler add machines."""
    train_workers: int = Field(1, ge=1, le=10**5)
    """Processes per training; more than one goes through Ray Train (DDP)."""
    threads: int | None = Field(None, ge=1, le=4096)
    """Torch threads of a training; null takes every available CPU."""
    loader_workers: int | None = Field(None, ge=0, le=1024)
    """Processes that read and resize images ahead, per training process; 0 reads in the training's own. Null takes 0 on
    CPUs, which the training itself uses, and beside a GPU one per CPU, at most 8. Results don't depend on it. In
    proposals, labels and evaluate: threads, per worker."""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`, `cuda:1`."""
    precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """In which networks run, in trainings too. `float32`: exactly, without TF32. `tf32`, `bf16`: products of fewer
    bits; weights, losses and boxes stay float32. `auto`: bf16 on GPUs that have it, else float32."""
    recompute_activations: bool = False
    """Student and detector train with less memory: each stage of the image encoder is computed again for its gradient,
    which takes a third more time. Results don't depend on it."""
    images_at_once: int | None = Field(None, ge=1, le=10**5)
    """Student and detector train with the memory of so many images per process, whatever the batch is: the encoder goes
    through the batch in parts, and again for the gradient, which takes up to a third more time. The losses are those of
    the whole batch; results differ by rounding alone. Null: all at once."""
    gpus_per_worker: float = Field(0.0, ge=0, le=1000)
    """GPUs that one worker of a stage with a model asks Ray for."""
    shard_retries: int = Field(2, ge=0, le=1000)
    """How often a shard or a training is repeated because a worker died (not because it raised an error)."""
    curves: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where trainings draw their losses while they run. `tensorboard`: files for TensorBoard, in the folder
    `tensorboard` of a local workspace; a workspace on an object store gets none. `wandb`: Weights & Biases, with the
    extra `wandb` and `wandb login`, or WANDB_MODE=offline. Results don't depend on it."""
    max_error_rate: Share = 0.1
    """A stage stops when more than this share of its samples is bad; a sample that lost a box or caption is not bad."""

    @property
    def on_cluster(self) -> bool:
        """Whether other machines do the work, whose disks and GPUs this one can't look at."""
        return self.backend == "ray" and self.address is not None

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
            hint = "; nearest: cuda" if "gpu" in device.lower() else nearest_hint(device, ("auto", "cpu", "cuda"))
            raise ValueError(f"expected auto, cpu, cuda or cuda:N (came: {device!r}){hint}")
        return device

    @field_validator("gpus_per_worker")
    @classmethod
    def _shares_ray_can_count(cls, gpus: float) -> float:
        if gpus != int(gpus) and not 0.01 <= gpus < 1:
            raise ValueError(f"expected a whole number or a share from 0.01 to 1 (came: {gpus})")
        return gpus


class ReportConfig(Section):
    """One self-contained page."""

    images: int = Field(12, ge=0, le=10**4)
    """Pictures of detections shown."""


class Config(Section):
    """The whole run. Stages are in the order in which they run."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Start of all random numbers: the same seed and settings give the same results."""
    workspace: str = "runs/default"
    """Folder or fsspec URL; every stage writes <workspace>/<stage>/<fingerprint>/."""
    rounds: int = Field(1, ge=1, le=10)
    """How often labels, pairs and pretrain are done, before finetune. In each round after the first, the student of the
    round before names the regions (see `labels.later_rounds`), and the new student starts from it, instead of from
    what `labels.weights` and `pretrain.init` say."""
    execution: ExecutionConfig = ExecutionConfig()
    """Where and with what it runs: backend, workers, device, precision."""
    data: DataConfig = DataConfig()
    """What goes in: named sets of images, and the categories."""
    concepts: ConceptsConfig = ConceptsConfig()
    """Captions to a pool of concepts."""
    teacher: TeacherConfig = TeacherConfig()
    """The CLIP that names regions."""
    rpn: RpnConfig = RpnConfig()
    """The network that proposes boxes."""
    proposals: ProposalsConfig = ProposalsConfig()
    """Boxes of each image that may hold an object."""
    labels: LabelsConfig = LabelsConfig()
    """Which concept each proposal shows, by the teacher."""
    pairs: PairsConfig = PairsConfig()
    """Images with their captions and labelled regions, as tars."""
    pretrain: PretrainConfig = PretrainConfig()
    """The student learns regions from the pairs."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Detectors from boxes of base categories."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Average precision and accuracies of all models."""
    report: ReportConfig = ReportConfig()
    """The page about the whole run."""

    @field_validator("workspace")
    @classmethod
    def _workspace_is_a_place(cls, workspace: str) -> str:
        """Return the workspace with `~` filled in; refuse anything that is no folder of its own."""
        came = f"(came: {workspace!r})"
        if not workspace.strip():
            raise ValueError(f"expected a folder or URL {came}; write . for the current folder")
        if "::" in workspace:  # one file system through another, which fsspec takes apart
            return workspace
        scheme, colon, rest = workspace.partition(":")
        if colon and re.fullmatch(r"[A-Za-z][\w+.-]+", scheme):
            from fsspec import available_protocols, get_filesystem_class  # slow, and a plain path does without

            known = available_protocols()
            if not rest.startswith("//"):
                if rest.startswith("/") or scheme in known:
                    slashes = ":///" if scheme == "file" else "://"
                    raise ValueError(f"expected a folder or URL {came}; nearest: {scheme}{slashes}{rest.lstrip('/')}")
            elif scheme not in known:
                raise ValueError(
                    f"{scheme}:// is no protocol that fsspec knows; expected a folder, or a URL such as "
                    f"s3://BUCKET/FOLDER {came}{nearest_hint(scheme, known)}"
                )
            elif scheme != "file" and not rest.strip("/"):
                raise ValueError(f"expected {scheme}://BUCKET/FOLDER, nothing follows the protocol {came}")
            elif scheme != "file" and set("*?[") & set(rest):  # fsspec would remove what it matches
                raise ValueError(f"expected a URL without *, ? and [, which fsspec takes for a pattern {came}")
            if scheme != "file":
                try:
                    get_filesystem_class(scheme)
                except ImportError as error:  # "Install s3fs to access S3"
                    package = getattr(error.__cause__, "name", None) or "'fsspec[full]'"
                    raise ValueError(f"{error}: `pip install {package}`, on every machine of the run {came}") from error
                return workspace
        path = os.path.expanduser(workspace)
        if path.startswith("~"):
            raise ValueError(f"expected a folder or URL {came}; there is no user {path.split('/')[0][1:]!r} here")
        place = os.path.abspath(path.removeprefix("file://"))
        if not place.strip("/"):
            raise ValueError(f"expected a folder of its own, not the root of the file system {came}")
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            raise ValueError(f"expected a folder, but {place} is a file or leads nowhere {came}; name another one")
        return path


STAGE_NAMES = tuple(name for name in Config.model_fields if name not in ("seed", "workspace", "rounds", "execution"))
