"""Ray clusters of several nodes on this machine: they grow, lose places, and begin with nothing. And its dashboard."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import pytest
from toy_runs import Toy

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.records import ShardRecord
from stages.engine import ray_backend, ray_workers
from stages.engine.ray_backend import RayBackend, ray
from stages.engine.work import StageTask


def task(toy: Toy, **settings: Any) -> StageTask:
    return StageTask("numbers", "toy_stages:NUMBERS", toy.config(**settings), f"{toy.root}/ws/numbers", {})


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster whose head has no CPUs, as where an autoscaler adds the machines."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_machines_that_join_during_a_run_get_shards(toy: Toy, cluster: Any) -> None:
    said: list[str] = []
    backend = RayBackend(ExecutionConfig(address=cluster.address), say=said.append)
    try:
        assert ": 0 CPUs, 0 GPUs" in backend.describe()
        hold, log, done = toy.fault("hold-numbers-0"), toy.root / "log" / "calls", list[Any]()

        def run() -> None:
            for record in backend.shards(task(toy), range(4)):
                done.append(record)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        cluster.add_node(num_cpus=1)
        soon(log.exists)
        cluster.add_node(num_cpus=1)  # while the first machine's only worker is at work
        soon(lambda: len(done) == 3)
        hold.unlink()
        running.join()
        assert [record.shard for record in done] == [1, 2, 3, 0]
        assert all(isinstance(record, ShardRecord) for record in done)
        assert len(set(backend.pool(gpu=False).nodes.values())) == 2
        assert said == ["the cluster has grown: 2 workers with 1 CPU each, 1 before"]
    finally:
        backend.close()


@pytest.mark.slow
def test_a_call_whose_worker_lost_its_place_goes_to_another(toy: Toy, cluster: Any) -> None:
    """Two workers are asked for, one has a place; when it dies, Ray gives that place to the one that waits."""
    cluster.add_node(num_cpus=1)
    backend = RayBackend(ExecutionConfig(address=cluster.address, workers=2))
    try:
        toy.fault("die-numbers-0")
        pool = backend.pool(gpu=False)
        assert len(pool.workers) == 2
        assert sorted(r.shard for r in backend.shards(task(toy), range(2))) == [0, 1]
        assert toy.calls() == ["numbers-0", "numbers-0", "numbers-1"]
        # Without a retry left it is nobody's fault as long as the worker is not seen to be where it was.
        toy.fault("die-numbers-2")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_backend, "LOST_AFTER", 3.0)
            [result] = backend.shards(task(toy, execution__shard_retries=0), [2])
        assert isinstance(result, ShardRecord) and toy.calls() == ["numbers-2"] * 2
        assert len(pool.starting) == 1
    finally:
        backend.close()


@pytest.mark.slow
def test_the_dashboard_of_this_machine_is_printed_and_answers() -> None:
    backend = RayBackend(ExecutionConfig(workers=1, dashboard=True))
    try:
        link = backend.describe().rpartition("dashboard ")[2]
        with urlopen(link) as answer:
            assert answer.status == 200 and b"<title>Ray Dashboard</title>" in answer.read()
    finally:
        backend.close()
    assert not ray.is_initialized()


# ---------------------------------------------------------------- without Ray


NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 2.5, "GPU": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"Alive": True, "Resources": {}},
]


@pytest.mark.parametrize(
    ("kind", "share", "count"), [("CPU", 1, 6), ("GPU", 1, 3), ("GPU", 0.5, 6), ("GPU", 0.3, 9), ("GPU", 2, 1)]
)
def test_places_are_counted_machine_by_machine(
    kind: str, share: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    assert ray_workers.places(kind, share) == count


@pytest.mark.parametrize(
    ("execution", "gpus", "cpu_workers", "gpu_workers", "share"),
    [
        ({}, 3, 6, 3, 1.0),
        ({"workers": 2}, 3, 2, 2, 1.0),
        ({"workers": 64}, 3, 6, 64, 0.0454),  # here only the CPUs limit it
        ({"workers": 4}, 3, 4, 4, 0.5),  # 3 / 4 of a GPU would fit three times
        ({"gpus_per_worker": 2}, 3, 6, 1, 2.0),
        ({"address": "a"}, 3, 6, 3, 1.0),
        ({"address": "a", "workers": 64}, 3, 64, 64, 0.0454),
        ({"address": "a", "workers": 64, "gpus_per_worker": 1}, 3, 64, 64, 1.0),
        ({"address": "a", "gpus_per_worker": 4}, 3, 6, 1, 4.0),  # a machine that can hold it may come
    ],
)
def test_how_many_workers(
    execution: dict[str, Any],
    gpus: int,
    cpu_workers: int,
    gpu_workers: int,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    backend = RayBackend.__new__(RayBackend)
    backend._execution, backend.gpus = ExecutionConfig(**execution), gpus
    assert (backend._size(gpu=False), backend._size(gpu=True)) == (cpu_workers, gpu_workers)
    assert backend._gpu_share() == pytest.approx(share)


def test_a_cluster_that_lost_its_gpus_or_has_none_yet_is_waited_for(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"GPU": 2.0}
    monkeypatch.setattr(ray_backend, "resources", lambda: there)
    model = StageTask("model", "toy_stages:MODEL", toy.config(), "", {}, uses_gpu=True)
    backend = RayBackend.__new__(RayBackend)
    for device, expected in [("auto", [False, True, True]), ("cuda", [True, True, True]), ("cpu", [False] * 3)]:
        backend._execution, backend.gpus = ExecutionConfig(address="a", device=device), 0.0
        seen = []
        for gpus in ({}, {"GPU": 2.0}, {}):
            there = gpus
            seen.append(backend._uses_gpu(model))
        assert seen == expected
    backend._execution, backend.gpus = ExecutionConfig(device="cuda"), 0.0  # no machine can join: the stage complains
    assert not backend._uses_gpu(model)


class Remote:
    """A worker that answers nothing, and remembers what it was asked."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)


