"""What takes no lock, beside what deletes and redoes artifacts."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import toy_stages
import yaml
from toy_runs import Toy
from typer.testing import CliRunner

from regionclip_core.storage.records import Folder, read_failure
from stages.cli import app
from stages.commands import show, verify
from stages.commands.gc import folder_bytes
from stages.commands.show import show_stage
from stages.commands.verify import verify_workspace


def folder_of(toy: Toy, stage: str) -> Folder:
    return Folder(str(toy.plan()[stage].path))


def test_verify_leaves_out_what_is_deleted_while_it_reads(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    scaled, read = folder_of(toy, "scaled"), verify.stream_sha256

    def deleting(stream: Any) -> Any:
        if stream.name == scaled.path("scaled-00001.txt"):
            scaled.remove_all()
        return read(stream)

    monkeypatch.setattr(verify, "stream_sha256", deleting)
    found = {stage: problems for stage, _, problems in verify_workspace(toy.workspace)}
    assert found == {"numbers": [], "total": [], "lonely": []}


def test_verify_looks_again_at_what_is_redone_while_it_reads(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    scaled, read, redone = folder_of(toy, "scaled"), verify.stream_sha256, []

    def redoing(stream: Any) -> Any:
        if stream.name == scaled.path("scaled-00001.txt") and not redone:
            scaled.remove_all()
            redone.append(toy.run("scaled", labels__top_k=16).ok)  # the default: the same artifact
            scaled.write_bytes("scaled-00002.txt", b"half of it")
            raise FileNotFoundError(stream.name)
        scaled.write_bytes("scaled-00002.txt", whole)
        return read(stream)

    whole = scaled.read_bytes("scaled-00002.txt")
    monkeypatch.setattr(verify, "stream_sha256", redoing)
    assert all(problems == [] for *_, problems in verify_workspace(toy.workspace)) and redone == [True]


def test_show_says_that_its_artifact_was_deleted(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    (toy.root / "c.yaml").write_text(yaml.safe_dump(toy.config().model_dump(mode="json")))
    read = show.read_records

    def deleted(folder: Folder) -> Any:
        folder.remove_all()
        return read(folder)

    monkeypatch.setattr(show, "read_records", deleted)
    result = CliRunner().invoke(app, ["show", "scaled", "--config", str(toy.root / "c.yaml")])
    assert result.exit_code == 2
    assert re.match(r"error: deleted while it was being read, by .*: scaled \(.*/scaled/.*\)\.", result.stderr)


def test_status_beside_a_shard_that_just_succeeds(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.fault("raise-scaled-2")
    toy.run()

    def succeeded(folder: Folder, shard: int | None = None) -> Any:
        folder.remove("failed-00002.json")
        return read_failure(folder, shard)

    monkeypatch.setattr("stages.engine.plan.read_failure", succeeded)
    line = toy.plan()["scaled"]
    assert (line.state, line.reason) == ("partial", "3/4 done")


def test_commands_without_a_lock_beside_runs_that_redo_everything(toy: Toy) -> None:
    toy.run()
    ended = threading.Event()

    def redo() -> None:
        try:
            for _ in range(4):
                assert toy.run("numbers", "scaled", "lonely", force=True).ok
        finally:
            ended.set()

    other = threading.Thread(target=redo)
    other.start()
    looks = 0
    try:
        while not ended.is_set() or looks < 3:
            lines = toy.plan()
            assert {line.state for line in lines.values()} <= {"done", "partial", "missing", "stale"}
            assert [problems for *_, problems in verify_workspace(toy.workspace) if problems] == []
            assert folder_bytes(toy.workspace) > 0
            if lines["lonely"].state == "done":
                try:
                    show_stage(lines["lonely"], toy.workspace)
                except FileNotFoundError:  # which the command line explains
                    assert not ended.is_set()
            looks += 1
    finally:
        other.join()
    assert toy.run().ok


def test_an_input_that_is_replaced_while_a_stage_runs_is_told(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = toy.root / "in.txt"
    file.write_text("one")
    splits = {name: {"source": "world", "images": 8} for name in ("train", str(file))}
    settings: dict[str, Any] = {"data__splits": splits, "evaluate__split": str(file)}
    settings["proposals__splits"] = list(splits)
    process = toy_stages.NumbersWork.process

    def replacing(self: Any, ctx: Any, state: Any, shard: int) -> Any:
        file.write_text("two")
        return process(self, ctx, state, shard)

    with monkeypatch.context() as patch:
        patch.setattr(toy_stages.NumbersWork, "process", replacing)
        assert toy.run("numbers", **settings).ok
    assert f"{file} changed while the stage ran: what it read counts as the old content" in capsys.readouterr().out
    line = toy.plan(**settings)["numbers"]
    assert (line.state, line.reason) == ("stale", f"file {file} changed")
    file.write_text("one")
    manifest = toy.plan(**settings)["numbers"].manifest
    assert manifest is not None and manifest.provenance["changed_inputs"] == [str(file)]
    assert toy.run("numbers", force=True, **settings).ok
    manifest = toy.plan(**settings)["numbers"].manifest
    assert manifest is not None and "changed_inputs" not in manifest.provenance
