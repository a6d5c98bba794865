"""Pools and labels by name; labels exported and read back by other readers, corrected copies read back by ours."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import supervision as sv
import yaml
from PIL import Image
from pycocotools.coco import COCO
from small_inputs import NAMES, write_coco
from small_runs import artifact, run_small, small_tree
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import parse_config
from regionclip_core.datasets.images import decode_image
from regionclip_core.door import open_artifact
from regionclip_core.pretraining.corrected_exports import NamedBox, changes, read_corrected
from regionclip_core.pretraining.corrections import read_corrections
from regionclip_core.pretraining.kept_labels import file_name
from regionclip_core.storage.folder import Folder
from stages.cli import app

Boxes = dict[str, list[tuple[str, float, tuple[float, ...]]]]
"""By image: name, score and xyxy box of each label, highest score first."""
ODD = "red & blue <cup>"
POOL = [NAMES[0], NAMES[1], ODD, "never"]


@dataclass(frozen=True)
class Run:
    """A finished run of labels that a file gave, three images, and its config as a file."""

    root: Path
    tree: dict[str, Any]

    def cli(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(self.root / "c.yaml")])

    def ok(self, *arguments: str) -> str:
        result = self.cli(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def kept(self, threshold: float = 0.3) -> Boxes:
        """The labels as the artifact has them."""
        return kept_of(self.root / "ws", threshold)


def kept_of(workspace: Path, threshold: float = 0.0) -> Boxes:
    found: Boxes = {}
    for row in open_artifact(str(workspace), "labels")["labels"].to_pylist():
        labels = zip(row["concept_name"], row["score"], map(tuple, row["boxes"]), row["kept"], strict=True)
        found[row["key"]] = [label[:3] for label in labels if label[3] and label[1] > threshold]
    return {key: labels for key, labels in found.items() if labels}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    split = write_coco(Folder(str(root / "coco")), 4)
    turned = root / "coco" / "images" / "000000000001.png"  # which its EXIF data turn, and which is a JPEG
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(turned).save(turned, "JPEG", exif=exif, quality=95)
    (root / "names.yaml").write_text(yaml.safe_dump(POOL))
    (root / "set.yaml").write_text(yaml.safe_dump({"base": NAMES}))
    rows = [
        (0, POOL[0], 0.9, [10.25, 5.5, 30, 20]), (0, POOL[1], 0.8, [40, 40, 30.5, 30]), (0, POOL[0], 0.2, [0, 0, 9, 9]),
        (1, ODD, 0.75, [1, 2, 60, 50]), (1, POOL[0], 0.5, [12, 20, 60, 50]), (3, POOL[0], 0.95, [20, 20, 25, 25]),
    ]  # fmt: skip
    labels = [{"image_id": i, "name": name, "score": score, "bbox": box} for i, name, score, box in rows]
    (root / "rows.json").write_text(json.dumps(labels))
    sections: dict[str, Any] = {
        "data": {"splits": {"train": split}, "categories": str(root / "set.yaml")},
        "concepts": {"splits": [], "file": str(root / "names.yaml")},
        "labels": {"source": str(root / "rows.json"), "threshold": 0.3},
    }
    sections |= {"proposals": {"splits": ["train"]}, "evaluate": {"split": "train"}, "rpn": {"split": "train"}}
    tree = small_tree(root / "ws", **sections)
    (root / "c.yaml").write_text(yaml.safe_dump(tree))
    result = run_small(parse_config(tree), "labels")
    assert result.ok, result.messages
    return Run(root, tree)


@pytest.fixture(scope="module")
def exported(run: Run) -> Path:
    out = run.root / "exported"
    said = run.ok("export", "labels", "--out", str(out), "--format", "coco,yolo,label-studio,cvat,fiftyone")
    assert said.startswith(f"5 labels of 3 concepts on 3 images in {out}: coco, yolo, ")
    return out


def key_of(exported: Path) -> dict[str, str]:
    """Keys by the names of the images that were written."""
    with (exported / "labels.csv").open() as file:
        return {row["image"]: row["key"] for row in csv.DictReader(file)}


def same(found: Boxes, expected: Boxes, tolerance: float, scores: bool = True) -> None:
    assert found.keys() == expected.keys()
    for key, labels in expected.items():
        own = found[key]
        assert [one[0] for one in own] == [one[0] for one in labels]
        np.testing.assert_allclose([one[2] for one in own], [one[2] for one in labels], atol=tolerance)
        if scores:
            np.testing.assert_allclose([one[1] for one in own], [one[1] for one in labels], atol=1e-6)


def xyxy(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return x, y, x + width, y + height


def test_pycocotools_reads_instances_and_results(run: Run, exported: Path) -> None:
    coco = COCO(str(exported / "coco-instances.json"))
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert list(names.values()) == POOL[:3]
    for one in (coco, coco.loadRes(str(exported / "coco-results.json"))):
        found: Boxes = {}
        for image in one.loadImgs(one.getImgIds()):
            assert Image.open(exported / image["file_name"]).size == (image["width"], image["height"])
            own = one.loadAnns(one.getAnnIds(imgIds=image["id"]))
            found[image["key"]] = [(names[a["category_id"]], a["score"], xyxy(*a["bbox"])) for a in own]
        same(found, run.kept(), 1e-4)


def test_supervision_reads_coco_and_yolo(run: Run, exported: Path) -> None:
    coco = sv.DetectionDataset.from_coco(str(exported), str(exported / "coco-instances.json"))
    folders = (str(exported / "images"), str(exported / "labels"), str(exported / "data.yaml"))
    yolo = sv.DetectionDataset.from_yolo(*folders)
    for dataset in (coco, yolo):
        found: Boxes = {}
        for path, _, boxes in dataset:
            names = [dataset.classes[number] for number in boxes.class_id]
            key = key_of(exported)[str(Path(path).relative_to(exported))]
            found[key] = [(name, 0.0, tuple(box)) for name, box in zip(names, boxes.xyxy.tolist(), strict=True)]
        same(found, run.kept(), 1e-3, scores=False)


def test_label_studio_cvat_and_fiftyone_say_the_same(run: Run, exported: Path) -> None:
    """Boxes by hand from each form."""
    keys, found = key_of(exported), dict[str, Boxes]()
    studio = found["label-studio"] = {}
    for task in json.loads((exported / "label-studio-tasks.json").read_text()):
        assert task["data"]["image"] == "/data/local-files/?d=" + task["data"]["file"]
        [prediction] = task["predictions"]
        labels = studio[task["data"]["key"]] = []
        for one in prediction["result"]:
            value, (width, height) = one["value"], (one["original_width"], one["original_height"])
            box = xyxy(value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height)
            labels.append((value["rectanglelabels"][0], one["score"], tuple(side / 100 for side in box)))
    config = ElementTree.parse(exported / "label-studio-config.xml").getroot()
    assert [one.get("value") for one in config.iter("Label")] == POOL[:3]
    cvat = found["cvat"] = {}
    for image in ElementTree.parse(exported / "cvat-annotations.xml").getroot().iter("image"):
        size = (int(image.get("width", 0)), int(image.get("height", 0)))
        assert Image.open(exported / "images" / str(image.get("name"))).size == size
        cvat[keys[f"images/{image.get('name')}"]] = [
            (str(box.get("label")), float(str(box.findtext("attribute[@name='score']"))),
             tuple(float(box.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr")))
            for box in image.iter("box")
        ]  # fmt: skip
    fiftyone = found["fiftyone"] = {}
    for sample in json.loads((exported / "samples.json").read_text())["samples"]:
        width, height = Image.open(exported / sample["filepath"]).size
        labels = fiftyone[sample["key"]] = []
        for one in sample["predictions"]["detections"]:
            x, y, w, h = one["bounding_box"]
            labels.append((one["label"], one["confidence"], xyxy(x * width, y * height, w * width, h * height)))
        assert sample["tags"] == ["train"]
    for boxes in found.values():
        same(boxes, run.kept(), 0.006)


def test_images_are_copied_upright_and_names_are_no_paths(run: Run, exported: Path) -> None:
    for name, key in key_of(exported).items():
        original, copy = (run.root / "coco" / "images" / key).read_bytes(), exported / name
        assert np.array_equal(np.asarray(Image.open(copy).convert("RGB")), decode_image(original))
        assert (copy.read_bytes() == original) == (key != "000000000001.png")
    assert {path.suffix for path in (exported / "images").iterdir()} == {".png"}
    assert file_name(7, "../../etc/pass wd\\x") == "000007-..-..-etc-pass-wd-x"
    assert file_name(7, "train/é 1.JPG") == "000007-train-1"
    assert len(file_name(0, "a" * 900)) == 67


def test_some_labels_and_images_where_they_are(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "some"
    run.ok("export", "labels", "--out", str(out), "--images", "refer", "--min-score", "0.76", "--split", "train")
    listed = list(csv.DictReader(io.StringIO((out / "labels.csv").read_text())))
    assert [float(row["score"]) for row in listed] == [0.9, 0.8, 0.95]
    assert sorted(path.name for path in out.iterdir()) == ["coco-instances.json", "coco-results.json", "labels.csv"]
    for image in json.loads((out / "coco-instances.json").read_text())["images"]:
        assert image["file_name"] == str(run.root / "coco" / "images" / image["key"])
    first = tmp_path / "first"
    assert "2 labels of 2 concepts on 1 images" in run.ok("export", "labels", "--out", str(first), "--limit", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--format", "cvta"],
            "--format cvta: expected some of coco, yolo, voc, csv, label-studio, cvat, fiftyone; near",
        ),
        (["--split", "trian"], "--split trian: expected one of labels.splits, ['train']; nearest: train"),
        (
            ["--images", "refer", "--format", "yolo"],
            "--images refer: YOLO's trainers look for labels beside the images",
        ),
        (["--images", "cpy"], "--images cpy: expected copy or refer; nearest: copy"),
        (["--min-score", "0.99"], "no label of train is kept with a score of 0.99 or more; lower --min-score"),
        (["--name", "clip"], "export labels: leave out --model and --name"),
    ],
)
def test_what_cannot_be_exported(run: Run, tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run.cli("export", "labels", "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- corrections


def in_label_studio(exported: Path) -> list[Any]:
    """The export of a person who deleted the first box of the first image, moved and renamed the second one, drew a new
    one in the second image, and didn't look at the third.
    """
    tasks = json.loads((exported / "label-studio-tasks.json").read_text())
    for number, task in enumerate(tasks):
        task["data"]["image"] = f"/data/upload/1/ab12cd-{Path(task['data'].pop('file')).name}"
        result = [dict(one) for one in task["predictions"][0]["result"]]
        task["annotations"] = [{"was_cancelled": False, "result": result}] if number < 2 else []
    [_, second], [*_, last] = (task["annotations"][0]["result"] for task in tasks[:2])
    second["value"]["x"] += 2
    second["value"]["rectanglelabels"] = ["never"]
    tasks[0]["annotations"][0]["result"] = [second]
    new = {"x": 87.5, "y": 87.5, "width": 10, "height": 10, "rectanglelabels": ["never"]}
    tasks[1]["annotations"][0]["result"] += [{**last, "value": new}, {"type": "choices", "value": {}}]
    tasks[0]["annotations"].append({"was_cancelled": True, "result": []})
    return list(tasks)


def in_cvat(exported: Path) -> ElementTree.Element:
    """The same in CVAT, whose export leaves the third image out."""
    root = ElementTree.parse(exported / "cvat-annotations.xml").getroot()
    first, second, third = root.findall("image")
    root.remove(third)
    gone, renamed = first.findall("box")
    first.remove(gone)
    renamed.set("label", "never")
    renamed.set("xtl", str(float(renamed.get("xtl", "")) + 2))
    ElementTree.SubElement(second, "box", label="never", xtl="70", ytl="70", xbr="78", ybr="78")
    return root


def test_corrected_copies_come_back_as_corrections(run: Run, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.json").write_text(json.dumps(in_label_studio(exported)))
    ElementTree.ElementTree(in_cvat(exported)).write(tmp_path / "fixed.xml")
    texts = set()
    for name in ("fixed.json", "fixed.xml"):
        out = tmp_path / f"{name}.csv"
        options = ["--exported", str(exported), "--out", str(out)]
        result = CliRunner().invoke(app, ["corrections", str(tmp_path / name), *options])
        counts = "(1 no object, 1 renamed, 1 new); images looked at: 2 of 3"
        assert result.stdout == f"3 corrections in {out} {counts}\n", result.output
        texts.add(out.read_text())
    [text] = texts
    first, second = list(run.kept())[:2]
    assert text.splitlines() == [
        "key,box,name",
        f"{first},10.25 5.50 40.25 25.50,no object",
        f"{first},40.00 40.00 70.50 70.00,never",
        f"{second},70.00 70.00 78.00 78.00,never",
    ]
    shutil.copytree(run.root / "ws", tmp_path / "ws")
    labels = {**run.tree["labels"], "corrections": str(out)}
    done = run_small(parse_config({**run.tree, "workspace": str(tmp_path / "ws"), "labels": labels}), "labels")
    assert done.ok, done.messages
    expected = run.kept()
    expected[first] = [("never", 1.0, expected[first][1][2])]
    same(kept_of(tmp_path / "ws"), expected, 0)


def test_boxes_belong_together_by_overlap() -> None:
    """By hand: of two that overlap, the nearer one; a second box on a region that has one has no place."""
    before = [NamedBox((0, 0, 10, 10), "cat"), NamedBox((2, 0, 12, 10), "dog"), NamedBox((50, 50, 60, 60), "cat")]
    assert list(changes(before, before[::-1])) == []
    gone = NamedBox((0, 0, 10, 10), "no object")
    assert list(changes(before, before[1:])) == [("no object", gone)]
    second, new = NamedBox((2, 1, 12, 11), "hat"), NamedBox((80, 80, 90, 90), "hat")
    assert list(changes(before, [*before, second, new])) == [
        ("left out: a second box on one region", second),
        ("new", new),
    ]
    assert list(changes([], [new])) == [("new", new)] and len(list(changes(before, []))) == 3


def test_earlier_corrections_stay_unless_something_newer_is_about_their_region(
    run: Run, exported: Path, tmp_path: Path
) -> None:
    first, second, third = run.kept()
    earlier = [
        f"{first},10 5 40 25,{POOL[0]}",  # now no object
        f"{second},1.00 2.00 61.00 52.00,{ODD}",  # its box is still there, by its name
        f"{second},70 71 78 78,no object",  # somebody drew a box there
        f"{second},0.00 60.00 9.00 70.00,no object",
        f"{third},0.00 0.00 5.00 5.00,never",  # of an image that nobody looked at
    ]
    (tmp_path / "old.csv").write_text("\n".join(["key,box,name", *earlier]))
    (tmp_path / "fixed.json").write_text(json.dumps(in_label_studio(exported)))
    options = ["--exported", str(exported), "--onto", str(tmp_path / "old.csv"), "--out", str(tmp_path / "new.csv")]
    result = CliRunner().invoke(app, ["corrections", str(tmp_path / "fixed.json"), *options])
    assert "1 new), behind 3 of 5 earlier ones; images looked at" in result.stdout, result.output
    assert (tmp_path / "new.csv").read_text().splitlines()[1:4] == [earlier[1], earlier[3], earlier[4]]
    assert len(read_corrections(str(tmp_path / "new.csv"))) == 6


def test_a_turned_rectangle_is_taken_by_its_outline(tmp_path: Path) -> None:
    value = {"x": 50, "y": 10, "width": 20, "height": 10, "rotation": 90, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "original_width": 100, "original_height": 200, "value": value}
    (tmp_path / "a.json").write_text(json.dumps([{"data": {"image": "a"}, "annotations": [{"result": [result]}]}]))
    [(image, [(box, name)])] = read_corrected(str(tmp_path / "a.json"))
    assert (image, name) == ("a", "cat")  # 20 wide and 20 high, turned clockwise around its corner at 50, 20
    np.testing.assert_allclose(box, (30, 20, 50, 40), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.json",
            '[{"image": "a", "label": []}]',
            "a.json, task 1: expected `data` and `annotations`; export as JSON, not",
        ),
        ("a.json", '[{"data": {"image": "images/a.png"}, "annotations": []}]', "no image with a submitted annotation"),
        ("a.json", '[{"data": {"image": "z.png"}, "annotations": [{"result": []}]}]', "the image 'z.png' is not in "),
        (
            "a.json",
            '[{"data": {"image": "a"}, "annotations": [{"result": [{"type": "rectanglelabels"}]}]}]',
            "task 1: expected a rectangle with x, y, width, height",
        ),
        ("a.json", "{}", "expected one list of entries"),
        ("a.xml", "<annotations><image ", "a.xml: no whole XML file"),
        ("a.xml", "<annotation><object/></annotation>", "expected <annotations> with <image>s, found <annotation>"),
        (
            "a.xml",
            '<annotations><image name="a"><box label="x" xtl="3" ytl="1" xbr="2" ybr="4"/></image></annotations>',
            "image 'a': expected a box with an area and a name, found None and 'x'",
        ),
        ("a.zip", "", "CVAT for images 1.1 (.xml); unpack the archive"),
    ],
)
def test_files_that_are_no_corrections(exported: Path, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    options = ["--exported", str(exported), "--out", str(tmp_path / "c.csv")]
    result = CliRunner().invoke(app, ["corrections", str(tmp_path / name), *options])
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "c.csv").exists()


# ---------------------------------------------------------------- show


def test_show_labels_speaks_names(run: Run) -> None:
    shown = run.ok("show", "labels")
    lines = [line.split() for line in shown.splitlines()]
    begin = shown.splitlines().index("kept labels by concept: 3 of 4 concepts have any")
    truth = pq.read_table(artifact(run.root / "ws", "labels") / "truth" / "concepts.parquet").to_pylist()
    clean = {row["concept"]: f"{100 * row['clean'] / row['kept']:.1f}%" for row in truth}
    assert [" ".join(line) for line in lines[begin + 1 : begin + 6]] == [
        "concept kept mean score clean",
        f"{POOL[0]} 3 0.783 {clean[POOL[0]]}",
        f"{POOL[1]} 1 0.800 {clean[POOL[1]]}",
        f"{ODD} 1 0.750 {clean[ODD]}",
        "",
    ]
    histogram = [line for line in lines if len(line) > 3 and line[1] == "to"]
    assert [(int(line[3]), int(line[4])) for line in histogram] == [
        (0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (1, 0), (0, 0), (1, 0), (1, 0), (2, 0)
    ]  # fmt: skip
    one = run.ok("show", "labels", "--concept", POOL[0])
    found = [line.split() for line in one.splitlines() if ".png" in line]
    assert [line[:2] for line in found] == [
        ["0.950", "000000000003.png"], ["0.900", "000000000000.png"], ["0.500", "000000000001.png"]
    ]  # fmt: skip
    result = run.cli("show", "labels", "--concept", "nevr")
    assert result.exit_code == 2 and "no concept of the pool, which has 4 names; nearest: never" in result.stderr


def test_pictures_of_a_concept(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    run.ok("show", "labels", "--concept", POOL[0], "--pictures", str(out), "--limit", "2")
    with (out / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["key"], row["name"], float(row["score"])) for row in rows] == [
        ("000000000003.png", POOL[0], pytest.approx(0.95)), ("000000000000.png", POOL[0], pytest.approx(0.9))
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == sorted([*(row["image"] for row in rows), "labels.csv"])
    plain = decode_image((run.root / "coco" / "images" / rows[0]["key"]).read_bytes())
    drawn = np.asarray(Image.open(out / rows[0]["image"]))
    scale = len(drawn) // len(plain)
    x0, y0, x1, _ = (round(float(side) * scale) for side in rows[0]["box"].split())
    assert len({tuple(pixel) for pixel in drawn[y0, x0 + 2 : x1 - 2].tolist()}) == 1  # the box's upper side
    assert len(read_corrections(str(out / "labels.csv"))) == 2  # which corrections may begin with
    result = run.cli("show", "labels", "--concept", "never", "--pictures", str(tmp_path / "none"))
    assert result.exit_code == 2 and "no kept label is 'never'" in result.stderr


def test_pools_are_compared(run: Run, tmp_path: Path) -> None:
    """A pool of captions against one of a file: which names are new, gone and counted otherwise."""
    (tmp_path / "names.yaml").write_text(yaml.safe_dump([*POOL[1:], "zebra"]))
    concepts = {"splits": ["train"], "file": str(tmp_path / "names.yaml")}
    tree = {**run.tree, "workspace": str(tmp_path / "ws"), "concepts": {**run.tree["concepts"], **concepts}}
    shutil.copytree(run.root / "ws" / "data", tmp_path / "ws" / "data")
    assert run_small(parse_config(tree), "concepts").ok
    counts = {}
    for root in (run.root, tmp_path):
        rows = pq.read_table(artifact(root / "ws", "concepts") / "concepts.parquet").to_pylist()
        counts[root] = {row["concept"]: row["n_captions"] for row in rows}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    for against in (run.root / "ws", artifact(run.root / "ws", "concepts")):
        result = CliRunner().invoke(
            app, ["show", "concepts", "--against", str(against), "-c", str(tmp_path / "c.yaml")]
        )
        lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
        assert lines[0].startswith("4 concepts here, 4 in ") and lines[0].endswith(", 3 in both")
        assert "zebra 0 not seen" in lines[lines.index("added: 1") :]
        there = f"{POOL[0]} 0 not_in_file, "
        removed = lines[lines.index("removed: 1") + 2]
        assert removed.startswith(there) or removed == f"{POOL[0]} 0 not seen"
        others = [name for name in POOL[1:] if counts[tmp_path][name] != counts[run.root][name]]
        assert f"other counts: {len(others)}" in lines
        assert all(f"{name} 0 {counts[tmp_path][name]} +{counts[tmp_path][name]}" in lines for name in others)
    result = run.cli("show", "concepts", "--against", str(tmp_path))
    assert (
        result.exit_code == 2 and "no pool there; expected a workspace with a finished stage concepts" in result.stderr
    )
    assert "the pool: 4 concepts; all in concepts.txt" in run.ok("show", "concepts")
    result = run.cli("show", "labels", "--against", str(tmp_path))
    assert result.exit_code == 2 and "--against is of `regionclip show concepts`" in result.stderr
