"""Stages on Ray: every shard is a Ray task.

Ray places the tasks, repeats those whose worker or machine was lost, on any worker that has a place, and gives them to
machines that join. What is written here hands out as many shards at a time as there are places, and waits. A worker
process does one task after the other and keeps what a stage's `setup` loaded in between. Only shard numbers and records
travel.

Tasks and not actors: Ray repeats an actor's call only in the actor that died, and on a full cluster that one may never
get a place again.
"""

from __future__ import annotations

import importlib
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import ray

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.records import Failure, ShardRecord
from regionclip_core.threads import set_threads

from . import ray_cluster, work
from .backend import Call
from .ray_cluster import NoRoom, Patience, WorkerDied
from .ray_training import train
from .work import ShardWorker, StageTask

TICK = 0.5
"""Seconds between two looks at a running call."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the cluster."""
FORGET_AFTER = 5.0
"""Seconds without a task after which a worker process frees a stage's model: the next stage may need the memory."""
MODEL_MODULES = ("torch", "torchvision", "open_clip")
"""What stages with a model import."""

# ---------------------------------------------------------------- in a worker process

_shards = ShardWorker()
_idle = threading.Timer(0, lambda: None)


def call(note: str, task: StageTask, function: str, shard: int | None) -> Any:
    """Run one shard (`process`), or a function of work.py; says first that it runs."""
    global _idle
    ray_cluster.say_it_runs(note)
    _idle.cancel()
    try:
        task = replace(task, gpu=ray_cluster.own_gpu())
        if function == "process":
            assert shard is not None
            return _shards.process(task, shard)
        _shards.forget()
        return getattr(work, function)(task)
    finally:
        _idle = threading.Timer(FORGET_AFTER, _shards.forget)
        _idle.daemon = True
        _idle.start()


def warm() -> None:
    """Import what the next stages will need. A module that is missing is the stage's to complain about."""
    set_threads(1)
    for module in MODEL_MODULES:
        try:
            importlib.import_module(module)
        except ImportError:
            return


# ---------------------------------------------------------------- in the driver


