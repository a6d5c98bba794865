"""Stages on Ray. Only this file, ray_workers.py and ray_training.py import ray.

Ray schedules, restarts workers, places GPUs and runs multi-process training. What is written here is the hand-out of
shard descriptors to workers that live through the run, so that a model is loaded once a worker and stage, and starting
up is paid once a run. Only records come back.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU workers alone

import ray
from ray.exceptions import RayError

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.records import Failure, ShardRecord
from stages.engine import ray_workers, work
from stages.engine.ray_workers import (
    NoRoom,
    Patience,
    Pool,
    WorkerDied,
    alive_nodes,
    environment,
    places,
    resources,
    room,
)
from stages.engine.work import StageOutcome, StageTask

OBJECT_STORE = 128 * 1024 * 1024
"""Bytes of Ray's object store on this machine: only descriptors and records pass through it."""
CONNECT_WITHIN = 10.0
"""Seconds in which a cluster's address has to answer."""
TICK = 0.5
"""Seconds between two looks at a running call."""
LOOK_EVERY = 2.0
"""Seconds between two looks at the cluster's machines."""
LOST_AFTER = 20.0
"""Seconds until the call of a worker without a place goes to another: its node is gone, or Ray can't start it anew."""
MOST_MOVES = 3
"""How often a call goes to another worker because its node was lost."""

PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Variables that say where a store is. Keys are not passed on: Ray shows what is in its dashboard and its logs."""

Call = tuple[Any, str, tuple[Any, ...]]
"""(key, method of the worker, arguments after the task)"""
Handed = tuple[Any, Call, RayError | None]
"""(worker, call, None); or, while the worker is asked where it is, with the error that ended the call."""


def worker_environment() -> dict[str, str]:
    """What the driver can import, workers can: its sys.path, made absolute. One thread, until a job asks for more.
    Where a store is, they know too, but the keys to it must be on each machine.

    Waiting threads soon sleep: Ray's own processes share the CPUs, and spinning threads would take their turns.
    """
    path = dict.fromkeys(os.path.abspath(p or os.curdir) for p in sys.path if not p.endswith(".zip"))
    spin = os.environ.get("GOMP_SPINCOUNT", work.SPIN_COUNT)
    places = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    open_places = {name: value for name, value in places.items() if urlsplit(value).password is None}
    return {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": spin, **open_places}


class RayBackend:
    """Stages on a Ray cluster, or on Ray started on this machine for the time of the run."""

    def __init__(
        self, execution: ExecutionConfig, warm: Sequence[str] = (), say: Callable[[str], None] = print
    ) -> None:
        """`warm`: modules that later shard stages need; workers that stand by during a job import them.

        say: tells the user a line.
        """
        self._execution = execution
        self._say = say
        self._warm = tuple(warm)
        self._pools: dict[bool, Pool] = {}
        self._own = not ray.is_initialized()
        self._runtime_env: dict[str, Any] = {"env_vars": worker_environment()}
        self.dashboard: str | None = None
        try:
            if self._own:
                self._init()
            there = resources()
            self.cpus, self.gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))
            self.pool(gpu=False)  # its workers start while the driver goes on
        except BaseException:  # an interrupt too: nobody else could end what has started
            self.close()
            raise

    def _init(self) -> None:
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if self._execution.address is not None:
            self._join(self._execution.address, common)
            return
        cpus = max(work.available_cpus(), self._execution.workers or 1, self._execution.train_workers)
        common |= {"include_dashboard": self._execution.dashboard, "object_store_memory": OBJECT_STORE}
        # All processes started from here inherit the environment: a runtime_env does the same 2-3 s slower.
        with environment(worker_environment()):
            self.dashboard = ray.init(address="local", num_cpus=cpus, **common).dashboard_url
        self._runtime_env = {}

    def _join(self, address: str, common: dict[str, Any]) -> None:
        """Connect to a cluster. Raises ValueError where there is none."""
        where = urlsplit(address if "://" in address else f"ray://{address}")
        try:
            if where.port is not None:  # Ray itself would go on trying for minutes
                socket.create_connection((where.hostname or "", where.port), CONNECT_WITHIN).close()
            self.dashboard = ray.init(address=address, **common).dashboard_url
        except (OSError, ValueError) as error:
            raise ValueError(
                f"execution.address: no Ray cluster answers at {address} ({str(error).splitlines()[0]}); start one "
                "there (`ray start --head`), mend the address, or set it to null for this machine alone"
            ) from error

    def describe(self) -> str:
        """One line for the user."""
        where = self._execution.address or "this machine"
        link = f", dashboard http://{self.dashboard}" if self.dashboard else ""
        return f"ray on {where}: {self.cpus} CPUs, {self.gpus:g} GPUs{link}"

    # ------------------------------------------------------------ Backend

    def shards(self, task: StageTask, shards: Sequence[int]) -> Generator[ShardRecord | Failure, None, None]:
        """Do the shards on all workers; yields in order of completion."""
        calls: list[Call] = [(shard, "process", (shard,)) for shard in shards]
        for _, result in self._dispatch(task, calls):
            yield result

    def prepare(self, task: StageTask) -> StageOutcome | Failure:
        """Prepare in one worker."""
        return self._one(task, "prepare")

    def merge(self, task: StageTask) -> StageOutcome | Failure:
        """Merge in one worker."""
        return self._one(task, "merge")

    def job(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run a job in one warm worker, or in several through Ray Train."""
        if task.distributed and self._execution.train_workers > 1:
            return self._train(task, watch)
        return self._one(task, "job", watch)

    def _one(self, task: StageTask, method: str, watch: Callable[[], None] = lambda: None) -> StageOutcome | Failure:
        [(_, result)] = self._dispatch(task, [(None, method, ())], watch)
        assert isinstance(result, (StageOutcome, Failure))
        return result

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        if self._own:
            ray.shutdown()
        else:
            self.close_pools()

    # ------------------------------------------------------------ workers

    def _uses_gpu(self, task: StageTask) -> bool:
        """A cluster's GPUs count once they were seen: where their machine was lost, the stage waits for another one."""
        device, on_cluster = self._execution.device, self._execution.address is not None
        if not task.uses_gpu or device == "cpu":
            return False
        if on_cluster:
            self.gpus = max(self.gpus, float(resources().get("GPU", 0)))
        return self.gpus > 0 or (on_cluster and device.startswith("cuda"))

    def pool(self, gpu: bool) -> Pool:
        """The CPU workers (one CPU each), or the GPU workers.

        GPU workers ask for no CPU: stages run one at a time, so the CPUs that idle CPU workers hold are free.
        """
        if gpu not in self._pools:
            asks = {"num_cpus": 0, "num_gpus": self._gpu_share()} if gpu else {"num_cpus": 1}
            self._pools[gpu] = Pool(self._size(gpu), {**asks, "runtime_env": self._runtime_env})
        return self._pools[gpu]

    def _gpu_share(self) -> float:
        """Each GPU worker's share of a GPU. Default: a whole one; less where more workers than GPUs are asked for."""
        asked = self._execution.workers or 1
        if self._execution.gpus_per_worker > 0:
            return self._execution.gpus_per_worker
        if not asked > self.gpus > 0:
            return 1.0
        return math.floor(10_000 / math.ceil(asked / self.gpus)) / 10_000  # Ray counts in ten-thousandths

    def _size(self, gpu: bool) -> int:
        """How many workers: as many as have a place, `execution.workers` at most.

        On a cluster as many as are set, place or not: those that wait for one are what an autoscaler reacts to. At
        least one, since machines may still join.
        """
        asked, share = self._execution.workers, self._gpu_share() if gpu else 1.0
        fit = places("GPU" if gpu else "CPU", share)
        if self._execution.address is not None:
            return asked or max(fit, 1)
        if gpu and fit < 1:
            raise ValueError(f"execution.gpus_per_worker is {share:g}, but the cluster has {self.gpus:g} GPUs")
        return min(asked or max(fit, 1), max(fit, 1))

    def _grow(self, gpu: bool, pool: Pool) -> None:
        """Ask for workers on machines that have joined the cluster."""
        if self._execution.address is None or self._execution.workers is not None:
            return
        before = pool.size
        pool.grow(self._size(gpu))
        if pool.size > before:
            self._say(f"the cluster has grown: {pool.size} workers with {pool.needs} each, {before} before")

    def close_pools(self) -> None:
        """End all workers; the next call starts new ones."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    # ------------------------------------------------------------ handing out calls

    def _dispatch(
        self, task: StageTask, calls: Sequence[Call], watch: Callable[[], None] = lambda: None
    ) -> Generator[tuple[Any, Any], None, None]:
        """Hand the calls to workers as they become free, one each; yields (key, result) as they end."""
        gpu = self._uses_gpu(task)
        pool = self.pool(gpu)
        out = _HandOut(task, pool, calls)
        patience, next_look = Patience(self._say), 0.0
        try:
            while out.waiting or out.busy:
                out.hand()
                if not out.waiting and len(calls) == 1:
                    self._warm_idle(pool)
                ready, _ = ray.wait([*out.busy, *pool.starting], num_returns=1, timeout=TICK)
                for answer in ready:
                    if answer in pool.starting:
                        pool.started(answer)
                    else:
                        yield from out.ended(answer)
                watch()
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + LOOK_EVERY
                    yield from out.take_back(alive_nodes())
                    if out.waiting:
                        self._grow(gpu, pool)
                if out.busy or pool.idle or not out.waiting:
                    patience.go_on()
                elif patience.wait(f"a worker with {pool.needs}") > ray_workers.GIVE_UP_AFTER:
                    yield None, _no_room(task, pool)
                    return
        finally:
            out.give_up()  # interrupted, or the stage was: calls in flight end with their workers

    def _warm_idle(self, pool: Pool) -> None:
        """While one worker runs a job, let the others import what comes next."""
        if self._warm:
            for worker in [*pool.idle, *pool.starting.values()]:
                worker.warm.remote(self._warm)
            self._warm = ()

    # ------------------------------------------------------------ training in several processes

    def _train(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run a distributed job through Ray Train."""
        from stages.engine.ray_training import train

        workers, gpu = self._execution.train_workers, self._uses_gpu(task)
        kind = "GPU" if gpu else "CPU"
        there = places(kind, 1.0)
        if workers > there:
            short = f"execution.train_workers is {workers}, but the cluster has {there} {kind}s"
            if self._execution.address is None:
                raise ValueError(short)
            self._say(f"{short} now: {task.stage} waits for more")
        self.close_pools()  # the training's workers need the CPUs that the shard workers hold
        return train(task, gpu, self._runtime_env, self._say, watch)


