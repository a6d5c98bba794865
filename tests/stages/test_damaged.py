"""Damaged and foreign files in a workspace: one of them ends no command, a run repairs it, and verify finds it."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import toy_stages
import yaml
from toy_runs import Toy
from typer.testing import CliRunner, Result

from regionclip_core.storage.folder import canonical_json
from regionclip_core.storage.records import Folder
from regionclip_core.training import error_budget
from stages.cli import app
from stages.commands import verify
from stages.commands.gc import collect, foreign_folders, unreachable
from stages.commands.verify import artifacts, not_recorded, verify_workspace
from stages.engine import lock

Cli = Callable[..., Result]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def cli(toy: Toy) -> Cli:
    file = toy.root / "c.yaml"
    file.write_text(yaml.safe_dump(toy.config().model_dump(mode="json")))
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--config", str(file)])


def folder_of(toy: Toy, stage: str) -> Path:
    return Path(str(toy.plan()[stage].path))


def change(path: Path, **values: Any) -> None:
    path.write_bytes(canonical_json({**json.loads(path.read_text()), **values}))


def problems(toy: Toy) -> dict[str, list[str]]:
    found = verify_workspace(toy.workspace)
    return {stage: [p.replace(f"{f.url}/", "") for p in wrong] for stage, f, wrong in found if wrong}


# ---------------------------------------------------------------- what is no artifact


def test_folders_that_are_no_artifacts_are_neither_deleted_nor_read(toy: Toy, cli: Cli) -> None:
    toy.run()
    toy.run(labels__threshold=0.3)
    place = toy.root / "ws" / "scaled"
    mine = [place / "coco" / "images", place / "0123456789ab" / "deep", place / "0123456789AB"]
    for folder in mine:
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text("{}")  # an artifact's file, but not in an artifact's place
    before = {str(path) for path in place.rglob("*")}
    listed = cli("gc", "--yes").stdout
    assert sorted(re.findall(r"left alone +(\S+): no artifact", listed)) == sorted(
        str(place / name) for name in ("coco", "0123456789ab", "0123456789AB")
    )
    gone = before - {str(path) for path in place.rglob("*")}
    assert gone and not any(path.startswith(str(folder)) for path in gone for folder in mine)
    assert cli("verify").stdout.endswith("4 artifacts read, 0 stages with problems\n")


def test_what_a_killed_run_left_with_records_alone_is_an_artifact(toy: Toy) -> None:
    toy.run()
    folder = folder_of(toy, "numbers")
    for name in ("plan.json", "manifest.json", "records.json"):
        (folder / name).unlink()
    assert ("numbers", str(folder)) in [(stage, f.url) for stage, f in artifacts(toy.workspace)]
    assert foreign_folders(toy.workspace) == []


# ---------------------------------------------------------------- damaged records and runs


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "a list": lambda data: b"[]",
    "null": lambda data: b"null",
    "an unknown key": lambda data: canonical_json({**json.loads(data), "more": 1}),
    "no text": lambda data: b"\xff\xfe\x00",
    "a key less": lambda data: canonical_json({k: v for k, v in json.loads(data).items() if k != "rows"}),
    "another type": lambda data: canonical_json({**json.loads(data), "settings": [1]}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_ends_no_command_and_the_next_run_mends_it(toy: Toy, cli: Cli, kind: str) -> None:
    toy.run()
    expected = toy.content()
    path = folder_of(toy, "scaled") / "manifest.json"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    line = toy.plan()["scaled"]
    assert (line.state, line.action, line.done) == ("failed", "retry", 4) and str(path) in line.reason
    for command in (["status"], ["run", "--dry-run"], ["gc"], ["show", "numbers"]):
        result = cli(*command)
        assert result.exit_code == 0, (command, result.output)
    shown = cli("show", "scaled")
    assert shown.exit_code == 0 and f"not finished: failed, {path}" in shown.stdout
    assert [folder.url for _, folder in artifacts(toy.workspace)].count(str(path.parent)) == 1
    assert unreachable([toy.config()], toy.workspace) == ([], ["total"])
    toy.calls()
    assert toy.run().ok
    assert toy.calls() == ["scaled-merge"]  # no shard was done again
    assert toy.content() == expected and problems(toy) == {}


def test_force_removes_a_damaged_manifest_with_all_else(toy: Toy) -> None:
    toy.run()
    (folder_of(toy, "scaled") / "manifest.json").write_text("")
    toy.calls()
    assert toy.run("scaled", force=True).ok
    assert [call for call in toy.calls() if call[-1].isdigit()] == [f"scaled-{shard}" for shard in range(4)]


def test_an_old_artifacts_damaged_manifest_is_no_previous_result(toy: Toy) -> None:
    toy.run()
    (folder_of(toy, "lonely") / "manifest.json").write_text("[]")
    line = toy.plan(finetune__steps=3)["lonely"]
    assert (line.state, line.reason) == ("missing", "never run")
    assert toy.run(finetune__steps=3).ok


@pytest.mark.parametrize("stage", ["numbers", "lonely"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"total": "4"}', '{"done": 3}', "7"])
def test_a_damaged_plan_progress_failure_record_or_shard_record(toy: Toy, stage: str, text: str) -> None:
    toy.run()
    expected = toy.content()
    folder = folder_of(toy, stage)
    (folder / "manifest.json").unlink()
    for name in ("progress.json", "failed.json", "failed-00002.json", "records.json"):
        (folder / name).write_text(text)
        assert toy.plan()[stage].state in ("partial", "failed")
    if stage == "numbers":
        (folder / "shard-00001.json").write_text(text)
        (folder / "shard-00002.json").unlink()
    (folder / "plan.json").write_text(text)
    assert toy.plan()[stage].state == "failed" and "plan.json" in toy.plan()[stage].reason
    (toy.root / "ws" / "input-digests.json").write_text(text)
    toy.calls()
    assert toy.run().ok
    assert toy.calls() == (["numbers-1", "numbers-2"] if stage == "numbers" else ["lonely-0"])
    assert toy.content() == expected and problems(toy) == {}


# ---------------------------------------------------------------- repaired samples


@pytest.fixture
def nines(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """nines(shards): from now on only these shards hold a bad number, in an input that no fingerprint knows."""
    bad = {0, 1, 2, 3}
    process = toy_stages.NumbersWork.process

    def repaired(self: Any, ctx: Any, state: Any, shard: int) -> Any:
        result = process(self, ctx, state, shard)
        return result if shard in bad else replace(result, counts={"ok": result.rows})

    monkeypatch.setattr(toy_stages.NumbersWork, "process", repaired)

    def choose(shards: set[int]) -> None:
        bad.clear()
        bad.update(shards)

    return choose


def test_shards_with_bad_samples_are_done_anew_once_the_input_is_mended(
    toy: Toy, nines: Callable[[set[int]], None], capsys: Output
) -> None:
    nines({1, 3})
    assert not toy.run("numbers", execution__max_error_rate=0.03).ok
    toy.calls()
    nines({3})
    assert toy.run("numbers", execution__max_error_rate=0.03).ok
    assert toy.calls() == ["numbers-1", "numbers-3"]
    said = "redo    2 shards with bad samples, which may be repaired now: 5.0% of 40 samples are bad (2 bad_nine)"
    assert f"numbers    {said}" in capsys.readouterr().out
    manifest = toy.plan(execution__max_error_rate=0.03)["numbers"].manifest
    assert manifest is not None and manifest.counts == {"ok": 39, "bad_nine": 1}
    assert problems(toy) == {}


def test_all_shards_bad_a_run_killed_meanwhile_leaves_no_old_roll_up(
    toy: Toy, nines: Callable[[set[int]], None]
) -> None:
    assert not toy.run("numbers", execution__max_error_rate=0.05).ok
    nines(set())
    fault = toy.fault("interrupt-numbers-2")
    with pytest.raises(KeyboardInterrupt):
        toy.run("numbers", execution__max_error_rate=0.05)
    fault.unlink()
    toy.calls()
    assert toy.run("numbers", execution__max_error_rate=0.05).ok
    assert toy.calls() == ["numbers-2", "numbers-3"]
    manifest = toy.plan()["numbers"].manifest
    assert manifest is not None and manifest.counts == {"ok": 40}
    assert problems(toy) == {}


def test_what_stopped_halfway_goes_on_with_mended_input(
    toy: Toy, nines: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_budget, "ENOUGH_TO_JUDGE", 20)
    assert not toy.run("numbers", execution__max_error_rate=0.05).ok
    nines(set())
    toy.calls()
    assert toy.run("numbers", execution__max_error_rate=0.05).ok
    assert toy.calls() == [f"numbers-{shard}" for shard in range(4)]


# ---------------------------------------------------------------- verify


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("manifest.json", {"counts": {"ok": 999}}, r"{'ok': 999} counts, its records have {'ok': 40}"),
        (
            "manifest.json",
            {"settings": {"labels": {"threshold": 0.9}}},
            r"its fingerprint is [0-9a-f]{12}, but its version, settings and inputs give",
        ),
        ("manifest.json", {"inputs": {"numbers": "0" * 64}}, r"its fingerprint is"),
        ("manifest.json", {"version": 9}, r"its fingerprint is"),
        (
            "manifest.json",
            {"fingerprint": "0" * 64},
            r"its fingerprint is 000000000000, but its version, settings and inputs give",
        ),
        ("manifest.json", {"stage": "total"}, r"of the stage 'total', in the place of scaled"),
        ("shard-00001.json", {"rows": 77}, r"shard-00001.json: not what records.json says of the shard"),
        ("shard-00001.json", {"shard": 2}, r"shard-00001.json: can't be read"),
    ],
)
def test_verify_compares_the_records_with_each_other(toy: Toy, name: str, spoil: dict[str, Any], message: str) -> None:
    toy.run()
    change(folder_of(toy, "scaled") / name, **spoil)
    found = problems(toy)
    assert found.keys() == {"scaled"} and any(re.search(message, p) for p in found["scaled"]), found


def test_verify_finds_a_renamed_artifact_and_a_torn_record(toy: Toy) -> None:
    toy.run()
    folder = folder_of(toy, "scaled")
    (folder / "shard-00001.json").write_text("{")
    assert problems(toy) == {"scaled": ["shard-00001.json: can't be read"]}
    folder.rename(folder.with_name("0123456789ab"))
    assert f"manifest.json: its folder is called 0123456789ab, its fingerprint {folder.name}" in problems(toy)["scaled"]


def test_a_file_of_nobody_is_a_note_and_no_problem(toy: Toy, cli: Cli) -> None:
    toy.run()
    folder = folder_of(toy, "scaled")
    (folder / "stray.parquet").write_text("x")
    assert not_recorded(Folder(str(folder))) == [f"{folder}/stray.parquet"]
    result = cli("verify")
    assert result.exit_code == 0
    assert f"scaled: note: {folder}/stray.parquet is not part of the artifact" in result.stdout


def test_a_file_that_can_not_be_opened_is_a_finding_beside_the_others(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run()
    folder = folder_of(toy, "scaled")
    for shard, make in ((0, lambda p: p.symlink_to("/nowhere")), (1, Path.mkdir)):
        path = folder / f"scaled-{shard:05d}.txt"
        path.unlink()
        make(path)
    read = verify.stream_sha256

    def broken(stream: Any) -> Any:
        if stream.name.endswith("scaled-00002.txt"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(stream)

    monkeypatch.setattr(verify, "stream_sha256", broken)
    assert problems(toy)["scaled"] == [
        "scaled-00000.txt: missing",
        "scaled-00001.txt: can't be read: Is a directory",
        "scaled-00002.txt: can't be read: Input/output error",
    ]


def test_a_file_in_the_place_of_a_stage(toy: Toy, cli: Cli) -> None:
    toy.run()
    place = toy.root / "ws" / "lonely"
    place.rename(toy.root / "aside")
    place.write_text("mine")
    result = cli("verify")
    assert result.exit_code == 1 and f"{place}: expected the folder of the stage's results" in result.stdout
    assert f"move it away: {place}" in result.stderr and "--force" not in result.stderr
    assert {name: line.state for name, line in toy.plan().items()} == {
        **dict.fromkeys(("numbers", "scaled", "total"), "done"),
        "lonely": "failed",
    }
    assert unreachable([toy.config()], toy.workspace)[0] == []
    assert toy.run().outcomes["lonely"] == "failed"


def test_advice_throws_no_good_result_away(toy: Toy, cli: Cli) -> None:
    toy.run()
    toy.run(labels__threshold=0.3)
    old, new = folder_of(toy, "scaled"), Path(str(toy.plan(labels__threshold=0.3)["scaled"].path))
    (old / "scaled-00001.txt").write_text("?")
    unreached = cli("verify", "--set", "labels.threshold=0.3", "-w", str(toy.root / "ws")).stderr
    assert f"not of this config: {old}." in unreached and "--force" not in unreached
    options = f"--config {toy.root}/c.yaml --set labels.threshold=0.3 --workspace {toy.root}/ws"
    assert f"regionclip gc {options} lists" in unreached
    assert f"regionclip run scaled --force --config {toy.root}/c.yaml\n" in cli("verify").stderr
    assert new.exists() and cli("run", "scaled", "--force").exit_code == 0 and cli("verify").exit_code == 0
    (folder_of(toy, "numbers") / "manifest.json").unlink()
    (old / "scaled-00001.txt").write_text("?")
    waits = cli("verify").stderr
    assert "not known yet whether this config reaches them: regionclip run scaled --config" in waits
    assert "--force" not in waits


# ---------------------------------------------------------------- locks


def test_gc_without_room_for_its_lock_says_what_to_do(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), toy.workspace.path("lock.json"))
    monkeypatch.setattr(lock, "_lock_file", Mock(side_effect=full))
    with pytest.raises(OSError, match=r"No space left on device; the lock finds no room: delete one of the folders"):
        collect([toy.config(labels__threshold=0.4)], toy.workspace)
    assert set(toy.plan()) == {line.stage for line in toy.plan().values() if line.state == "done"}


def test_gc_ends_a_removal_that_was_cut_short(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    for threshold in (0.3, 0.4):
        toy.run("scaled", labels__threshold=threshold)
    old = {Path(str(toy.plan(labels__threshold=t)["scaled"].path)) for t in (0.3, 0.4)}
    unlink = os.unlink

    def killed(path: Any, **more: Any) -> None:
        unlink(path, **more)
        if "scaled" in str(path) and not str(path).endswith(".json"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            collect([toy.config()], toy.workspace)
    half = [path for path in old if not (path / "plan.json").exists()]
    assert len(half) == 1 and len(os.listdir(half[0])) > 1  # something is left of it
    collect([toy.config()], toy.workspace)
    assert not any(path.exists() for path in old) and not list(foreign_folders(toy.workspace))


def test_a_damaged_table_is_named_by_the_stage_that_reads_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Folder(str(tmp_path))
    for spoil in (lambda d: d[:40], lambda d: b"", lambda d: d[:4] + bytes(len(d) - 12) + d[-8:]):
        pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "x.parquet")
        (tmp_path / "x.parquet").write_bytes(spoil((tmp_path / "x.parquet").read_bytes()))
        with (
            pytest.raises(ValueError, match=r"/x\.parquet can't be read as a table: .*`regionclip verify`"),
            folder.open_table("x.parquet") as file,
        ):
            pq.read_table(file)
    with pytest.raises(ValueError, match=r"^mine$"), folder.open_table("x.parquet"):
        raise ValueError("mine")
