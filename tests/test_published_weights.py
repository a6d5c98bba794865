"""A run on given weights, from the command line: a student, a detector and embeddings, none of them trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import load_config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import CLIP_LAYOUTS, create_clip, save_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.folder import Folder
from stages.cli import app


def call(folder: Path, command: str, *arguments: str) -> Result:
    settings = {
        "teacher.weights": folder / "pretrained",
        "teacher.embeddings": [str(folder / "embeddings")],
        "pretrain.weights": folder / "pretrained",
        "finetune.weights": folder / "detector",
        "proposals.method": "grid",
        "execution.threads": 1,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value, default=str)}")]
    common = ["--config", "tiny", "--workspace", str(folder / "ws"), *sets]
    return CliRunner().invoke(app, [command, *arguments[:1], *common, *arguments[1:]])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as `regionclip import` leaves them, with random weights of the architecture of the preset `tiny`."""
    root = tmp_path_factory.mktemp("published")
    config = load_config("tiny")
    teacher = config.teacher.model_copy(update={"weights": "random"})
    for part, seed in (("teacher", 1), ("student", 2)):
        save_clip(create_clip(teacher, seed), Folder(str(root / "pretrained" / part)), layout=CLIP_LAYOUTS[0])
    categories = load_categories(config.data.categories)
    clip = create_clip(teacher, 3)
    torch.manual_seed(0)
    rows = torch.randn(len(categories), clip.embed_dim)
    detector = OpenVocabularyDetector(region_encoder(clip), rows, categories.names, 0.01).eval()
    model = RegionModel(
        detector,
        categories,
        detector.class_embeddings,
        Preprocess(128, 1333, clip.mean, clip.std),
        InferenceSettings(),
        clip.name,
        clip.architecture,
    )
    save_model(Folder(str(root / "detector")), model, "# a detector")
    (root / "embeddings").mkdir()
    save_file({"embeddings": rows}, str(root / "embeddings" / "embeddings.safetensors"))
    (root / "embeddings" / "embeddings.json").write_text(json.dumps({"names": list(categories.names)}))
    result = call(root, "run", "report")
    assert result.exit_code == 0, result.output
    return root


def artifact(published: Path, stage: str) -> Path:
    return next((published / "ws" / stage).glob("*/manifest.json")).parent


def test_only_what_the_results_need_was_run(published: Path) -> None:
    done = {path.name for path in (published / "ws").iterdir() if path.is_dir()}
    assert done == {"data", "teacher", "proposals", "pretrain", "finetune", "evaluate", "report"}
    assert {path.name for path in artifact(published, "finetune").glob("regionclip.*")} == {
        "regionclip.json",
        "regionclip.safetensors",
    }
    assert not [path for stage in ("teacher", "pretrain", "finetune") for path in
                artifact(published, stage).glob("history*")]  # fmt: skip


def test_metrics_have_the_given_detector_alone(published: Path) -> None:
    metrics = json.loads((artifact(published, "evaluate") / "metrics.json").read_text())
    assert set(metrics["finetuned"]) == {"regionclip"}
    assert set(metrics["zero_shot_gt"]) == set(metrics["zero_shot_rpn"]) == {"clip", "regionclip"}
    for group in ("base", "novel", "all"):
        assert metrics["finetuned"]["regionclip"][group]["ap50"] is not None
    page = (artifact(published, "report") / "report.html").read_text()
    assert "Nothing was trained in this run" in page


def test_status_and_show_know_what_was_given(published: Path) -> None:
    rows = {row["stage"]: row["state"] for row in json.loads(call(published, "status", "--json").stdout)}
    assert {rows[s] for s in ("data", "teacher", "proposals", "pretrain", "finetune", "evaluate", "report")} == {"done"}
    shown = call(published, "show", "finetune")
    assert shown.exit_code == 0
    assert str(published / "detector") in shown.stdout


def test_changed_embeddings_measure_again_and_compute_nothing_again(published: Path) -> None:
    path = published / "embeddings" / "embeddings.safetensors"
    before = path.read_bytes()
    try:
        width = 128
        save_file({"embeddings": torch.randn(len(load_categories("world")), width)}, str(path))
        rows = {row["stage"]: row["state"] for row in json.loads(call(published, "status", "--json").stdout)}
    finally:
        path.write_bytes(before)
    assert rows["evaluate"] == "stale"
    assert rows["finetune"] == rows["pretrain"] == rows["proposals"] == "done"