class _Method:
    def __init__(self, worker: Remote, name: str) -> None:
        self._worker, self._name = worker, name

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *_: Any) -> object:
        self._worker.asked.append(self._name)
        return object()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ray_workers.Pool:
    """A pool of one such worker at a time, which is on the node "a"."""
    asked: list[str] = []
    monkeypatch.setattr(ray, "kill", lambda worker: None)
    pool = ray_workers.Pool(0, {"num_cpus": 1})
    pool._actor = type("Actor", (), {"remote": staticmethod(lambda: Remote(asked))})
    pool.grow(1)
    _answer(pool)
    return pool


def _answer(pool: ray_workers.Pool) -> None:
    [(_, worker)] = pool.starting.items()
    pool.starting.clear()
    pool.nodes[worker] = "a"
    pool.free(worker)


def test_a_call_that_takes_each_machine_down_fails(
    toy: Toy, pool: ray_workers.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_backend, "LOST_AFTER", -1.0)
    out = ray_backend._HandOut(task(toy), pool, [(7, "process", (7,))])
    results: list[Any] = []
    for _ in range(1 + ray_backend.MOST_MOVES):
        out.hand()
        assert len(out.busy) == 1 and not list(out.take_back({"a", "b"}))
        results += out.take_back({"b"})
        assert not out.busy and len(pool.workers) == len(pool.starting) == 1  # another one in its place
        _answer(pool)
    [(key, failed)] = results
    assert key == 7 and failed.shard == 7 and not out.waiting
    assert failed.error == "WorkerDied: its machine was lost 4 times: does the call take it down?"


def test_a_worker_that_was_idle_is_asked_before_it_gets_a_call(
    pool: ray_workers.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    [worker] = pool.idle
    asked = len(worker.asked)
    assert pool.take() is worker and pool.take() is None
    pool.free(worker)
    monkeypatch.setattr(ray_workers, "FRESH", 0.0)
    assert pool.take() is None and worker.asked[asked:] == ["node"]
    assert list(pool.starting.values()) == [worker]


def test_a_worker_that_could_not_be_started_is_not_asked_for_again(pool: ray_workers.Pool) -> None:
    pool.workers.clear()
    pool.grow(1)
    assert not pool.workers
    pool.grow(3)
    assert len(pool.workers) == 2


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nobody_answers_is_told_at_once(form: str) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ValueError, match=f"execution.address: no Ray cluster answers at {address} .*refused.*null"):
            RayBackend(ExecutionConfig(address=address))
