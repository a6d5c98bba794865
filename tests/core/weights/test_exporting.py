"""Models for other programs: open_clip opens what we write, cards hold what the run measured and nothing private."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from small_artifacts import ARCHITECTURE, VOCABULARY, tiny_clip, tiny_config
from small_towers import EVA, PE

from regionclip_core.config.tree import ClipArchitecture, Config, TeacherConfig
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import config_of, load_model, save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import ClipModel, build_clip, create_clip, load_clip
from regionclip_core.models.text_embeddings import NamePrompts
from regionclip_core.proposals.network import build_network
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.storage.folder import free_target, whole_or_nothing
from regionclip_core.storage.records import Folder
from regionclip_core.weights.exporting import export_open_clip, usual_resizing
from regionclip_core.weights.model_card import RunFacts, clip_card, detector_card

VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def quick_gelu() -> ClipModel:
    architecture = ClipArchitecture(**ARCHITECTURE, quick_gelu=True)
    return create_clip(TeacherConfig(weights="random", architecture=architecture), 1)


def vit() -> ClipModel:
    return build_clip(VIT, "tiny-vit", 2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def eva() -> ClipModel:
    return build_clip(EVA, "tiny-eva", 2)


def perception_encoder() -> ClipModel:
    return build_clip(PE, "tiny-pe", 2)


# ---------------------------------------------------------------- open_clip


@pytest.mark.parametrize("build", [tiny_clip, quick_gelu, vit, eva, perception_encoder])
def test_open_clip_opens_a_student_and_computes_the_same(build: Any, tmp_path: Path) -> None:
    clip = build()
    export_open_clip(Folder(str(tmp_path)), clip, clip_card(clip, "student", None), None)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    model.eval()
    image = torch.rand(2, 3, clip.image_size, clip.image_size)
    texts = ["a photo of a cat", "three very small buses"]
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), clip.encode_images(image), atol=1e-6, rtol=1e-5)
        assert torch.equal(tokenizer(texts), clip.tokenizer(texts))
        torch.testing.assert_close(model.encode_text(tokenizer(texts)), clip.encode_text(texts), atol=1e-6, rtol=1e-5)
    assert torch.equal(model.logit_scale, clip.model.logit_scale)
    picture = torch.randint(0, 256, (clip.image_size, clip.image_size, 3), dtype=torch.uint8)
    expected = (picture.permute(2, 0, 1) / 255 - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(preprocess(Image.fromarray(picture.numpy())), expected)
    assert preprocess(Image.new("RGB", (300, 200))).shape == (3, clip.image_size, clip.image_size)


def test_images_are_resized_as_the_architecture_wants_it() -> None:
    assert usual_resizing("ViT-B-16-SigLIP") == {"interpolation": "bicubic", "resize_mode": "squash"}
    assert usual_resizing("RN50") == {"interpolation": "bicubic", "resize_mode": "shortest"}
    assert usual_resizing("small") == {}


def test_an_exported_student_is_read_back_whole(tmp_path: Path) -> None:
    clip = tiny_clip()
    export_open_clip(Folder(str(tmp_path)), clip, clip_card(clip, "teacher", None), NamePrompts(("a {}",), True))
    again = load_clip(Folder(str(tmp_path)))
    assert (again.name, again.mean, again.std, again.architecture) == (
        clip.name,
        clip.mean,
        clip.std,
        clip.architecture,
    )
    state = clip.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"open_clip_config.json", "open_clip_model.safetensors", "README.md", "prompts.json"}


# ---------------------------------------------------------------- cards


def run_config() -> Config:
    coco = {"source": "coco", "images": "/home/somebody/coco/val2017", "instances": "s3://secret/b/instances_val.json"}
    world = {"source": "world", "images": 7, "image_size": 80}
    return tiny_config(
        data={"splits": {"train": world, "val": coco}, "categories": "/home/somebody/things.yaml"},
        proposals={"method": "rpn"},
    ).model_copy(update={"workspace": "/home/somebody/runs/x"})


def scores(value: float) -> dict[str, Any]:
    groups = {name: {"ap50": value + n, "ap": value / 2, "categories": 2, "boxes": 5} for n, name in enumerate(GROUPS)}
    return {**groups, "per_category": {}, "coco": {"AP": value}}


GROUPS = ("novel", "base", "all")
METRICS = {
    "protocol": "coco",
    "images": 50,
    "zero_shot_gt": {"clip": scores(20), "regionclip": scores(30)},
    "zero_shot_rpn": {"clip": scores(10), "regionclip": scores(12.25)},
    "finetuned": {"regionclip": scores(31.4)},
    "finetuned_novel_only": {"regionclip": {"novel": {"ap50": 35.0}}},
}
MADE = {
    "fingerprint": "f" * 64,
    "content_digest": "c" * 64,
    "summary": {"images": {"train": 7, "val": 1234}},
    "provenance": {
        "git_commit": "abc123",
        "packages": {"torch": "2.11"},
        "host": "secret-host",
        "finished": "2026-01-02T03:04:05.678+00:00",
    },
}


def facts(metrics: dict[str, Any] | None = METRICS) -> RunFacts:
    return RunFacts(run_config(), {"data": MADE, "finetune": MADE}, metrics, VOCABULARY)


def small_model(with_network: bool = True) -> RegionModel:
    config, clip = run_config(), tiny_clip()
    detector = build_detector(clip, VOCABULARY.names, config).eval()
    return RegionModel(
        detector,
        VOCABULARY,
        detector.class_embeddings,
        Preprocess(64, 128, clip.mean, clip.std),
        InferenceSettings(),
        clip.name,
        clip.architecture,
        NetworkBoxes(build_network(config.rpn, 0), config.rpn, config.proposals) if with_network else None,
        clip,
        NamePrompts(("a {}",), True),
    )


def test_a_detectors_card_says_what_the_run_measured() -> None:
    text = str(detector_card(small_model(), "regionclip", facts()))
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("apache-2.0", "regionclip")
    assert front["pipeline_tag"] == "zero-shot-object-detection"
    assert "open-vocabulary-detection" in front["tags"] and front["metrics"] == ["AP50"]
    [result] = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == "things.yaml, split val: open-vocabulary detection (table 1)"
    measured = {metric["name"]: metric["value"] for metric in result["metrics"]}
    expected = {"novel (17)": 35.0, "generalised novel": 31.4, "generalised base": 32.4, "generalised all": 33.4}
    assert measured == {f"AP50 {name}": value for name, value in expected.items()}
    assert "| regionclip | 35.0 | - | 31.4 | 32.4 | 33.4 |" in text
    assert "| clip | 20.0 | 21.0 | 22.0 |" in text  # the zero-shot rows are in the table too
    for part in ("## Data", "1,234", "2 base, 2 novel", "## Settings", "## Where it came from", "abc123", "torch 2.11"):
        assert part in text, part
    for part in ("## Intended use", "## Limits", "Measured by the run on 50 images of the split `val`"):
        assert part in text, part


def test_a_card_says_that_a_model_knows_drawings_only() -> None:
    """The split `train` is the world, `val` photographs."""
    text = str(detector_card(small_model(), "regionclip", facts()))
    assert "trained on drawings only (split train:" in text and "in photographs where" not in text
    for section, splits, expected in (
        ("finetune", {"split": "val"}, "finding objects by name in photographs where"),
        ("finetune", {"weights": "published"}, "finding objects by name in photographs where"),
    ):
        config = run_config()
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=splits)})
        assert expected in str(detector_card(small_model(), "regionclip", replace(facts(), config=config)))
    config = run_config()
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"splits": ("val", "train")})})
    mixed = str(clip_card(tiny_clip(), "student", replace(facts(), config=config)))
    assert "trained partly on drawings (split train:" in mixed
    assert "in photographs where" in str(clip_card(tiny_clip(), "teacher", None))


def test_the_hub_reads_a_card_back(tmp_path: Path) -> None:
    def read(card: ModelCard) -> Any:
        """By `load`, from a file as it is exported."""
        (tmp_path / "README.md").write_text(str(card))
        return ModelCard.load(tmp_path / "README.md").data

    data = read(detector_card(small_model(), "regionclip", facts()))
    assert data.license == "apache-2.0"
    assert data.model_name == "RegionCLIP detector small"
    assert {(r.metric_name, r.metric_value) for r in data.eval_results} >= {("AP50 generalised novel", 31.4)}
    student = read(clip_card(tiny_clip(), "student", facts()))
    assert student.library_name == "open_clip"
    assert student.pipeline_tag == "zero-shot-image-classification"
    assert {r.metric_value for r in student.eval_results} == {30, 31, 32, 12.25, 13.25, 14.25}
    teacher = read(clip_card(tiny_clip(), "teacher", None))
    assert (teacher.license, teacher.eval_results, teacher.metrics) == ("apache-2.0", None, None)


def test_cards_hold_nothing_private_and_no_result_that_was_not_measured() -> None:
    for card in (detector_card(small_model(), "oracle", facts()), clip_card(tiny_clip(), "teacher", facts())):
        for secret in ("somebody", "secret", "/home", "s3:"):
            assert secret not in str(card), secret
    unmeasured = str(detector_card(small_model(with_network=False), "regionclip", facts(None)))
    assert "Not measured" in unmeasured and "model-index" not in unmeasured
    assert "--rpn RPN_FOLDER" in unmeasured
    assert "no open-vocabulary result" in str(detector_card(small_model(), "oracle", facts()))


def test_the_sections_of_a_card() -> None:
    text = str(detector_card(small_model(), "regionclip", facts()))
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["seed"] == 3 and settings["rpn"]["width"] == 4
    assert not {"workspace", "execution", "report", "data"} & settings.keys()
    headings = [
        "Use",
        "Model",
        "Data",
        "Training",
        "Settings",
        "Results",
        "Where it came from",
        "Intended use",
        "Limits",
    ]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == headings
    rows = text.splitlines()
    assert "| train | world | - | 7 |" in rows and "| val | coco | instances_val.json | 1,234 |" in rows
    assert "| data | `ffffffffffff` | `cccccccccccc` | 2026-01-02T03:04:05 |" in rows
    assert "| classifier | 4 names, cosine / 0.07 |" in rows
    # Tables stay tables: a blank line before each, the same number of columns in all lines.
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for block in blocks:
        assert len({line.replace("\\|", "").count("|") for line in block}) == 1
        assert set(block[1]) == set("| -")
    bare = str(clip_card(tiny_clip(), "teacher", None))
    assert [line[3:] for line in bare.splitlines() if line.startswith("## ")] == [
        *("Use", "Model", "Training", "Intended use", "Limits")
    ]
    assert "\n\n\n" not in text + bare


def test_a_card_says_what_each_part_was_trained_on() -> None:
    text = str(detector_card(small_model(), "regionclip", facts()))
    rows = text.splitlines()
    assert "| detector | `train`, drawings of the embedded world |" in rows
    assert "| teacher | not in this run: weights `random` |" in rows
    photographs = run_config().model_copy(
        update={"labels": run_config().labels.model_copy(update={"splits": ("val",)})}
    )
    student = str(clip_card(tiny_clip(), "student", replace(facts(), config=photographs))).splitlines()
    assert "| student | `val`, images of the source coco |" in student
    assert not [row for row in student if row.startswith("| detector |")]


def test_the_lines_of_python_in_a_card_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those of transformers, which have a test of their own; FiftyOne's classes are replaced by their words."""
    model = small_model()
    card = str(detector_card(model, "regionclip", facts()))
    save_model(Folder(str(tmp_path / "FOLDER")), model, card)
    Image.new("RGB", (120, 80), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    words = {"Sample": lambda file: {"file": file}, "Detections": lambda **kw: kw, "Detection": lambda **kw: kw}
    monkeypatch.setitem(sys.modules, "fiftyone", types.SimpleNamespace(**words))
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    assert len(blocks) == 4 and sum("transformers" in block for block in blocks) == 1
    for block in blocks:
        if "transformers" not in block:
            exec(block, names)
    found, rows = names["found"], names["sample"]["found"]["detections"]
    assert (
        len(found) > 0 and names["picture"].shape == (80, 120, 3) and names["detections"].xyxy.shape == (len(found), 4)
    )
    assert [row["label"] for row in rows] == list(found.names)
    x, y, width, height = np.array([row["bounding_box"] for row in rows]).T
    corners = np.stack((x, y, x + width, y + height), 1) * [120, 80, 120, 80]
    np.testing.assert_allclose(corners, found.boxes, atol=1e-3)


# ---------------------------------------------------------------- folders


def test_a_detector_folder_has_every_part(tmp_path: Path) -> None:
    model = small_model()
    card = detector_card(model, "regionclip", facts())
    save_model(Folder(str(tmp_path)), model, str(card))
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    text = {"text/clip.json", "text/clip.safetensors", "text/prompts.json"}
    code = "modeling_regionclip.py"  # for transformers
    assert names == {"config.json", "model.safetensors", "vocabulary.json", "README.md", code, *text}
    again = load_model(Folder(str(tmp_path)))
    assert config_of(again) == config_of(model)
    assert again.prompts == model.prompts
    assert again.vocabulary == VOCABULARY
    for one, other in ((model.detector, again.detector), (model.proposer.network, again.proposer.network)):
        state = one.state_dict()
        assert state.keys() == other.state_dict().keys()
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again.text.encode_text(["a bus"]), model.text.encode_text(["a bus"]))


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = free_target(str(tmp_path / "deep" / "new"))
    with pytest.raises(ValueError, match="no plain file name"), whole_or_nothing(target) as folder:
        [folder.write_bytes(name, b"x") for name in ("half", "not/whole")]
    assert list(tmp_path.iterdir()) == []
    with whole_or_nothing(target) as folder:
        folder.child("inside").write_bytes("whole", b"x")
        assert not target.exists()
    assert [path.name for path in target.rglob("*")] == ["inside", "whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    with pytest.raises(ValueError, match="is there already and not empty"):
        free_target(str(target))
    with pytest.raises(ValueError, match="expected a local folder"):
        free_target("s3://bucket/x")
