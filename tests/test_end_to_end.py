"""The real pipeline, every stage, with a few steps of everything: run, rerun, change, break, resume, detect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from regionclip_core.config.tree import STAGE_NAMES
from stages.cli import app

Cli = Callable[..., Result]
HALF = {"shard_size": 10} | {
    f"splits.{split}.images": images
    for split, images in {"closeup": 20, "scene": 20, "train": 10, "val": 10, "closeup_val": 10}.items()
}
"""The preset with half of its images, in as many shards."""


def call(workspace: Path, *arguments: str) -> Result:
    common = ["--config", "tiny", "--workspace", str(workspace)]
    common += [part for key, value in HALF.items() for part in ("--set", f"data.{key}={value}")]
    return CliRunner().invoke(app, [arguments[0], *common, *arguments[1:]])


def states(workspace: Path, *arguments: str) -> dict[str, tuple[str, str]]:
    rows = json.loads(call(workspace, "status", "--json", *arguments).stdout)
    return {row["stage"]: (row["state"], row["reason"]) for row in rows}


def content(workspace: Path) -> dict[str, str]:
    manifests = {stage: next((workspace / stage).glob("*/manifest.json")) for stage in STAGE_NAMES}
    return {stage: json.loads(path.read_text())["content_digest"] for stage, path in manifests.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("run") / "ws"
    result = call(workspace, "run", "--set", "execution.threads=1")
    assert result.exit_code == 0, result.output
    return workspace


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A workspace of one's own to break."""
    return Path(shutil.copytree(finished, tmp_path / "ws"))


def test_every_stage_is_done_and_verifies(finished: Path) -> None:
    assert {state for state, _ in states(finished).values()} == {"done"}
    assert "11 artifacts read, 0 stages with problems" in call(finished, "verify").stdout


def test_metrics_have_the_names_that_the_tables_need(finished: Path) -> None:
    metrics = json.loads(next((finished / "evaluate").glob("*/metrics.json")).read_text())
    for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
        for model in ("clip", "regionclip"):
            for group in ("base", "novel", "all"):
                scores = metrics[setting][model][group]
                assert 0 <= scores["ap"] <= scores["ap50"] + 1e-9 <= 101, (setting, model, group)
                assert ("top1" in scores) == (setting == "zero_shot_gt")
    assert metrics["finetuned"]["oracle"]["all"]["ap50"] is not None
    assert set(metrics["teacher"]) == {"crop_top1", "crop_mean_class_top1", "whole_image_top1"}
    assert set(metrics["student"]) == {"whole_image_top1"}


def test_ray_gives_the_same_bytes_as_local(finished: Path, tmp_path: Path) -> None:
    """Trainings included: the workers use as many threads as the local run."""
    workspace = tmp_path / "ws"
    result = call(workspace, "run", "pretrain", "--backend", "ray", "--set", "execution.threads=1")
    assert result.exit_code == 0, result.output
    made = {path.parent.parent.name: path for path in workspace.glob("*/*/manifest.json")}
    ours = {stage: json.loads(path.read_text())["content_digest"] for stage, path in made.items()}
    assert set(ours) == set(STAGE_NAMES[: STAGE_NAMES.index("pretrain") + 1])
    assert ours.items() <= content(finished).items()


@pytest.mark.slow
def test_two_training_processes_finish_through_ray_train(finished: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    result = call(workspace, "run", "evaluate", "--backend", "ray", "--set", "execution.train_workers=2")
    assert result.exit_code == 0, result.output
    alone, two = (
        json.loads(next((w / "pretrain").glob("*/manifest.json")).read_text())["summary"] for w in (finished, workspace)
    )
    assert two["samples"] == alone["samples"]
    assert two["steps"] == alone["steps"]


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = call(finished, "run")
    assert "nothing to do" in result.output
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_changed_threshold_reruns_only_what_depends_on_it(copied: Path) -> None:
    changed = states(copied, "--set", "labels.threshold=0.02")
    assert changed["labels"] == ("stale", "labels.threshold 0.0 -> 0.02")
    for stage in ("data", "concepts", "teacher", "rpn", "proposals"):
        assert changed[stage][0] == "done", stage
    for stage in ("pairs", "pretrain", "finetune", "evaluate", "report"):
        assert changed[stage][0] != "done", stage


def test_a_setting_that_changes_nothing_cuts_off_early(copied: Path) -> None:
    """Every count in the tiny run is far below this cap, so the pool stays what it was."""
    result = call(copied, "run", "--set", "concepts.max_concepts=100000")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split()[1] for line in result.output.splitlines() if len(line.split()) > 1}
    assert lines["concepts"] in ("run", "done")
    assert lines["labels"] == lines["pretrain"] == lines["evaluate"] == "skip"


def test_lost_work_comes_back_byte_identical(copied: Path) -> None:
    """A shard's record gone, a training cut back to its checkpoint, everything after it missing."""
    before = content(copied)
    before.pop("report")  # it says how long each stage took
    labels = next((copied / "labels").glob("*"))
    for stage in ("labels", "pairs", "pretrain", "finetune", "evaluate", "report"):
        next((copied / stage).glob("*/manifest.json")).unlink()
    (labels / "records.json").unlink(missing_ok=True)
    next(labels.glob("shard-*.json")).unlink()
    pretrain = next((copied / "pretrain").glob("*"))
    assert sorted(p.name for p in (pretrain / "checkpoints").iterdir()) == ["step-00000002.pt", "step-00000004.pt"]
    (pretrain / "checkpoints" / "step-00000004.pt").unlink()
    result = call(copied, "run", "--set", "execution.threads=1")
    assert result.exit_code == 0, result.output
    assert before.items() <= content(copied).items()


def test_detect_finds_names_of_ones_own_and_reports_what_it_cannot_read(finished: Path, tmp_path: Path) -> None:
    from PIL import Image

    from regionclip_core.datasets.world.sample import make_sample

    good, bad = tmp_path / "scene.png", tmp_path / "torn.png"
    Image.fromarray(make_sample("scene", 5, "mine", 0, 128).image).save(good)
    bad.write_bytes(good.read_bytes()[:300])
    result = call(
        finished,
        "detect",
        str(good),
        str(bad),
        "--classes",
        "dragon,teapot",
        "--out",
        str(tmp_path / "out"),
        "--score",
        "0",
    )
    assert result.exit_code == 1 and "1 of 2 images could not be done" in result.output, result.output
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {d["name"] for d in rows[0]["detections"]} <= {"dragon", "teapot"}
    assert rows[0]["detections"]
    assert "bad_image" in rows[1]["error"]
    assert Image.open(rows[0]["picture"]).size == (512, 512)
