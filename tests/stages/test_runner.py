"""The frame with a toy pipeline: what is run, what is kept, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import toy_stages
import yaml
from toy_runs import Toy

from regionclip_core.storage.records import FileRecord, Folder, ShardRecord, read_failure, read_manifest, write_records
from regionclip_core.training import error_budget
from regionclip_core.training.error_budget import ErrorBudget, ErrorRateExceeded
from stages.commands.gc import collect, unreachable
from stages.commands.verify import artifacts, verify_artifact
from stages.engine import runner
from stages.engine.lock import read_holder
from stages.engine.plan import PlanLine, setting_changes
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline

ALL = ["numbers", "scaled", "total", "lonely"]


def states(lines: dict[str, PlanLine]) -> dict[str, str]:
    return {name: line.state for name, line in lines.items()}


# ---------------------------------------------------------------- running and skipping


def test_first_run_does_all_and_the_second_nothing(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert {n: (line.state, line.action, line.reason) for n, line in toy.plan().items()} == {
        "numbers": ("missing", "run", "never run"),
        "scaled": ("missing", "run", "after numbers"),
        "total": ("missing", "run", "after scaled"),
        "lonely": ("missing", "run", "never run"),
    }
    assert toy.run().outcomes == dict.fromkeys(ALL, "done")
    assert len(toy.calls()) == 4 + 1 + 4 + 1 + 1 + 1
    capsys.readouterr()
    assert toy.run().outcomes == dict.fromkeys(ALL, "skipped")
    assert toy.calls() == []
    assert "nothing to do" in capsys.readouterr().out
    lines = toy.plan()
    assert set(states(lines).values()) == {"done"}
    manifest = lines["scaled"].manifest
    assert manifest is not None
    assert (manifest.shards, manifest.rows, manifest.counts, manifest.summary) == (4, 40, {"ok": 40}, {"shards": 4})
    assert manifest.files == 5  # four shards and the merge's
    assert manifest.inputs == {"numbers": lines["numbers"].manifest.content_digest}  # type: ignore[union-attr]
    total = lines["total"].manifest
    assert total is not None
    assert total.summary["total"] == sum(n for s in range(4) for n in range(10 * s, 10 * s + 10))
    assert total.files == 1  # checkpoints are no content
    assert {"host", "packages", "started", "finished", "seconds", "git_commit"} <= total.provenance.keys()


def test_a_target_runs_what_it_needs_and_no_more(toy: Toy) -> None:
    assert toy.run("scaled").outcomes == {"numbers": "done", "scaled": "done"}
    with pytest.raises(ValueError, match=r"no stage 'scale'; stages: numbers, scaled, total, lonely"):
        toy.run("scale")


def test_a_changed_setting_reruns_what_depends_on_it_and_says_why(toy: Toy) -> None:
    toy.run()
    toy.calls()
    lines = toy.plan(labels__threshold=0.3)
    assert states(lines) == {"numbers": "done", "scaled": "stale", "total": "stale", "lonely": "done"}
    assert lines["scaled"].reason == "labels.threshold 0.1 -> 0.3"
    assert lines["total"].reason == "after scaled"
    result = toy.run(labels__threshold=0.3)
    assert result.outcomes == {"numbers": "skipped", "scaled": "done", "total": "done", "lonely": "skipped"}
    assert not [call for call in toy.calls() if call.startswith(("numbers", "lonely"))]
    # The old artifacts are still there: going back costs nothing.
    assert toy.run().outcomes == dict.fromkeys(ALL, "skipped")
    toy.run("scaled", labels__threshold=0.5)
    assert toy.plan(labels__threshold=0.5)["total"].reason == "scaled changed"
    assert toy.calls().count("total") == 0


def test_early_cut_off_when_the_content_stays_the_same(toy: Toy) -> None:
    toy.run()
    toy.calls()
    result = toy.run(labels__threshold=0.15)  # scaled by whole tenths: the same numbers
    assert result.outcomes == {"numbers": "skipped", "scaled": "done", "total": "skipped", "lonely": "skipped"}
    assert "total" not in toy.calls()


def test_execution_never_enters_a_fingerprint(toy: Toy) -> None:
    toy.run()
    other = toy.plan(execution__workers=7, execution__threads=1, execution__backend="ray", execution__train_workers=4)
    assert set(states(other).values()) == {"done"}


def test_a_new_version_is_a_reason(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    monkeypatch.setattr(toy_stages.Lonely, "version", 2)
    assert toy.plan()["lonely"].reason == "lonely version 1 -> 2"
    assert toy.plan(finetune__steps=7)["lonely"].reason == "lonely version 1 -> 2; finetune.steps 60 -> 7"


def test_a_changed_input_file_is_a_reason_and_a_missing_one_blocks(toy: Toy) -> None:
    file = toy.root / "in.txt"
    settings = {
        "data__splits": {"train": {"source": "world", "images": 8}, str(file): {"source": "world", "images": 8}}
    }
    settings |= {"evaluate__split": str(file), "proposals__splits": ["train", str(file)]}
    lines = toy.plan(**settings)
    assert states(lines) == {"numbers": "blocked", "scaled": "blocked", "total": "blocked", "lonely": "missing"}
    assert str(file) in lines["numbers"].reason
    with pytest.raises(ValueError, match=r"^evaluate\.split: input '/.*/in\.txt' is not there"):
        toy.run(**settings)
    assert not toy.calls()
    file.write_text("one")
    assert toy.run(**settings).ok
    file.write_text("other")
    assert toy.plan(**settings)["numbers"].reason == f"file {file} changed"


def test_force_does_the_target_over(toy: Toy) -> None:
    toy.run()
    toy.calls()
    result = toy.run("scaled", force=True)
    assert result.outcomes == {"numbers": "skipped", "scaled": "done"}
    assert toy.calls() == [*(f"scaled-{s}" for s in range(4)), "scaled-merge", "scaled-setup"]
    with pytest.raises(ValueError, match="--force needs the stages"):
        toy.run(force=True)


def test_setting_changes_name_leaves() -> None:
    old = {"a": {"b": 1, "c": [1, 2], "d": None}, "s": 0}
    new = {"a": {"b": 2, "c": (1, 2), "e": "x"}, "s": 0}
    assert setting_changes(old, new) == ["a.b 1 -> 2", "a.d null -> (none)", "a.e (none) -> x"]
    assert setting_changes(old, old) == []


# ---------------------------------------------------------------- failures and resuming


def test_a_bad_shard_is_recorded_the_others_go_on_and_the_next_run_retries_it(toy: Toy) -> None:
    fault = toy.fault("raise-scaled-2")
    result = toy.run()
    assert result.outcomes == {"numbers": "done", "scaled": "failed", "total": "blocked", "lonely": "done"}
    assert not result.ok
    line = toy.plan()["scaled"]
    assert (line.state, line.action, line.done, line.total) == ("failed", "retry", 3, 4)
    assert line.reason == "failed: RuntimeError: made to fail at scaled-2 (3/4 done)"
    assert toy.plan()["total"].state == "blocked"
    failure = read_failure(Folder(str(line.path)), 2)
    assert "made to fail at scaled-2" in failure.traceback and "toy_stages.py" in failure.traceback
    fault.unlink()
    toy.calls()
    assert toy.run().outcomes == {"numbers": "skipped", "scaled": "done", "total": "done", "lonely": "skipped"}
    assert toy.calls() == ["scaled-2", "scaled-merge", "scaled-setup", "total"]
    assert not [name for name in Folder(str(line.path)).names() if name.startswith("failed")]


@pytest.mark.parametrize("where", ["scaled-setup", "scaled-merge", "total"])
def test_a_failed_setup_merge_or_job_is_recorded_and_retried(toy: Toy, where: str) -> None:
    fault = toy.fault(f"raise-{where}")
    stage = where.split("-")[0]
    result = toy.run()
    assert result.outcomes[stage] == "failed" and "made to fail" in result.messages[stage]
    assert "made to fail" in read_failure(Folder(str(toy.plan()[stage].path))).traceback
    assert toy.calls().count(where) == 1  # a set-up that fails is not tried for each shard
    fault.unlink()
    assert toy.run().ok
    assert set(states(toy.plan()).values()) == {"done"}


def test_an_interrupted_run_is_partial_and_goes_on_where_it_was(toy: Toy) -> None:
    fault = toy.fault("interrupt-scaled-2")
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    assert read_holder(toy.workspace) is None
    line = toy.plan()["scaled"]
    assert (line.state, line.action, line.reason) == ("partial", "resume", "2/4 done")
    fault.unlink()
    toy.calls()
    assert toy.run().ok
    assert toy.calls() == ["lonely-0", "scaled-2", "scaled-3", "scaled-merge", "scaled-setup", "total"]


def test_a_killed_run_leaves_a_workspace_that_a_rerun_finishes_to_the_same_bytes(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.run()
    expected = toy.content()
    other = Toy(tmp_path / "other")
    other.root.mkdir()
    other.fault("die-numbers-2")
    other.fault("die-total")
    code = (
        "import sys; from stages import declarations; import toy_stages; declarations.STAGES = toy_stages.STAGES\n"
        "from regionclip_core.config.loading import load_config; from stages.engine.runner import Pipeline\n"
        "Pipeline(load_config(sys.argv[1])).run()\n"
    )
    (other.root / "c.yaml").write_text(yaml.safe_dump(other.config().model_dump(mode="json")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for killed_at in ("numbers-2", "total"):
        command = [sys.executable, "-c", code, str(other.root / "c.yaml")]
        assert subprocess.run(command, env=environment, check=False, cwd=tmp_path).returncode == -9
        assert not (other.root / "faults" / f"die-{killed_at}").exists()
        assert read_holder(other.workspace) is not None
    capsys.readouterr()
    assert other.run().ok
    assert "took over the lock of a process that is gone" in capsys.readouterr().out
    assert other.content() == expected
    assert other.calls().count("numbers-1") == 1  # done before the first kill, never again


def test_too_many_bad_samples_stop_a_stage(toy: Toy) -> None:
    settings = {"execution__max_error_rate": 0.05}  # one in ten is a nine
    result = toy.run(**settings)
    assert result.outcomes["numbers"] == "failed"
    assert "10.0% of 40 samples are bad (4 bad_nine)" in result.messages["numbers"]
    assert "execution.max_error_rate is 0.05" in result.messages["numbers"]
    toy.calls()
    assert toy.run("numbers").ok  # the default allows it; the shards are kept
    assert toy.calls() == []


def test_good_images_that_lost_parts_are_neither_bad_nor_counted_twice() -> None:
    budget = ErrorBudget(0.1)
    budget.add({"ok": 90, "bad_image": 10, "lost_box": 400, "lost_caption": 50})
    budget.check(final=True)
    budget.add({"bad_image": 1})
    with pytest.raises(ErrorRateExceeded, match=r"^10\.9% of 101 samples are bad \(11 bad_image\)"):
        budget.check(final=True)


def test_too_many_bad_samples_stop_a_stage_halfway(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_budget, "ENOUGH_TO_JUDGE", 20)
    assert not toy.run("numbers", execution__max_error_rate=0.05).ok
    assert toy.calls() == ["numbers-0", "numbers-1"]


def test_a_running_stage_rolls_up_its_records(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a killed run, few records have to be opened one by one."""
    seen: list[list[int]] = []

    def watched(folder: Folder, records: Iterable[ShardRecord], files: Iterable[FileRecord] = ()) -> None:
        records = list(records)
        seen.append([record.shard for record in records])
        write_records(folder, records, files)

    monkeypatch.setattr(toy_stages, "SHARDS", 30)
    monkeypatch.setattr(runner, "ROLL_UP_AFTER", 2)
    monkeypatch.setattr(runner, "write_records", watched)
    assert toy.run("numbers").ok
    assert all(shards == list(range(len(shards))) for shards in seen)
    # Every second shard, later (from 24 on) every eighth part of all; then when the shards are done, and at the end.
    assert [len(shards) for shards in seen] == [*range(2, 25, 2), 27, 30, 30, 30]


