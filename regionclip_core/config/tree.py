"""The configuration tree: one frozen, typed model for every setting of every stage.

A stage's name is its key here, in pipeline.yaml, on the command line and in the workspace. Every section but
`workspace` and `execution` enters the fingerprints of the stages that read it (one key of `execution` can: see
ARCHITECTURE.md, decision 39). The sections are declared by subject in `data.py`, `regions.py`, `training.py` and
`execution.py`; `X as X` marks what other files import from here. `loading.py` loads and overrides a configuration.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from regionclip_core.config.data import CocoSplit as CocoSplit
from regionclip_core.config.data import ConceptsConfig as ConceptsConfig
from regionclip_core.config.data import DataConfig as DataConfig
from regionclip_core.config.data import FolderSplit as FolderSplit
from regionclip_core.config.data import LvisSplit as LvisSplit
from regionclip_core.config.data import Split as Split
from regionclip_core.config.data import TarsSplit as TarsSplit
from regionclip_core.config.data import WorldSplit as WorldSplit
from regionclip_core.config.execution import ExecutionConfig as ExecutionConfig
from regionclip_core.config.execution import checked_workspace
from regionclip_core.config.regions import EvaluateConfig as EvaluateConfig
from regionclip_core.config.regions import LabelsConfig as LabelsConfig
from regionclip_core.config.regions import PairsConfig as PairsConfig
from regionclip_core.config.regions import ProposalsConfig as ProposalsConfig
from regionclip_core.config.regions import Resize as Resize
from regionclip_core.config.section import Section as Section
from regionclip_core.config.training import RPN_FIELDS as RPN_FIELDS
from regionclip_core.config.training import ClipArchitecture as ClipArchitecture
from regionclip_core.config.training import FinetuneConfig as FinetuneConfig
from regionclip_core.config.training import OptimConfig as OptimConfig
from regionclip_core.config.training import PretrainConfig as PretrainConfig
from regionclip_core.config.training import RpnConfig as RpnConfig
from regionclip_core.config.training import TeacherConfig as TeacherConfig
from regionclip_core.config.training import TeacherTraining as TeacherTraining


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


STAGE_NAMES = tuple(name for name in Config.model_fields if name not in ("seed", "workspace", "execution"))
