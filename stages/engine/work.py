"""What a worker does, whichever backend it is in: name the shards of a stage, prepare, one shard, merge, run a job.

Exceptions of a stage come back as `Failure`s; only an interrupt passes through.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from regionclip_core.config.tree import Config
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
from regionclip_core.threads import available_cpus, set_threads

from ..base import StageContext, load_work
from .curves import curves
from .history import History

_log = logging.getLogger(__name__)
R = TypeVar("R")

PROGRESS_EVERY = 1.0
"""Seconds between two progress files of a job in a local workspace; ten times that in a remote one."""

LOADER_WORKERS = 8
"""Most that read ahead beside one GPU, where the config names no number."""


@dataclass(frozen=True)
class StageTask:
    """A stage to run, as it travels to a worker: names and absolute paths or URLs, never data."""

    stage: str
    """What it is called: with the number of its round, where that is not the last."""
    work: str
    """"module:attribute" of its ShardWork or JobWork."""
    config: Config
    out: str
    """The artifact's folder."""
    inputs: dict[str, str]
    """Folder of each upstream artifact, by stage name."""
    uses_gpu: bool = False
    distributed: bool = False
    directory: str = field(default_factory=os.getcwd)
    """The driver's working directory, where relative paths of the config start."""
    gpu: int | None = None
    """Index of the GPU that a worker was given; None: the one that the process sees first."""


@dataclass(frozen=True)
class StageOutcome:
    """What a call gave: its files and its summary."""

    files: list[FileRecord]
    summary: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    """A job's samples by status; empty where it has none."""


def failure(stage: str, shard: int | None, error: BaseException) -> Failure:
    """Return the record of an exception that is being handled."""
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 1000, placeholder=" ...")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Failure(stage, shard, text, "".join(traceback.format_exception(error)), socket.gethostname(), now)


def failures_returned(call: Callable[..., R]) -> Callable[..., R | Failure]:
    """Make a call return the exceptions that it raises, as Failures of the stage as a whole."""

    @functools.wraps(call)
    def wrapped(task: StageTask, *more: Any) -> R | Failure:
        try:
            return call(task, *more)
        except Exception as error:
            return failure(task.stage, None, error)

    return wrapped


# ---------------------------------------------------------------- the calls


@failures_returned
def shards(task: StageTask) -> list[int]:
    """Return the shards that a stage has to do."""
    work, ctx = begin(task)
    return list(work.shards(ctx))


@failures_returned
def prepare(task: StageTask) -> StageOutcome:
    """Do what a shard stage does once before its shards; the files belong to the artifact."""
    work, ctx = begin(task, task.config.execution.threads or available_cpus())
    work.prepare(ctx)
    return StageOutcome(ctx.out.written, {})


class ShardWorker:
    """Does the shards of one stage after another, and keeps what the current stage's `setup` loaded."""

    def __init__(self) -> None:
        self._loaded: tuple[tuple[str, int | None], Any] | None = None
        """(artifact folder and GPU that the state is for, the state)"""

    def process(self, task: StageTask, shard: int) -> ShardRecord | Failure:
        """Do and commit one shard. A Failure without a shard number means that the set-up failed.

        A shard that somebody else commits meanwhile stays as it is, and its record is returned. The driver hands out
        no shard that has a record, so one that is there was written since.
        """
        name = shard_record_name(shard)
        try:
            work, ctx = begin(task, commit=name, cpus=available_cpus())
            wanted, loaded = (task.out, task.gpu), self._loaded
            if loaded is None or loaded[0] != wanted:
                self._loaded = None  # the last stage's model leaves memory before the next one is loaded
                loaded = self._loaded = wanted, work.setup(ctx)
        except Exception as error:
            return failure(task.stage, None, error)
        try:
            try:
                if ctx.out.exists(name):
                    raise Committed
                start = time.perf_counter()
                result = work.process(ctx, loaded[1], shard)
                seconds = round(time.perf_counter() - start, 3)
                counts = result.counts | ({"in_" + used: result.rows} if (used := _lowered(task)) else {})
                record = ShardRecord(shard, result.rows, counts, ctx.out.written, seconds, result.split)
                write_shard_record(ctx.out, record)  # the commit: all files of the shard are in place
                return record
            except Committed:
                return read_shard_record(ctx.out, shard)
        except Exception as error:
            return failure(task.stage, shard, error)

    def forget(self) -> None:
        """Free the stage's state."""
        self._loaded = None
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()


@failures_returned
def merge(task: StageTask) -> StageOutcome:
    """Merge a stage whose shards are all done; reads their records from the roll-up."""
    work, ctx = begin(task)
    planned = ctx.out.read_json(PLAN)["total"]
    records = read_records(ctx.out)[0] if planned else []  # the driver has just rolled them up, where there are any
    if len(records) < planned:
        raise RuntimeError(
            f"{ctx.out.path(RECORDS)} has {len(records)} shards, but {planned} are done: the store still gives an "
            "older one; run again"
        )
    return _outcome(task, ctx, work.merge(ctx, records))


