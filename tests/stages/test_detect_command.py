"""`regionclip detect`: from a workspace, from a model's folder, zero-shot; what comes out, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_runs import Run, finished_run, free
from PIL import Image
from places import TINY_COCO
from pycocotools import mask as coco_mask
from small_runs import artifact

from regionclip_core.config.loading import load_config
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.model_folder import load_model, save_model
from regionclip_core.models.clip import load_clip
from regionclip_core.storage.records import Folder
from regionclip_core.weights.model_card import detector_card

TINY_COCO_IMAGES = TINY_COCO / "val2017"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), "finetune")


@pytest.fixture(scope="module")
def model(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run's detector as a folder."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert run("export", "detector", "--out", str(folder)).exit_code == 0
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of other shapes, one of them in a folder, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number, (name, size) in enumerate((("wide.png", (150, 100)), ("more/tall.jpg", (90, 140)))):
        scene = Image.fromarray(make_sample("scene", 5, "mine", number, 128).image)
        scene.resize(size).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def entries(result: Any, out: Path) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads((out / "detections.json").read_text())
    return found


def without_pictures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "picture"} for row in rows]


def test_an_exported_detector_finds_what_the_workspaces_does(
    run: Run, model: str, images: Path, tmp_path: Path
) -> None:
    one = entries(run("detect", str(images), "--score", "0", "--out", str(tmp_path / "a")), tmp_path / "a")
    other = entries(
        free("detect", str(images), "--score", "0", "--model", model, "--out", str(tmp_path / "b")), tmp_path / "b"
    )
    assert without_pictures(one) == without_pictures(other)
    assert [Path(row["image"]).name for row in one] == ["tall.jpg", "wide.png"]
    for row, (width, height) in zip(one, ((90, 140), (150, 100)), strict=True):
        assert (row["width"], row["height"]) == (width, height)
        assert len(row["detections"]) > 3
        boxes = np.array([found["box"] for found in row["detections"]])
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert boxes[:, 2].max() > 0.6 * width and boxes[:, 3].max() > 0.6 * height
        scores = [found["score"] for found in row["detections"]]
        assert scores == sorted(scores, reverse=True)
        assert Image.open(row["picture"]).format == "PNG"


def test_files_folders_and_globs_are_read_once_each_and_bad_ones_named(
    model: str, images: Path, tmp_path: Path
) -> None:
    arguments = [str(images / "wide.png"), str(images / "*.png"), str(images / "more"), str(images / "notes.txt")]
    rows = entries(free("detect", *arguments, "--model", model, "--out", str(tmp_path)), tmp_path)
    assert [Path(row["image"]).name for row in rows] == ["wide.png", "tall.jpg", "notes.txt"]
    assert "error" in rows[2] and rows[2]["detections"] == []
    (tmp_path / "empty").mkdir()
    for argument, message in ((tmp_path / "empty", "holds no image"), (images / "*.tif", "nothing matches")):
        refused = free("detect", str(argument), "--model", model, "--out", str(tmp_path / "none"))
        assert refused.exit_code == 2 and message in refused.stderr
    assert not (tmp_path / "none").exists()


def test_classes_and_settings_of_ones_own(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    def found(*arguments: str, call: Any = free) -> list[dict[str, Any]]:
        source = () if call is run else ("--model", model)
        common = ("detect", str(images / "wide.png"), "--score", "0", "--out", str(tmp_path), *source)
        [row] = entries(call(*common, *arguments), tmp_path)
        rows: list[dict[str, Any]] = row["detections"]
        return rows

    asked = found("--classes", "dragon, tea pot")
    assert {row["name"] for row in asked} == {"dragon", "tea pot"}
    (tmp_path / "classes.txt").write_text("dragon\ntea pot\n", "utf-16")
    assert found("--classes", str(tmp_path / "classes.txt")) == asked
    assert found("--classes", "dragon, tea pot", call=run) == asked
    assert found("--classes", "dragon, tea pot", "--prompts", "short") != asked
    assert len(found("--max-detections", "2")) == 2
    assert len(found("--nms", "0.01", "--classes", "dragon, tea pot")) < len(asked)
    assert found("--objectness", "sigmoid") != found()
    assert found("--image-size", "96") != found()
    teacher = str(artifact(run.workspace, "teacher"))
    assert found("--classes", "dragon, tea pot", "--text", teacher, "--prompts", "single") == asked


def test_zero_shot_with_the_student_alone(run: Run, images: Path, tmp_path: Path) -> None:
    student, rpn = str(tmp_path / "student"), str(artifact(run.workspace, "rpn"))
    assert run("export", "student", "--out", student).exit_code == 0
    common = ("detect", str(images), "--model", student, "--score", "0", "--out", str(tmp_path / "out"))
    usual = ("--rpn", rpn, "--classes", "cup,dog")
    rows = entries(free(*common, *usual, "--objectness", "sigmoid"), tmp_path / "out")
    assert all(row["detections"] for row in rows)
    assert {found["name"] for row in rows for found in row["detections"]} <= {"cup", "dog"}
    # The official score drops negative logits, and a network after two steps is sure of nothing.
    assert len(entries(free(*common, *usual), tmp_path / "out")[0]["detections"]) < len(rows[0]["detections"])
    for missing, message in ((("--rpn", rpn), "give them with --classes"), (("--classes", "cup"), "with --rpn")):
        refused = free(*common, *missing)
        assert refused.exit_code == 2 and message in refused.stderr


def test_masks_come_in_the_json_and_in_the_picture(run: Run, images: Path, tmp_path: Path) -> None:
    config = load_config(str(run.file))
    config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"mask_head": True})})
    plain = tmp_path / "plain"
    assert run("export", "detector", "--out", str(plain)).exit_code == 0
    loaded, clip = load_model(Folder(str(plain))), load_clip(Folder(str(artifact(run.workspace, "pretrain"))))
    detector = build_detector(clip, loaded.vocabulary.names, config).eval()
    torch.nn.init.constant_(detector.mask_head.predictor.bias, 3.0)  # every pixel of a box, and no other
    with_masks = replace(loaded, detector=detector, embeddings=detector.class_embeddings)
    save_model(Folder(str(tmp_path / "m")), with_masks, str(detector_card(with_masks, "regionclip", None)))
    out = tmp_path / "out"
    arguments = ("detect", str(images / "wide.png"), "--model", str(tmp_path / "m"), "--score", "0", "--out", str(out))
    [row] = entries(free(*arguments), out)
    assert row["detections"]
    for found in row["detections"]:
        mask = coco_mask.decode({**found["mask"], "counts": found["mask"]["counts"].encode()})
        assert mask.shape == (100, 150)
        ys, xs = np.nonzero(mask)
        inside = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(inside, found["box"], atol=1.5)
    plain_picture = np.asarray(Image.open(images / "wide.png").resize((450, 300), Image.Resampling.LANCZOS)).astype(int)
    tinted = np.asarray(Image.open(row["picture"])).astype(int)
    x0, y0, x1, y1 = (round(3 * v) for v in row["detections"][0]["box"])
    assert np.abs(tinted - plain_picture)[y0 + 20 : y1 - 5, x0 + 5 : x1 - 5].max(axis=2).mean() > 20


@pytest.mark.skipif(not TINY_COCO_IMAGES.is_dir(), reason=f"needs {TINY_COCO_IMAGES} (or REGIONCLIP_TINY_COCO)")
def test_photographs_are_searched_at_a_reduced_size(model: str, tmp_path: Path) -> None:
    arguments = (str(TINY_COCO_IMAGES / "0000000[01]*.jpg"), "--model", model, "--score", "0", "--image-size", "96")
    rows = entries(free("detect", *arguments, "--classes", "person,kite", "--out", str(tmp_path)), tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert (row["width"], row["height"]) == Image.open(row["image"]).size
        assert row["detections"] and {found["name"] for found in row["detections"]} <= {"person", "kite"}
        assert max(found["box"][2] for found in row["detections"]) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere: no model there. Expected a detector folder"),
        (["--model", "nowhere", "--workspace", "x"], "--model needs no config"),
        (["--classes", " , "], "names no category"),
        (["--config", "tiny", "--workspace", "nothing", "--classes", "a"], "detect needs the finished stage finetune"),
        (["--model", "{model}", "--classes", "a,b,a"], "names ['a'] more than once"),
        (["--model", "{model}", "--rpn", "{images}"], "no folder of a proposal network"),
        (["--model", "{model}", "--objectness", "much"], "expected one of none, sigmoid, raw_logit"),
        (["--model", "{model}", "--device", "cuda"], "cuda"),
    ],
)
def test_what_a_user_gets_wrong_exits_2_with_one_message(
    model: str, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if message == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    filled = [argument.format(model=model, images=images) for argument in arguments]
    result = free("detect", str(images / "wide.png"), "--out", str(tmp_path / "out"), *filled)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
