"""`regionclip features` and `embed`: the model's own numbers in files, read back by pandas, pyarrow and safetensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from export_runs import Run, finished_run, free
from PIL import Image
from safetensors import safe_open
from small_runs import artifact

import regionclip_core
from regionclip_core.datasets.world.sample import make_sample

BOXES = {"wide.png": [[10, 20, 60.5, 90], [0, 0, 150, 100]], "tall.jpg": [[5, 5, 50, 120]]}
SIDES = ["xmin", "ymin", "xmax", "ymax"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), "finetune")


@pytest.fixture(scope="module")
def place(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with detector/, student/, three images in photos/, and boxes of two of them."""
    root = tmp_path_factory.mktemp("place")
    for what in ("detector", "student"):
        assert run("export", what, "--out", str(root / what)).exit_code == 0
    (root / "photos").mkdir()
    for number, (name, size) in enumerate((("wide.png", (150, 100)), ("tall.jpg", (90, 140)), ("other.png", (99, 99)))):
        scene = Image.fromarray(make_sample("scene", 5, "mine", number, 128).image)
        scene.resize(size).save(root / "photos" / name)
    rows = [(name, *box, "cat") for name, boxes in BOXES.items() for box in boxes]
    table = pd.DataFrame([*rows, ("wide.png", 3, 3, 3, 9, "flat")], columns=["image", *SIDES, "name"])
    table.to_csv(root / "boxes.csv", index=False)
    return root


def plain(place: Path, model: str) -> np.ndarray:
    """The same features, box by box."""
    loaded = regionclip_core.load(model)
    photos = place / "photos"
    return np.concatenate(
        [
            loaded.region_features(str(photos / name), [box]).numpy()
            for name in ("tall.jpg", "wide.png")
            for box in BOXES[name]
        ]
    )


@pytest.mark.parametrize("batch", ["1", "4"])
def test_features_are_the_models(place: Path, tmp_path: Path, batch: str) -> None:
    model, out = str(place / "detector"), tmp_path / "f.parquet"
    arguments = ("--boxes", str(place / "boxes.csv"), "--model", model, "--out", str(out), "--batch", batch)
    result = free("features", str(place / "photos"), *arguments)
    assert result.exit_code == 0, result.output
    assert "boxes.csv has no boxes of 1 of 3 images" in result.stdout
    assert "boxes without area, left out: 1" in result.stdout
    table = pd.read_parquet(out)
    assert [Path(image).name for image in table["image"]] == ["tall.jpg", "wide.png", "wide.png"]
    assert np.allclose(table[SIDES], [*BOXES["tall.jpg"], *BOXES["wide.png"]]) and set(table["name"]) == {"cat"}
    found = np.stack(table["feature"])
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found, plain(place, model), atol=1e-5)
    assert str(pq.read_schema(out).field("feature").type) == "fixed_size_list<element: float>[16]"


def test_of_a_workspace_and_of_an_exported_student(run: Run, place: Path, tmp_path: Path) -> None:
    """A model without a proposal network needs none here. Images have the size that a model sees."""
    common = ("features", str(place / "photos" / "*.*"), "--boxes", str(place / "boxes.csv"))
    found = {}
    for name, call, more in (
        ("run", run, ("--name", "student")),
        ("teacher", run, ("--name", "teacher")),
        ("regionclip", run, ()),
        ("folder", free, ("--model", str(place / "student"), "--image-size", "64", "--max-size", "64")),
    ):
        out = tmp_path / f"{name}.parquet"
        result = call(*common, "--out", str(out), *more)
        assert result.exit_code == 0, result.output
        found[name] = np.stack(pd.read_parquet(out)["feature"])
    student = regionclip_core.load(str(place / "student"))
    assert np.allclose(found["regionclip"], plain(place, str(place / "detector")), atol=1e-5)
    sized = student.adjusted(image_size=64, max_size=64)
    expected = [
        sized.region_features(str(place / "photos" / name), BOXES[name]).numpy() for name in ("tall.jpg", "wide.png")
    ]
    assert np.allclose(found["folder"], np.concatenate(expected), atol=1e-5)
    assert not np.allclose(found["run"], found["teacher"], atol=1e-3)


