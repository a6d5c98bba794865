"""Everything in this process, one shard after the other: for a debugger and for fast tests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from regionclip_core.storage.records import Failure, ShardRecord
from stages.engine import work
from stages.engine.work import ShardWorker, StageOutcome, StageTask


class Backend(Protocol):
    """Where stages run."""

    def shards(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards, yield each one's record as it is done. Closing the iterator cancels the rest."""

    def prepare(self, task: StageTask) -> StageOutcome | Failure:
        """What a shard stage does once, before its shards."""

    def merge(self, task: StageTask) -> StageOutcome | Failure:
        """Merge the finished shards."""

    def job(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run a job; calls `watch` now and then, if it can, so that progress is shown."""

    def close(self) -> None:
        """Let go of all workers."""


class LocalBackend:
    """The in-process backend."""

    def __init__(self) -> None:
        self._worker = ShardWorker()

    def shards(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards in order."""
        for shard in shards:
            yield self._worker.process(task, shard)
        self._worker.forget()

    def prepare(self, task: StageTask) -> StageOutcome | Failure:
        """Prepare in this process."""
        return work.prepare(task)

    def merge(self, task: StageTask) -> StageOutcome | Failure:
        """Merge in this process."""
        return work.merge(task)

    def job(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run the job in this process; a thread calls `watch`."""
        import threading

        if task.distributed and task.config.execution.train_workers > 1:
            raise ValueError("execution.train_workers > 1 needs the ray backend; use --backend ray or train_workers 1")
        ended = threading.Event()

        def watching() -> None:
            while not ended.wait(0.5):
                watch()

        thread = threading.Thread(target=watching, daemon=True)
        thread.start()
        try:
            return work.job(task)
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Let go of the last stage's state."""
        self._worker.forget()