class RayBackend:
    """Stages on a Ray cluster, or on Ray started on this machine for the time of the run."""

    def __init__(
        self, execution: ExecutionConfig, runs_models: bool = False, say: Callable[[str], None] = print
    ) -> None:
        """runs_models: whether a shard stage runs a model; idle workers then import torch during a job before it.

        say: shows the user a line.
        """
        self._execution = execution
        self._say = say
        self._warm = runs_models
        self._own = not ray.is_initialized()
        self.dashboard = ray_cluster.connect(execution) if self._own else None
        there = ray_cluster.resources()
        self.cpus, self.gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))

    def describe(self) -> str:
        """Return one line for the user."""
        where = self._execution.address or "this machine"
        link = f", dashboard http://{self.dashboard}" if self.dashboard else ""
        return f"ray on {where}: {self.cpus} CPUs, {self.gpus:g} GPUs{link}"

    def process(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards on all workers; yields in order of completion."""
        yield from self._hand_out(task, "process", shards)

    def call(self, task: StageTask, call: Call, watch: Callable[[], None] = lambda: None) -> Any:
        """Call the function in one worker, or run the job in several processes through Ray Train."""
        workers, gpu = self._execution.train_workers, self._uses_gpu(task)
        if task.distributed and workers > 1:
            kind = "GPU" if gpu else "CPU"
            there = int(ray_cluster.resources().get(kind, 0))
            if workers > there:
                short = f"execution.train_workers is {workers}, but the cluster has {there} {kind}s"
                if self._execution.address is None:
                    raise ValueError(f"{short}: give at most that many, or a larger cluster by execution.address")
                self._say(f"{short} now: {task.stage} waits for more")
            return train(task, gpu, self._say, watch)
        if call == "job" and self._warm:
            self._warm = False
            for _ in range(self._size(gpu) - 1):  # the other workers have nothing to do
                ray.remote(warm).options(**self._asks(gpu), max_retries=0).remote()
        [result] = self._hand_out(task, call, [None], watch)
        return result

    def close(self) -> None:
        """Disconnect, and end Ray if it was started here."""
        if self._own:
            ray.shutdown()

    # ------------------------------------------------------------ how many, with what

    def _uses_gpu(self, task: StageTask) -> bool:
        """A cluster's GPUs count once they were seen: where their machine was lost, the stage waits for another one."""
        device, on_cluster = self._execution.device, self._execution.address is not None
        if not task.uses_gpu or device == "cpu":
            return False
        if on_cluster:
            self.gpus = max(self.gpus, float(ray_cluster.resources().get("GPU", 0)))
        return self.gpus > 0 or (on_cluster and device.startswith("cuda"))

    def _gpu_share(self) -> float:
        """Each GPU worker's share of a GPU. Default: a whole one; less where more workers than GPUs are asked for."""
        asked = self._execution.workers or 1
        if self._execution.gpus_per_worker > 0:
            return self._execution.gpus_per_worker
        if not asked > self.gpus > 0:
            return 1.0
        return math.floor(10_000 / math.ceil(asked / self.gpus)) / 10_000  # Ray counts in ten-thousandths

    def _asks(self, gpu: bool) -> dict[str, float]:
        """What one call asks of Ray. GPU calls ask for no CPU: stages run one at a time, so the CPUs are free."""
        return {"num_cpus": 0, "num_gpus": self._gpu_share()} if gpu else {"num_cpus": 1}

    def _size(self, gpu: bool) -> int:
        """Return how many calls run at a time: `execution.workers`, or as many as have a place.

        At least one, since machines may still join. What has no place waits for one in Ray: an autoscaler reacts to it.
        """
        share = self._gpu_share() if gpu else 1.0
        there = ray_cluster.resources().get("GPU" if gpu else "CPU", 0)
        if self._execution.address is None and share > there:
            short = f"execution.gpus_per_worker is {share:g}, but this machine has {there:g} GPUs"
            raise ValueError(f"{short}: give at most that many, or a larger cluster by execution.address")
        return self._execution.workers or max(1, int(there / share + 1e-9))

    # ------------------------------------------------------------ handing out calls

    def _hand_out(
        self, task: StageTask, function: str, shards: Sequence[int | None], watch: Callable[[], None] = lambda: None
    ) -> Generator[Any, None, None]:
        """Hand out calls, `_size` at a time; yields their results as they end. `shards`: [None] for a single call."""
        gpu = self._uses_gpu(task)
        asks, size = self._asks(gpu), self._size(gpu)
        needs = f"{asks['num_gpus']:g} GPU" if gpu else "1 CPU"
        retries = self._execution.shard_retries
        remote = ray.remote(call).options(**asks, max_retries=retries)
        handed = ray.put(task)
        waiting, running = deque(shards), dict[Any, int | None]()
        notes = uuid.uuid4().hex
        patience, next_look, asks_ray = Patience(self._say), 0.0, True
        try:
            while waiting or running:
                while waiting and len(running) < size:
                    shard = waiting.popleft()
                    running[remote.remote(f"{notes} {shard}", handed, function, shard)] = shard
                ready, _ = ray.wait(list(running), num_returns=1, timeout=TICK)
                for answer in ready:
                    patience.go_on()
                    yield self._result(task, running.pop(answer), answer)
                watch()
                if time.monotonic() < next_look:
                    continue
                next_look = time.monotonic() + LOOK_EVERY
                if waiting and self._execution.address is not None and self._execution.workers is None:
                    before, size = size, max(size, self._size(gpu))
                    if size > before:
                        self._say(f"the cluster has grown: {size} workers with {needs} each, {before} before")
                if not running or ray_cluster.runs_one_of(f"{notes} {shard}" for shard in running.values()):
                    patience.go_on()
                elif patience.wait(f"a worker with {needs}") > ray_cluster.GIVE_UP_AFTER:
                    limit = f"{ray_cluster.GIVE_UP_AFTER:.0f} s"
                    reason = NoRoom(f"no place for a worker with {needs} in {limit}. {ray_cluster.room()}")
                    yield work.failure(task.stage, None, reason)  # without a shard, since no shard is to blame
                    return
        except KeyboardInterrupt:
            # A signal to the whole process group, as from `timeout` or Slurm, has ended this machine's Ray too: to
            # ask it for anything would take a minute and then end this process. `close` ends what is left.
            asks_ray = not self._own
            raise
        finally:  # interrupted, or the stage was: calls in flight end with their workers
            if asks_ray:
                for answer in running:
                    ray.cancel(answer, force=True)
                ray_cluster.remove_notes(notes)

    def _result(self, task: StageTask, shard: int | None, answer: Any) -> Any:
        """Return what a call gave; a Failure if its worker was lost each time."""
        try:
            return ray.get(answer)
        except ray_cluster.LOST as lost:
            tries = 1 + self._execution.shard_retries
            died = WorkerDied(
                f"the worker died {tries} times: out of memory, a crash in native code, or a lost machine? Ray says: "
                f"{ray_cluster.in_one_line(lost)}"
            )
            return work.failure(task.stage, shard, died)
        except ray.exceptions.RayError as error:  # nothing that a shard can be blamed for
            return work.failure(task.stage, None, RuntimeError(f"Ray could start no worker: {error}"))
