"""`regionclip init`: what it writes for small sets of each kind is accepted by `check`, and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from places import TINY_COCO
from small_inputs import NAMES, write_coco, write_folder, write_tars
from small_runs import manifest
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import load_config, parse_config
from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from stages.cli import app
from stages.commands import own_data
from stages.commands.init import settings_for
from stages.commands.own_data import OwnData

IMAGES = 6


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coco/ with boxes and captions in COCO's form, table/ with captions.jsonl, web/ with two tars, classes.yaml."""
    root = tmp_path_factory.mktemp("own data")
    write_coco(Folder(str(root / "coco")), IMAGES)
    write_folder(Folder(str(root / "table")))
    write_tars(Folder(str(root / "web")))
    (root / "classes.yaml").write_text(yaml.safe_dump({"base": NAMES[:-9], "novel": NAMES[-9:]}))
    write_coco(Folder(str(root / "held")), 3, "held")
    body = json.loads((root / "coco" / "instances.json").read_text())
    for name, ids in (("one", [1, 2, 4]), ("two", [0, 4, 5])):
        images = [image for image in body["images"] if image["id"] in ids]
        boxes = [one for one in body["annotations"] if one["image_id"] in ids]
        (root / f"{name}.json").write_text(json.dumps(body | {"images": images, "annotations": boxes}))
    body["images"][0]["neg_category_ids"] = []
    (root / "lists.json").write_text(json.dumps(body))
    for category in body["categories"]:
        category["frequency"] = "c"
    (root / "half.json").write_text(json.dumps(body))
    (root / "others.yaml").write_text("base: [zebra crossing]")
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    for name in ("a.txt", "b.txt", "c.md"):
        (root / "notes" / name).write_text("a cat")
    (root / "elsewhere.csv").write_text("file,caption\nfar.png,a cat\naway.png,a dog\n")
    (root / "good.csv").write_text("file,caption\n000000000000.png,a cat\n000000000003.png,a dog\n")
    return root


@pytest.fixture
def init(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, str]]:
    """Runs the command beside the data; returns what it said and the file."""
    monkeypatch.chdir(place)
    out = tmp_path / "my.yaml"

    def run(*arguments: str) -> tuple[Result, str]:
        result = call("init", *arguments, "--out", str(out))
        assert result.exit_code == 0, result.stderr
        return result, str(out)

    return run


def next_commands(result: Result) -> list[str]:
    return [
        line.split(" --config")[0].strip() for line in result.stdout.splitlines() if line.startswith("  regionclip")
    ]


def test_boxes_and_captions_run_through_data_and_concepts(init: Any, place: Path, tmp_path: Path) -> None:
    given = ("--captions", "coco/captions.json", "--boxes", "coco/instances.json", "--classes", "classes.yaml")
    result, file = init("--images", "coco/images", *given)
    assert next_commands(result) == ["regionclip check", "regionclip run"]
    checked = call("check", "--config", file)
    assert checked.exit_code == 0, checked.stderr
    config = load_config(file)
    assert config.workspace == "runs/my" and config.data.categories == "classes.yaml"
    assert [*config.data.splits] == ["train"] and config.model_fields_set >= {"rpn", "finetune", "evaluate"}
    assert (config.teacher.model, config.teacher.weights) == ("small", "random")
    assert "A REHEARSAL" in Path(file).read_text()
    workspace = str(tmp_path / "ws")
    ran = call("run", "concepts", "--config", file, "--backend", "local", "--workspace", workspace)
    assert ran.exit_code == 0, ran.output
    summary = manifest(Path(workspace), "data")["summary"]
    captions = json.loads((place / "coco" / "captions.json").read_text())["annotations"]
    boxes = summary["boxes"]["train"]
    assert summary["images"] == {"train": IMAGES}
    assert (
        f"train: {IMAGES} images, {IMAGES} looked at; shorter side 80 to 80 px, median 80; about {len(captions)} cap"
        in (result.stdout)
    )
    counted = (
        f"boxes: {boxes['base_boxes']} of {len(NAMES) - 9} base categories, {boxes.get('novel_boxes', 0)} of 9 novel"
    )
    assert counted in result.stdout
    assert manifest(Path(workspace), "concepts")["rows"] > 0


