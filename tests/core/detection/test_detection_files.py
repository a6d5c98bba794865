"""Detections as other programs' files, read back by pycocotools, supervision and pandas."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import supervision as sv
import torch
from PIL import Image
from pycocotools.coco import COCO

from regionclip_core.detection.detection_files import FORMATS, CocoIds, DetectionFiles, check_formats, read_ids
from regionclip_core.detection.results import NamedDetections

CLASSES = ("cat", "dög", "tea, pot")
SIZE = (120, 160)
FOUND = {
    "in/a.jpg": ([[10.4, 20, 60, 90.6], [0, 0, 160, 120]], [2, 1]),
    "in/b.png": ([], []),
    "in/c.d.jpg": ([[100.25, 10, 100.5, 50]], [0]),
}


def detections(file: str) -> NamedDetections:
    boxes, labels = FOUND[file]
    rows = torch.arange(len(boxes))
    scores = 0.9 - 0.1 * rows
    box = torch.tensor(boxes).reshape(-1, 4)
    return NamedDetections(box, scores, torch.tensor(labels, dtype=torch.int64), rows, classes=CLASSES, size=SIZE)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the detections in every format, and the images in `in`."""
    (tmp_path / "in").mkdir()
    files = DetectionFiles(tmp_path, FORMATS, CLASSES)
    for file in FOUND:
        Image.new("RGB", SIZE[::-1]).save(tmp_path / file)
        files.add(file, detections(file))
    files.close()
    return tmp_path


def test_pycocotools_reads_results_and_images(written: Path) -> None:
    truth = COCO(str(written / "coco-images.json"))
    results = truth.loadRes(str(written / "coco-results.json"))
    for number, (file, (boxes, labels)) in enumerate(FOUND.items(), start=1):
        assert truth.imgs[number] == {"id": number, "file_name": file, "width": 160, "height": 120}
        loaded = results.loadAnns(results.getAnnIds(imgIds=[number]))
        assert [results.cats[one["category_id"]]["name"] for one in loaded] == [CLASSES[label] for label in labels]
        corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in loaded)]
        assert np.allclose(corners, boxes, atol=1e-4)


def test_supervision_reads_yolo(written: Path) -> None:
    folder = written / "yolo"
    loaded = sv.DetectionDataset.from_yolo(str(written / "in"), str(folder / "labels"), str(folder / "data.yaml"))
    assert loaded.classes == [*CLASSES]
    for path, _, theirs in loaded:
        boxes, labels = FOUND[f"in/{Path(path).name}"]
        assert np.allclose(theirs.xyxy, np.reshape(boxes, (-1, 4)), atol=1e-3) and theirs.class_id.tolist() == labels
    assert len(loaded) == 3 and (folder / "labels" / "c.d.txt").is_file()


