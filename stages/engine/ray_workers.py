"""Actors on Ray that do what stages ask for, in pools; and how long a run waits for a place for them."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, RayError, RuntimeEnvSetupError

from regionclip_core.storage.records import Failure, ShardRecord
from stages.engine import work
from stages.engine.work import ShardWorker, StageOutcome, StageTask

SAY_AFTER = 60.0
"""Seconds without any process at work until the user is told what the run waits for."""
GIVE_UP_AFTER = 600.0
"""Seconds without a place for any process until the stage fails."""
START_LIMIT = 10.0
"""Seconds that closing a pool waits for workers that are starting."""
FRESH = 5.0
"""Seconds that a worker may have been idle and still gets a call without being asked first."""


class WorkerDied(RuntimeError):
    """A call ended its worker's process, or a training lost a process, each time that it was tried."""


class NoRoom(RuntimeError):
    """For GIVE_UP_AFTER the cluster had no place for a process of the run."""


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


class Pool:
    """Workers of one kind. A worker counts once it has answered, so one that Ray can't place holds nothing up.

    After a machine was lost there can be more workers than places. Those without one hold nothing and get no calls;
    the first places of a machine that joins are theirs.
    """

    def __init__(self, size: int, options: dict[str, Any]) -> None:
        self._kind, self._share = ("GPU", options["num_gpus"]) if "num_gpus" in options else ("CPU", 1)
        self.needs = f"{self._share:g} {self._kind}"
        """What one worker asks of the cluster, in words."""
        # max_restarts: a shard that kills its worker is the shard's failure, not the worker's end.
        # max_task_retries: a call made while Ray starts the worker anew waits for it; a lost call comes back to us.
        options = {"max_restarts": -1, "max_task_retries": -1, **options}
        self._actor: Any = ray.remote(_Worker).options(**options)  # Ray's types know no remote methods
        self.size = 0
        """Workers asked for."""
        self.workers: list[Any] = []
        self.starting: dict[Any, Any] = {}
        """Worker by the reference to its first answer."""
        self.nodes: dict[Any, str] = {}
        """Node of each worker that has answered."""
        self._idle: list[tuple[Any, float]] = []
        """Workers without a call, and since when."""
        self.grow(size)

    def grow(self, size: int) -> None:
        """Ask for more workers, up to this number; never for one that Ray could not start before."""
        for _ in range(size - self.size):
            self._add()
        self.size = max(self.size, size)

    @property
    def idle(self) -> list[Any]:
        """Workers without a call."""
        return [worker for worker, _ in self._idle]

    def free(self, worker: Any) -> None:
        """A worker that has just answered can take a call."""
        self._idle.append((worker, time.monotonic()))

    def take(self) -> Any | None:
        """A worker that can take a call, None if there is none.

        One that was idle for a while is asked first. If it died meanwhile, Ray starts it anew, but maybe in no place,
        since another worker has taken its own; a call would wait in it for as long.
        """
        while self._idle:
            worker, since = self._idle.pop()
            if time.monotonic() - since < FRESH:
                return worker
            self._ask(worker)
        return None

    def _add(self) -> None:
        self.workers.append(self._actor.remote())
        self._ask(self.workers[-1])

    def _ask(self, worker: Any) -> None:
        self.starting[self.ask_node(worker)] = worker

    def ask_node(self, worker: Any) -> Any:
        """Reference to the worker's answer on which node it is."""
        # No retries by Ray: it would complain aloud about each one in flight when the pool is closed early.
        return worker.node.options(max_task_retries=0).remote()

    def restarts(self, worker: Any, error: RayError) -> None:
        """A worker's process is gone. Ray starts it anew, and it can be used as soon as it answers; or never again."""
        if isinstance(error, ActorDiedError):
            self.replace(worker)
        else:
            self._ask(worker)

    def stayed(self, worker: Any, answer: Any) -> bool:
        """Whether a worker that answers `ask_node` is where it was; False if its node is lost, or it does not answer.

        Either way it can be used again as soon as it answers.
        """
        before = self.nodes[worker]
        try:
            self.nodes[worker] = ray.get(answer)
        except RayError as error:
            self.restarts(worker, error)
            return False
        self.free(worker)
        return self.nodes[worker] == before

    def started(self, answer: Any) -> None:
        """Note a worker's first answer. Raises RuntimeError when Ray can start none."""
        worker = self.starting.pop(answer)
        try:
            self.nodes[worker] = ray.get(answer)
            self.free(worker)
        except (ActorDiedError, RuntimeEnvSetupError) as error:  # for good: it could not even be made
            self.workers.remove(worker)
            if not self.workers:
                raise RuntimeError(f"Ray could start no worker: {error}") from error
        except RayError:  # it died while starting, and Ray starts it again
            self._ask(worker)

    def replace(self, worker: Any) -> None:
        """Give a worker up for a new one, which starts as soon as there is a place for it."""
        ray.kill(worker)
        self.workers.remove(worker)
        self.nodes.pop(worker, None)
        self._add()

    def close(self) -> None:
        """End all workers; first those that have a place finish starting.

        Ray does not free the CPU of one that is killed in the moment in which its place is found, and who comes next
        would wait for it until the driver ends.
        """
        coming = min(len(self.starting), places(self._kind, self._share) - len(self.workers) + len(self.starting))
        if coming > 0:
            ray.wait(list(self.starting), num_returns=coming, timeout=START_LIMIT)
        for worker in self.workers:
            ray.kill(worker)


class Patience:
    """Waiting for a place in the cluster, aloud."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: float | None = None
        self._said = False

    def wait(self, needs: str) -> float:
        """Seconds that nothing was at work since the last `go_on`; tells the user once. `needs`: what has no place."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if waited >= SAY_AFTER and not self._said:
            self._said = True
            self._say(
                f"waiting for {needs}: no process of this run has been at work for {waited:.0f} s. {room()}. "
                f"After {GIVE_UP_AFTER:.0f} s the stage fails, and what it has finished is kept. Free the resources or "
                "add a machine (`ray start --address=...` on it) and it goes on by itself; after an interrupt or a "
                "failure, run the same command again"
            )
        return waited

    def go_on(self) -> None:
        """Something runs."""
        if self._said:
            self._say("the cluster has room again: going on")
        self._since, self._said = None, False


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
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


def resources() -> dict[str, float]:
    """What the cluster's living machines have, by Ray's names."""
    return cast(dict[str, float], cast(Any, ray).cluster_resources())


def places(kind: str, share: float) -> int:
    """How many workers with this share of a CPU or GPU each the living machines can hold."""
    there = [node["Resources"].get(kind, 0) for node in cast(Any, ray).nodes() if node["Alive"]]
    # A share below one can't straddle two GPUs, and one above must be whole.
    return sum(int(one) * int(1 / share + 1e-9) if share <= 1 else int(one // share) for one in there)


def alive_nodes() -> set[str]:
    """Ids of the living machines."""
    return {node["NodeID"] for node in cast(Any, ray).nodes() if node["Alive"]}


def room() -> str:
    """The cluster's size and what of it is free, in words."""
    there, free = resources(), cast(dict[str, float], cast(Any, ray).available_resources())
    parts = [f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    return f"The cluster has {' and '.join(parts)} free, on {len(alive_nodes())} machines"
