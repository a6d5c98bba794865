"""The workspace's lock: one of many runs, killed holders, other machines, odd file systems, object stores."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import filelock._unix
import pytest
from toy_runs import Toy

from regionclip_core.storage.folder import Folder, canonical_json
from regionclip_core.storage.local_files import scratch
from stages.engine.lock import Holder, WorkspaceLocked, hold, is_left_behind, read_holder

HOLD = """
import sys
from regionclip_core.storage.folder import Folder
from stages.engine.lock import WorkspaceLocked, hold
try:
    with hold(Folder(sys.argv[1])) as left:
        print("lock", left is not None, flush=True)
        sys.stdin.read()
except WorkspaceLocked as error:
    print("locked", str(error).split(",")[0], flush=True)
"""


def holding(workspace: Folder) -> subprocess.Popen[str]:
    """A process that holds the workspace until its input ends, or says that it can't."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, workspace.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def held(workspace: Folder) -> Iterator[subprocess.Popen[str]]:
    process = holding(workspace)
    try:
        assert said(process) == "lock False"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def workspace(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "ws"))


def me() -> Holder:
    """What this process writes into a lock."""
    place = Folder(f"memory://{os.urandom(8).hex()}")
    with hold(place):
        holder = read_holder(place)
    assert holder is not None
    return holder


def test_a_held_workspace_says_who_holds_it(toy: Toy) -> None:
    toy.run("numbers")
    with hold(toy.workspace) as left:
        assert left is None
        with pytest.raises(WorkspaceLocked, match=rf"pid {os.getpid()}, since 20\d\d-.*\n.*kill .*--workspace\.$"):
            toy.run()
        assert toy.run("numbers").outcomes == {"numbers": "skipped"}  # nothing to do needs no lock
        toy.plan()
    assert read_holder(toy.workspace) is None
    assert toy.run().ok


def test_of_runs_that_start_together_one_gets_the_lock(workspace: Folder) -> None:
    runs = [holding(workspace) for _ in range(4)]
    answers = [said(run) for run in runs]
    message = f"locked workspace {workspace.url} is held by host {socket.gethostname()}"
    assert sorted(answers) == ["lock False", message, message, message]
    for run in runs:
        run.communicate()
    assert read_holder(workspace) is None


def test_the_lock_of_a_killed_run_is_taken_over_by_one_of_many(workspace: Folder) -> None:
    with held(workspace) as process:
        holder = read_holder(workspace)
        assert holder is not None and holder.pid == process.pid and not is_left_behind(workspace, holder)
        with pytest.raises(WorkspaceLocked, match=f"pid {process.pid}"), hold(workspace):
            pass
        os.kill(process.pid, signal.SIGKILL)  # without a wait: the process stays a zombie
        while not is_left_behind(workspace, holder):
            pass
        runs = [holding(workspace) for _ in range(4)]
        assert sorted(said(run).split()[0] for run in runs) == ["lock", "locked", "locked", "locked"]
        for run in runs:
            run.communicate()
    with hold(workspace) as left:
        assert left is None  # the one that took over has removed its own


def test_a_process_id_says_nothing(workspace: Folder) -> None:
    """The id of a killed run may belong to another process by now."""
    left_over = replace(me(), pid=os.getppid())
    workspace.write_json("lock.json", asdict(left_over))
    with hold(workspace) as left:
        assert left == left_over


def test_the_lock_of_another_machine_is_left_alone(workspace: Folder) -> None:
    elsewhere = replace(me(), host="another-host", machine="another-kernel")
    workspace.write_json("lock.json", asdict(elsewhere))
    assert not is_left_behind(workspace, elsewhere)
    with pytest.raises(WorkspaceLocked, match=r"another-host, pid \d+.*\n.*delete .*lock\.json\.$"), hold(workspace):
        pass
    assert read_holder(workspace) == elsewhere


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's boot id is Linux's")
def test_a_container_that_was_started_again_takes_its_lock_over(workspace: Folder) -> None:
    container = replace(me(), host="3f2a9c01d4e5")  # the same machine under another host name
    workspace.write_json("lock.json", asdict(container))
    with hold(workspace) as left:
        assert left == container