def test_tools_find_images_by_their_whole_paths(written: Path) -> None:
    """Boxes by hand; images are elsewhere than these files."""
    here = Path.cwd()
    tasks = json.loads((written / "label-studio-tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={str(here / f)[1:]}" for f in FOUND]
    samples = json.loads((written / "fiftyone" / "samples.json").read_text())["samples"]
    assert [sample["filepath"] for sample in samples] == [str(here / file) for file in FOUND]
    images = ElementTree.parse(written / "cvat-annotations.xml").getroot().findall("image")
    assert [image.get("name") for image in images] == [*FOUND]
    for (boxes, labels), task, sample, image in zip(FOUND.values(), tasks, samples, images, strict=True):
        results = [one["value"] for one in task["predictions"][0]["result"]]
        detections, drawn = sample["predictions"]["detections"], image.findall("box")
        for box, label, percent, share, corners in zip(boxes, labels, results, detections, drawn, strict=True):
            x, y, w, h = share["bounding_box"]
            assert np.allclose([x * 160, y * 120, (x + w) * 160, (y + h) * 120], box, atol=1e-4)
            assert np.allclose([percent["x"] / 100, percent["height"] / 100], [x, h])
            assert np.allclose([float(corners.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")], box, atol=0.006)
            assert {*percent["rectanglelabels"], share["label"], corners.get("label")} == {CLASSES[label]}
    assert [one["name"] for one in json.loads((written / "cvat-labels.json").read_text())] == [*CLASSES]


def test_supervision_reads_pascal_voc(written: Path) -> None:
    loaded = sv.DetectionDataset.from_pascal_voc(str(written / "in"), str(written / "voc"))
    for path, _, theirs in loaded:
        boxes, labels = FOUND[f"in/{Path(path).name}"]
        assert [loaded.classes[number] for number in theirs.class_id] == [CLASSES[label] for label in labels]
        expected = np.round(np.reshape(boxes, (-1, 4)))
        expected[:, 2:] = np.maximum(expected[:, 2:], expected[:, :2] + 1)  # never less than a pixel
        assert np.array_equal(theirs.xyxy, expected)
    assert len(loaded) == 3


def test_pandas_reads_csv(written: Path) -> None:
    table = pd.read_csv(written / "detections.csv")
    assert table["image"].tolist() == ["in/a.jpg", "in/a.jpg", "in/c.d.jpg"]
    assert table["name"].tolist() == ["tea, pot", "dög", "cat"]
    boxes = [box for boxes, _ in FOUND.values() for box in boxes]
    assert np.allclose(table[["xmin", "ymin", "xmax", "ymax"]], boxes, atol=0.005)
    assert np.allclose(table["score"], [0.9, 0.8, 0.9])


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    files = DetectionFiles(tmp_path, ("csv",), CLASSES)
    files.add("in/a.jpg", detections("in/a.jpg"))
    files.close()
    assert [path.name for path in tmp_path.iterdir()] == ["detections.csv"]
    DetectionFiles(tmp_path / "none", (), CLASSES).close()
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------- ids of an annotation file


def annotation_file(folder: Path, names: list[str], **more: str) -> str:
    images = [{"id": 100 + number, "file_name": name} for number, name in enumerate(names)]
    categories = [{"id": 90 - number, "name": name, **more} for number, name in enumerate(("bus", *CLASSES))]
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return str(file)


def test_results_have_the_ids_of_a_given_file(tmp_path: Path) -> None:
    url = annotation_file(tmp_path, ["x/a.jpg", "val/c.d.jpg", "in/c.d.jpg", "b.png"])
    ids = read_ids(url, list(FOUND))
    files = DetectionFiles(tmp_path / "out", ("coco",), CLASSES, ids)
    for file in FOUND:
        files.add(file, detections(file))
    files.close()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coco-results.json"]
    results = COCO(url).loadRes(str(tmp_path / "out" / "coco-results.json"))
    rows = [(one["image_id"], results.cats[one["category_id"]]["name"]) for one in results.dataset["annotations"]]
    assert rows == [(100, "tea, pot"), (100, "dög"), (102, "cat")]  # of two c.d.jpg the one in the same folder


def test_lvis_names_and_addresses(tmp_path: Path) -> None:
    file = tmp_path / "lvis.json"
    images = [{"id": 5, "coco_url": "http://images.cocodataset.org/val2017/000000000005.jpg"}]
    categories = [{"id": 3, "name": "bow_(decorative_ribbons)", "frequency": "r"}]
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    ids = read_ids(str(file), ["/data/val2017/000000000005.jpg"])
    assert ids.images == {"/data/val2017/000000000005.jpg": 5} and ids.categories["bow decorative ribbons"] == 3


def test_what_does_not_fit_the_given_file_is_refused(tmp_path: Path) -> None:
    url = annotation_file(tmp_path, ["x/a.jpg", "y/a.jpg", "b.png"])
    with pytest.raises(ValueError, match=r"c\.d\.jpg is not among its `images`"):
        read_ids(url, ["in/b.png", "in/c.d.jpg"])
    with pytest.raises(ValueError, match=r"in/b\.png and other/b\.png are the same of its `images`"):
        read_ids(url, ["in/b.png", "other/b.png"])
    with pytest.raises(ValueError, match=r"in/a\.jpg is not among"):
        read_ids(url, ["in/a.jpg"])  # neither of the two
    (tmp_path / "no.json").write_text('{"a": []}')
    with pytest.raises(ValueError, match="expected a COCO annotation file with the lists"):
        read_ids(str(tmp_path / "no.json"), ["in/a.jpg"])
    with pytest.raises(ValueError, match=r"no \['buss', 'tea'\]; nearest: bus; look for its names alone"):
        DetectionFiles(tmp_path, ("coco",), ("buss", "dög", "tea"), CocoIds("x.json", {}, {"bus": 1, "dög": 2}))


def test_formats_and_what_they_cannot_hold() -> None:
    assert check_formats(["coco, csv", "yolo", "csv"], ["a.jpg"], "x.json") == ("coco", "csv", "yolo")
    assert check_formats([], ["x/a.jpg", "y/a.jpg"], None) == ()
    assert check_formats(["coco,csv"], ["x/a.jpg", "y/a.jpg"], None) == ("coco", "csv")
    with pytest.raises(
        ValueError,
        match="--format vok: expected some of coco, yolo, voc, csv, label-studio, cvat, fiftyone; nearest: voc",
    ):
        check_formats(["vok"], [], None)
    with pytest.raises(ValueError, match="give --format coco too"):
        check_formats(["csv"], [], "x.json")
    for one in ("yolo", "voc"):
        with pytest.raises(ValueError, match=r"x/a\.jpg and y/a\.png: YOLO's and VOC's files are called as the image"):
            check_formats([one], ["x/a.jpg", "y/a.png"], None)
