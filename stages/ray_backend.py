"""Stages on Ray: the only file that imports ray.

Ray schedules, restarts workers, retries calls, places GPUs and runs multi-process training. What is written here is
the hand-out of shard descriptors to workers that live through the run, so that a model is loaded once a worker and
stage, and starting up is paid once a run. Only records come back.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU workers alone

import ray
from ray.exceptions import ActorDiedError, RayError, RuntimeEnvSetupError

from regionclip_core.artifacts import Failure, FileRecord, Folder, ShardRecord
from regionclip_core.config import ExecutionConfig
from stages import work
from stages.work import ShardWorker, StageOutcome, StageTask

OBJECT_STORE = 128 * 1024 * 1024
"""Bytes of Ray's object store on this machine: only descriptors and records pass through it."""
TICK = 0.5
"""Seconds between two looks at a running call."""
LOST_AFTER = 20.0
"""Seconds after a node's death until the calls of its workers go to others, if Ray has not placed them by then."""
TRAIN_FOLDER = ".train"
"""Ray Train's own folder inside the artifact's, while a distributed job runs."""
OUTCOME = "outcome.json"

MOST_MOVES = 3
"""How often a call goes to another worker because its node was lost."""

Call = tuple[Any, str, tuple[Any, ...]]
"""(key, method of _Worker, arguments after the task)"""
Handed = tuple[Any, Call, RayError | None]
"""(worker, call, None); or, while the worker is asked where it is, with the error that ended the call."""


class WorkerDied(RuntimeError):
    """A call ended its worker's process each time that Ray tried it."""


class _Worker:
    """A Ray actor: one process that does shards, merges and jobs, one call at a time."""

    def __init__(self) -> None:
        self._shards = ShardWorker()

    def node(self) -> str:
        """Node this worker runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def warm(self, modules: Sequence[str]) -> None:
        """Import what the next stages will need. A module that is missing is the stage's to complain about."""
        work.set_threads(1)
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError:
                return

    def process(self, task: StageTask, shard: int) -> ShardRecord | Failure:
        """Do one shard."""
        return self._shards.process(task, shard)

    def prepare(self, task: StageTask) -> StageOutcome | Failure:
        """What a shard stage does once, before its shards."""
        self._shards.forget()
        return work.prepare(task)

    def merge(self, task: StageTask) -> StageOutcome | Failure:
        """Merge a stage."""
        self._shards.forget()
        return work.merge(task)

    def job(self, task: StageTask) -> StageOutcome | Failure:
        """Run a whole job."""
        self._shards.forget()
        return work.job(task)


