"""README.md is run: every command, in its order, and what it shows; its lines of Python."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from official_files import full_state
from PIL import Image
from places import ROOT
from small_inputs import write_coco
from typer.testing import CliRunner, Result

from regionclip_core import ConceptPool
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.storage.folder import Folder
from stages.cli import app

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
COMMANDS = [
    line.split("#")[0].strip()
    for _, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("regionclip ") and not line.startswith("regionclip serve")  # which ends with Ctrl-C: test_serve
]
LONG = (
    "regionclip import regionclip_finetuned-coco_rn50.pth --out coco_rn50",
    "regionclip detect photos/ --model coco_rn50",
    "regionclip run --config coco_tiny",
)
"""RN50 in its true size: minutes."""
SHOWN = {
    command.strip(): shown
    for _, block in BLOCKS
    for command, shown in re.findall(r"^\$ (regionclip .*)\n((?:(?!\$ ).*\n)*)", block, re.M)
}
"""What README.md shows, by its command."""


def call(command: str) -> Result:
    program, *arguments = shlex.split(command)
    assert program == "regionclip"
    return CliRunner().invoke(app, arguments)


def picture(number: int) -> Image.Image:
    return Image.fromarray(make_sample("scene", 5, "mine", number, 128).image)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader: a small pipeline.yaml, COCO in ./coco, photos, a file of weights."""
    root = tmp_path_factory.mktemp("reader")
    small = (ROOT / "stages" / "presets" / "tiny.yaml").read_text()
    sure = small.replace("\nlabels:\n", "\nlabels:\n  temperature: 0.001\n")  # else no region reaches 0.5
    sure = sure.replace("images: 40", "images: 12").replace("images: 20", "images: 6")
    assert sure != small and sure.count("backend: local") == 1
    sure = sure.replace("backend: local", "backend: local\n  threads: 1")
    (root / "pipeline.yaml").write_text(sure)
    for split in ("train", "val"):
        made = write_coco(Folder(str(root / "made" / split)), 4, f"coco-{split}")
        (root / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "made" / split / "images").rename(root / "coco" / f"{split}2017")
        for kind in ("instances", "captions"):
            body = json.loads(Path(made[kind]).read_text())
            for category, name in zip(body.get("categories", []), ("person", "bear", "cow", "sink"), strict=False):
                category["name"] = name  # of COCO's, base and novel, none of ours
            (root / "coco" / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(body))
    [ablation] = [block for language, block in BLOCKS if language == "yaml"]
    # One seed, in the workspace of the commands above it, which have run both variants.
    few = {"[0, 1, 2]": "[0]", "runs/default": "runs/tiny", "set: {finetune.oracle: false}": ""}
    for long, short in few.items():
        assert ablation.count(long) == 1
        ablation = ablation.replace(long, short)
    (root / "ablation.yaml").write_text(ablation)
    (root / "photos").mkdir()
    for number, name in enumerate(("photo.jpg", "photos/a.jpg", "photos/b.png")):
        picture(number).save(root / name)
    (root / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax\na.jpg,10,20,60,90\nb.png,0,0,128,128\n")
    (root / "names.txt").write_text("teapot\nviolin\n")
    (root / "more.yaml").write_text("labels: {threshold: 0.2}\n")
    torch.save({"model": full_state("coco_ovd_rn50")}, root / "regionclip_finetuned-coco_rn50.pth")
    (root / "weights.pth").symlink_to(root / "regionclip_finetuned-coco_rn50.pth")
    return root


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15 and set(LONG) <= set(COMMANDS) and len(SHOWN) >= 3


@pytest.mark.slow
def test_the_long_ones_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for command in LONG:
        result = call(command)
        assert result.exit_code == 0, result.output


def test_every_command_in_its_order(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, since each command needs what those before it have written, and so does what follows them here."""
    monkeypatch.chdir(here)
    ran = {command: call(command) for command in COMMANDS if command not in LONG}
    wrong = [f"{command}\n{one.output}{one.exception!r}" for command, one in ran.items() if one.exit_code]
    assert not wrong, "\n\n".join(wrong)
    check_the_shown_table()
    check_the_lines_of_python()


def check_the_shown_table() -> None:
    """The table without its numbers, which are those of pipeline.yaml; the preset's threshold is another."""
    [(command, shown)] = [item for item in SHOWN.items() if " status " in item[0]]
    found = call(command.replace("0.5", "0.6")).stdout  # `run --set labels.threshold=0.5` has run above

    def rows(text: str) -> list[list[str]]:
        lines = [re.sub(r"labels\.threshold \S+ -> \S+", "labels.threshold", line) for line in text.splitlines()]
        cells = [re.split(r" {2,}", line) for line in lines if not line.startswith("(")]
        return [[*row[:2], row[5]] for row in cells]

    assert rows(found) == rows(shown)


def check_the_lines_of_python() -> None:
    [code] = [block for language, block in BLOCKS if language == "python"]
    names: dict[str, object] = {}
    exec(code.replace("runs/default", "runs/tiny"), names)  # that of the small pipeline.yaml
    features = names["features"]
    assert isinstance(features, torch.Tensor) and features.shape[0] == 1
    assert isinstance(names["pool"], ConceptPool) and names["pool"].names == ["dog", "kite"]
    assert {"name", "score"} <= set(names["table"]) and Path("found.png").is_file()  # type: ignore[call-overload]
    assert names["texts"].shape == (2, features.shape[1])  # type: ignore[attr-defined]
    assert "concept_name" in names["labels"].column_names  # type: ignore[attr-defined]


def test_an_import_shows_what_became_of_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    [(command, shown)] = [item for item in SHOWN.items() if item[0].endswith("--out coco")]
    result = call(command.replace("--out coco", "--out imported"))
    assert result.exit_code == 0, result.output
    for line in shown.replace("into coco", "into imported").splitlines():
        for part in re.sub(r"sha256 \w+", "sha256", line).replace("...", "").split(", "):
            assert part.strip() in result.output, line
