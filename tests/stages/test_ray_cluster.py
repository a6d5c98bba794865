"""Ray clusters of several nodes on this machine: they grow, lose places, and begin with nothing. And its dashboard."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest
from toy_runs import Toy

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.records import ShardRecord
from stages.engine import ray_cluster, work
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
            for record in backend.process(task(toy), range(4)):
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
        assert said == ["the cluster has grown: 2 workers with 1 CPU each, 1 before"]
    finally:
        backend.close()


@pytest.mark.slow
def test_a_lost_call_goes_to_any_worker_with_a_place(toy: Toy, cluster: Any) -> None:
    """Two at a time are asked for and one has a place; then that machine goes, and another one comes."""
    node = cluster.add_node(num_cpus=1)
    backend = RayBackend(ExecutionConfig(address=cluster.address, workers=2))
    try:
        toy.fault("die-numbers-0")
        assert sorted(r.shard for r in backend.process(task(toy), range(2))) == [0, 1]
        assert toy.calls() == ["numbers-0", "numbers-0", "numbers-1"]
        toy.fault("hang-numbers-2")
        done, log = list[Any](), toy.root / "log" / "calls"
        running = threading.Thread(target=lambda: done.extend(backend.process(task(toy), [2])), daemon=True)
        running.start()
        soon(log.exists)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        running.join(120)
        assert [type(one) for one in done] == [ShardRecord] and toy.calls() == ["numbers-2"] * 2
    finally:
        backend.close()


@pytest.mark.slow
def test_through_ray_client(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "ray_client_server_port": port})
    try:
        soon(lambda: socket.create_connection(("127.0.0.1", port), 1))
        backend = RayBackend(ExecutionConfig(address=f"ray://127.0.0.1:{port}"))
        toy.fault("die-numbers-0")
        assert [r.shard for r in backend.process(task(toy), range(2))] == [0, 1]
        backend.close()
    finally:
        cluster.shutdown()


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


@pytest.mark.parametrize(
    ("execution", "gpus", "cpu_workers", "gpu_workers", "share"),
    [
        ({}, 3, 6, 3, 1.0),
        ({"workers": 2}, 3, 2, 2, 1.0),
        ({"workers": 64}, 3, 64, 64, 0.0454),
        ({"workers": 4}, 3, 4, 4, 0.5),  # 3 / 4 of a GPU would fit three times
        ({"gpus_per_worker": 2}, 3, 6, 1, 2.0),
        ({"gpus_per_worker": 0.3}, 3, 6, 10, 0.3),  # what finds no place waits in Ray
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
    monkeypatch.setattr(ray_cluster, "resources", lambda: {"CPU": 6.0, "GPU": float(gpus)})
    backend = RayBackend.__new__(RayBackend)
    backend._execution, backend.gpus = ExecutionConfig(**execution), gpus
    assert (backend._size(gpu=False), backend._size(gpu=True)) == (cpu_workers, gpu_workers)
    assert backend._gpu_share() == pytest.approx(share)


def test_a_cluster_that_lost_its_gpus_or_has_none_yet_is_waited_for(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"GPU": 2.0}
    monkeypatch.setattr(ray_cluster, "resources", lambda: there)
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


@pytest.mark.parametrize(
    ("ids", "visible", "index"), [([], None, None), ([2], None, 2), (["5"], "4,5", 1), ([0], "", 0)]
)
def test_the_gpu_that_ray_gave_by_the_number_that_torch_knows(
    ids: list[Any], visible: str | None, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: ids)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert ray_cluster.own_gpu() == index


def test_a_worker_on_another_gpu_loads_its_model_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "resolve_device", lambda device: "cuda")
    assert toy.run("numbers").ok
    line = toy.plan()["scaled"]
    scaled = StageTask("scaled", "toy_stages:SCALED", toy.config(), str(line.path), line.upstream, uses_gpu=True)
    toy.calls()
    worker = work.ShardWorker()
    for shard, gpu in enumerate([0, 0, 1, 1]):
        assert isinstance(worker.process(replace(scaled, gpu=gpu), shard), ShardRecord)
    assert toy.calls().count("scaled-setup") == 2
    assert work.begin(replace(scaled, gpu=3))[1].device == "cuda:3" and work.begin(scaled)[1].device == "cuda"


@pytest.mark.parametrize("form", ["{}", "ray://{}", "auto"])
def test_an_address_where_nobody_answers_is_told_at_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        found = f"127.0.0.1:{taken.getsockname()[1]}"
        address, shown = form.format(found), "auto, here " * (form == "auto") + form.replace("auto", "{}").format(found)
        monkeypatch.setenv("RAY_ADDRESS", found)  # what `auto` takes first
        with pytest.raises(ValueError, match=f"execution.address: no Ray cluster answers at {shown} .*refused.*null"):
            RayBackend(ExecutionConfig(address=address))


def test_the_private_ray_of_another_run_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray finds its process, but its servers listen on the loopback address alone, and not where `auto` looks."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as private:
        private.bind(("127.0.0.1", 0))
        private.listen()
        port = private.getsockname()[1]
        monkeypatch.setattr(ray_cluster.services, "find_gcs_addresses", lambda: frozenset({f"127.0.0.1:{port}"}))
        monkeypatch.setattr(ray_cluster.services, "find_bootstrap_address", lambda folder: None)
        monkeypatch.setattr(ray_cluster, "CONNECT_WITHIN", 1.0)
        message = rf"answers at auto, here [\d.]+:{port} .*Start one there.*that of another regionclip run is private"
        with pytest.raises(ValueError, match=message):
            ray_cluster.connect(ExecutionConfig(address="auto"))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("{}", "`ray status` got no answer in 2 s"),
        ("http://{}", "expected auto, HOST:PORT or ray://HOST:PORT"),
        ("somewhere", "expected auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_what_is_no_ray_is_told_soon(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a server that takes connections and says nothing."""
    monkeypatch.setattr(ray_cluster, "STATUS_WITHIN", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = address.format(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(ValueError, match=rf"no Ray cluster answers at {address} \({reason}\)"):
            ray_cluster.connect(ExecutionConfig(address=address))
