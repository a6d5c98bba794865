"""Rare moments in which work could be lost or mixed: listings, roll-ups, a store that is away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, s3_server
from toy_runs import Toy

from regionclip_core.storage.folder import stream_sha256
from regionclip_core.storage.records import Failure, FileRecord, Folder, ShardRecord, read_records
from stages.base import ShardResult, ShardWork, StageContext
from stages.commands.verify import verify_artifact
from stages.engine import runner, work
from stages.engine.backend import LocalBackend


def test_a_merge_refuses_a_roll_up_that_lags(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(work, "read_records", lambda folder: (read_records(folder)[0][:-1], []))
        result = toy.run("numbers")
    assert result.outcomes == {"numbers": "failed"} and "an older one; run again" in result.messages["numbers"]
    assert toy.run("numbers").ok


def test_a_roll_up_does_not_speak_for_a_shard_that_is_redone(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy.run("numbers").ok
    out = Folder(str(toy.plan()["numbers"].path))
    rolled = out.read_json("records.json")
    rolled["shards"][1]["files"][0]["sha256"] = "0" * 64  # as if that shard's bytes had been others, then
    out.write_json("records.json", rolled)
    out.remove("manifest.json")
    out.remove("shard-00001.json")

    write = runner.write_records

    def killed_after_the_shard(folder: Folder, *rest: Any) -> None:
        if out.exists("shard-00001.json"):
            raise KeyboardInterrupt
        write(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_records", killed_after_the_shard)
        with pytest.raises(KeyboardInterrupt):
            toy.run("numbers")
    assert out.exists("shard-00001.json")
    assert toy.run("numbers").ok
    assert verify_artifact(out) == []


def test_a_store_that_is_away_does_not_end_a_job_by_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise ConnectionError("the store is away")

    progress = work.ProgressFile(Folder(str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_json", away)
        progress(3, 3, "")
    assert "the store is away" in caplog.text and not list(tmp_path.iterdir())
    progress(3, 3, "")
    assert Folder(str(tmp_path)).read_json("progress.json")["done"] == 3


def test_a_job_goes_on_when_its_progress_cannot_be_read(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def call(self: LocalBackend, task: work.StageTask, function: str, watch: Any = None) -> Any:
        if function == "job":
            with monkeypatch.context() as patch:
                patch.setattr(Folder, "read_json", lambda *_: looks.append(1) or _raise(ConnectionError("away")))
                watch()
        return getattr(work, function)(task)

    monkeypatch.setattr(LocalBackend, "call", call)
    assert toy.run().ok and looks


def _raise(error: Exception) -> None:
    raise error


# ---------------------------------------------------------------- two workers with one shard


class Unlike(ShardWork):
    """Writes two files that differ from worker to worker, as a GPU's last bits may.

    Each worker calls its own of `pauses` with the step: 0 before the first file, 1 before the second, 2 after both.
    """

    def __init__(self) -> None:
        self.pauses: dict[int, Callable[[int], None]] = {}

    def shards(self, ctx: StageContext) -> list[int]:
        return [3]

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        worker = threading.get_ident()
        pause = self.pauses.get(worker, lambda step: None)
        for step, name in enumerate(("a", "b")):
            pause(step)
            ctx.out.write_bytes(f"{name}-{shard:05d}.txt", f"{worker}".encode())
        pause(2)
        return ShardResult(1, {"ok": 1})


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with s3_server():
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Places where an artifact may be."""
    if request.param == "local":
        return str(tmp_path / "unlike")
    return f"{request.getfixturevalue('store')}/{tmp_path.name}"


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_worker_that_was_cut_off_writes_nothing_over_a_shard_that_another_committed(
    step: int, place: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, late = Unlike(), []
    monkeypatch.setattr(work, "load_work", lambda target: stage)
    task = work.StageTask("unlike", "", toy.config(), place, {})
    reached, committed = threading.Event(), threading.Event()

    def wait(now: int) -> None:
        if now == step:
            reached.set()
            assert committed.wait(30)

    def cut_off() -> None:
        stage.pauses[threading.get_ident()] = wait
        late.append(work.ShardWorker().process(task, 3))

    thread = threading.Thread(target=cut_off)
    thread.start()
    assert reached.wait(30)
    record = work.ShardWorker().process(task, 3)
    committed.set()
    thread.join()
    assert isinstance(record, ShardRecord) and late == [record]
    out = Folder(place)
    assert out.names() == ["a-00003.txt", "b-00003.txt", "shard-00003.json"]
    assert _files(out) == record.files
    assert work.ShardWorker().process(task, 3) == record  # nor is it done again
    out.remove("shard-00003.json")
    out.write_bytes("a-00003.txt", b"of an interrupted worker")
    again = work.ShardWorker().process(task, 3)  # but one without a record is, over what is there
    assert isinstance(again, ShardRecord) and again.files == _files(out)


def _files(out: Folder) -> list[FileRecord]:
    found = []
    for name in out.names():
        if name.endswith(".txt"):
            with out.open(name) as stream:
                found.append(FileRecord(name, *stream_sha256(stream)))
    return found


def test_a_job_that_was_cut_off_writes_nothing_into_a_finished_artifact(toy: Toy) -> None:
    assert toy.run().ok
    line, before = toy.plan()["total"], toy.content()
    task = work.StageTask("total", "toy_stages:TOTAL", toy.config(pretrain__steps=99), str(line.path), line.upstream)
    failed = work.job(task)
    assert isinstance(failed, Failure) and failed.error.startswith("Committed: ") and "manifest.json" in failed.error
    assert toy.content() == before