def test_without_boxes_what_needs_them_is_left_out(init: Any) -> None:
    """The caption table is found in the folder of images; the folder of the tars is enough."""
    for images, split in (("table", {"source": "folder", "images": "table", "captions": "table/captions.jsonl"}),
                          ("web", {"source": "tars", "urls": "web/*.tar"})):  # fmt: skip
        result, file = init("--images", images, "--force")
        tree = yaml.safe_load(Path(file).read_text())
        assert tree["data"]["splits"] == {"train": split}
        assert not {"rpn", "finetune", "evaluate"} & tree.keys() and tree["proposals"]["method"] == "grid"
        assert "# No boxes: rpn, finetune and evaluate are left out. `init` with --boxes" in Path(file).read_text()
        assert next_commands(result) == ["regionclip check pretrain", "regionclip run pretrain"]
        assert call("check", "pretrain", "--config", file).exit_code == 0
        assert "name the stages to run" in call("check", "--config", file).stderr


def test_without_captions_what_needs_them_is_left_out(init: Any) -> None:
    result, file = init("--images", "coco/images", "--boxes", "coco/instances.json")
    tree = yaml.safe_load(Path(file).read_text())
    assert tree.keys() == {"seed", "workspace", "data", "rpn", "proposals"}
    assert "# No captions: concepts, teacher, labels," in Path(file).read_text()
    assert next_commands(result) == ["regionclip check proposals", "regionclip run proposals"]
    assert call("check", "proposals", "--config", file).exit_code == 0


def test_a_caption_table_and_boxes_are_two_splits(init: Any) -> None:
    _, file = init("--images", "coco/images", "--captions", "good.csv", "--boxes", "coco/instances.json")
    config = load_config(file)
    assert {name: split.source for name, split in config.data.splits.items()} == {
        "captioned": "folder",
        "train": "coco",
    }
    assert config.concepts.splits == config.labels.splits == ("captioned",)
    assert config.rpn.split == config.finetune.split == config.evaluate.split == "train"
    assert call("check", "--config", file).exit_code == 0


def test_images_that_no_training_sees(init: Any) -> None:
    given = ("--images", "coco/images", "--captions", "coco/captions.json", "--boxes", "coco/instances.json")
    result, file = init(*given)
    said = "evaluate measures on train, the images of the training: a check that it learned, no result. For one, give"
    assert said in result.stdout and said in Path(file).read_text()
    assert "split: train  # the images of the training: a check" in Path(file).read_text()
    result, file = init(*given, "--val-images", "held/images", "--val-boxes", "held/instances.json", "--force")
    config = load_config(file)
    held = {"source": "coco", "images": "held/images", "instances": "held/instances.json"}
    assert config.data.splits["val"].model_dump(exclude_defaults=True) == held
    assert [*config.data.splits] == [*config.proposals.splits] == ["train", "val"]
    assert (config.rpn.split, config.labels.splits, config.evaluate.split) == ("train", ("train",), "val")
    assert "val: 3 images, 3 looked at;" in result.stdout and result.stdout.count("  boxes: ") == 2
    assert "evaluate measures on val, of whose images the trainings see none\n" in result.stdout
    assert "split: val  # images that no training sees\n" in Path(file).read_text()
    assert call("check", "--config", file).exit_code == 0


def test_images_that_trainings_see_are_counted(init: Any) -> None:
    """The captions are of the images 0 and 3, the boxes of 1, 2 and 4; those to evaluate on are 0, 4 and 5."""
    given = ("--images", "coco/images", "--captions", "good.csv", "--boxes", "one.json", "--val-boxes", "two.json")
    result, file = init(*given)
    assert "evaluate measures on val, of whose images the trainings see 2: leave them out" in result.stdout
    assert "split: val  # 2 of its images are seen by the trainings\n" in Path(file).read_text()
    assert load_config(file).data.splits["val"].images == "coco/images"  # type: ignore[union-attr]


