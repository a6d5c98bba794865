"""`regionclip detect`: from a workspace, from a model's folder, zero-shot; what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
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
from safetensors.torch import save as save_tensors
from small_runs import artifact

from regionclip_core import load, open_artifact
from regionclip_core.config.loading import load_config
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection import drawing
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.model_folder import load_model, save_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.models.clip import load_clip
from regionclip_core.storage.records import Folder
from regionclip_core.weights.model_card import detector_card
from stages.cli import app
from stages.commands.known_words import unknown_names
from stages.commands.workspace_models import detector_stages

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


def entries(result: Any, out: Path, status: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == status, result.output
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
    result = free("detect", *arguments, "--model", model, "--out", str(tmp_path))
    rows = entries(result, tmp_path, status=1)
    assert "error: 1 of 3 images could not be done, the reasons are above" in result.stderr
    assert [Path(row["image"]).name for row in rows] == ["wide.png", "tall.jpg", "notes.txt"]
    assert "error" in rows[2] and rows[2]["detections"] == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    for name in ("1.HEIC", "2.heic"):
        (tmp_path / "phone" / name).write_bytes(b"....ftypheic")
    for argument, message in (
        (tmp_path / "empty", ") but no file; name another"),
        (tmp_path / "phone", "holds no image (.bmp, "),
        (tmp_path / "phone", ") but 2 .heic; convert them to JPEG or PNG"),
        (images / "*.tif", "nothing matches"),
    ):
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
    by_model = load(model).detect(str(images / "wide.png"), ["dragon", "tea pot"], load(model).vocabulary.names)[0]
    against = found("--classes", "dragon, tea pot", "--against", "own")
    assert [row["score"] for row in against] == [round(score, 4) for score in by_model.scores.tolist()]
    assert against != asked == found("--classes", "dragon, tea pot", "--against", "dragon, tea pot")
    assert len(found("--max-detections", "2")) == 2
    assert len(found("--nms", "0.01", "--classes", "dragon, tea pot")) < len(asked)
    usual = found()
    assert found("--objectness", "sigmoid") != usual
    assert found("--image-size", "96") != usual
    assert found("--max-size", "80") != usual == found("--max-size", "96")  # as 64 x 96 pixels it is seen
    assert len({tuple(row["box"]) for row in found("--proposals", "2")}) <= 2
    assert found("--proposal-nms", "0.05") != usual
    soft = found("--nms-kind", "gaussian")
    assert soft != usual and soft[0] == usual[0]
    teacher = str(artifact(run.workspace, "teacher"))
    assert found("--classes", "dragon, tea pot", "--text", teacher, "--prompts", "single") == asked


def test_a_second_model_in_the_scores(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    """The workspace's student, or the same one as a folder; crops or region features; exponents of one's own."""

    def found(*arguments: str, call: Any = run) -> list[dict[str, Any]]:
        source = () if call is run else ("--model", model)
        common = ("detect", str(images / "wide.png"), "--score", "0", "--out", str(tmp_path / "out"), *source)
        [row] = entries(call(*common, *arguments), tmp_path / "out")
        rows: list[dict[str, Any]] = row["detections"]
        return rows

    plain, fused = found(), found("--fuse", "student")
    student = str(artifact(run.workspace, "pretrain"))
    assert plain != fused != found("--fuse", "student", "--fuse-crops") != found("--fuse", "teacher", "--fuse-crops")
    assert found("--fuse", "student", "--fuse-base", "0", "--fuse-novel", "0") == plain
    assert found("--fuse", "student", "--fuse-base", "0.35", "--fuse-novel", "0.65") == fused
    assert found("--fuse", "student", "--set", "evaluate.fusion.novel=0.2") != fused
    assert found("--fuse", "student", "--set", "evaluate.fusion.temperature=0.5") != fused
    # A folder has its own prompts and temperature, here those of the artifact, which doesn't say any.
    own = found("--fuse", student, call=free)
    assert own != plain and found("--fuse", student) == own
    zero_shot = found("--name", "student")
    assert found("--name", "student", "--fuse", "teacher", "--fuse-crops") != zero_shot


def test_published_embeddings_name_what_is_looked_for(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    """The rows are used as they are; names that are not in the folder are embedded as without it."""

    def found(*arguments: str) -> list[dict[str, Any]]:
        common = ("detect", str(images / "wide.png"), "--score", "0", "--out", str(tmp_path / "out"), "--model", model)
        [row] = entries(free(*common, *arguments), tmp_path / "out")
        rows: list[dict[str, Any]] = row["detections"]
        return rows

    text = load_model(Folder(model)).text
    assert text is not None
    rows = load_model(Folder(model)).embed(["dragon", "tea pot"])
    write_embeddings(tmp_path / "e", ["tea pot", "dragon"], 7 * rows.flip(0))  # their norm makes no difference
    expected = found("--classes", "tea pot,dragon")
    assert found("--embeddings", str(tmp_path / "e")) == expected
    write_embeddings(tmp_path / "swapped", ["dragon", "tea pot"], rows.flip(0))
    swapped = {"dragon": "tea pot", "tea pot": "dragon", "comb": "comb"}
    mixed = found("--embeddings", str(tmp_path / "swapped"), "--classes", "tea pot,dragon,comb")
    usual = found("--classes", "dragon,tea pot,comb")
    assert [{**row, "name": swapped[row["name"]]} for row in mixed] == usual
    write_embeddings(tmp_path / "wide", ["a"], torch.ones(1, 9))
    common = ("detect", str(images / "wide.png"), "--model", model, "--out", str(tmp_path / "never"))
    for place, message in (
        ("wide", "embeddings of width 9, but small makes 16"),
        ("out", "/embeddings.json is not there"),
    ):
        refused = free(*common, "--embeddings", str(tmp_path / place))
        assert refused.exit_code == 2 and f"--embeddings: {tmp_path / place}" in refused.stderr
        assert message in refused.stderr


def write_embeddings(folder: Path, names: list[str], rows: torch.Tensor) -> None:
    place = Folder(str(folder))
    place.write_bytes("embeddings.safetensors", save_tensors({"embeddings": rows.contiguous()}))
    place.write_json("embeddings.json", {"names": names})


def test_student_and_teacher_of_a_workspace_find_zero_shot(run: Run, images: Path, tmp_path: Path) -> None:
    """No detector is needed; scored as the evaluate stage does."""
    shutil.copytree(run.workspace, tmp_path / "ws")
    shutil.rmtree(tmp_path / "ws" / "finetune")
    common = ("detect", str(images / "wide.png"), "--score", "0", "--workspace", str(tmp_path / "ws"))
    found = {}
    for name in ("student", "teacher"):
        out = tmp_path / name
        [row] = entries(run(*common, "--name", name, "--out", str(out)), out)
        found[name] = row["detections"]
        assert len(found[name]) > 3
    assert found["student"] != found["teacher"]
    names = json.loads((artifact(run.workspace, "data") / "categories.json").read_text())["names"]
    assert {row["name"] for row in found["student"]} <= set(names)
    refused = run(*common)
    assert refused.exit_code == 2 and "detect needs the finished stage finetune, which is missing" in refused.stderr


def test_one_bad_file_costs_its_entry_only(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails: reading, searching, drawing; and a name that no terminal and no JSON can show is escaped."""
    folder = tmp_path / "in"
    folder.mkdir()
    latin = os.fsdecode(b"caf\xe9.png")
    for name in ("a.png", latin, "n" * 250 + ".png", "y.png", "z.png"):
        shutil.copy(images / "wide.png", folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    Image.open(images / "wide.png").resize((120, 100)).save(folder / "y.png")
    real, real_draw, drawn = RegionModel.detect, drawing.draw, []

    def detect(self: RegionModel, pixels: list[np.ndarray], *names: Any) -> Any:
        if any(image.shape[1] == 120 for image in pixels):  # y.png, with z.png and alone
            raise RuntimeError("CUDA out of memory")
        return real(self, pixels, *names)

    def draw(*arguments: Any) -> Any:
        drawn.append(arguments)
        if len(drawn) == 4:  # z.png
            raise OSError("no room for a picture")
        return real_draw(*arguments)

    monkeypatch.setattr(RegionModel, "detect", detect)
    monkeypatch.setattr(drawing, "draw", draw)
    common = ("detect", str(folder), "--model", model, "--score", "0", "--batch", "4")
    result = free(*common, "--out", str(tmp_path / "out"))
    rows = {Path(row["image"]).name: row for row in entries(result, tmp_path / "out", status=1)}
    assert list(rows) == ["a.png", "broken.jpg", "caf\\xe9.png", "n" * 250 + ".png", "y.png", "z.png"]
    for name in ("a.png", "caf\\xe9.png", "n" * 250 + ".png"):
        assert rows[name]["detections"] == rows["a.png"]["detections"] != [] and Path(rows[name]["picture"]).is_file()
    assert rows["broken.jpg"]["error"].startswith("not read: bad_image")
    assert rows["y.png"]["error"] == "not searched: RuntimeError: CUDA out of memory"
    assert rows["z.png"]["error"] == "no picture: OSError: no room for a picture"
    assert rows["z.png"]["detections"] == rows["a.png"]["detections"]
    assert f"{folder}/caf\\xe9.png: " in result.stdout and f"{folder}/y.png: not searched" in result.stdout


def test_pictures_leave_doubles_out_and_the_json_keeps_them(model: str, images: Path, tmp_path: Path) -> None:
    common = ("detect", str(images / "wide.png"), "--model", model, "--score", "0", "--classes", "cup,mug,dog", "--out")
    [found] = load(model).detect(str(images / "wide.png"), ["cup", "mug", "dog"])
    rows = []
    for iou, more in ((0.5, ()), (0.1, ("--picture-nms", "0.1")), (1.0, ("--picture-nms", "1"))):
        out = tmp_path / str(iou)
        result = free(*common, str(out), *more)
        [row] = entries(result, out)
        hidden = len(found) - len(found.without_doubles(iou))
        assert np.array_equal(Image.open(row["picture"]), found.plot(str(images / "wide.png"), score=0, iou=iou))
        assert (f"({hidden} left out of the picture, under a better one)" in result.stdout) == (hidden > 0)
        assert (hidden > 0) == (iou < 1)
        rows.append(row["detections"])
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == len(found)


def test_names_that_no_caption_has_are_said(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the run trained its CLIP on these captions; plurals and last words count, parts of words don't."""
    config = load_config(str(run.file))
    teacher = config.teacher.model_copy(update={"weights": "train"})
    trained = config.model_copy(update={"teacher": teacher})
    lines = detector_stages(config, "regionclip", "this")
    table = open_artifact(str(run.workspace), "concepts")
    [concept, *_] = [row for row in table["concepts"].to_pylist() if row["concept"] not in row["surface_forms"]]
    noun, form, dropped = concept["concept"], concept["surface_forms"][0], table["dropped"]["concept"][0].as_py()
    names = [noun, form, f"quick {noun}", noun.upper(), dropped, "democracy", f"{noun} democracy", noun[:-1]]
    assert unknown_names(trained, lines, names) == names[5:]
    assert unknown_names(config, lines, names) == []  # weights of others know other words
    assert unknown_names(trained, {}, names) == []
    monkeypatch.setattr(
        "stages.commands.detect.unknown_names", lambda _, known, some: unknown_names(trained, known, some)
    )
    common = ("detect", str(images / "wide.png"), "--out", str(tmp_path), "--classes")
    result = run(*common, f"{noun}, democracy")
    assert result.exit_code == 0 and "note: no caption of this run names democracy: what is" in result.stderr
    assert "note:" not in run(*common, noun).stderr


def test_a_batch_finds_what_single_images_do(model: str, images: Path, tmp_path: Path) -> None:
    """Of mixed shapes; lines come image by image, with their place in the whole."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        shutil.copy(images / ("wide.png", "more/tall.jpg")[number % 2], folder / f"{number}.jpg")
    found = []
    for batch in ("1", "4"):
        out = tmp_path / batch
        result = free("detect", str(folder), "--model", model, "--score", "0", "--batch", batch, "--out", str(out))
        found.append(without_pictures(entries(result, out)))
        for number in range(6):
            assert f"[{number + 1}/6] {folder}/{number}.jpg: " in result.stdout
        assert "loading the model" in result.stderr and " (6 images in " in result.stdout
    for one, other in zip(*found, strict=True):
        assert [row["name"] for row in one["detections"]] == [row["name"] for row in other["detections"]] != []
        for key in ("box", "score"):
            values = [np.array([row[key] for row in side["detections"]]) for side in (one, other)]
            np.testing.assert_allclose(*values, atol=0.11 if key == "box" else 2e-4)


def test_other_formats_hold_the_same_detections(model: str, images: Path, tmp_path: Path) -> None:
    ids = {"images": [{"id": 7, "file_name": "wide.png"}, {"id": 9, "file_name": "tall.jpg"}], "annotations": []}
    ids["categories"] = [{"id": 44, "name": "dog"}, {"id": 3, "name": "cup"}, {"id": 1, "name": "bus"}]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    names = ("--classes", "cup,dog", "--ids", str(tmp_path / "ids.json"))
    arguments = ("--model", model, "--score", "0.01", "--format", "coco,csv", "--format", "voc", *names)
    result = free("detect", str(images), *arguments, "--out", str(tmp_path / "out"))
    rows = {Path(row["image"]).name: row["detections"] for row in entries(result, tmp_path / "out")}
    assert "pictures and detections.json, coco, csv, voc in" in result.stdout
    made = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".png"}
    assert made == {"coco-results.json", "detections.csv", "detections.json", "voc"}
    found = json.loads((tmp_path / "out" / "coco-results.json").read_text())
    for image, number in (("wide.png", 7), ("tall.jpg", 9)):
        own = [one for one in found if one["image_id"] == number]
        assert [{44: "dog", 3: "cup"}[one["category_id"]] for one in own] == [row["name"] for row in rows[image]] != []
        assert np.allclose([one["score"] for one in own], [row["score"] for row in rows[image]], atol=1e-4)
    arguments = tuple("cup,dogs" if argument == "cup,dog" else argument for argument in arguments)
    refused = free("detect", str(images), *arguments, "--out", str(tmp_path / "never"))
    assert refused.exit_code == 2 and "its `categories` have no ['dogs']; nearest: dog" in refused.stderr
    assert not (tmp_path / "never").exists()


def test_detections_are_written_when_a_run_is_stopped(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RegionModel.detect

    def stopped(self: RegionModel, pixels: list[np.ndarray], *names: Any) -> Any:
        if pixels[0].shape[0] == 100:
            raise KeyboardInterrupt
        return real(self, pixels, *names)

    monkeypatch.setattr(RegionModel, "detect", stopped)
    result = free("detect", str(images), "--model", model, "--out", str(tmp_path))
    assert result.exit_code == 130
    [first] = json.loads((tmp_path / "detections.json").read_text())
    assert Path(first["image"]).name == "tall.jpg" and "picture" in first


def test_what_may_have_been_meant_by_a_name(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    for name, hint in (
        ("wide.jpg", "nearest: wide.png"),
        ("more\\tall.jpg", "nearest: more/tall.jpg"),
        ("teapot", "names to look for go into --classes"),
        ("less/tall.jpg", "check its folder and ending"),
    ):
        result = free("detect", name, "--model", "m")
        assert result.exit_code == 2 and f"no file {name}, looked for in {images}; {hint}" in result.stderr
    for url, reason in (("gs://b/x.jpg", "pip install gcsfs"), ("foo://b/x.jpg", "foo")):
        result = free("detect", url, "--model", "m")
        assert result.exit_code == 2 and reason in result.stderr


def test_the_best_score_is_shown_where_nothing_reaches_the_lowest(model: str, images: Path, tmp_path: Path) -> None:
    result = free("detect", str(images), "--model", model, "--score", "1", "--out", str(tmp_path / "a"))
    assert result.exit_code == 0 and f"{images}/wide.png: nothing of 1 or more" in result.stdout
    rows = entries(free("detect", str(images), "--model", model, "--score", "0", "--out", str(tmp_path)), tmp_path)
    best, image = max(((row["detections"][0], row["image"]) for row in rows), key=lambda pair: pair[0]["score"])
    assert f"the best score is {best['score']:.4f}, of {best['name']} in {image}; " in result.stdout


def test_each_call_has_its_own_folder(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("detections", "detections2", "detections3"):
        assert f"detections.json in {out}\n" in free("detect", str(images / "wide.png"), "--model", model).stdout
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == ["000-wide.png", "detections.json"]
    ignored = Path(__file__).parents[2].joinpath(".gitignore").read_text().splitlines()
    assert "detections/" in ignored and "detections[0-9]*/" in ignored


def test_a_narrow_terminal_encoding_ends_nothing(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(images / "wide.png", tmp_path / "猫.png")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "latin-1", "strict", write_through=True))
    arguments = ["detect", str(tmp_path / "猫.png"), "--model", model, "--out", str(tmp_path / "o")]
    assert not app(arguments, standalone_mode=False)
    assert b"\\u732b.png: " in shown.getvalue()


def test_mistakes_are_said_before_torch_is_loaded(run: Run, model: str, images: Path, tmp_path: Path) -> None:
    image, config, cut = str(images / "wide.png"), ["--config", str(run.file)], images.parent / "cut"
    shutil.copytree(model, cut)
    (cut / "model.safetensors").write_bytes(Path(model, "model.safetensors").read_bytes()[:-1])
    mistakes = {
        "no file nosuch.jpg": ["detect", "nosuch.jpg", *config],
        "--name regoin: expected one of regionclip, clip, oracle, student, teacher": [
            "detect",
            image,
            "--name",
            "regoin",
        ],
        "this run has no detector 'oracle', only": ["detect", image, *config, "--name", "oracle"],
        "detect needs the finished stage finetune": ["detect", image, *config, "--workspace", str(tmp_path)],
        "nowhere: no model there": ["detect", image, "--model", "nowhere"],
        "with one template per line; nearest: short": ["detect", image, *config, "--prompts", "shrt"],
        f"'no.txt' is not `single`, `short` or `clip81`, and no such file is there (looked from {tmp_path})": [
            "detect",
            image,
            *config,
            "--prompts",
            "no.txt",
            "--classes",
            "a",
        ],
        "--text and --prompts are for the names of --classes": ["detect", image, *config, "--prompts", "short"],
        "--nms is an IoU, and gaussian": ["detect", image, *config, "--nms", "0.4", "--nms-kind", "gaussian"],
        "--model needs no config": ["detect", image, "--model", model, "--name", "clip"],
        "model.safetensors is damaged or cut short": ["detect", image, "--model", str(cut)],
        "holds no CLIP model": ["export", "student", "--model", str(tmp_path), "--out", "x"],
        "a CLIP model has no names": ["detect", image, "--model", f"{model}/text"],
        "has no proposal network": ["detect", image, "--model", f"{model}/text", "--classes", "a"],
        "no model there. Expected": ["detect", image, "--model", str(artifact(run.workspace, "finetune"))],
        "is a detector folder already": ["export", "detector", "--model", model, "--out", "x"],
        "--rpn: nowhere is not there": ["detect", image, *config, "--rpn", "nowhere"],
        "--objectness much: expected one of": ["detect", image, *config, "--objectness", "much"],
        "--nms-kind soft: expected one of": ["detect", image, *config, "--nms-kind", "soft"],
        "--device gpu: expected auto, cpu": ["detect", image, *config, "--device", "gpu"],
        "--fuse-crops, --fuse-base and --fuse-novel are of a second model": ["detect", image, *config, "--fuse-crops"],
        "expected a CLIP model, such as an exported student, but it is": ["detect", image, *config, "--fuse", model],
        "--fuse: nowhere is not there": ["detect", image, *config, "--fuse", "nowhere"],
        "detect --fuse student needs the finished stage pretrain": [
            "detect",
            image,
            *config,
            "--name",
            "teacher",
            "--fuse",
            "student",
            "--set",
            "pretrain.steps=9",
        ],
        "more than once": ["detect", image, *config, "--classes", "a,b,a"],
        "'--score'": ["detect", image, *config, "--score", "30"],
        f"--out {image}: expected a local folder": ["detect", image, *config, "--out", image],
        "--out s3://b/x: expected a local folder": ["detect", image, *config, "--out", "s3://b/x"],
        "--name best: expected one of": ["export", "detector", *config, "--name", "best", "--out", "x"],
        f"--out {images} is there already and not empty": ["import", "x.pth", "--out", str(images)],
        "export needs the finished stage pretrain": ["export", "student", "--workspace", str(tmp_path), "--out", "x"],
    }
    code = (
        "import json, sys\nfrom stages.cli import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n        app(arguments)\n"
        "    except SystemExit as end:\n        print(end.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done_without = {"--config", "--model", "import"}
    preset = [a if done_without & {*a} else [*a, "--config", "tiny"] for a in mistakes.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(preset)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    *said, rest = done.stderr.split("2 False\n")
    assert len(said) == len(mistakes) and not rest, done.stderr
    for message, answer in zip(mistakes, said, strict=True):
        assert message in " ".join(answer.split()), answer
    assert sorted(tmp_path.iterdir()) == []


def test_images_that_cant_be_read_are_said_before_torch_is_loaded(model: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    code = "import sys\nsys.modules['torch'] = None\nfrom stages.cli import app\napp(sys.argv[1:])\n"
    command = [sys.executable, "-c", code, "detect", str(images / "notes.txt"), "empty.jpg", "--model", model]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    assert "notes.txt: not read: bad_image: no image of a known format; it begins with b'no image'" in done.stdout
    assert "empty.jpg: not read: bad_image: empty file" in done.stdout
    assert "no image could be done, the reasons are above; expected JPEG, PNG, WebP" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jpg"]


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
        (["--model", "{model}", "--rpn", "{images}"], "--rpn"),
        (["--model", "{model}", "--objectness", "much"], "expected one of none, sigmoid, raw_logit"),
        (["--model", "{model}", "--device", "cuda"], "--device is cuda, but torch"),
    ],
)
def test_what_a_user_gets_wrong_exits_2_with_one_message(
    model: str, images: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "cuda" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    filled = [argument.format(model=model, images=images) for argument in arguments]
    result = free("detect", str(images / "wide.png"), "--out", str(tmp_path / "out"), *filled)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
