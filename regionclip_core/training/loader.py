"""The batches of a training in the order of their steps, read in its own process or ahead of it in worker processes.

A batch depends on the number of its step alone, so it does not matter who reads it: with W workers, worker w reads the
steps w, w + W, and so on, and torch's DataLoader hands them over in order.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from regionclip_core.training.unreadable_images import UnreadableImages


@dataclass(frozen=True)
class Loaded:
    """What was read for one step, as it travels from a worker."""

    batch: Any
    notes: list[tuple[str, str | None]] = field(default_factory=list)
    """Each image read: its key, and why it is unreadable; None if it isn't."""
    error: Exception | None = None
    """What ended the reading; there is no batch then."""

    def pin_memory(self) -> Loaded:
        """Return the same in memory from which a GPU can copy by itself; DataLoader calls this."""
        return replace(self, batch=self.batch.pin_memory() if hasattr(self.batch, "pin_memory") else self.batch)


class _Steps(Dataset[Loaded]):
    """`batch_at` as DataLoader wants it. In a worker, unreadable images and errors are results like any other."""

    def __init__(self, batch_at: Callable[[int], Any], unreadable: UnreadableImages) -> None:
        self.batch_at = batch_at
        self.unreadable = unreadable

    def __getitem__(self, step: int) -> Loaded:
        if get_worker_info() is None:
            return Loaded(self.batch_at(step))
        notes = self.unreadable.take_notes()
        try:
            return Loaded(self.batch_at(step), notes)
        except Exception as error:
            # DataLoader would put the traceback into the message. It still does for what can't be pickled.
            with suppress(Exception):
                return Loaded(None, notes, pickle.loads(pickle.dumps(error)))
            raise


def read_batches(
    batch_at: Callable[[int], Any],
    first: int,
    steps: int,
    device: torch.device,
    workers: int = 0,
    unreadable: UnreadableImages | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (step, batch on `device`) for the steps `first` to `steps` - 1, in order.

    Args:
        batch_at: the batch of a step, whose `to(device)` moves its tensors. With workers it must survive pickling, be
            small when pickled (each worker gets a copy), and open its files only when it is called.
        workers: processes that read ahead, two batches each; 0 reads in this process when a batch is asked for.
        unreadable: the object with which `batch_at` counts unreadable images. The counts of this process's object are
            the same with any number of workers: what a worker finds is counted when its batch is yielded.

    Raises:
        RuntimeError: if a worker died.
        Exception: what `batch_at` raises.
    """
    if first >= steps:
        return
    options: dict[str, Any] = {}
    if workers:
        # Forking this process would copy locks that its threads hold (torch's, Ray's, CUDA's), and the workspace's
        # lock. The fork server is a process without threads that imports once what the workers need: this training's,
        # and those of later ones, all of which need most of what boxed_images does.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(batch_at).__module__, "regionclip_core.training.boxed_images"])
        options = {"multiprocessing_context": context, "worker_init_fn": _end_with_the_training}
    batches = iter(
        DataLoader(
            _Steps(batch_at, unreadable or UnreadableImages()),
            batch_size=None,  # an item is a batch already
            sampler=range(first, steps),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            **options,
        )
    )
    for step in range(first, steps):
        try:
            loaded = next(batches)
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
                raise
            raise RuntimeError(
                f"a process that reads images for this training died before step {step} ({error}). If the machine was "
                f"out of memory, lower execution.loader_workers (now {workers}) or the batch size; if /dev/shm is "
                "small, make it larger. Then run again: the training goes on from its last checkpoint"
            ) from error
        for key, reason in loaded.notes:
            assert unreadable is not None
            unreadable.count(key, reason)
        if loaded.error is not None:
            raise loaded.error
        yield step, loaded.batch.to(device)


def _end_with_the_training(worker: int) -> None:
    """End this worker when the training's process is gone, even if that was killed.

    DataLoader's own check looks at the parent's process id; here that is the fork server's, which lives as long as its
    workers do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