def test_what_detect_found_can_be_given_back(place: Path, tmp_path: Path) -> None:
    """COCO's, YOLO's and CSV's files of `detect` give the features of the boxes that it found."""
    model = ("--model", str(place / "detector"))
    out = tmp_path / "found"
    arguments = ("--score", "0", "--max-detections", "5", "--format", "coco,yolo,csv", "--out", str(out))
    assert free("detect", str(place / "photos"), *model, *arguments).exit_code == 0
    results = json.loads((out / "coco-results.json").read_text())
    images = json.loads((out / "coco-images.json").read_text())
    (out / "whole.json").write_text(json.dumps({**images, "annotations": results}))
    found = []
    for boxes in ("detections.csv", "yolo", "whole.json"):
        file = tmp_path / f"{boxes}.parquet"
        result = free("features", str(place / "photos"), *model, "--boxes", str(out / boxes), "--out", str(file))
        assert result.exit_code == 0, result.output
        found.append(pd.read_parquet(file))
    rows = json.loads((out / "detections.json").read_text())
    expected = [(row["image"], one["name"]) for row in rows for one in row["detections"]]
    assert len(expected) > 10
    for table in found:
        assert list(zip(table["image"], table["name"], strict=True)) == expected
        assert np.allclose(np.stack(table["feature"]), np.stack(found[0]["feature"]), atol=2e-2)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_done(place: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines = (place / "boxes.csv").read_text() + "broken.png,1,2,3,4,cat\n"
    (tmp_path / "b.csv").write_text(lines)
    common = ("--boxes", str(tmp_path / "b.csv"), "--model", str(place / "detector"), "--out")
    result = free("features", str(tmp_path / "broken.png"), str(place / "photos"), *common, str(tmp_path / "f.parquet"))
    assert result.exit_code == 1 and "1 of 3 images could not be done, the reasons are above" in result.stderr
    assert f"{tmp_path}/broken.png: not read: bad_image" in result.stdout
    assert len(pd.read_parquet(tmp_path / "f.parquet")) == 3
    alone = free("features", str(tmp_path / "broken.png"), *common, str(tmp_path / "g.parquet"))
    assert alone.exit_code == 1 and "no image could be done" in alone.stderr
    assert not (tmp_path / "g.parquet").exists()


def test_embeddings_are_the_models(run: Run, place: Path, tmp_path: Path) -> None:
    names = ["cup", "red umbrella", "kün"]
    (tmp_path / "names.txt").write_text("\n".join(names), "utf-8")
    detector, student = (regionclip_core.load(str(place / what)).embed(names) for what in ("detector", "student"))
    for number, (call, more, expected) in enumerate(
        (
            (free, ("--model", str(place / "detector")), detector),
            (run, (), detector),
            (free, ("--model", str(place / "student")), student),
            (free, ("--model", str(place / "detector"), "--text", str(artifact(run.workspace, "teacher"))), None),
        )
    ):
        out = tmp_path / f"{number}.safetensors"
        result = call("embed", f"@{tmp_path / 'names.txt'}", "--out", str(out), *more)
        assert result.exit_code == 0, result.output
        with safe_open(str(out), "pt") as file:
            rows = file.get_tensor("embeddings")
            assert json.loads(file.metadata()["names"]) == names and list(file.keys()) == ["embeddings"]
        assert rows.dtype == torch.float32 and rows.shape == (3, 16)
        assert expected is None or torch.allclose(rows, expected, atol=1e-6)
    assert (
        free(
            "embed", "cup, dog", "--model", str(place / "student"), "--out", str(tmp_path / "two.safetensors")
        ).exit_code
        == 0
    )


def test_mistakes_are_said_before_torch_is_loaded(run: Run, place: Path, tmp_path: Path) -> None:
    image, boxes = str(place / "photos" / "wide.png"), str(place / "boxes.csv")
    model = ["--model", str(place / "detector")]
    common = ["features", image, *model]
    mistakes = {
        "--boxes: no file nowhere.csv": [*common, "--boxes", "nowhere.csv", "--out", "f.parquet"],
        "none of the 1 images, such as": [
            *("features", str(place / "photos" / "other.png"), *model, "--boxes", boxes, "--out", "f.parquet")
        ],
        "--out f.csv: expected a file that ends in .parquet": [*common, "--boxes", boxes, "--out", "f.csv"],
        f"--out {image}: expected a file that ends in .safetensors": ["embed", "a,b", *model, "--out", image],
        f"--out {place}/there.parquet is there already": [*common, "--boxes", boxes, "--out", f"{place}/there.parquet"],
        "Missing option '--boxes'": [*common, "--out", "f.parquet"],
        "nowhere: no model there": ["features", image, "--boxes", boxes, "--model", "nowhere", "--out", "f.parquet"],
        "features needs the finished stage finetune": [
            *("features", image, "--boxes", boxes, "--out", "f.parquet", "--config", "tiny", "--workspace", "none")
        ],
        "NAMES: 'names.txt' is not `world`": ["embed", "names.txt", *model, "--out", "n.safetensors"],
        "--device gpu: expected auto, cpu": ["embed", "a", *model, "--out", "n.safetensors", "--device", "gpu"],
        "NAMES 'a,b,a' names ['a'] more than once": ["embed", "a,b,a", *model, "--out", "n.safetensors"],
        "--format vok: expected some of coco, yolo, voc, csv, label-studio, cvat, fiftyone; nearest: voc": [
            "detect",
            image,
            *model,
            "--format",
            "vok",
        ],
        "--ids are those of COCO's results": ["detect", image, *model, "--ids", "x.json"],
        "wide.png is not among its `images`": ["detect", image, *model, "--format", "coco", "--ids", "ids.json"],
        "Invalid value for '--picture-nms': ": [
            "detect",
            image,
            *model,
            "--picture-nms",
            "2",
        ],
    }
    (place / "there.parquet").touch()
    listed = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "ids.json").write_text(json.dumps(listed))
    code = (
        "import json, sys\nfrom stages.cli import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n        app(arguments)\n"
        "    except SystemExit as end:\n        print(end.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([*mistakes.values()])], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    *said, rest = done.stderr.split("2 False\n")
    assert len(said) == len(mistakes) and not rest, done.stderr
    for message, answer in zip(mistakes, said, strict=True):
        assert message in " ".join(answer.split()), answer
    assert [path.name for path in tmp_path.iterdir()] == ["ids.json"]
