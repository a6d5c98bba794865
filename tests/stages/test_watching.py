"""What a run shows while it is at work: its journal, the history of a training, curves, progress."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import artifact, small_tree
from tensorboardX.proto.event_pb2 import Event
from toy_runs import Toy

from regionclip_core.config.loading import parse_config
from regionclip_core.storage.folder import Folder
from regionclip_core.training import fit as training
from stages.commands.verify import verify_workspace
from stages.engine import history as live
from stages.engine.curves import TensorBoard
from stages.engine.history import History
from stages.engine.journal import Journal
from stages.engine.progress import BarReporter, Pace, Reporter, duration, reporter
from stages.engine.runner import Pipeline
from stages.engine.work import ProgressFile

Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def points(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of the event files of a folder, by TFRecord's layout: length, its checksum, data, checksum."""
    found = []
    for path in folder.glob("*tfevents*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return sorted(found)


# ---------------------------------------------------------------- the history of a training


def row(step: int, training: str = "", loss: float | None = None) -> dict[str, Any]:
    named = {"training": training} if training else {}
    return {**named, "step": step, "lr": 0.1, "loss": step / 8 if loss is None else loss, "samples_per_second": 5.0}


@pytest.mark.parametrize("remote", [False, True])
def test_rows_are_there_at_once_and_a_resume_doubles_none(tmp_path: Path, remote: bool) -> None:
    """Killed after step 30, with a torn line; the checkpoint was of step 10, of the second of two trainings."""
    folder = Folder("memory://shows-history" if remote else str(tmp_path))
    board = tmp_path / "board"
    killed = History(folder, TensorBoard(board))
    killed.add(row(10, "a"))
    assert [json.loads(line)["step"] for line in folder.read_bytes(live.HISTORY).splitlines()] == [10]
    for one in (row(10, "b"), row(20, "b", loss=7.0), row(30, "b")):
        killed.add(one, last=one["step"] == 30)
    with folder.write(live.HISTORY) as file:
        file.write(b"".join(json.dumps(one).encode() + b"\n" for one in killed._rows or ()) + b'{"training": "b", "st')
    resumed = History(folder, TensorBoard(board))
    for step in (20, 30, 40):
        resumed.add(row(step, "b"), last=step == 40)
    resumed.close()
    found = [json.loads(line) for line in folder.read_bytes(live.HISTORY).splitlines()]
    wanted = [row(10, "a"), *(row(step, "b") for step in (10, 20, 30, 40))]
    assert [{key: value for key, value in one.items() if key != "time"} for one in found] == wanted
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    drawn = {name: [p for p in points(board / name) if p[0] == "loss"] for name in ("a", "b")}
    assert drawn == {
        name: [("loss", one["step"], one["loss"]) for one in wanted if one["training"] == name] for name in ("a", "b")
    }
    assert {tag for tag, _, _ in points(board / "b")} == {"loss", "lr", "samples_per_second"}


def test_a_store_gets_the_history_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 159.0, 161.0, 162.0])
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 1.0))
    folder, puts = Folder("memory://shows-puts"), list[int]()
    monkeypatch.setattr(Folder, "write_bytes", lambda _, name, data: puts.append(data.count(b"\n")))
    history = History(folder)
    for step in (10, 20, 30, 40, 50):
        history.add(row(step), last=step == 50)
    assert puts == [1, 4, 5]


def test_what_cannot_be_written_stops_no_job_and_is_said(tmp_path: Path, toy: Toy) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    history = History(Folder(str(blocked)), TensorBoard(blocked / "board"))
    progress = ProgressFile(Folder(str(tmp_path)), history)
    for step in (10, 20):
        progress(step, 20, "", row(step))
    history.close()
    assert "could not be written" in history.problem or "no more curves" in history.problem
    assert Folder(str(tmp_path)).read_json("progress.json")["problem"] == history.problem


class Killed(Exception):
    pass


