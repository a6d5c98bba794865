"""What a worker does with a stage, whichever backend it runs in: one shard, a merge, or a job.

Exceptions of a stage come back as `Failure`s; only an interrupt passes through.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.locations import remote
from regionclip_core.storage.records import (
    MANIFEST,
    PLAN,
    PROGRESS,
    RECORDS,
    Failure,
    FileRecord,
    Folder,
    ShardRecord,
    canonical_json,
    read_records,
    read_shard_record,
    shard_record_name,
    write_shard_record,
)
from stages.base import JobStage, ShardStage, StageContext, load_stage, no_progress

_log = logging.getLogger(__name__)

SPIN_COUNT = "5000"
"""How long waiting OpenMP threads spin before they sleep. At the default of 300,000 a training on two threads runs
four times slower where another program takes one of the CPUs; sleeping at once costs an idle machine 40 %."""
PROGRESS_EVERY = 1.0
"""Seconds between two progress files of a job in a local workspace; ten times that in a remote one."""


@dataclass(frozen=True)
class StageTask:
    """A stage to run, as it travels to a worker: names and URLs, never data."""

    stage: str
    target: str
    """"module:attribute" of the stage object."""
    config: Config
    out: str
    inputs: dict[str, str]
    """URL of each upstream artifact, by stage name."""
    uses_gpu: bool = False
    distributed: bool = False


@dataclass(frozen=True)
class StageOutcome:
    """What a job or a merge gave: its files and its summary."""

    files: list[FileRecord]
    summary: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    """A job's samples by status; empty where it has none."""


class Committed(Exception):
    """Somebody else has committed what this call is doing."""


class OpenFolder(Folder):
    """An artifact's folder for one call, in which no file is put in place once the call's work is committed.

    A worker that the network cut off goes on with a call that another one has done meanwhile. Its files may differ from
    the committed ones (on a GPU in their last bits), and the record would not speak for them. The look comes right
    before the rename or the put, so only one that is under way in the moment of the commit can still come after it.
    """

    def __init__(self, url: str, commit: str) -> None:
        """commit: name of the record that commits what the call does."""
        super().__init__(url)
        self._commit = commit

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_commit": self._commit}

    def check(self) -> None:
        """Raises Committed."""
        if self._is_committed():
            raise Committed(f"{self.path(self._commit)} is there already: another worker has done this")

    def _is_committed(self) -> bool:
        if self.is_local:
            return self.exists(self._commit)
        with remote(self.url) as (fs, root):
            try:  # one request; `exists` lists as well, since it could be a folder
                fs.cat_file(f"{root}/{self._commit}", start=0, end=1)
            except FileNotFoundError:
                return False
            return True

    def _publish(self, temporary: str, name: str) -> None:
        self.check()
        super()._publish(temporary, name)


def context(
    task: StageTask,
    threads: int,
    progress: Callable[[int, int, str], None] = no_progress,
    commit: str = MANIFEST,
) -> StageContext:
    """The context of one call; its `out` remembers only what this call writes.

    commit: the record after which the call may write nothing.
    """
    return StageContext(
        config=task.config,
        out=OpenFolder(task.out, commit),
        inputs={name: Folder(url) for name, url in task.inputs.items()},
        device=resolve_device(task.config.execution.device) if task.uses_gpu else "cpu",
        threads=threads,
        progress=progress,
        train_workers=task.config.execution.train_workers,
    )


