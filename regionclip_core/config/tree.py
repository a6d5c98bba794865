"""The configuration tree: one frozen, typed model for every setting of every stage.

A stage's name is its key here, in pipeline.yaml, on the command line and in the workspace. Every section but
`workspace` and `execution` enters the fingerprints of the stages that read it (one key of `execution` can: see
ARCHITECTURE.md, decision 39). The sections are declared by subject
in `data.py`, `regions.py` and `training.py`; other files import them from here. Loading and
overriding is `loading.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from regionclip_core.config.data import (
    CocoSplit,
    ConceptsConfig,
    DataConfig,
    FolderSplit,
    LvisSplit,
    Split,
    TarsSplit,
    WorldSplit,
)
from regionclip_core.config.places import checked_device, checked_workspace
from regionclip_core.config.regions import EvaluateConfig, LabelsConfig, PairsConfig, ProposalsConfig, Resize
from regionclip_core.config.section import Section, Share
from regionclip_core.config.training import (
    RPN_FIELDS,
    ClipArchitecture,
    FinetuneConfig,
    OptimConfig,
    PretrainConfig,
    RpnConfig,
    TeacherConfig,
    TeacherTraining,
)

__all__ = [
    "RPN_FIELDS",
    "STAGE_NAMES",
    "ClipArchitecture",
    "CocoSplit",
    "ConceptsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "ExecutionConfig",
    "FinetuneConfig",
    "FolderSplit",
    "LabelsConfig",
    "LvisSplit",
    "OptimConfig",
    "PairsConfig",
    "PretrainConfig",
    "ProposalsConfig",
    "ReportConfig",
    "Resize",
    "RpnConfig",
    "Section",
    "Split",
    "TarsSplit",
    "TeacherConfig",
    "TeacherTraining",
    "WorldSplit",
]

STAGE_NAMES = (
    "data",
    "concepts",
    "teacher",
    "rpn",
    "proposals",
    "labels",
    "pairs",
    "pretrain",
    "finetune",
    "evaluate",
    "report",
)


class ExecutionConfig(Section):
    """Where and with what the run executes. No part of a fingerprint, but for `train_workers` where
    `pretrain.gather_regions` is false."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: workers that live through the run. `local`: everything in this process, for a debugger."""
    address: str | None = None
    """Ray cluster address; null starts Ray on this machine."""
    dashboard: bool = False
    """Start Ray's dashboard on this machine and print its link: 1 s and 200 MiB more. A cluster has its own."""
    workers: int | None = Field(None, ge=1, le=10**5)
    """Shard workers; null takes one per available CPU (or per GPU for stages that want one), also of machines that join
    a cluster during the run. A number is what the run asks a cluster for, whatever it has now: set it to make an
    autoscaler add machines."""
    train_workers: int = Field(1, ge=1, le=10**5)
    """Processes of one training job; more than one goes through Ray Train (DDP)."""
    threads: int | None = Field(None, ge=1, le=4096)
    """Torch threads of a training job; null takes every available CPU."""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`, `cuda:1`."""
    gpus_per_worker: float = Field(0.0, ge=0, le=1000)
    """GPUs that one worker of a model stage asks of Ray."""
    shard_retries: int = Field(2, ge=0, le=1000)
    """How often a shard or a training is done again because a worker died (not because it raised)."""
    max_error_rate: Share = 0.1
    """A stage stops when more than this share of its samples is bad; a good one that lost a box or caption is not."""

    @field_validator("device")
    @classmethod
    def _device_is_one(cls, device: str) -> str:
        return checked_device(device)

    @field_validator("gpus_per_worker")
    @classmethod
    def _gpus_can_be_shared(cls, gpus: float) -> float:
        if gpus != int(gpus) and not 0.01 <= gpus < 1:  # what Ray can count
            raise ValueError(f"expected a whole number or a share from 0.01 to 1 (came: {gpus})")
        return gpus


class ReportConfig(Section):
    """One self-contained page."""

    images: int = Field(12, ge=0, le=10**4)
    """Pictures of detections shown."""


class Config(Section):
    """The whole run."""

    seed: int = Field(0, ge=0, lt=2**63)
    workspace: str = "runs/default"
    """Folder or fsspec URL; every stage writes <workspace>/<stage>/<fingerprint>/."""
    execution: ExecutionConfig = ExecutionConfig()
    data: DataConfig
    concepts: ConceptsConfig
    teacher: TeacherConfig
    rpn: RpnConfig = RpnConfig()
    proposals: ProposalsConfig
    labels: LabelsConfig
    pairs: PairsConfig = PairsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("workspace")
    @classmethod
    def _workspace_is_a_place(cls, workspace: str) -> str:
        return checked_workspace(workspace)