class _HandOut:
    """The calls of one stage: those that wait, those that a worker has, and how often each was lost.

    Ray could repeat a call itself, but only in the worker that died, and that one may have no place any more: on a
    full cluster another worker has taken it. So a lost call comes back, and goes to whoever is free.
    """

    def __init__(self, task: StageTask, pool: Pool, calls: Sequence[Call]) -> None:
        self._task, self._pool = task, pool
        self.waiting = deque(calls)
        self.busy: dict[Any, Handed] = {}
        """By the reference to the answer that is awaited."""
        self._died: Counter[Any] = Counter()
        self._moved: Counter[Any] = Counter()
        self._lost: dict[Any, float] = {}
        """Since when a worker with a call has had no place, by the same reference."""

    def hand(self) -> None:
        """Give waiting calls to free workers."""
        while self.waiting and (worker := self._pool.take()) is not None:
            call = self.waiting.popleft()
            method = getattr(worker, call[1]).options(max_task_retries=0)
            self.busy[method.remote(self._task, *call[2])] = (worker, call, None)

    def ended(self, answer: Any) -> Iterator[tuple[Any, Any]]:
        """An awaited answer is there: the call's result, its loss, or where the worker that lost it is now."""
        worker, call, error = self.busy.pop(answer)
        self._lost.pop(answer, None)
        if error is not None:
            if self._pool.stayed(worker, answer):
                yield call[0], self._failure(call, error)
            else:
                yield from self._move(call, error)
            return
        try:
            value = ray.get(answer)
        except RayError as lost:
            self._died[call[0]] += 1
            if self._died[call[0]] > self._task.config.execution.shard_retries:
                # The call's fault, or did it share its node's fate?
                self.busy[self._pool.ask_node(worker)] = (worker, call, lost)
            else:
                self._pool.restarts(worker, lost)
                self.waiting.appendleft(call)
            return
        self._pool.free(worker)
        yield call[0], value

    def take_back(self, alive: set[str]) -> Iterator[tuple[Any, Any]]:
        """Take calls from workers that have had no place for a while; `alive`: the living nodes.

        A worker that is only cut off may still do its call. It then finds the record of who did it in its place.
        """
        now = time.monotonic()
        for answer, (worker, call, error) in list(self.busy.items()):
            if error is None and self._pool.nodes[worker] in alive:
                self._lost.pop(answer, None)
            elif now - self._lost.setdefault(answer, now) > LOST_AFTER:
                self.busy.pop(answer)
                self._lost.pop(answer)
                if error is None:
                    self._pool.replace(worker)  # the new one starts as soon as there is a place for it
                else:
                    self._pool.starting[answer] = worker
                yield from self._move(call, error)

    def give_up(self) -> None:
        """End the workers that have a call, for new ones."""
        for worker, _, error in self.busy.values():
            if error is None:
                self._pool.replace(worker)
        self._pool.starting |= {answer: worker for answer, (worker, _, error) in self.busy.items() if error is not None}
        self.busy.clear()

    def _move(self, call: Call, error: RayError | None) -> Iterator[tuple[Any, Any]]:
        """A call that was lost without its own fault goes to another worker, but not for ever."""
        self._moved[call[0]] += 1
        if self._moved[call[0]] > MOST_MOVES:
            yield call[0], self._failure(call, error)
        else:
            self.waiting.appendleft(call)

    def _failure(self, call: Call, error: RayError | None) -> Failure:
        """A call that ended its worker, or lost its machine, each time becomes a Failure."""
        died, moved = self._died[call[0]], self._moved[call[0]]
        parts = [f"the worker died {died} times: out of memory, or a crash in native code?"] * (died > 0)
        parts += [f"its machine was lost {moved} times: does the call take it down?"] * (moved > 0)
        parts += [f"Ray says: {error}"] * (error is not None)
        failed = WorkerDied(" ".join(parts))
        failed.__cause__ = error
        return work.failure(self._task.stage, call[0], failed)


def _no_room(task: StageTask, pool: Pool) -> Failure:
    """A stage that found no place for a worker; without a shard, since no shard is to blame."""
    limit = f"{ray_workers.GIVE_UP_AFTER:.0f} s"
    return work.failure(task.stage, None, NoRoom(f"no place for a worker with {pool.needs} in {limit}. {room()}"))