def resolve_device(device: str) -> str:
    """`auto` is cuda where this process sees a GPU. Raises ValueError when cuda is asked for and is not there."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device.startswith("cuda") and not available:
        raise ValueError(f"execution.device is {device}, but torch {torch.__version__} sees no CUDA device here")
    return device


def set_threads(threads: int, uses_torch: bool = False) -> None:
    """Let torch use this many threads, whether it is imported already, now (uses_torch), or later."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # both are read once, when the OpenMP runtime is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if uses_torch or "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def available_cpus() -> int:
    """CPUs this process may use: its affinity, and the control group's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, round(int(quota) / int(period))))


def failure(stage: str, shard: int | None, error: BaseException) -> Failure:
    """The record of an exception that is being handled."""
    lines = traceback.format_exception(error)
    text = f"{type(error).__name__}: {error}".strip()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Failure(stage, shard, text.splitlines()[0], "".join(lines), socket.gethostname(), now)


class ShardWorker:
    """Does the shards of one stage after another; keeps the state that the current stage's `setup` made."""

    def __init__(self) -> None:
        self._out: str | None = None
        self._state: Any = None

    def process(self, task: StageTask, shard: int) -> ShardRecord | Failure:
        """Do and commit one shard. A Failure without a shard number means that the set-up failed.

        A shard that somebody else commits meanwhile stays as it is, and its record is returned. The driver hands out
        no shard that has a record, so one that is there was written since.
        """
        set_threads(1, task.uses_gpu)
        stage = load_stage(task.target)
        assert isinstance(stage, ShardStage)
        try:
            if self._out != task.out:
                self._out, self._state = None, None  # let go of the last stage's model before loading the next
                self._state = stage.setup(context(task, threads=1))
                self._out = task.out
        except Exception as error:
            return failure(task.stage, None, error)
        name = shard_record_name(shard)
        out = OpenFolder(task.out, name)
        try:
            try:
                out.check()
                ctx = context(task, threads=1, commit=name)
                start = time.perf_counter()
                result = stage.process(ctx, self._state, shard)
                seconds = round(time.perf_counter() - start, 3)
                record = ShardRecord(shard, int(result.rows), dict(result.counts), ctx.out.written, seconds)
                write_shard_record(out, record)
                return record
            except Committed:
                return read_shard_record(out, shard)
        except Exception as error:
            return failure(task.stage, shard, error)

    def forget(self) -> None:
        """Let go of the stage's state."""
        self._out, self._state = None, None


def prepare(task: StageTask) -> StageOutcome | Failure:
    """What a shard stage does once before its shards; its files belong to the artifact."""
    try:
        threads = task.config.execution.threads or available_cpus()
        set_threads(threads)
        stage = load_stage(task.target)
        assert isinstance(stage, ShardStage)
        ctx = context(task, threads)
        set_threads(threads)  # again: finding the device may have imported torch
        stage.prepare(ctx)
        return _outcome(task, ctx, {})
    except Exception as error:
        return failure(task.stage, None, error)


def merge(task: StageTask) -> StageOutcome | Failure:
    """Merge a stage whose shards are all done; reads their records from the roll-up."""
    try:
        set_threads(1, task.uses_gpu)
        stage = load_stage(task.target)
        assert isinstance(stage, ShardStage)
        ctx = context(task, threads=1)
        records, _ = read_records(ctx.out)  # which the driver has just rolled up
        if len(records) < (planned := ctx.out.read_json(PLAN)["total"]):
            raise RuntimeError(
                f"{ctx.out.path(RECORDS)} has {len(records)} shards, but {planned} are done: the store still gives an "
                "older one; run again"
            )
        summary = stage.merge(ctx, records)
        return _outcome(task, ctx, summary)
    except Exception as error:
        return failure(task.stage, None, error)


def job(task: StageTask, rank: int = 0, world_size: int = 1, local_world_size: int = 1) -> StageOutcome | Failure:
    """Run a job in this process; with world_size > 1 torch.distributed is initialised already."""
    try:
        threads = task.config.execution.threads or max(1, available_cpus() // local_world_size)
        set_threads(threads, task.uses_gpu)
        stage = load_stage(task.target)
        assert isinstance(stage, JobStage)
        ctx = context(task, threads, ProgressFile(Folder(task.out)) if rank == 0 else no_progress)
        ctx.rank, ctx.world_size = rank, world_size
        return _outcome(task, ctx, stage.run(ctx))
    except Exception as error:
        return failure(task.stage, None, error)


def _outcome(task: StageTask, ctx: StageContext, summary: dict[str, Any]) -> StageOutcome:
    canonical_json(summary, f"summary of {task.stage}")  # refuse here, where the traceback leads to the stage
    return StageOutcome(ctx.out.written, summary, dict(ctx.counts))


class ProgressFile:
    """A job's progress as a small file in its artifact folder, where the driver and `status` can see it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._every = PROGRESS_EVERY if folder.is_local else 10 * PROGRESS_EVERY
        self._last = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self._every or done == total:
            self._last = now
            try:
                self._folder.write_json(PROGRESS, {"done": int(done), "total": int(total), "note": str(note)})
            except OSError as error:  # a job of days doesn't end because its progress can't be shown
                _log.warning("progress not written to %s: %s", self._folder.url, error)
