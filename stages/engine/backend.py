"""Where stages run: in this process here, for a debugger and for fast tests; on Ray in `ray_backend.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Protocol

from regionclip_core.storage.records import Failure, ShardRecord

from . import work
from .work import ShardWorker, StageTask

Call = Literal["shards", "prepare", "merge", "job"]
"""A function of `work.py` that is called once per stage."""


class Backend(Protocol):
    """What the runner asks of a place where stages run."""

    def process(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards and yield each one's record as it is done. Closing the generator cancels the rest."""

    def call(self, task: StageTask, call: Call, watch: Callable[[], None] = lambda: None) -> Any:
        """Return what the call gives, or its Failure; call `watch` now and then, so that progress is shown."""

    def close(self) -> None:
        """End all workers."""


class LocalBackend:
    """Everything in this process, one shard after the other."""

    def __init__(self) -> None:
        self._worker = ShardWorker()

    def process(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards in order."""
        for shard in shards:
            yield self._worker.process(task, shard)
        self._worker.forget()

    def call(self, task: StageTask, call: Call, watch: Callable[[], None] = lambda: None) -> Any:
        """Call the function while a thread calls `watch`."""
        ended = threading.Event()

        def watching() -> None:
            while not ended.wait(0.5):
                watch()

        thread = threading.Thread(target=watching, daemon=True)
        thread.start()
        try:
            return getattr(work, call)(task)
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Free the last stage's state."""
        self._worker.forget()
