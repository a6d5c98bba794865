"""Official names and ours: nothing is lost or mixed up, for the complete lists of the full-size models."""

from __future__ import annotations

import json

import pytest
import torch
from official_files import GOLDEN, full_shapes, pretrained_state, small_clip, text, visual
from torch import Tensor

from regionclip_core.models.official_keys import (
    OFFLINE,
    STUDENT,
    TEACHER,
    TEXT,
    clip_to_official,
    detector_to_official,
    is_constant,
    sections,
    split_clip,
    split_detector,
    why_left_over,
)
from regionclip_core.proposals.rpn_weights import from_official, to_official

MODELS = sorted(json.loads((GOLDEN / "state_dict_keys.json").read_text()))
DETECTORS = [model for model in MODELS if not model.startswith("pretrain")]
WITH_TEXT = [model for model in MODELS if "lang_encoder.ln_final.weight" in full_shapes(model)]


def on_paper(model: str) -> dict[str, Tensor]:
    """The full list of names with shapes and without numbers."""
    return {name: torch.empty(shape, device="meta") for name, shape in full_shapes(model).items()}


def part(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


@pytest.mark.parametrize("model", DETECTORS)
def test_a_detectors_names_go_there_and_back(model: str) -> None:
    state = on_paper(model)
    found = split_detector(state)
    assert found.rest.keys() == part(state, *OFFLINE, TEXT).keys()
    assert found.own.keys() == set(found.renamed.values())
    back = detector_to_official(found.own)
    assert back.keys() == found.renamed.keys() == part(state, STUDENT, "roi_heads.").keys()
    assert all(back[name] is state[name] for name in back)  # the very tensors, whatever is in them
    offline = part(state, *OFFLINE)
    if offline:
        again = to_official(from_official(offline), offline=True)
        assert again.keys() == offline.keys()
        assert all(again[name] is offline[name] for name in again)


@pytest.mark.parametrize("model", WITH_TEXT)
def test_clip_models_names_go_there_and_back(model: str) -> None:
    state = on_paper(model)
    for visual_prefix in [STUDENT, TEACHER] if model.startswith("pretrain") else [STUDENT]:
        found = split_clip(state, visual_prefix)
        assert all(found.own[own] is state[name] for name, own in found.renamed.items())
        back = clip_to_official(found.own, visual_prefix, text=True)
        wanted = part(state, visual_prefix, TEXT)
        assert back.keys() == wanted.keys()
        assert all(back[name] is wanted[name] for name in back)
        assert clip_to_official(found.own, visual_prefix, text=False).keys() == part(state, visual_prefix).keys()


def test_no_two_official_names_become_one_of_ours() -> None:
    for model in MODELS:
        state = on_paper(model)
        for found in [split_detector(state), *(split_clip(state, prefix) for prefix in (STUDENT, TEACHER))]:
            assert len(set(found.renamed.values())) == len(found.renamed)
            assert found.renamed.keys() | found.rest.keys() == state.keys()


def test_a_few_names_by_hand() -> None:
    state = dict.fromkeys(
        [
            "backbone.layer4.2.downsample.0.weight",
            "backbone.attnpool.q_proj.bias",
            "roi_heads.box_predictor.bbox_pred.weight",
            "roi_heads.box_predictor.test_cls_score.weight",
            "roi_heads.mask_head.deconv.bias",
        ],
        torch.zeros(1),
    )
    assert list(split_detector(state).renamed.values()) == [
        "detector.encoder.layer4.2.downsample.0.weight",
        "detector.encoder.attnpool.q_proj.bias",
        "detector.box_regressor.weight",
        "official.test_cls_score.weight",
        "detector.mask_head.deconv.bias",
    ]
    names = ["teacher_backbone.conv1.weight", "lang_encoder.token_embedding.weight", "lang_encoder.text_projection"]
    assert split_clip(dict.fromkeys(names, torch.zeros(1)), TEACHER).renamed == {
        "teacher_backbone.conv1.weight": "visual.conv1.weight",
        "lang_encoder.token_embedding.weight": "token_embedding.weight",
        "lang_encoder.text_projection": "text_projection",
    }


def test_openais_names_beside_official_ones() -> None:
    """teacher_..._student_..._OAI_CLIP files: the text tower, and perhaps the student, by OpenAI's names."""
    clip = small_clip()
    words = text(clip, "") | {"logit_scale": torch.tensor(4.6)}
    mixed = visual(clip, "visual.") | visual(clip, TEACHER) | words
    student = split_clip(mixed, "visual.")
    assert student.own.keys() == {n for n in clip.model.state_dict() if not n.endswith("num_batches_tracked")}
    assert student.rest.keys() == part(mixed, TEACHER).keys()
    # Where an official text tower is there, names without prefix are something else.
    assert "logit_scale" in split_clip(pretrained_state() | {"logit_scale": torch.tensor(4.6)}, STUDENT).rest


def test_counters_and_constants() -> None:
    state = {"backbone.bn1.num_batches_tracked": torch.tensor(0), "backbone.bn1.weight": torch.ones(4)}
    assert list(split_detector(state).rest) == ["backbone.bn1.num_batches_tracked"]
    assert why_left_over("backbone.bn1.num_batches_tracked") == "a counter that nothing reads"
    for name in json.loads((GOLDEN / "state_dict_keys.json").read_text())["lvis_rn50"]["non_persistent_buffers"]:
        assert is_constant(name), name  # older versions of the official code stored them
        assert why_left_over(name) == "a constant that follows from the configuration"
    for model in MODELS:
        assert not [name for name in full_shapes(model) if is_constant(name)]
    assert why_left_over("roi_heads.box_head.fc1.weight") is None


def test_sections_count_by_first_part() -> None:
    names = ["backbone.a.b", "backbone.c", "roi_heads.box_predictor.x.y", "roi_heads.mask_head.z", "w"]
    assert sections(names) == {"backbone": 2, "roi_heads.box_predictor": 1, "roi_heads.mask_head": 1, "w": 1}
