"""Bad input through data, proposals, labels and pairs: every bad sample keeps its row, its reason and its count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bad_inputs import BAD_ANNOTATIONS, BAD_BOXES, good_images, write_bad_coco, write_bad_tars
from small_runs import artifact, manifest, run_small, small_config

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from stages.commands.verify import verify_workspace
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline

Expected = dict[str, tuple[str, str]]


def rows(workspace: Path, stage: str, kind: str) -> dict[str, dict[str, Any]]:
    """All rows of a stage's tables, by key."""
    files = sorted(artifact(workspace, stage).glob(f"{kind}-*.parquet"))
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def config(workspace: Path, split: dict[str, Any], mode: str = "crop", **sections: Any) -> Config:
    """Proposals by an untrained network and labels by an untrained teacher: both look at the pixels."""
    return small_config(
        workspace,
        execution={"max_error_rate": 1.0},
        data={"splits": {"train": split, "val": {"source": "world", "images": 1}}, "shard_size": 10},
        concepts={"splits": ["train"], "min_count": 1},
        rpn={"weights": "random"},
        proposals={"splits": ["train", "val"], "method": "rpn"},
        labels={"mode": mode},
        **sections,
    )


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Expected]:
    urls, expected = write_bad_tars(Folder(str(tmp_path_factory.mktemp("tars"))))
    return {"source": "tars", "urls": urls}, expected


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Expected]:
    return write_bad_coco(Folder(str(tmp_path_factory.mktemp("coco"))))


def assert_rows_say(found: dict[str, dict[str, Any]], expected: Expected) -> None:
    for key, (status, reason) in expected.items():
        assert found[key]["status"] == status, (key, found[key]["reason"])
        assert reason in (found[key]["reason"] or "")
        assert status == "ok" or found[key]["reason"], key


@pytest.mark.parametrize("mode", [pytest.param("crop", marks=pytest.mark.slow), "roi"])
def test_samples_of_tars(tmp_path: Path, tars: tuple[dict[str, Any], Expected], mode: str) -> None:
    split, expected = tars
    workspace = tmp_path / "ws"
    assert run_small(config(workspace, split, mode), "pairs").ok
    index = rows(workspace, "data", "index")
    assert_rows_say(index, expected)
    more = {key: row["status"] for key, row in index.items() if key not in expected}
    assert sorted(more.values()) == ["bad_duplicate_key", "ok"]  # the second `twice`, and the world's image
    for name, (_, size) in good_images().items():
        row = index[f"kinds/{name.replace('.', '_')}"]
        assert (row["width"], row["height"]) == size
    counts = Counter(row["status"] for row in index.values())
    assert {k: n for k, n in manifest(workspace, "data")["counts"].items() if not k.endswith("_boxes")} == counts
    for stage in ("proposals", "labels"):
        found = rows(workspace, stage, stage)
        assert_rows_say(found, expected)
        for status, number in manifest(workspace, stage)["counts"].items():
            if status == "ok" or status.startswith("bad_"):
                assert number == counts[status] - (stage == "labels" and status == "ok"), (stage, status)
        assert all(bool(row["boxes"]) == (row["status"] == "ok") for row in found.values())
    pairs = manifest(workspace, "pairs")["counts"]
    good = sum(status == "ok" for status, _ in expected.values())
    assert pairs == {"ok": good, "not_labelled": len(rows(workspace, "labels", "labels")) - good}
    assert [p for *_, problems in verify_workspace(Folder(str(workspace))) for p in problems] == []


@pytest.mark.parametrize("mode", ["crop", pytest.param("roi", marks=pytest.mark.slow)])
def test_images_boxes_and_captions_of_coco(tmp_path: Path, coco: tuple[dict[str, Any], Expected], mode: str) -> None:
    split, expected = coco
    workspace = tmp_path / "ws"
    assert run_small(config(workspace, split, mode), "pairs").ok
    index = rows(workspace, "data", "index")
    for key, (_, reason) in expected.items():
        if key.startswith("says") or index[key]["status"] != "ok" or not key.endswith(tuple(good_images())):
            continue
        assert reason in (index[key]["reason"] or "")
    for kind, (_, reason) in BAD_BOXES.items():
        row = index[f"{kind.replace(' ', '_')}.png"]
        assert row["boxes"] == [[1, 1, 7, 7]]
        assert reason in row["reason"]
    counts = manifest(workspace, "data")["counts"]
    assert counts["lost_box"] == len(BAD_BOXES)
    assert counts["lost_caption"] == 2
    assert counts["lost_annotations"] == len(BAD_ANNOTATIONS)
    assert counts["bad_unsafe_member"] == 1
    assert counts["bad_image"] == 3  # the files say so; the others are found when they are opened
    status = Counter(status for status, _ in expected.values())
    for stage in ("proposals", "labels"):
        found = rows(workspace, stage, stage)
        opened = {key: (status, reason if status != "ok" else "") for key, (status, reason) in expected.items()}
        assert_rows_say(found, opened)
        assert manifest(workspace, stage)["counts"]["bad_image"] == status["bad_image"]
    assert manifest(workspace, "pairs")["counts"] == {"ok": status["ok"], "not_labelled": len(expected) - status["ok"]}


def test_bad_images_neither_stop_nor_join_the_trainings(
    tmp_path: Path, coco: tuple[dict[str, Any], Expected], caplog: pytest.LogCaptureFixture
) -> None:
    """rpn meets them first, since proposals come after it; everything runs to the report."""
    rpn = {"weights": "train", "steps": 6, "batch_size": 4}
    base = config(tmp_path / "ws", coco[0])
    changed = base.model_copy(update={"rpn": base.rpn.model_copy(update=rpn)})
    result = run_small(changed)
    assert result.ok, result.messages
    assert "going on without image truncated.jpg: truncated or corrupt" in caplog.text
    assert (artifact(tmp_path / "ws", "report") / "report.html").stat().st_size > 10_000


def test_too_much_that_is_bad_stops_the_run_and_says_what(
    tmp_path: Path, tars: tuple[dict[str, Any], Expected]
) -> None:
    split, _ = tars
    limited = config(tmp_path / "ws", split)
    limited = limited.model_copy(update={"execution": limited.execution.model_copy(update={"max_error_rate": 0.3})})
    result = Pipeline(limited, Reporter()).run(["concepts"])
    assert result.outcomes == {"data": "failed", "concepts": "blocked"}
    message = result.messages["data"]
    for part in (
        "61.5% of 39 samples of split 'train' are bad",
        "10 bad_image",
        "2 bad_tar",
        "execution.max_error_rate is 0.3",
        "The first: kinds/empty: empty file (0 bytes); kinds/truncated: truncated or corrupt",
    ):
        assert part in message, message
    failure = json.loads((artifact(tmp_path / "ws", "data") / "failed.json").read_text())
    assert failure["error"].startswith("ErrorRateExceeded")
    before = {p: p.stat().st_mtime_ns for p in artifact(tmp_path / "ws", "data").glob("shard-*.json")}
    assert len(before) == 4
    assert Pipeline(config(tmp_path / "ws", split), Reporter()).run(["data"]).ok
    assert {p: p.stat().st_mtime_ns for p in before} == before  # no shard was done again
