"""The same toy pipeline on Ray: same bytes, dead workers replaced, failures recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_stages
import yaml
from toy_runs import Toy

from regionclip_core.artifacts import Folder, read_failure
from regionclip_core.config import ExecutionConfig
from stages import base
from stages.base import StageRegistry

RAY = {"execution__backend": "ray", "execution__workers": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the module; a run uses the Ray that is there."""
    from stages.ray_backend import RayBackend, ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "STAGES", toy_stages.REGISTRY)
        backend = RayBackend(ExecutionConfig(workers=2))
        backend.close_pools()
        yield
        backend.close()
        assert not ray.is_initialized()


def test_same_bytes_as_local_and_a_job_gets_its_threads(
    toy: Toy, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy.run().ok
    monkeypatch.setattr(base, "STAGES", StageRegistry({**toy_stages.REGISTRY.targets, "model": "toy_stages:MODEL"}))
    other = Toy(tmp_path / "ray")
    other.root.mkdir()
    assert other.run(**RAY, execution__threads=3, execution__device="cpu").ok
    assert other.content() == toy.content()
    ours, theirs = toy.plan(), other.plan()
    assert all(ours[name].fingerprint == theirs[name].fingerprint for name in toy_stages.REGISTRY)
    # Shard workers run with one thread; a job in the same process must not be held to that.
    manifest = theirs["model"].manifest
    assert manifest is not None
    assert manifest.summary == {"threads": 3, "torch_threads": 3, "device": "cpu"}
    calls = other.calls()
    assert calls.count("scaled-setup") in (1, 2)  # once a worker, not once a shard
    assert len([c for c in calls if c.startswith("numbers")]) == 4
    assert other.run(**RAY).outcomes == dict.fromkeys(theirs, "skipped")


def test_a_killed_worker_is_replaced_and_its_shard_done_again(toy: Toy, cluster: None) -> None:
    faults = [toy.fault("die-numbers-1"), toy.fault("die-scaled-2"), toy.fault("die-total")]
    assert toy.run("total", **RAY).ok
    assert not any(fault.exists() for fault in faults)
    calls = toy.calls()
    assert calls.count("numbers-1") == 2 and calls.count("scaled-2") == 2 and calls.count("total") == 2
    assert calls.count("numbers-0") == 1


def test_shards_that_raise_or_kill_their_worker_fail_and_the_others_go_on(toy: Toy, cluster: None) -> None:
    kill, bad = toy.fault("kill-scaled-1"), toy.fault("raise-scaled-3")
    result = toy.run(**RAY, execution__shard_retries=1)
    assert result.outcomes == {"numbers": "done", "scaled": "failed", "total": "blocked", "lonely": "done"}
    line = toy.plan()["scaled"]
    assert (line.done, line.total) == (2, 4)
    folder = Folder(str(line.path))
    assert "told to fail at scaled-3" in read_failure(folder, 3).traceback
    assert read_failure(folder, 1).error.startswith("WorkerDied: the worker died 2 times")
    assert toy.calls().count("scaled-1") == 2  # shard_retries
    kill.unlink()
    bad.unlink()
    broken = toy.fault("raise-scaled-setup")
    assert "told to fail at scaled-setup" in toy.run("scaled", **RAY).messages["scaled"]
    broken.unlink()
    toy.calls()
    assert toy.run(**RAY).ok
    assert {"scaled-1", "scaled-3", "scaled-merge", "total"} <= set(toy.calls())


def test_asking_for_what_the_cluster_lacks_says_so(toy: Toy, cluster: None) -> None:
    with pytest.raises(ValueError, match=r"execution\.train_workers is 99, but the cluster has \d+ CPUs"):
        toy.run("lonely", **RAY, execution__train_workers=99)


@pytest.mark.slow
def test_a_distributed_job_runs_in_several_processes(toy: Toy, cluster: None) -> None:
    assert toy.run("lonely", **RAY, execution__train_workers=2).ok
    manifest = toy.plan()["lonely"].manifest
    assert manifest is not None
    assert manifest.summary["world_size"] == 2 and manifest.summary["sum"] == 1 + 2
    assert manifest.files == 1
    assert toy.calls() == ["lonely-0", "lonely-1"]
    assert ".train" not in Folder(str(toy.plan()["lonely"].path)).folders()
    toy.fault("raise-lonely-1")
    result = toy.run("lonely", **RAY, execution__train_workers=2, execution__shard_retries=0, finetune__steps=7)
    assert "told to fail at lonely-1" in read_failure(Folder(str(toy.plan(finetune__steps=7)["lonely"].path))).traceback
    assert not result.ok


@pytest.mark.slow
def test_a_run_starts_its_own_ray_from_anywhere_and_takes_it_down(toy: Toy, tmp_path: Path) -> None:
    """Workers find the packages through the driver's sys.path, not through the working directory."""
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from stages import base; import toy_stages; base.STAGES = toy_stages.REGISTRY\n"
        "from regionclip_core.config_io import load_config; from stages.runner import Pipeline\n"
        "assert Pipeline(load_config('c.yaml')).run().ok\n"
        "import ray; assert not ray.is_initialized()\n"
    )
    config = toy.config(**RAY)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {line.state for line in toy.plan().values()} == {"done"}