class _Pool:
    """Workers of one kind. A worker counts once it has answered, so one that Ray can't place holds nothing up."""

    def __init__(self, size: int, options: dict[str, Any]) -> None:
        # max_restarts: a shard that kills its worker is the shard's failure, not the worker's end.
        actor: Any = ray.remote(_Worker).options(max_restarts=-1, **options)  # Any: Ray's types know no remote methods
        self.workers: list[Any] = [actor.remote() for _ in range(size)]
        self.starting: dict[Any, Any] = {}
        """Worker by the reference to its first answer."""
        self.nodes: dict[Any, str] = {}
        """Node of each worker that has answered."""
        self.idle: list[Any] = []
        for worker in self.workers:
            self._ask(worker)

    def _ask(self, worker: Any) -> None:
        self.starting[self.ask_node(worker)] = worker

    def ask_node(self, worker: Any) -> Any:
        """Reference to the worker's answer on which node it is."""
        # No retries by Ray: it would complain aloud about each one in flight when the pool is closed early.
        return worker.node.options(max_task_retries=0).remote()

    def stayed(self, worker: Any, answer: Any) -> bool:
        """Whether a worker that answers `ask_node` is where it was; False if its node is lost, or it does not answer.

        Either way it can be used again as soon as it answers.
        """
        before = self.nodes.pop(worker)
        try:
            self.nodes[worker] = ray.get(answer)
        except RayError:
            self._ask(worker)
            return False
        self.idle.append(worker)
        return self.nodes[worker] == before

    def started(self, answer: Any) -> None:
        """Note a worker's first answer. Raises RuntimeError when Ray can start none."""
        worker = self.starting.pop(answer)
        try:
            self.nodes[worker] = ray.get(answer)
            self.idle.append(worker)
        except (ActorDiedError, RuntimeEnvSetupError) as error:  # for good: it could not even be made
            self.workers.remove(worker)
            if not self.workers:
                raise RuntimeError(f"Ray could start no worker: {error}") from error
        except RayError:  # it died while starting, and Ray starts it again
            self._ask(worker)

    def drop(self, worker: Any) -> None:
        """Give a worker up."""
        ray.kill(worker)
        self.workers.remove(worker)
        self.nodes.pop(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers:
            ray.kill(worker)


def _worker_environment() -> dict[str, str]:
    """What the driver can import, workers can: its sys.path, made absolute. One thread, until a job asks for more.

    Waiting threads soon sleep: Ray's own processes share the CPUs, and spinning threads would take their turns.
    """
    path = dict.fromkeys(os.path.abspath(p or os.curdir) for p in sys.path if not p.endswith(".zip"))
    spin = os.environ.get("GOMP_SPINCOUNT", work.SPIN_COUNT)
    return {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": spin}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class RayBackend:
    """Stages on a Ray cluster, or on Ray started on this machine for the time of the run."""

    def __init__(self, execution: ExecutionConfig, warm: Sequence[str] = ()) -> None:
        """`warm`: modules that later shard stages need; workers that stand by during a job import them."""
        self._execution = execution
        self._warm = tuple(warm)
        self._pools: dict[bool, _Pool] = {}
        self._own = not ray.is_initialized()
        self._runtime_env: dict[str, Any] = {"env_vars": _worker_environment()}
        self.dashboard: str | None = None
        if self._own:
            self._init()
        resources = _cluster_resources()
        self.cpus, self.gpus = int(resources.get("CPU", 1)), float(resources.get("GPU", 0))
        self.pool(gpu=False)  # its workers start while the driver goes on

    def _init(self) -> None:
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if self._execution.address is not None:
            self.dashboard = ray.init(address=self._execution.address, **common).dashboard_url
            return
        cpus = max(work.available_cpus(), self._execution.workers or 1, self._execution.train_workers)
        # All processes started from here inherit the environment: a runtime_env does the same 2-3 s slower.
        with _environment(_worker_environment()):
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

    def pool(self, gpu: bool) -> _Pool:
        """The CPU workers (one CPU each), or the GPU workers.

        GPU workers ask for no CPU: stages run one at a time, so the CPUs that idle CPU workers hold are free.
        """
        if gpu not in self._pools:
            options = {"max_task_retries": self._execution.shard_retries, "runtime_env": self._runtime_env}
            if not gpu:
                size = min(self._execution.workers or self.cpus, self.cpus)
                self._pools[gpu] = _Pool(size, {"num_cpus": 1, **options})
            else:
                size, share = self._gpu_workers()
                self._pools[gpu] = _Pool(size, {"num_cpus": 0, "num_gpus": share, **options})
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
        finally:
            if busy:  # interrupted, or the stage was given up: calls in flight end with their workers
                self._pools.pop(gpu).close()

    def _warm_idle(self, pool: _Pool) -> None:
        """While one worker runs a job, let the others import what comes next."""
        if self._warm:
            for worker in [*pool.idle, *pool.starting.values()]:
                worker.warm.remote(self._warm)
            self._warm = ()

    def _take_from_lost(
        self, pool: _Pool, busy: dict[Any, Handed], waiting: deque[Call], lost: dict[Any, float]
    ) -> None:
        """Take back the calls of workers whose node died and that Ray could not place elsewhere.

        A call done twice does no harm: files appear whole, and both write the same.
        """
        alive = _alive_nodes()
        now = time.monotonic()
        for answer, (worker, call, _) in list(busy.items()):
            if pool.nodes[worker] in alive:
                continue
            if now - lost.setdefault(answer, now) > LOST_AFTER and len(pool.workers) > 1:
                busy.pop(answer)
                pool.drop(worker)
                waiting.appendleft(call)

    # ------------------------------------------------------------ training in several processes

    def _train(self, task: StageTask, watch: Callable[[], None]) -> StageOutcome | Failure:
        """Run a distributed job through Ray Train's TorchTrainer: gloo on CPUs, nccl on GPUs."""
        import threading

        workers, gpu = self._execution.train_workers, self._uses_gpu(task)
        there = int(self.gpus) if gpu else self.cpus
        if workers > there:
            raise ValueError(
                f"execution.train_workers is {workers}, but the cluster has {there} {'GPUs' if gpu else 'CPUs'}"
            )
        self.close_pools()  # the training's workers need the CPUs that the shard workers hold
        outcome: list[StageOutcome | Failure] = []

        def fit() -> None:
            try:
                outcome.append(_fit(task, workers, gpu, self._runtime_env, self._execution.shard_retries))
            except Exception as error:  # Ray Train wraps what the job raised in errors of its own
                outcome.append(work.failure(task.stage, None, error))

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(TICK)
            watch()
        return outcome[0]


def _cluster_resources() -> dict[str, float]:
    return cast(dict[str, float], cast(Any, ray).cluster_resources())


def _alive_nodes() -> set[str]:
    return {node["NodeID"] for node in cast(Any, ray).nodes() if node["Alive"]}


def _worker_died(error: RayError, task: StageTask, key: Any) -> Failure:
    """A call that ended its worker each time becomes a Failure."""
    tries = 1 + task.config.execution.shard_retries
    died = WorkerDied(f"the worker died {tries} times: out of memory, or a crash in native code? Ray says: {error}")
    died.__cause__ = error
    return work.failure(task.stage, key, died)


def _fit(task: StageTask, workers: int, gpu: bool, runtime_env: dict[str, Any], retries: int) -> StageOutcome:
    """One TorchTrainer.fit. Rank 0's outcome comes back as a file in Ray Train's own folder, removed afterwards."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = Folder(task.out).child(TRAIN_FOLDER)
    storage.remove_all()  # a killed run may have left its outcome
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=cast(Any, RunConfig)(  # its types are those of an older Ray Train
            name=task.stage,
            storage_path=os.path.abspath(storage.url) if storage.is_local else storage.url,
            failure_config=FailureConfig(max_failures=retries),
            worker_runtime_env=runtime_env,
        ),
    )
    try:
        trainer.fit()
        outcome = storage.read_json(OUTCOME)
    finally:
        storage.remove_all()
    return StageOutcome([FileRecord(**f) for f in outcome["files"]], outcome["summary"])


def _train_loop(config: dict[str, Any]) -> None:
    """What each process of a distributed job runs."""
    from ray import train

    ctx, task = train.get_context(), config["task"]
    outcome = work.job(task, ctx.get_world_rank(), ctx.get_world_size(), ctx.get_local_world_size())
    if isinstance(outcome, Failure):  # other ranks may hang in a collective: raising ends them all
        raise RuntimeError(f"rank {ctx.get_world_rank()}: {outcome.traceback}")
    if ctx.get_world_rank() == 0:
        Folder(task.out).child(TRAIN_FOLDER).write_json(OUTCOME, asdict(outcome))