# ---------------------------------------------------------------- verify, gc, lock


def test_verify_finds_a_flipped_byte_and_a_missing_file(toy: Toy) -> None:
    toy.run()
    assert [p for _, folder in artifacts(toy.workspace) for p in verify_artifact(folder)] == []
    folder = Path(str(toy.plan()["scaled"].path))
    file = folder / "scaled-00001.txt"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    [problem] = verify_artifact(Folder(str(folder)))
    assert "scaled-00001.txt: sha256" in problem
    file.write_bytes(data[:-1])
    [problem] = verify_artifact(Folder(str(folder)))
    assert f"{len(data) - 1} bytes, recorded {len(data)}" in problem
    file.unlink()
    [problem] = verify_artifact(Folder(str(folder)))
    assert "scaled-00001.txt: missing" in problem
    (folder / "shard-00001.json").unlink()
    assert any("differ from those rolled up" in problem for problem in verify_artifact(Folder(str(folder))))


def test_verify_reads_partial_artifacts_too(toy: Toy) -> None:
    toy.fault("raise-numbers-3")
    toy.run("numbers")
    folder = Folder(str(toy.plan()["numbers"].path))
    assert verify_artifact(folder) == []
    folder.write_bytes("numbers-00000.txt", b"?")
    assert len(verify_artifact(folder)) == 1


