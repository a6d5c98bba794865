"""`regionclip export` on a finished run: what is written, that it works alone, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from export_runs import Run, finished_run, free
from small_runs import artifact

from regionclip_core import load
from regionclip_core.detection.detector import load_detector
from regionclip_core.detection.model_folder import load_model
from regionclip_core.models.clip import load_clip
from regionclip_core.storage.records import Folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), "evaluate")


@pytest.mark.parametrize(("what", "stage"), [("student", "pretrain"), ("teacher", "teacher")])
def test_a_clip_model_of_the_run_opens_in_open_clip(run: Run, tmp_path: Path, what: str, stage: str) -> None:
    result = run("export", what, "--out", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert "open_clip_model.safetensors" in result.stdout
    model = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    clip = load_clip(Folder(str(artifact(run.workspace, stage))))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), clip.encode_images(image), atol=1e-6, rtol=1e-5)
    assert json.loads((tmp_path / "model" / "prompts.json").read_text())["templates"] == ["a photo of a {}."]
    # The run trains the student on drawings, and its teacher has random weights.
    said = json.loads((tmp_path / "model" / "open_clip_config.json").read_text()).get("trained_on")
    assert said == {"student": "drawings", "teacher": None}[what]
    assert load(str(tmp_path / "model")).drawings_only is (what == "student")


def test_a_detector_of_the_run_stands_alone(run: Run, tmp_path: Path) -> None:
    result = run("export", "detector", "--out", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    model = load_model(Folder(str(tmp_path / "model")))
    metrics = json.loads((artifact(run.workspace, "evaluate") / "metrics.json").read_text())
    card = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    values = {m["name"]: m["value"] for r in front["model-index"][0]["results"] for m in r["metrics"]}
    assert values["AP50 generalised all"] == round(metrics["finetuned"]["regionclip"]["all"]["ap50"], 2)
    assert str(tmp_path) not in card and str(run.workspace) not in card
    stored = load_detector(Folder(str(artifact(run.workspace, "finetune"))), stem="regionclip").state_dict()
    own = model.detector.state_dict()
    assert all(torch.equal(own[name], value) for name, value in stored.items() if name != "class_embeddings")
    categories = json.loads((artifact(run.workspace, "data") / "categories.json").read_text())
    assert list(model.detector.names) == categories["names"] and len(own["class_embeddings"]) == len(
        categories["names"]
    )
    assert model.proposer is not None and model.text is not None
    assert (
        model.drawings_only and json.loads((tmp_path / "model" / "config.json").read_text())["trained_on"] == "drawings"
    )
    assert "| detector | `train`, drawings of the embedded world |" in card


def test_name_chooses_the_detector(run: Run, tmp_path: Path) -> None:
    assert run("export", "detector", "--out", str(tmp_path / "clip"), "--name", "clip").exit_code == 0
    model = load_model(Folder(str(tmp_path / "clip")))
    stored = load_detector(Folder(str(artifact(run.workspace, "finetune"))), stem="clip")
    assert torch.equal(model.detector.box_regressor.weight, stored.box_regressor.weight)
    refused = run("export", "detector", "--out", str(tmp_path / "oracle"), "--name", "oracle")
    assert refused.exit_code == 2 and "this run has no detector 'oracle', only ['regionclip', 'clip']" in refused.stderr
    assert not (tmp_path / "oracle").exists()


def test_a_student_goes_to_official_names_and_the_detectors_small_network_does_not(run: Run, tmp_path: Path) -> None:
    result = run("export", "student", "--format", "official", "--out", str(tmp_path / "student.pth"))
    assert result.exit_code == 0, result.output
    state = torch.load(tmp_path / "student.pth", weights_only=True)["model"]
    visual = load_clip(Folder(str(artifact(run.workspace, "pretrain")))).model.visual.state_dict()
    for name, value in visual.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[f"backbone.{name}"], value), name
    assert "lang_encoder.token_embedding.weight" in state
    refused = run("export", "detector", "--format", "official", "--out", str(tmp_path / "detector.pth"))
    assert refused.exit_code == 2 and "no place for this detector's rpn.backbone small" in refused.stderr
    assert f"error: {tmp_path / 'detector.pth'} is not written" in refused.stderr and ".tmp" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["student.pth"]


def test_a_folder_can_be_exported_again(run: Run, tmp_path: Path) -> None:
    assert run("export", "student", "--out", str(tmp_path / "one")).exit_code == 0
    assert free("export", "student", "--model", str(tmp_path / "one"), "--out", str(tmp_path / "two")).exit_code == 0
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "prompts.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    one = free(
        "export", "student", "--model", str(tmp_path / "two"), "--format", "official", "--out", str(tmp_path / "s.pth")
    )
    assert one.exit_code == 0, one.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights"], "expected one of student, teacher, detector"),
        (["teacher", "--format", "detector"], "a teacher can be exported as open_clip"),
        (["student", "--format", "official"], "the official format is one new file, such as model.pth"),
        (["student", "--format", "onnx"], "a student can be exported as open_clip or official"),
        (["detector", "--name", "best"], "--name best: expected one of regionclip, clip, oracle"),
        (["detector", "--set", "finetune.steps=77"], "export needs the finished stage finetune, which is stale"),
        (["student", "--model", "x"], "--model needs no config"),
        (["student", "--name", "clip"], "--name clip is of detectors, and this exports the student"),
    ],
)
def test_what_a_user_gets_wrong_is_said_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run("export", *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_called_like_a_file(run: Run, tmp_path: Path) -> None:
    result = run("export", "detector", "--out", str(tmp_path / "model.pth"))
    assert result.exit_code == 2 and "detector is a folder; name one, or take --format official" in result.stderr
    (tmp_path / "model.pth").write_text("mine")
    result = run("export", "detector", "--format", "official", "--out", str(tmp_path / "model.pth"))
    assert result.exit_code == 2 and "one new file, such as model.pth, and this is there already" in result.stderr
    assert (tmp_path / "model.pth").read_text() == "mine"


def test_a_graph_needs_an_extra_and_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = run("export", "detector", "--format", "onnx", "--out", str(tmp_path / "graph"))
    assert result.exit_code == 2 and "--format onnx needs onnxscript: pip install 'regionclip[onnx]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_detector_of_the_run_becomes_a_graph(run: Run, tmp_path: Path) -> None:
    result = run("export", "detector", "--format", "onnx", "--out", str(tmp_path / "graph"))
    assert result.exit_code == 0, result.output
    assert "description.json, embeddings.safetensors, regions.onnx" in result.stdout


def test_a_full_folder_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    result = run("export", "detector", "--out", str(tmp_path))
    assert result.exit_code == 2 and "is there already and not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    for arguments, message in (
        (("detector", "--model", str(tmp_path), "--out", str(tmp_path / "o")), "holds no detector"),
        (("student", "--model", str(tmp_path), "--out", str(tmp_path / "o")), "holds no CLIP model"),
        (
            ("detector", "--model", str(tmp_path), "--format", "official", "--out", str(tmp_path / "o.pth")),
            "no detector",
        ),
    ):
        refused = free("export", *arguments)
        assert refused.exit_code == 2 and message in refused.stderr, refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
