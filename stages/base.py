"""What a stage is, and what its work is.

`Stage` is what the planner and the command line read: all eleven are in `declarations.py`, which imports nothing slow.
Its work is what a worker does: `stages/<name>.py` defines one class and ends with `WORK = <Class>()`, with
all its imports at the top.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import Folder, ShardRecord

# ---------------------------------------------------------------- what a stage is


class Stage(ABC):
    """One step of the pipeline. Use ShardStage or JobStage."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised when the meaning of the output changes while the settings don't."""
    uses_gpu: ClassVar[bool] = False
    """True for stages that run a model with torch; they get a GPU where there is one."""
    for_pretraining: ClassVar[bool] = False
    """True for stages that only training the student needs; a run of everything leaves them out where one is given."""

    @property
    def work(self) -> str:
        """Where the stage's work is, as "module:attribute"."""
        return f"{__package__}.{self.name}:WORK"  # `stages`, or `regionclip_stages` where it is installed

    def needs(self, config: Config) -> tuple[str, ...]:
        """Return the names of the stages whose artifacts this one reads; `student`: `pretrain` of the round before."""
        return ()

    def by_default(self, config: Config) -> bool:
        """Return whether a run of everything does this stage."""
        return config.pretrain.weights == "train" or not self.for_pretraining

    def settings(self, config: Config) -> dict[str, Any]:
        """Return what the output depends on in the config: plain JSON values, nested as in pipeline.yaml."""
        return {self.name: getattr(config, self.name).model_dump(mode="json"), "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """Return the external files, folders or glob patterns whose content the output depends on."""
        return []


class ShardStage(Stage):
    """A stage that works shard by shard, in any order and on any worker."""


class JobStage(Stage):
    """A stage that is one piece of work, such as a training. It resumes from checkpoints of its own."""

    distributed: ClassVar[bool] = False
    """True when its work can run in several processes."""


# ---------------------------------------------------------------- what a worker does


def no_progress(done: int, total: int, note: str = "", row: Mapping[str, Any] | None = None) -> None:
    """Show nothing."""


@dataclass
class StageContext:
    """What a stage's work gets to see. Every worker builds its own; nothing in it needs to be picklable."""

    config: Config
    out: Folder
    """This stage's artifact folder. Files written through `out.write` are its content."""
    inputs: Mapping[str, Folder]
    """Finished upstream artifacts by the names in `needs`."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:N`, already resolved; always `cpu` for stages without `uses_gpu`."""
    progress: Callable[..., None] = no_progress
    """progress(done, total, note, row): cheap, call it at every step. `row`, where there is one, is a training's new
    row of its history, with the name of the training under `training` where the stage has several."""
    rank: int = 0
    """Rank in torch.distributed; 0 when the job runs alone."""
    world_size: int = 1
    """Processes of this job; above 1 torch.distributed is initialised."""
    loader_workers: int = 0
    """Processes that read ahead for this process's training, threads in the other stages; 0: it reads by itself."""
    counts: dict[str, int] = field(default_factory=dict)
    """Samples by status, as in ShardResult, over all processes; a job's `run` fills it in."""


@dataclass(frozen=True)
class ShardResult:
    """What `process` returns: the rows that it wrote, and samples by status ("ok", "bad_<reason>", other counts)."""

    rows: int
    counts: dict[str, int]
    split: str = ""
    """Whose samples they are, where a stage reads several splits: each is then judged by itself."""


class ShardWork(ABC):
    """The work of a ShardStage. Every method may run in another process than the one before."""

    @abstractmethod
    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards to do: a subset of data's shard numbers."""

    def prepare(self, ctx: StageContext) -> None:  # noqa: B027 (most stages have nothing to prepare)
        """Write what every shard needs, through `ctx.out.write`, before any shard is done.

        Runs again on a resume, so it must write the same files.
        """

    def setup(self, ctx: StageContext) -> Any:
        """Load what every shard needs, once per worker and stage; `process` gets what it returns. Writes nothing."""
        return None

    @abstractmethod
    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Do one shard: write `<what>-<shard:05d>.<ext>` files through `ctx.out.write`. Must be deterministic."""

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Return a JSON-able summary when all shards are done; may write files."""
        return {}


class JobWork(ABC):
    """The work of a JobStage."""

    @abstractmethod
    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Do the work and return a JSON-able summary.

        Every file of the result is written through `ctx.out.write` in the same call that returns, also after a
        resume; with several processes, by rank 0 only. Checkpoints go to `ctx.out.child("checkpoints")`, which is not
        part of the content.
        """


def load_work(target: str) -> ShardWork | JobWork:
    """Import the ShardWork or JobWork at "module:attribute"."""
    module, attribute = target.split(":")
    work = getattr(importlib.import_module(module), attribute)
    if not isinstance(work, (ShardWork, JobWork)):
        raise TypeError(f"{target} is a {type(work).__name__}, not a ShardWork or JobWork")
    return work