@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="no tiny_coco beside the repository")
def test_lvis_on_photographs(init: Any, tmp_path: Path) -> None:
    """COCO's photographs in LVIS's form: no file names but URLs, every third category rare."""
    counts = {}
    for split in ("train", "val"):
        body = json.loads((TINY_COCO / "annotations" / f"instances_{split}2017.json").read_text())
        ids = [category["id"] for category in body["categories"]]
        for number, category in enumerate(body["categories"]):
            category |= {"frequency": "rcf"[number % 3], "name": category["name"].replace(" ", "_")}
        held = {(one["image_id"], one["category_id"]) for one in body["annotations"]}
        for image in body["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{image.pop('file_name')}"
            image["neg_category_ids"] = [one for one in ids if (image["id"], one) not in held][:4]
            image["not_exhaustive_category_ids"] = []
        (tmp_path / f"{split}.json").write_text(json.dumps(body))
        rare = {one["id"] for one in body["categories"] if one["frequency"] == "r"}
        counts[split] = sum(one["category_id"] in rare and not one["iscrowd"] for one in body["annotations"])
    captions = str(TINY_COCO / "annotations" / "captions_train2017.json")
    given = ("--captions", captions, "--boxes", str(tmp_path / "train.json"), "--val-boxes", str(tmp_path / "val.json"))
    result, file = init("--images", str(TINY_COCO), *given)
    text, config = Path(file).read_text(), load_config(file)
    assert config.data.categories == str(tmp_path / "train.json") and "# rare categories are novel, the oth" in text
    assert [split.source for split in config.data.splits.values()] == ["lvis", "lvis"]
    assert config.data.splits["train"].captions == captions  # type: ignore[union-attr]
    assert (config.finetune.sampling, config.evaluate.protocol) == ("repeat_factor", "lvis")
    assert "of whose images the trainings see none" in result.stdout and text.count("\n") < 110
    assert call("check", "--config", file).exit_code == 0
    workspace = ("--workspace", str(tmp_path / "ws"))
    assert call("run", "--dry-run", "--config", file, *workspace).exit_code == 0
    ran = call("run", "data", "--config", file, "--backend", "local", *workspace)
    assert ran.exit_code == 0, ran.output
    summary = manifest(tmp_path / "ws", "data")["summary"]
    assert summary["images"] == {"train": 50, "val": 50}
    assert {split: boxes["novel_boxes"] for split, boxes in summary["boxes"].items()} == counts


def test_models_that_are_asked_for(init: Any) -> None:
    _, file = init("--images", "web", "--weights", "openai")
    config = load_config(file)
    assert (config.teacher.model, config.teacher.weights, config.labels.mode) == ("RN50", "openai", "roi")
    assert "REHEARSAL" not in Path(file).read_text()
    result, _ = init("--images", "web", "--model", "ViT-B-16", "--force")
    assert "model ViT-B-16 with random weights, a rehearsal" in result.stdout
    assert call("check", "pretrain", "--config", file).exit_code == 0


def found(side: int, images: int, captions: int) -> OwnData:
    return OwnData(captioned="train", boxed="train", images={"train": images}, captions=captions, sides=[side])


@pytest.mark.parametrize(
    ("data", "weights", "expected"),
    [  # photographs of COCO, CC3M's number of captions, COCO's 50 images and 250 captions in coco_tiny
        (found(480, 118_000, 590_000), "openai", {"side": 480, "longest": 800, "shard_size": 500, "min_count": 100}),
        (found(3000, 40, 20), "openai", {"side": 800, "longest": 1333, "shard_size": 10, "min_count": 1, "batch": 16}),
        (found(128, 4000, 20_000), "openai", {"side": 128, "regions": 12, "proposals": 50, "min_count": 28}),
        (found(427, 50, 250), "random", {"side": 224, "min_count": 3, "pretrain_steps": 4, "backbone": "small"}),
        (found(20, 3, 3), "random", {"side": 32, "batch": 3, "box_batch": 3, "shard_size": 10, "min_count": 1}),
    ],
)
def test_sizes_that_fit(data: OwnData, weights: str, expected: dict[str, Any]) -> None:
    values = settings_for(data, "RN50", weights, "roi")
    assert {key: values[key] for key in expected} == expected


def test_images_in_tars_are_estimated_by_their_bytes(init: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "SAMPLE", 5)  # of eight in two tars
    result, _ = init("--images", "web/*.tar")
    shown = re.match(r"train: about (\d+) images, 5 looked at;", result.stdout)
    assert shown is not None and abs(int(shown[1]) - 8) <= 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            "--images empty",
            ["--images: expected images (bmp, gif, jpeg,", "or .tar files in empty; there is no file at"],
        ),
        ("--images notes", ["or .tar files in notes; there is 2 .txt, 1 .md"]),
        ("--images tabel", ["--images: no folder 'tabel' (looked from", "nearest: table"]),
        ("--images classes.yaml", ["--images: classes.yaml is a file; expected a folder of images, or tars"]),
        ("--images web/x*.tar", ["nothing matches 'web/x*.tar'"]),
        (
            "--images coco/images",
            ["--captions: none are given, and none of captions.jsonl, ", " is in coco/images or the folder above it"],
        ),
        (
            "--images coco/images --captions elsewhere.csv",
            ["--images: none of the first 2 images is there: no file ", "far.png", "It has '000000000000.png', '0000"],
        ),
        ("--images table --captions caption.jsonl", ["--captions: no file 'caption.jsonl' (looked from"]),
        ("--images table --captions notes/a.txt", ["ends in .txt, expected .jsonl"]),
        ("--images web --captions good.csv", ["--captions: tars hold their own, and --images web means tars"]),
        ("--images coco/images --boxes coco/captions.json", ["--boxes: coco/captions.json has no list `categories`"]),
        ("--images coco/images --boxes good.csv", ["good.csv"]),
        (
            "--images coco/images --boxes coco/instances.json --classes others.yaml",
            ["--boxes: ", "none of its categories"],
        ),
        ("--images coco/images --boxes coco/instances.json --classes cls.yaml", ["cls.yaml", "nearest: classes.yaml"]),
        (
            "--images coco/images --boxes one.json --val-images held/images",
            ["--val-images: `evaluate` compares", "--val-boxes"],
        ),
        ("--images table --val-boxes one.json", ["--val-boxes: `evaluate` measures a detector", "--boxes"]),
        ("--images coco/images --boxes one.json --val-boxes ./one.json", ["--val-boxes: ", "is --boxes as well"]),
        (
            "--images coco/images --boxes one.json --val-images web --val-boxes two.json",
            ["--val-images: expected a folder of images", "web means tars"],
        ),
        (
            "--images coco/images --boxes one.json --val-images held --val-boxes held/instances.json",
            ["--val-images: none of the first 3 images is there"],
        ),
        ("--images coco/images --boxes one.json --val-boxes tow.json", ["--val-boxes: no file 'tow.json'"]),
        (
            "--images coco/images --boxes one.json --val-boxes half.json",
            ["--val-boxes: expected COCO's form, as --boxes one.json has (came: LVIS's, half.json)"],
        ),
        (
            "--images coco/images --boxes lists.json",
            ["--boxes: lists.json: expected all", "its categories have no `frequency`"],
        ),
        (
            "--images coco/images --boxes half.json",
            ["--boxes: expected all that LVIS's files say", "its images have no lists neg_category_ids"],
        ),
        (
            "--images coco/images --boxes half.json --classes classes.yaml",
            ["--classes: half.json is an LVIS file", "which classes.yaml doesn't say"],
        ),
        (
            "--images table --model RN5",
            ["--model: expected `small` or an open_clip architecture (came: 'RN5'); nearest"],
        ),
        ("--images table --model convnext_base", ["--model: convnext_base can't be a student: "]),
        ("--images table --weights train", ["--weights: train needs a section of its own"]),
    ],
)
def test_mistakes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, parts: list[str]
) -> None:
    monkeypatch.chdir(place)
    result = call("init", *arguments.split(), "--out", str(tmp_path / "my.yaml"))
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and "data.splits" not in result.stderr
    assert [part for part in parts if part not in result.stderr] == [], result.stderr
    assert not (tmp_path / "my.yaml").exists()


