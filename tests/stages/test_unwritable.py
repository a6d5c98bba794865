"""A full disk, a store that is away, a workspace that vanishes: the message has the real reason, the rest goes on."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from toy_runs import Toy

from regionclip_core.storage.folder import Folder
from stages.engine.lock import hold, read_holder
from stages.engine.plan import Planner

Output = pytest.CaptureFixture[str]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """full(pattern, ...): from now on no file can be written whose path fits; full() makes room again."""
    patterns: list[str] = []
    write = Folder.write

    def refuse(self: Folder, name: str) -> AbstractContextManager[Any]:
        if any(fnmatch.fnmatch(self.path(name), pattern) for pattern in patterns):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path(name))
        return write(self, name)

    monkeypatch.setattr(Folder, "write", refuse)

    def choose(*chosen: str) -> None:
        patterns[:] = chosen

    return choose


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """away(name): once a file of that name is asked for, no folder can be read or written; away("") ends it."""
    state = {"at": "", "gone": False}

    def losing(call: Callable[..., Any]) -> Callable[..., Any]:
        def check(self: Folder, name: str = "", *rest: Any, **more: Any) -> Any:
            state["gone"] = state["gone"] or (bool(state["at"]) and name == state["at"])
            if state["gone"]:
                raise ConnectionError(f"{self.url}: the store is away")
            return call(self, name, *rest, **more) if name else call(self)

        return check

    for method in ("write", "read_bytes", "remove", "names"):
        monkeypatch.setattr(Folder, method, losing(getattr(Folder, method)))
    return lambda at: state.update(at=at, gone=False)


@pytest.mark.parametrize("name", ["plan.json", "records.json", "manifest.json", "numbers-*.txt", "shard-*.json"])
def test_a_stage_that_finds_no_room_fails_and_the_others_go_on(toy: Toy, full: Callable[..., None], name: str) -> None:
    toy.run()
    expected = toy.content()
    shutil.rmtree(toy.root / "ws")
    full(f"*/numbers/*/{name}")
    result = toy.run()
    assert result.outcomes == {"numbers": "failed", "scaled": "blocked", "total": "blocked", "lonely": "done"}
    folder = toy.plan()["numbers"].path
    assert f"OSError: [Errno 28] No space left on device: '{folder}/{name.split('*')[0]}" in result.messages["numbers"]
    assert toy.plan()["numbers"].state == "failed" and read_holder(toy.workspace) is None
    full()
    assert toy.run().ok
    assert toy.content() == expected


def test_nothing_of_a_stage_can_be_written(toy: Toy, full: Callable[..., None], capsys: Output) -> None:
    """The message has the first shard's reason, although there is no room for any failure record."""
    fault = toy.fault("raise-numbers-2")
    full("*/numbers/*/records.json", "*/numbers/*/failed*")
    result = toy.run()
    assert result.outcomes == {"numbers": "failed", "scaled": "blocked", "total": "blocked", "lonely": "done"}
    message = result.messages["numbers"]
    assert message.startswith("shard 2: RuntimeError: made to fail at numbers-2\n")
    assert "its traceback could not be written: [Errno 28] No space left on device: " in message
    assert "failed-00002.json'; free space there and run again, finished work is kept; or" in message
    output = capsys.readouterr().out
    assert "the roll-up of the records could not be written: [Errno 28] No space left on device" in output
    full()
    fault.unlink()
    toy.calls()
    assert toy.run("numbers").ok
    assert toy.calls() == ["numbers-2", "numbers-3"]


@pytest.mark.parametrize("where", ["scaled-setup", "scaled-merge", "total"])
def test_the_reason_of_a_stage_whose_failure_can_not_be_written(
    toy: Toy, full: Callable[..., None], where: str
) -> None:
    toy.fault(f"raise-{where}")
    full("*/failed.json")
    stage = where.split("-")[0]
    result = toy.run()
    assert result.outcomes[stage] == "failed" and result.outcomes["lonely"] == "done"
    assert result.messages[stage].startswith(f"RuntimeError: made to fail at {where}\n")
    assert "the traceback could not be written: [Errno 28]" in result.messages[stage]


def test_an_interrupt_stays_an_interrupt(toy: Toy, full: Callable[..., None], capsys: Output) -> None:
    toy.fault("interrupt-numbers-2")
    full("*/records.json", "*/input-digests.json")
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    assert "the roll-up of the records could not be written" in capsys.readouterr().out
    assert read_holder(toy.workspace) is None


@pytest.mark.parametrize("at", ["plan.json", "shard-00001.json", "records.json", "manifest.json"])
def test_a_store_that_goes_away_fails_the_stages_one_by_one(
    toy: Toy, away: Callable[[str], None], at: str, caplog: pytest.LogCaptureFixture
) -> None:
    toy.run("numbers")
    toy.calls()
    with hold(toy.workspace):
        Folder(str(toy.plan()["numbers"].path)).remove_all()
    current = Planner.current

    def then_away(self: Planner) -> Any:  # what a run does first, before it begins
        lines = current(self)
        away(at)
        return lines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planner, "current", then_away)
        result = toy.run()
    away("")
    assert result.outcomes == {"numbers": "failed", "scaled": "blocked", "total": "blocked", "lonely": "failed"}
    assert all("the store is away" in result.messages[stage] for stage in ("numbers", "lonely"))
    assert "lock.json was not removed" in caplog.text
    left = read_holder(toy.workspace)
    assert left is not None and left.pid == os.getpid()
    toy.workspace.remove("lock.json")  # of a process that, in earnest, would be gone by now
    assert toy.run().ok


def test_a_workspace_that_vanishes_does_not_keep_a_run_from_ending(toy: Toy) -> None:
    with hold(toy.workspace):
        shutil.rmtree(toy.workspace.url)
    with hold(toy.workspace):
        shutil.rmtree(toy.workspace.url)
        toy.root.joinpath("ws").write_text("a file in its place")


def test_a_lock_that_finds_no_room_names_its_file(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    fdopen = os.fdopen

    def no_room(fd: int, mode: str) -> Any:
        fdopen(fd, mode).close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", no_room)
        with pytest.raises(OSError, match=r"No space left on device: '.*/ws/lock\.json'"), hold(toy.workspace):
            pass
    assert os.listdir(toy.workspace.url) == [".lock"]  # free, and of no bytes
