"""The same toy pipeline on Ray: same bytes, dead workers replaced, failures recorded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import toy_stages
import yaml
from toy_runs import Toy

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.records import Folder, ShardRecord, read_failure
from stages import declarations
from stages.engine import ray_backend, ray_cluster
from stages.engine.ray_backend import RayBackend, ray
from stages.engine.ray_cluster import worker_environment
from stages.engine.ray_training import free_places, watched
from stages.engine.work import StageTask

RAY = {"execution__backend": "ray", "execution__workers": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the module; a run uses the Ray that runs already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(declarations, "STAGES", toy_stages.STAGES)
        backend = RayBackend(ExecutionConfig(workers=2))
        yield
        backend.close()
        assert not ray.is_initialized()


def test_same_bytes_as_local_and_a_job_gets_its_threads(
    toy: Toy, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy.run().ok
    monkeypatch.setattr(declarations, "STAGES", {**toy_stages.STAGES, "model": toy_stages.Model()})
    other = Toy(tmp_path / "ray")
    other.root.mkdir()
    assert other.run(**RAY, execution__threads=3, execution__device="cpu").ok
    assert other.content() == toy.content()
    ours, theirs = toy.plan(), other.plan()
    assert all(ours[name].fingerprint == theirs[name].fingerprint for name in toy_stages.STAGES)
    # Shard workers run with one thread; a job in the same process must not be held to that.
    manifest = theirs["model"].manifest
    assert manifest is not None
    assert manifest.summary == {"torch_threads": 3, "device": "cpu"}
    calls = other.calls()
    assert calls.count("scaled-setup") in (1, 2)  # once per worker, not once per shard
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
    assert "made to fail at scaled-3" in read_failure(folder, 3).traceback
    assert read_failure(folder, 1).error.startswith("WorkerDied: the worker died 2 times")
    assert toy.calls().count("scaled-1") == 2  # shard_retries
    kill.unlink()
    bad.unlink()
    broken = toy.fault("raise-scaled-setup")
    assert "made to fail at scaled-setup" in toy.run("scaled", **RAY).messages["scaled"]
    broken.unlink()
    toy.calls()
    assert toy.run(**RAY).ok
    assert {"scaled-1", "scaled-3", "scaled-merge", "total"} <= set(toy.calls())


def test_asking_for_what_the_cluster_lacks_says_so(toy: Toy, cluster: None) -> None:
    with pytest.raises(ValueError, match=r"execution\.train_workers is 16, but the cluster has \d CPUs"):
        toy.run("lonely", **RAY, execution__train_workers=16)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_ray_on_this_machine_is_open_to_nobody_else(cluster: None) -> None:
    """Its servers listen on the loopback address, its folder and its token are this user's own."""
    ours, sockets = {os.getpid()}, set[str]()
    parents = {int(p.parent.name): int(p.read_text().rpartition(")")[2].split()[1]) for p in stats()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    for pid in ours:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(link))
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for _, local, _, state, *more_columns in map(str.split, Path(table).read_text().splitlines()[1:]):
            if state == "0A" and f"socket:[{more_columns[5]}]" in sockets:
                listening.add(local.partition(":")[0])
    assert listening == {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same as IPv6
    [node] = ray.nodes()
    session = Path(node["ObjectStoreSocketName"]).parents[2]
    assert session == ray_cluster.own_folder() and session.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64 and os.environ["RAY_AUTH_MODE"] == "token"


def stats() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]


def test_places_that_ray_train_forgot_are_freed(cluster: None) -> None:
    from ray.util.placement_group import placement_group, placement_group_table

    forgotten = placement_group([{"CPU": 1}])
    assert forgotten.wait(30)
    free_places()
    assert placement_group_table(forgotten)["state"] == "REMOVED"


@pytest.mark.slow
def test_a_distributed_job_runs_in_several_processes(toy: Toy, cluster: None) -> None:
    assert toy.run("lonely", **RAY, execution__train_workers=2).ok
    manifest = toy.plan()["lonely"].manifest
    assert manifest is not None
    assert manifest.summary["world_size"] == 2 and manifest.summary["sum"] == 1 + 2
    assert manifest.files == 1
    assert toy.calls() == ["lonely-0", "lonely-1"]
    assert ".train" not in Folder(str(toy.plan()["lonely"].path)).folders()


