"""Boxes from files that supervision, pandas, pyarrow and COCO's layout give; what is no file of boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import supervision as sv
from PIL import Image

from regionclip_core.detection.given_boxes import read_boxes
from regionclip_core.detection.listed_files import ListedFiles

SIZE = (120, 160)
NAMES = ["cat", "dog"]
BOXES = {"a.jpg": ([[10, 20, 60, 90], [0, 0, 160, 120]], [1, 0]), "b.png": ([[100, 10, 140, 50]], [0])}
FILES = ["photos/a.jpg", "photos/b.png", "photos/empty.jpg"]


def check(url: Path, named: bool = True) -> None:
    found = read_boxes(str(url), FILES)
    assert list(found) == FILES[:2]
    for file, one in found.items():
        boxes, labels = BOXES[Path(file).name]
        pixels, names = one.with_area(*SIZE)
        assert np.allclose(pixels, boxes, atol=1e-3)
        assert names == [NAMES[label] if named else None for label in labels]


@pytest.fixture
def dataset(tmp_path: Path) -> sv.DetectionDataset:
    """The same boxes as supervision has them; `photos` holds the images."""
    (tmp_path / "photos").mkdir()
    annotations = {}
    for file in FILES:
        path = str(tmp_path / file)
        Image.new("RGB", SIZE[::-1]).save(path)
        boxes, labels = BOXES.get(Path(file).name, ([], []))
        box = np.array(boxes, np.float32).reshape(-1, 4)
        annotations[path] = sv.Detections(xyxy=box, class_id=np.array(labels, int))
    return sv.DetectionDataset(classes=NAMES, images=list(annotations), annotations=annotations)


def test_coco_as_supervision_writes_it(dataset: sv.DetectionDataset, tmp_path: Path) -> None:
    dataset.as_coco(annotations_path=str(tmp_path / "coco.json"))
    check(tmp_path / "coco.json")


def test_yolo_as_supervision_writes_it(dataset: sv.DetectionDataset, tmp_path: Path) -> None:
    folder = tmp_path / "yolo"
    dataset.as_yolo(annotations_directory_path=str(folder / "labels"), data_yaml_path=str(folder / "data.yaml"))
    check(folder)
    check(folder / "labels", named=False)
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")
    check(folder / "labels")


def test_tables_as_pandas_writes_them(tmp_path: Path) -> None:
    rows = [
        (f"photos/{file}", NAMES[label], *map(float, box))
        for file, (boxes, labels) in BOXES.items()
        for box, label in zip(boxes, labels, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["image", "name", "xmin", "ymin", "xmax", "ymax"])
    table["score"] = 0.5
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    check(tmp_path / "t.csv")
    check(tmp_path / "t.parquet")
    table.drop(columns=["name", "score"]).to_csv(tmp_path / "n.csv", index=False)
    check(tmp_path / "n.csv", named=False)


def test_scores_and_polygons_in_yolos_lines(tmp_path: Path) -> None:
    lines = "1 0.5 0.5 0.25 0.5 0.9\n\n0 0.1 0.2 0.4 0.1 0.3 0.6\n7 0.5 0.5 0.1 0.1\n"
    (tmp_path / "a.txt").write_text(lines)
    (tmp_path / "data.yml").write_text("names: {0: cat, 1: dog}")
    boxes, names = read_boxes(str(tmp_path), ["x/a.jpg"])["x/a.jpg"].with_area(100, 200)
    assert np.allclose(boxes, [[75, 25, 125, 75], [20, 10, 80, 60], [90, 45, 110, 55]])
    assert names == ["dog", "cat", None]


def test_boxes_without_area_are_left_out(tmp_path: Path) -> None:
    lines = ["image,xmin,ymin,xmax,ymax", "a.jpg,1,2,1,5", "a.jpg,1,2,3,4", "a.jpg,9,9,3,12"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    one = read_boxes(str(tmp_path / "t.csv"), ["a.jpg"])["a.jpg"]
    assert len(one.boxes) == 3 and one.with_area(10, 10) == ([[1, 2, 3, 4]], [None])


def test_which_name_means_a_file() -> None:
    listed = ListedFiles(["train/1.jpg", "val/1.jpg", "x/val/1.jpg", "./2.jpg", "win\\3.jpg", "1.png"])
    meant = {
        "/data/val/1.jpg": "val/1.jpg", "/data/x/val/1.jpg": "x/val/1.jpg", "/data/xval/1.jpg": None, "1.jpg": None,
        "deep/2.jpg": "./2.jpg", "3.jpg": "win\\3.jpg", "1.png": "1.png", "4.png": None,
    }  # fmt: skip
    assert {file: listed.meaning(file) for file in meant} == meant
    without = ListedFiles(["train/a.b", "c"], endings=False)
    assert without.meaning("images/train/a.b.jpg") == "train/a.b" and without.meaning("c.png") == "c"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "image,x,y\n", r"it has no column xmin, ymin, xmax, ymax, but \['image', 'x', 'y'\]"),
        ("t.csv", "image,xmin,ymin,xmax,ymax\na.jpg,1,2,3,x\n", r"t\.csv, row 1: expected 4 numbers"),
        ("t.csv", "image,xmin,ymin,xmax,ymax\na.jpg,1,2,3,nan\n", r"t\.csv, row 1: expected 4 numbers"),
        ("t.csv", "image,xmin,ymin,xmax,ymax\na.jpg,1,2,3\n", r"t\.csv, row 1: expected 4 numbers"),
        (
            "t.csv",
            "image,xmin,ymin,xmax,ymax\nz.jpg,1,2,3,4\n",
            r"none of the 1 images, such as a\.jpg, .* only z\.jpg",
        ),
        ("t.csv", "image,xmin,ymin,xmax,ymax\n", "nothing at all"),
        ("t.json", '{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "`bbox`: expected 4 numbers"),
        ("t.json", '{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}', "not among `images`"),
        ("t.txt", "0 0.5 0.5 0.1 0.1", r"t\.txt: expected a COCO annotation file \(.json\), a folder of YOLO's"),
        ("labels/a.txt", "0 50 60 10 10", r"a\.txt, line 1: expected shares of the image's sides"),
        ("labels/a.txt", "0 0.5 0.5", r"a\.txt, line 1: expected a class and a box or polygon"),
        ("labels/a.txt", "cat 0.5 0.5 0.1 0.1", r"a\.txt, line 1: expected only numbers"),
        ("labels/a.jpg", "", r"holds no label file \(\.txt\)"),
    ],
)
def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_boxes(str(file.parent if "/" in name else file), ["a.jpg"])


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"--boxes: no file nowhere\.csv \(looked from .*\); expected a COCO"):
        read_boxes("nowhere.csv", ["a.jpg"])