def test_a_training_that_was_killed_and_one_that_was_not_leave_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The artifact's bytes, the curves' points but for the rates; no live history in the end."""
    monkeypatch.setattr(training, "_LOG_EVERY", 1)
    steps = {"rpn": {"steps": 6, "checkpoint_every": 4}, "proposals": {"method": "rpn"}}
    whole, broken = (parse_config(small_tree(tmp_path / name, **steps)) for name in ("whole", "broken"))
    assert Pipeline(whole, Reporter()).run(["rpn"]).ok

    def die(history: History, row: Mapping[str, Any], last: bool = False) -> None:
        if row["step"] == 6:
            raise Killed
        add(history, row, last)

    add = History.add
    with monkeypatch.context() as patch:
        patch.setattr(History, "add", die)
        assert not Pipeline(broken, Reporter()).run(["rpn"]).ok
    live_rows = rows_of(artifact(tmp_path / "broken", "rpn") / "history.jsonl")
    assert [one["step"] for one in live_rows] == [1, 2, 3, 4, 5]
    assert Pipeline(broken, Reporter()).run(["rpn"]).ok
    one, other = (artifact(tmp_path / name, "rpn") for name in ("whole", "broken"))
    assert not (one / "history.jsonl").exists() and not (other / "history.jsonl").exists()
    history = json.loads((one / "history.json").read_text())
    assert (one / "history.json").read_bytes() == (other / "history.json").read_bytes()
    for workspace in ("whole", "broken"):
        drawn = points(tmp_path / workspace / "tensorboard" / "rpn" / one.name)
        for name in ("loss", "lr"):
            wanted = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in history]
            assert [(step, value) for tag, step, value in drawn if tag == name] == wanted
        assert len([tag for tag, _, value in drawn if tag == "samples_per_second" and value > 0]) == 6
    assert [problems for *_, problems in verify_workspace(Folder(str(tmp_path / "broken")))] == [[], []]


# ---------------------------------------------------------------- the journal


def events(toy: Toy) -> Rows:
    return rows_of(Path(toy.workspace.url) / "events.jsonl")


def test_a_run_leaves_its_lines_and_events(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.fault("raise-scaled-1")
    assert not toy.run().ok
    printed = capsys.readouterr()
    (toy.root / "faults" / "raise-scaled-1").unlink()
    first = events(toy)
    assert len({one["run"] for one in first}) == 1
    kinds = [one["event"] for one in first]
    assert kinds[0] == "run_started" and kinds[-1] == "run_ended" and first[-1]["state"] == "failed"
    assert [one["shard"] for one in first if one["event"] == "shard_failed"] == [1]
    assert {one["stage"]: one["event"] for one in first if one["event"].startswith("stage_")} == {
        "numbers": "stage_done", "scaled": "stage_failed", "total": "stage_blocked", "lonely": "stage_done",
    }  # fmt: skip
    log = (Path(toy.workspace.url) / "run.log").read_text()
    said = [line.split("  ", 1)[1] for line in log.splitlines() if line[:2] == "20"]
    for line in (printed.out + printed.err).splitlines():
        assert any(line in one for one in said) or line in log
    with (Path(toy.workspace.url) / "events.jsonl").open("a") as file:
        file.write('{"time": "torn')
    assert toy.run().ok
    both = events(toy)  # each line is JSON again
    assert both[: len(first)] == first and both[-1]["state"] == "done"
    assert {one["run"] for one in both[len(first) :]}.isdisjoint({first[0]["run"]})
    assert [one["stage"] for one in both[len(first) :] if one["event"] == "stage_skipped"] == ["numbers", "lonely"]
    assert toy.run().ok and events(toy) == both, "nothing to do: nothing to say"


def test_an_interrupted_run_says_so_in_its_journal(toy: Toy) -> None:
    toy.fault("interrupt-scaled-2")
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    assert events(toy)[-1]["event"] == "run_ended" and events(toy)[-1]["state"] == "interrupted"


def test_a_journal_that_cannot_be_written_stops_no_run(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run.log", "events.jsonl"):
        (Path(toy.workspace.url) / name).mkdir(parents=True)
    assert toy.run().ok
    assert capsys.readouterr().err.count("is not written") == 1


def test_a_store_gets_the_journal_at_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Folder("memory://shows-journal")
    for text in ("first", "second"):
        journal = Journal(workspace, print)
        journal.line(text)
        journal.event("progress", stage="data", done=1)
        assert text not in (workspace.read_bytes("run.log").decode() if workspace.exists("run.log") else "")
        journal.close()
    assert [line.split("  ")[1] for line in workspace.read_bytes("run.log").decode().splitlines()] == [
        "first",
        "second",
    ]
    assert len(workspace.read_bytes("events.jsonl").splitlines()) == 2


# ---------------------------------------------------------------- progress


def test_a_file_gets_a_line_per_tenth_and_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,400 steps of an eighth of a second, looked at every half second; then 400 steps of a minute."""
    now = 0.0
    monkeypatch.setattr("stages.engine.progress.time", SimpleNamespace(monotonic=lambda: now))
    report = Reporter()
    report.start("teacher")
    for half in range(601):
        now = half / 2
        report.update("teacher", 4 * half, 2400, "loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "teacher    240/2400  8/s, 4 min left  loss 0.5" and len(lines) == 10
    report.start("pretrain")
    for minute in range(401):
        now = 300.0 + 60 * minute
        report.update("pretrain", 100 + minute, 500)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40 and lines[-2].endswith("0.0167/s, 10 min left")
    now = 30_000.0
    verbose = Reporter(1)
    verbose.start("rpn")
    for second in range(101):
        now = 30_000.0 + second
        verbose.update("rpn", second, 1000)
    assert len(capsys.readouterr().out.splitlines()) == 5
    quiet = Reporter(-1)
    quiet.say("rpn done")
    quiet.warn("rpn note")
    assert capsys.readouterr().out == "rpn note\n"


def test_a_terminal_gets_a_bar_while_a_stage_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wide as the terminal, with the lines above it, and nothing of it left in the end."""
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "60", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    report = reporter()
    report.say("before")
    assert isinstance(report, BarReporter) and capsys.readouterr().out == "before\n"
    assert type(reporter(-1)) is Reporter
    report.start("labels")
    for shard in range(4):
        report.update("labels", shard, 8, "a note that is far too long for the rest of the line", 100 * shard)
    report._bar.refresh()  # else ten times a second
    report.say("[between] all")
    report.stop()
    report.say("after")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).replace("\r", "\n").splitlines()
    bars = [line for line in shown if line.startswith("labels ")]
    assert re.search(r"━ 0:00:00 3/8  .* image.*…$", bars[-1]) and {len(bar) for bar in bars} == {60}
    assert "[between] all" in shown and shown[-1] == "after"


def test_pace_is_that_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("stages.engine.progress.time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace(30)  # shards that an earlier run has done
    pace.look(30, 40)
    assert str(pace) == "" and pace.in_numbers() == {}
    now = 60.0
    pace.look(32, 40, images=1000)
    assert str(pace) == "100 images/s, 40 s left"
    assert pace.in_numbers() == {"per_second": 100.0, "seconds_left": 40.0}
    assert [duration(one) for one in (0.4, 99, 100, 3600, 7200)] == ["0 s", "99 s", "2 min", "60 min", "2.0 h"]


# ---------------------------------------------------------------- Weights & Biases


def test_wandb_is_looked_for_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.engine import curves

    config = parse_config(small_tree(tmp_path, execution={"curves": "wandb"}))
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^execution\.curves: wandb is not installed here: `pip install wandb`"):
        Pipeline(config, Reporter()).run(["rpn"])
    assert not (tmp_path / "data").exists()


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB's form: in blocks of 32 KiB, each part with its checksum, length and kind."""
    at, parts = 7, b""  # the first block has a header before
    data = bytes(7) + data
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.slow
def test_wandb_gets_each_step_once_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(training, "_LOG_EVERY", 1)
    settings = {"execution": {"curves": "wandb"}, "rpn": {"steps": 4}, "proposals": {"method": "rpn"}}
    config = parse_config(small_tree(tmp_path, **settings))
    assert Pipeline(config, Reporter()).run(["rpn"]).ok
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found = list[tuple[int, float]]()
    for data in leveldb_records(file.read_bytes()[7:]):
        record = Record.FromString(data)
        values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if "loss" in values:
            found.append((record.history.step.num, float(values["loss"])))
    history = json.loads((artifact(tmp_path, "rpn") / "history.json").read_text())
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in history]
