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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regionclip_core.artifacts import (
    PLAN,
    PROGRESS,
    Failure,
    FileRecord,
    Folder,
    ShardRecord,
    canonical_json,
    done_shards,
    read_shard_records,
    write_shard_record,
)
from regionclip_core.config import Config
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


def context(task: StageTask, threads: int, progress: Callable[[int, int, str], None] = no_progress) -> StageContext:
    """The context of one call; its `out` remembers only what this call writes."""
    return StageContext(
        config=task.config,
        out=Folder(task.out),
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
        """Do and commit one shard. A Failure without a shard number means that the set-up failed."""
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
        try:
            ctx = context(task, threads=1)
            start = time.perf_counter()
            result = stage.process(ctx, self._state, shard)
            seconds = round(time.perf_counter() - start, 3)
            record = ShardRecord(shard, int(result.rows), dict(result.counts), ctx.out.written, seconds)
            write_shard_record(Folder(task.out), record)
            return record
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
    """Merge a stage whose shards are all done; reads their records from the artifact folder."""
    try:
        set_threads(1, task.uses_gpu)
        stage = load_stage(task.target)
        assert isinstance(stage, ShardStage)
        ctx = context(task, threads=1)
        records = read_shard_records(ctx.out, done_shards(ctx.out.names()))
        if len(records) < (planned := ctx.out.read_json(PLAN)["total"]):
            raise RuntimeError(
                f"{ctx.out.url} lists the records of {len(records)} shards, but {planned} are done: its listing lags, "
                "or records were deleted during the run; run again"
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
    return StageOutcome(ctx.out.written, summary)


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