@pytest.mark.slow
def test_a_training_is_done_again_when_it_lost_a_process_and_never_when_it_raised(toy: Toy, cluster: None) -> None:
    toy.fault("die-lonely-1")
    toy.fault("raise-lonely-0").rename(later := toy.root / "later")
    assert toy.run("lonely", **RAY, execution__train_workers=2, execution__shard_retries=1).ok
    assert toy.calls().count("lonely-1") == 2
    later.rename(toy.root / "faults" / "raise-lonely-0")
    result = toy.run("lonely", **RAY, execution__train_workers=2, execution__shard_retries=2, finetune__steps=7)
    assert result.messages["lonely"].startswith("RuntimeError: made to fail at lonely-0")
    failure = read_failure(Folder(str(toy.plan(finetune__steps=7)["lonely"].path)))
    assert "in called" in failure.traceback and "ray" not in failure.traceback  # the stage's own traceback
    assert toy.calls().count("lonely-0") == 1


@pytest.fixture
def full(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Another program holds all CPUs until this is called; a run soon says so."""
    monkeypatch.setattr(ray_cluster, "SAY_AFTER", 0.2)
    monkeypatch.setattr(ray_backend, "LOOK_EVERY", 0.2)

    @ray.remote(num_cpus=1)
    class Other:
        def begun(self) -> None:
            pass

    others = [Other.remote() for _ in range(int(ray_cluster.resources()["CPU"]))]
    ray.get([other.begun.remote() for other in others])

    def end() -> None:
        while others:
            ray.kill(others.pop())

    yield end
    end()


def test_a_stage_waits_aloud_for_a_place_in_the_cluster_and_gives_up(
    toy: Toy, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "GIVE_UP_AFTER", 1.0)
    result = toy.run("numbers", **RAY)
    assert result.messages["numbers"].startswith("NoRoom: no place for a worker with 1 CPU in 1 s")
    shown = capsys.readouterr().out
    assert shown.count("waiting for a worker with 1 CPU") == 1
    cpus = int(ray_cluster.resources()["CPU"])
    assert f"The cluster has 0 of {cpus} CPUs and 0 of 0 GPUs free, on 1 machines" in shown
    threading.Timer(1.0, full).start()
    monkeypatch.setattr(ray_cluster, "GIVE_UP_AFTER", 60.0)
    assert toy.run("numbers", **RAY).ok
    assert "the cluster has room again: going on" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_waits_aloud_for_a_place_in_the_cluster_and_gives_up(
    toy: Toy, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "GIVE_UP_AFTER", 2.0)
    result = toy.run("lonely", **RAY, execution__train_workers=2)
    assert result.messages["lonely"].startswith("NoRoom: no place for all 2 processes in 2 s")
    assert capsys.readouterr().out.count("waiting for 2 processes with 1 CPU each") == 1
    assert toy.calls() == []


@pytest.mark.slow
def test_a_long_shard_is_no_waiting(
    toy: Toy, cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that runs is seen to run, however long nothing comes back."""
    assert toy.run("scaled", **RAY).ok
    monkeypatch.setattr(ray_backend, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(ray_cluster, "SAY_AFTER", 3.0)
    monkeypatch.setattr(ray_cluster, "GIVE_UP_AFTER", 3.0)
    hold = toy.fault("hold-total")
    threading.Timer(7.0, hold.unlink).start()
    assert toy.run("total", **RAY).ok
    assert "waiting for" not in capsys.readouterr().out


@pytest.mark.slow
def test_training_from_a_relative_workspace(toy: Toy, cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's processes have another working directory; presets name places relative to the user's."""
    monkeypatch.chdir(toy.root)
    toy.workspace = Folder("ws")
    assert toy.run("lonely", **RAY, execution__train_workers=2).ok
    assert (toy.root / "ws" / "lonely").is_dir()
    assert toy.plan()["lonely"].path.startswith("ws/")  # type: ignore[union-attr]
    toy.fault("raise-lonely-1")
    result = toy.run("lonely", **RAY, execution__train_workers=2, finetune__steps=7)
    assert result.messages["lonely"].startswith("RuntimeError: made to fail at lonely-1\n")


def test_a_worker_frees_its_model_when_it_has_nothing_to_do(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as in a worker's: the state stays from shard to shard, and goes when no shard follows."""
    monkeypatch.setattr(ray_cluster, "say_it_runs", lambda note: None)
    monkeypatch.setattr(ray_cluster, "own_gpu", lambda: None)
    monkeypatch.setattr(ray_backend, "FORGET_AFTER", 0.3)
    assert toy.run("numbers").ok
    toy.calls()
    line = toy.plan()["scaled"]
    task = StageTask("scaled", "toy_stages:SCALED", toy.config(), str(line.path), line.upstream)
    for shard in range(3):
        assert isinstance(ray_backend.call("", task, "process", shard), ShardRecord)
    assert toy.calls().count("scaled-setup") == 1
    deadline = time.monotonic() + 10
    while ray_backend._shards._loaded is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ray_backend.call("", task, "process", 3)
    assert toy.calls() == ["scaled-3", "scaled-setup"]


def test_what_workers_are_told_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_PROFILE": "work",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_SESSION_TOKEN": "token",
        "AWS_ENDPOINT_URL_S3": "http://user:word@store",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_REGION", raising=False)
    passed = {name: value for name, value in worker_environment().items() if name.startswith("AWS")}
    assert passed == {
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_PROFILE": "work",
    }


def test_rays_folder_is_short_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of sockets have a limit, and job folders of a cluster are long."""
    user = os.getuid()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder in (short := Path(tempfile.mkdtemp(prefix="t", dir="/tmp")), tmp_path / ("long" * 10)):
        folder.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(short))
    assert ray_cluster.own_folder() == short / f"regionclip-ray-{user}" / "r"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 10)))
    assert ray_cluster.own_folder() == Path(f"/tmp/regionclip-ray-{user}/r")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    assert ray_cluster.own_folder().is_relative_to(short)
    shutil.rmtree(short)


def test_a_ray_that_does_not_start_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise RuntimeError("Timed out waiting for file gcs_server_port\nand a page more")

    monkeypatch.setattr(ray, "init", full)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests may have theirs
    message = r"^Ray did not start: Timed .* a page more\. Its logs .* are free\. Set TMPDIR .* --backend local"
    with patch.dict(os.environ), pytest.raises(OSError, match=message):
        ray_cluster.connect(ExecutionConfig())


def test_rays_handler_of_sigterm_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(*_: object) -> None: ...

    def init(**_: object) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        return Mock(dashboard_url=None)

    monkeypatch.setattr(ray, "init", init)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with patch.dict(os.environ):
            ray_cluster.connect(ExecutionConfig())
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_run_on_ray_ends_by_sigterm_with_one_line(toy: Toy, tmp_path: Path, whole_group: bool) -> None:
    """Also if Ray's own processes got the signal, as `timeout` and Slurm send it."""
    toy.fault("hold-scaled-1")
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; sys.argv = ['regionclip', 'run', '-c', 'c.yaml']\n"
        "from stages import declarations; import toy_stages; declarations.STAGES = toy_stages.STAGES\n"
        "from stages.cli import app; app()\n"
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(toy.config(**RAY).model_dump(mode="json")))
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while "scaled-1" not in (toy.calls() if (toy.root / "log").exists() else []):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.1)
    (os.killpg if whole_group else os.kill)(run.pid, signal.SIGTERM)
    errors = run.communicate(timeout=50)[1]
    assert errors == "stopped; finished work is kept, run again to go on\n" and run.returncode == 130
    last = json.loads((Path(toy.workspace.url) / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["state"]) == ("run_ended", "interrupted")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("x")])
def test_whatever_ends_the_thread_of_a_training_is_raised(error: BaseException) -> None:
    def end() -> None:
        raise error

    with pytest.raises(type(error)):
        watched(end, lambda: None)


@pytest.mark.slow
def test_a_run_starts_its_own_ray_from_anywhere_and_takes_it_down(toy: Toy, tmp_path: Path) -> None:
    """Workers find the packages through the driver's sys.path, not through the working directory."""
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from stages import declarations; import toy_stages; declarations.STAGES = toy_stages.STAGES\n"
        "from regionclip_core.config.loading import load_config; from stages.engine.runner import Pipeline\n"
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
