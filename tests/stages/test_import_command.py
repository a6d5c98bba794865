"""`regionclip import` from the command line: what is printed and written, and how it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import detector_state, pretrained_state, save, write_model_json
from typer.testing import CliRunner, Result

from stages.cli import app


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["import", *(str(argument) for argument in arguments)])


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_model_json(tmp_path / "small_model.json")


def test_what_became_of_the_file_is_printed_and_kept(tmp_path: Path, model: str) -> None:
    state = detector_state() | {"pixel_mean": torch.zeros(3, 1, 1)}
    file = save(tmp_path / "regionclip_finetuned-coco_rn50.pth", state, iteration=7)
    result = run(file, "--out", tmp_path / "detector", "--model", model)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for part in (
        f"imported into {tmp_path / 'detector'}",
        "regionclip_finetuned-coco_rn50.pth",
        "kind detector, small_model: blocks [1, 2, 1, 1], width 8, input 64, embedding 16; 65 categories",
        f"renamed {len(state) - 1} tensors: backbone -> detector.encoder",
        "left over iteration: not part of the model; pixel_mean: a constant",
        "missing proposal branch: it proposes no boxes by itself: give `detect` the folder of a proposal network",
        "with --rpn",
        "added detector.class_embeddings: ",
        f"every tensor by name: {tmp_path / 'detector'}/import.json",
    ):
        assert part in words
    assert sorted(path.name for path in (tmp_path / "detector").iterdir()) == [
        "README.md",
        "config.json",
        "import.json",
        "model.safetensors",
        "modeling_regionclip.py",
        "vocabulary.json",
    ]
    stored = json.loads((tmp_path / "detector" / "import.json").read_text())
    assert stored["renamed"]["backbone.conv1.weight"] == "detector.encoder.conv1.weight"
    card = (tmp_path / "detector" / "README.md").read_text()
    assert card.startswith("---\n") and stored["sha256"] in card and "person, bicycle" in card
    assert "\nregionclip detect photo.jpg --model FOLDER --rpn RPN_FOLDER\n" in card
    assert "--classes" not in card  # nothing would embed other names


def test_options_reach_the_importer(tmp_path: Path, model: str) -> None:
    (tmp_path / "names.txt").write_text("red bus\nblue bus\n")
    file = save(tmp_path / "w.pth", detector_state(2, None))
    result = run(file, "--out", tmp_path / "a", "--model", model, "--names", tmp_path / "names.txt")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "a" / "vocabulary.json").read_text())["names"] == ["red bus", "blue bus"]
    both = save(tmp_path / "p.pth", pretrained_state() | detector_state())
    assert run(both, "--out", tmp_path / "b", "--model", model).exit_code == 0
    assert (tmp_path / "b" / "text").is_dir()  # a detector with a text encoder
    assert run(both, "--out", tmp_path / "c", "--model", model, "--kind", "pretrained").exit_code == 0
    assert (tmp_path / "c" / "teacher").is_dir()
    assert not (tmp_path / "c" / "config.json").exists()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("model", "w.pth is no RN50x4: its weights say"),
        ("cut", "is cut short or damaged"),
        ("code", "reading it would run code from the file, which this project never does"),
        ("count", "has 65 rows, but --names"),
        ("page", "it is a web page, as a download link gives that asks for a click or a login"),
        ("absent", "is not there: expected a file of weights"),
    ],
)
def test_wrong_files_end_in_one_message_and_nothing_written(
    tmp_path: Path, model: str, case: str, message: str
) -> None:
    file = Path(save(tmp_path / "w.pth", detector_state()))
    options = ["--model", "RN50x4" if case == "model" else model]
    if case == "cut":
        file.write_bytes(file.read_bytes()[:20_000])
    elif case == "code":
        torch.save({"model": detector_state(), "hook": Payload(tmp_path / "harm")}, file)
    elif case == "count":
        (tmp_path / "names.txt").write_text("one\ntwo\n")
        options += ["--names", str(tmp_path / "names.txt")]
    elif case == "page":
        file.write_text("<html>Please sign in</html>")
    elif case == "absent":
        file.unlink()
    before = sorted(tmp_path.rglob("*"))
    result = run(file, "--out", tmp_path / "new" / "model", *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_the_kinds() -> None:
    text = " ".join(run("--help").output.split())
    assert "detector, pretrained, rpn, embeddings or clip" in text