def test_a_lock_of_another_version_is_named(workspace: Folder) -> None:
    workspace.write_json("lock.json", {**asdict(me()), "field_of_a_newer_version": 1})
    with pytest.raises(ValueError, match=r"lock\.json: expected a lock as this version writes it"), hold(workspace):
        pass


# ---------------------------------------------------------------- file systems


def test_a_file_system_without_links_has_locks(workspace: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "symlink", refused)
    with hold(workspace), pytest.raises(WorkspaceLocked), hold(workspace):
        pass
    assert read_holder(workspace) is None


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_file_takes_their_place(
    workspace: Folder, monkeypatch: pytest.MonkeyPatch, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock._unix.fcntl, "flock", missing)
    for _ in range(2):
        with hold(workspace) as left, pytest.raises(WorkspaceLocked, match=f"pid {os.getpid()}"), hold(workspace):
            pass
        assert left is None and read_holder(workspace) is None
    assert code == errno.ENOSYS or "no locks" in caplog.text  # for ENOSYS filelock does so itself, and warns


def test_another_error_of_the_lock_file_is_raised(workspace: Folder) -> None:
    workspace.child(".lock").write_bytes("x", b"")
    with pytest.raises(IsADirectoryError, match=r"ws/\.lock"), hold(workspace):
        pass


def test_a_link_in_the_temporary_folder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"regionclip-locks-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match=r"not a private folder of this user.*regionclip-locks"):
        scratch("locks")
    with pytest.raises(PermissionError), hold(Folder(f"memory://{tmp_path.name}/ws")):
        pass
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_others_can_enter_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert scratch("locks").stat().st_mode & 0o777 == 0o700
    scratch("locks").chmod(0o777)
    with pytest.raises(PermissionError, match="not a private folder"):
        scratch("locks")
    (tmp_path / f"regionclip-uploads-{os.getuid()}").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PermissionError, match="not a private folder"):
        scratch("uploads")


def test_a_link_in_place_of_the_lock_file_is_not_followed(workspace: Folder, tmp_path: Path) -> None:
    """As where others may write to the workspace: filelock empties the file that it locks."""
    (tmp_path / "ws").mkdir()
    (victim := tmp_path / "victim").write_text("kept")
    (tmp_path / "ws" / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"ws/\.lock"), hold(workspace):
        pass
    assert victim.read_text() == "kept"


# ---------------------------------------------------------------- object stores


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Folder(f"memory://{tmp_path.name}/ws")


def test_in_a_store_this_machines_dead_lock_is_taken_over(store: Folder) -> None:
    with hold(store):
        left_over = store.read_bytes("lock.json")
        with pytest.raises(WorkspaceLocked, match=f"pid {os.getpid()}"), hold(store):
            pass
    store.write_bytes("lock.json", left_over)  # as if the run had been killed
    with hold(store) as left:
        assert left is not None and left.pid == os.getpid()
    assert store.names() == []


def test_in_a_store_a_lock_that_was_not_put_from_here_is_left_alone(store: Folder) -> None:
    """Not even one of the same host name and process id: a container may have both."""
    other = replace(me(), token="of another container")
    store.write_json("lock.json", asdict(other))
    with pytest.raises(WorkspaceLocked, match=r"delete .*lock\.json"), hold(store):
        pass
    assert read_holder(store) == other and not is_left_behind(store, other)


def test_in_a_store_a_faster_run_keeps_the_lock(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine puts its lock between this run's look and its put."""
    winner, write = replace(me(), host="another-host", token="winner"), Folder.write_bytes

    def slow(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)  # the copy on this machine, which comes first
        write(store, "lock.json", canonical_json(asdict(winner)))

    monkeypatch.setattr(Folder, "write_bytes", slow)
    with pytest.raises(WorkspaceLocked, match="another-host"), hold(store):
        pass
    assert read_holder(store) == winner


def test_in_a_store_one_of_many_takes_a_dead_lock_over(store: Folder) -> None:
    with hold(store):
        left_over = store.read_bytes("lock.json")
    store.write_bytes("lock.json", left_over)
    answers: list[str] = []
    done = threading.Barrier(4)

    def run() -> None:
        try:
            with hold(store):
                answers.append("lock")
                done.wait(20)
        except WorkspaceLocked:
            answers.append("locked")
            done.wait(20)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["lock", "locked", "locked", "locked"]