@failures_returned
def job(task: StageTask, rank: int = 0, world_size: int = 1, local_world_size: int = 1) -> StageOutcome:
    """Run a job in this process; with world_size > 1 torch.distributed is initialised already."""
    cpus = max(1, available_cpus() // local_world_size)
    threads = task.config.execution.threads or cpus
    work, ctx = begin(task, threads, cpus=cpus)
    ctx.rank, ctx.world_size = rank, world_size
    with closing(History(Folder(task.out), curves(task.config, task.stage, task.out))) as history:
        if rank == 0:
            ctx.progress = ProgressFile(Folder(task.out), history)
        outcome = _outcome(task, ctx, work.run(ctx))
    return replace(outcome, summary=outcome.summary | {"precision": used}) if (used := _lowered(task)) else outcome


def _lowered(task: StageTask) -> str | None:
    """Return in which precision networks ran, if it was another than float32."""
    from regionclip_core.precision import precision_used

    return used if task.uses_gpu and (used := precision_used()) != "float32" else None


def _outcome(task: StageTask, ctx: StageContext, summary: dict[str, Any]) -> StageOutcome:
    canonical_json(summary, f"summary of {task.stage}")  # refuse here, where the traceback leads to the stage
    return StageOutcome(ctx.out.written, summary, dict(ctx.counts))


# ---------------------------------------------------------------- what a stage's work gets to see


class Committed(Exception):
    """Another worker has committed what this call is doing."""


class OpenFolder(Folder):
    """An artifact's folder for one call, in which no file appears once the call's work is committed.

    A worker that the network cut off goes on with a call that another one has done meanwhile. Its files may differ from
    the committed ones (on a GPU in their last bits), and the record would not match them. The look comes right before
    the rename or the put, so only one that is under way at the moment of the commit can still come after it.
    """

    def __init__(self, url: str, commit: str) -> None:
        """commit: name of the record that commits what the call does."""
        super().__init__(url)
        self._commit = commit

    def _publish(self, temporary: str, name: str) -> None:
        if self.exists(self._commit):
            raise Committed(f"{self.path(self._commit)} is there already: another worker has done this")
        super()._publish(temporary, name)


def begin(task: StageTask, threads: int = 1, commit: str = MANIFEST, cpus: int = 1) -> tuple[Any, StageContext]:
    """Make this process ready for one call; return the stage's work and its context.

    The context's `out` remembers only what this call writes. commit: the record after which the call may write nothing.
    cpus: that this process may use, for reading ahead beside a GPU.
    """
    if os.path.isdir(task.directory):  # a machine that has no such folder can be given absolute paths only
        os.chdir(task.directory)
    set_threads(threads)
    work = load_work(task.work)
    set_threads(threads)  # again: the import may have brought torch
    device = resolve_device(task.config.execution.device) if task.uses_gpu else "cpu"
    if task.uses_gpu:
        from regionclip_core.precision import set_precision  # torch is there by now

        set_precision(task.config.execution.precision, device)
    readers = task.config.execution.loader_workers
    if readers is None:  # on the CPU the network itself uses it
        readers = 0 if device == "cpu" else min(LOADER_WORKERS, cpus)
    return work, StageContext(
        config=task.config,
        out=OpenFolder(task.out, commit),
        inputs={name: Folder(url) for name, url in task.inputs.items()},
        device=device if task.gpu is None or device == "cpu" else f"cuda:{task.gpu}",
        loader_workers=readers,
    )


def resolve_device(device: str, setting: str = "execution.device") -> str:
    """Return `cuda` for `auto` where this process sees a GPU, else `cpu`. ValueError when cuda is asked for and not
    there; `setting` is what the user set."""
    if device == "cpu":
        return device
    import torch  # the driver imports this file, and has no use for torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if not available:
        raise ValueError(
            f"{setting} is {device}, but torch {torch.__version__} sees no CUDA device here; use auto or cpu"
        )
    return device


class ProgressFile:
    """A job's progress as a small file in its artifact folder, where the driver and `status` can see it.

    Rows of a training go on to its history, and what keeps that from being written comes back here.
    """

    def __init__(self, folder: Folder, history: History | None = None) -> None:
        self._folder = folder
        self._history = history
        self._every = PROGRESS_EVERY if folder.is_local else 10 * PROGRESS_EVERY
        self._last = 0.0

    def __call__(self, done: int, total: int, note: str = "", row: Mapping[str, Any] | None = None) -> None:
        if self._history is not None and row is not None:
            self._history.add(row, last=done == total)
        now = time.monotonic()
        if now - self._last >= self._every or done == total:
            self._last = now
            try:
                shown = {"done": int(done), "total": int(total), "note": str(note)}
                if self._history is not None and self._history.problem:
                    shown["problem"] = self._history.problem
                self._folder.write_json(PROGRESS, shown)
            except OSError as error:  # a job of days doesn't end because its progress can't be shown
                _log.warning("progress not written to %s: %s", self._folder.url, error)