def test_gc_keeps_what_a_config_reaches_and_what_may_yet_be_reached(toy: Toy) -> None:
    toy.run()
    toy.run(labels__threshold=0.3)
    old, new = toy.config(), toy.config(labels__threshold=0.3)
    before = {folder.url for _, folder in artifacts(toy.workspace)}
    assert unreachable([old, new], toy.workspace) == ([], [])
    garbage, undecided = unreachable([new], toy.workspace)
    assert sorted(item.stage for item in garbage) == ["scaled", "total"] and undecided == []
    assert all(item.bytes > 0 for item in garbage)
    # A config whose scaled has not run: total's old artifacts may come back by the early cut-off.
    waiting, undecided = unreachable([toy.config(labels__threshold=0.35)], toy.workspace)
    assert undecided == ["total"] and {item.stage for item in waiting} == {"scaled"}
    assert {folder.url for _, folder in artifacts(toy.workspace)} == before  # looking deletes nothing
    deleted, _ = collect([new], toy.workspace)
    assert {folder.url for _, folder in artifacts(toy.workspace)} == before - {item.folder.url for item in deleted}
    assert set(states(toy.plan(labels__threshold=0.3)).values()) == {"done"}


def test_the_whole_pipeline_in_a_workspace_at_a_url(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.run()
    expected = toy.content()
    # The toy's faults and log are beside a local workspace; here they are relative to a URL that is a path too.
    remote = Toy(tmp_path)
    remote.workspace = Folder(f"memory://{tmp_path.name}/ws")
    config = remote.config()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memory:" / tmp_path.name).mkdir(parents=True)
    assert Pipeline(config, Reporter()).run().ok
    assert remote.content() == expected
    assert Pipeline(config, Reporter()).run().outcomes == dict.fromkeys(ALL, "skipped")
    assert all(verify_artifact(folder) == [] for _, folder in artifacts(remote.workspace))
    assert all(read_manifest(folder) is not None for _, folder in artifacts(remote.workspace))