def test_a_file_that_is_there_stays(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "my.yaml").write_text("mine")
    refused = call("init", "--images", "web", "--out", str(tmp_path / "my.yaml"))
    assert refused.exit_code == 2 and "my.yaml is there; give another name, or --force" in refused.stderr
    assert (tmp_path / "my.yaml").read_text() == "mine"
    assert "expected a new file in a folder" in call("init", "--images", "web", "--out", "nowhere/my.yaml").stderr


def test_file_names_that_yaml_and_the_terminal_don_t_take_as_they_are(tmp_path: Path) -> None:
    """A name with the end of a line can't end a comment early; colons, quotes and # stay in their texts."""
    odd = tmp_path / "a: b # 'c'"
    odd.mkdir()
    Image.new("RGB", (40, 40)).save(odd / "1.png")
    (odd / "2\nseed: 3.png").write_text("no image")
    rows = [{"file": name, "caption": "a cat"} for name in ("1.png", "2\nseed: 3.png")]
    (odd / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call("init", "--images", str(odd), "--out", str(tmp_path / "my.yaml")).exit_code == 0
    config: Config = parse_config(yaml.safe_load((tmp_path / "my.yaml").read_text()))
    assert config.seed == 0 and config.data.splits["train"].images == str(odd)  # type: ignore[union-attr]
