"""Stages on Ray. Only this file, ray_workers.py and ray_training.py import ray.

Ray schedules, restarts workers, retries calls, places GPUs and runs multi-process training. What is written here is
the hand-out of shard descriptors to workers that live through the run, so that a model is loaded once a worker and
stage, and starting up is paid once a run. Only records come back.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU workers alone

import ray
from ray.exceptions import RayError

from regionclip_core.artifacts import Failure, ShardRecord
from regionclip_core.config import ExecutionConfig
from stages import ray_workers, work
from stages.ray_workers import NoRoom, Patience, Pool, WorkerDied, alive_nodes, environment, resources, room
from stages.work import StageOutcome, StageTask

OBJECT_STORE = 128 * 1024 * 1024
"""Bytes of Ray's object store on this machine: only descriptors and records pass through it."""
TICK = 0.5
"""Seconds between two looks at a running call."""
LOST_AFTER = 20.0
"""Seconds after a node's death until the calls of its workers go to others, if Ray has not placed them by then."""
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
        if self._own:
            self._init()
        there = resources()
        self.cpus, self.gpus = int(there.get("CPU", 1)), float(there.get("GPU", 0))
        self.pool(gpu=False)  # its workers start while the driver goes on

    def _init(self) -> None:
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if self._execution.address is not None:
            self.dashboard = ray.init(address=self._execution.address, **common).dashboard_url
            return
        cpus = max(work.available_cpus(), self._execution.workers or 1, self._execution.train_workers)
        # All processes started from here inherit the environment: a runtime_env does the same 2-3 s slower.
        with environment(worker_environment()):
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **common
            )
        self._runtime_env = {}

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
        self.close_pools()
        if self._own:
            ray.shutdown()

    # ------------------------------------------------------------ workers

    def _uses_gpu(self, task: StageTask) -> bool:
        return task.uses_gpu and self.gpus > 0 and self._execution.device != "cpu"

    def pool(self, gpu: bool) -> Pool:
        """The CPU workers (one CPU each), or the GPU workers.

        GPU workers ask for no CPU: stages run one at a time, so the CPUs that idle CPU workers hold are free.
        """
        if gpu not in self._pools:
            options = {"max_task_retries": self._execution.shard_retries, "runtime_env": self._runtime_env}
            if not gpu:
                size = min(self._execution.workers or self.cpus, self.cpus)
                self._pools[gpu] = Pool(size, {"num_cpus": 1, **options})
            else:
                size, share = self._gpu_workers()
                self._pools[gpu] = Pool(size, {"num_cpus": 0, "num_gpus": share, **options})
        return self._pools[gpu]

    def _gpu_workers(self) -> tuple[int, float]:
        """How many GPU workers, and each one's share of a GPU. Default: one a GPU."""
        asked, share = self._execution.workers, self._execution.gpus_per_worker
        if share == 0:
            share = 1.0 if asked is None or asked <= self.gpus else self.gpus / asked
        # A share below one can't straddle two GPUs, and one above must be whole.
        per_gpu = int(1 / share + 1e-9) if share <= 1 else 0
        fit = int(self.gpus) * per_gpu if share <= 1 else int(self.gpus // share)
        if fit < 1:
            raise ValueError(f"execution.gpus_per_worker is {share:g}, but the cluster has {self.gpus:g} GPUs")
        return min(asked or fit, fit), share

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
        waiting = deque(calls)
        busy: dict[Any, Handed] = {}
        lost: dict[Any, float] = {}
        patience = Patience(self._say)
        moves: Counter[Any] = Counter()
        try:
            while waiting or busy:
                while waiting and pool.idle:
                    worker, call = pool.idle.pop(), waiting.popleft()
                    busy[getattr(worker, call[1]).remote(task, *call[2])] = (worker, call, None)
                if not waiting and len(calls) == 1:
                    self._warm_idle(pool)
                ready, _ = ray.wait([*busy, *pool.starting], num_returns=1, timeout=TICK)
                for answer in ready:
                    if answer in pool.starting:
                        pool.started(answer)
                        continue
                    worker, call, died = busy.pop(answer)
                    if died is None:
                        try:
                            value = ray.get(answer)
                        except RayError as error:  # of the call, or did it share its node's fate?
                            busy[pool.ask_node(worker)] = (worker, call, error)
                            continue
                        pool.idle.append(worker)
                        yield call[0], value
                    elif pool.stayed(worker, answer) or moves[call[0]] == MOST_MOVES:
                        yield call[0], _worker_died(died, task, call[0])
                    else:
                        moves[call[0]] += 1
                        waiting.appendleft(call)
                watch()
                if not ready:
                    self._take_from_lost(pool, busy, waiting, lost)
                if busy or pool.idle or not waiting:
                    patience.go_on()
                elif patience.wait(f"a worker with {pool.needs}") > ray_workers.GIVE_UP_AFTER:
                    yield None, _no_room(task, pool)
                    return
        finally:
            if busy:  # interrupted, or the stage was given up: calls in flight end with their workers
                self._pools.pop(gpu).close()

    def _warm_idle(self, pool: Pool) -> None:
        """While one worker runs a job, let the others import what comes next."""
        if self._warm:
            for worker in [*pool.idle, *pool.starting.values()]:
                worker.warm.remote(self._warm)
            self._warm = ()

    def _take_from_lost(
        self, pool: Pool, busy: dict[Any, Handed], waiting: deque[Call], lost: dict[Any, float]
    ) -> None:
        """Take back the calls of workers whose node died, and put new workers in their place, wherever that will be.

        A call done twice does no harm: files appear whole, and both write the same.
        """
        alive = alive_nodes()
        now = time.monotonic()
        for answer, (worker, call, _) in list(busy.items()):
            if pool.nodes[worker] in alive:
                continue
            if now - lost.setdefault(answer, now) > LOST_AFTER:
                busy.pop(answer)
                pool.replace(worker)
                waiting.appendleft(call)

    # ------------------------------------------------------------ training in several processes

    def _train(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run a distributed job through Ray Train."""
        from stages.ray_training import train

        workers, gpu = self._execution.train_workers, self._uses_gpu(task)
        kind = "GPU" if gpu else "CPU"
        there, before = int(resources().get(kind, 0)), int(self.gpus if gpu else self.cpus)
        if workers > max(there, before):  # a cluster that has lost a machine since may get it back
            raise ValueError(f"execution.train_workers is {workers}, but the cluster has {there} {kind}s")
        self.close_pools()  # the training's workers need the CPUs that the shard workers hold
        return train(task, gpu, self._runtime_env, self._say, watch)


def _worker_died(error: RayError, task: StageTask, key: Any) -> Failure:
    """A call that ended its worker each time becomes a Failure."""
    tries = 1 + task.config.execution.shard_retries
    died = WorkerDied(f"the worker died {tries} times: out of memory, or a crash in native code? Ray says: {error}")
    died.__cause__ = error
    return work.failure(task.stage, key, died)


def _no_room(task: StageTask, pool: Pool) -> Failure:
    """A stage that found no place for a worker; without a shard, since no shard is to blame."""
    limit = f"{ray_workers.GIVE_UP_AFTER:.0f} s"
    return work.failure(task.stage, None, NoRoom(f"no place for a worker with {pool.needs} in {limit}. {room()}"))
