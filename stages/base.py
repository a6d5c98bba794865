"""What a stage is. A stage file `stages/<name>.py` defines one class and ends with `STAGE = <Class>()`.

Stage modules must import without torch, spaCy and open_clip: heavy imports belong inside the methods, so that
`regionclip status` answers at once.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.storage.records import Folder, ShardRecord

__all__ = [
    "STAGES",
    "JobStage",
    "ShardRecord",
    "ShardResult",
    "ShardStage",
    "Stage",
    "StageContext",
    "StageRegistry",
    "no_progress",
]


def no_progress(done: int, total: int, note: str = "") -> None:
    """The progress callback that shows nothing."""


@dataclass
class StageContext:
    """All that a stage is handed. It is built anew in every worker; nothing in it needs to be picklable."""

    config: Config
    out: Folder
    """This stage's artifact folder. Files written through `out.write` are its content."""
    inputs: Mapping[str, Folder]
    """Finished upstream artifacts by stage name."""
    device: str = "cpu"
    """`cpu` or `cuda`, already resolved; always `cpu` for stages that do not set `uses_gpu`."""
    threads: int = 1
    """torch threads; already set in this process."""
    progress: Callable[[int, int, str], None] = no_progress
    """progress(done, total, note): cheap, call it every step."""
    train_workers: int = 1
    rank: int = 0
    """Rank in torch.distributed; 0 when the job runs alone."""
    world_size: int = 1
    """Processes of this job; above 1 torch.distributed is initialised."""
    counts: dict[str, int] = field(default_factory=dict)
    """What a job's `run` fills in: samples by status, as a ShardResult's; of all processes."""


@dataclass(frozen=True)
class ShardResult:
    """What `process` returns. `counts`: samples by status, "ok" and "bad_<reason>"; whatever else has another name."""

    rows: int
    counts: dict[str, int]


class Stage(ABC):
    """One step of the pipeline. `version` is bumped when the meaning of the output changes."""

    name: ClassVar[str]
    version: ClassVar[int]
    uses_gpu: ClassVar[bool] = False
    """True for stages that run a model with torch; they get a GPU where there is one."""

    def needs(self, config: Config) -> tuple[str, ...]:
        """Names of the stages whose artifacts this one reads."""
        return ()

    def by_default(self, config: Config) -> bool:
        """Whether a run of everything does this stage; False where nothing else would read it."""
        return True

    def settings(self, config: Config) -> dict[str, Any]:
        """The slice of the config that the output depends on: plain JSON values, nested as in pipeline.yaml."""
        return {self.name: getattr(config, self.name).model_dump(mode="json"), "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """External files, folders or glob patterns whose content the output depends on."""
        return []


class ShardStage(Stage):
    """A stage that works shard by shard, in any order and on any worker."""

    @abstractmethod
    def shards(self, ctx: StageContext) -> list[int]:
        """Shards to do: a subset of data's shard numbers. Called in the driver: no heavy imports."""

    def prepare(self, ctx: StageContext) -> None:
        """Once, before any shard is done: write what every shard needs, through `ctx.out.write`.

        Runs again on a resume, so it must write the same files.
        """

    def setup(self, ctx: StageContext) -> Any:
        """Load what every shard needs, once a worker and stage; what it returns goes to `process`."""
        return None

    @abstractmethod
    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Do one shard: write `<what>-<shard:05d>.<ext>` files through `ctx.out.write`. Must be deterministic."""

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Once, when all shards are done; may write files. Returns a JSON-able summary."""
        return {}


class JobStage(Stage):
    """A stage that is one piece of work, such as a training. It resumes from checkpoints of its own."""

    distributed: ClassVar[bool] = False
    """True when `run` works with ctx.world_size > 1: then rank 0 writes the files and returns the summary."""

    @abstractmethod
    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Do the work; returns a JSON-able summary.

        Every file of the result is written through `ctx.out.write` in the same call that returns, also after a
        resume. Checkpoints go to `ctx.out.child("checkpoints")`, which is no part of the content.
        """


class StageRegistry(Mapping[str, Stage]):
    """Stages by name, in pipeline order; a stage's module is imported when it is first asked for."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        """`targets` maps a stage's name to "module:attribute"."""
        self.targets = dict(targets)

    def __getitem__(self, name: str) -> Stage:
        if name not in self.targets:
            raise KeyError(name)
        return load_stage(self.targets[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


def load_stage(target: str) -> Stage:
    """The stage at "module:attribute"."""
    module, attribute = target.split(":")
    stage = getattr(importlib.import_module(module), attribute)
    if not isinstance(stage, Stage):
        raise TypeError(f"{target} is a {type(stage).__name__}, not a Stage instance")
    return stage


STAGES = StageRegistry({name: f"stages.{name}:STAGE" for name in STAGE_NAMES})
