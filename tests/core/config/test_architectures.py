"""What architectures can do: against the models themselves, and when a configuration is read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from small_artifacts import tiny_config

from regionclip_core.config import architectures
from regionclip_core.config.architectures import model_config, tower_of, why_not_buildable
from regionclip_core.config.checks import check_stages
from regionclip_core.config.loading import parse_config
from regionclip_core.storage.records import Folder
from stages.engine.plan import Planner


def with_model(name: str, **sections: Any) -> Any:
    teacher = {"model": name, "weights": "random"} | sections.pop("teacher", {})
    return parse_config(tiny_config(teacher=teacher, **sections).model_dump(mode="json"))


# ---------------------------------------------------------------- all of open_clip's architectures


def test_descriptions_are_open_clips() -> None:
    names = open_clip.list_models()
    assert len(names) > 100
    for name in names:
        assert model_config(name) == open_clip.get_model_config(name)


def built(name: str) -> torch.nn.Module:
    config = model_config(name)
    with torch.device("meta"):
        return _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), False)


REGIONS = {
    *("EVA02-B-16", "EVA02-L-14-336", "EVA01-g-14-plus", "PE-Core-B-16", "PE-Core-bigG-14-448"),
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
    *("ViT-B-16-SigLIP", "ViT-L-16-SigLIP-384", "ViT-SO400M-14-SigLIP-378", "ViT-B-32-SigLIP2-256"),
}
CROPS = {"convnext_base", "ViTamin-S", "EVA02-E-14", "MobileCLIP-S1", "swin_base_patch4_window7_224"}
CROPS |= {"ViT-L-14-CLIPA", "vit_medium_patch16_gap_256", "MobileCLIP-B"}


@pytest.mark.parametrize("name", sorted(REGIONS | CROPS))
def test_kind_and_stride_are_those_of_the_built_tower(name: str) -> None:
    if model_config(name)["vision_cfg"].get("timm_model_name", "test_vit") not in timm.list_models():
        pytest.skip("this timm lacks it")
    tower, visual = tower_of(model_config(name)), built(name)
    assert (tower.no_regions is None) == (name in REGIONS)
    expected = {
        "resnet": ModifiedResNet,
        "vit": VisionTransformer,
        "siglip": TimmModel,
        "eva": TimmModel,
        "timm": TimmModel,
    }
    assert type(visual) is expected[tower.kind]
    if tower.kind == "vit" and name in REGIONS:
        assert (tower.stride, tower.stride) == visual.patch_size
    if tower.kind == "siglip":
        from regionclip_core.models.siglip_encoder import SiglipEncoder

        assert SiglipEncoder(visual).stride == tower.stride  # it also checks that no other part is in the way
    if tower.kind == "eva":
        from regionclip_core.models.eva_encoder import EvaEncoder

        assert EvaEncoder(visual, 3 if tower.has_values else 0).stride == tower.stride


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coca_ViT-L-14", "captioning"),
        ("roberta-ViT-B-32", "Hugging Face's roberta-base"),
        ("nllb-clip-base-siglip", "Hugging Face's facebook/nllb"),
    ],
)
def test_why_some_cannot_be_built(name: str, reason: str) -> None:
    assert reason in str(why_not_buildable(model_config(name)))


def test_most_can_be_built() -> None:
    names = [name for name in open_clip.list_models() if why_not_buildable(model_config(name)) is None]
    assert len(names) > 110
    assert {*REGIONS, *CROPS} <= set(names)
    odd = {**model_config("RN50"), "flux": 1}
    assert "flux" in str(why_not_buildable(odd))
    wide = {**model_config("RN50"), "vision_cfg": {"image_size": [224, 448]}}
    assert "square" in str(why_not_buildable(wide))


# ---------------------------------------------------------------- when a configuration is read


@pytest.mark.parametrize(
    ("name", "nearest"), [("RN-50", "RN50,"), ("vit-b-16", "ViT-B-16"), ("RN50X4", "RN50x4"), ("../RN50", "RN50")]
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"teacher.model: expected .*came: '{name}'\).*nearest: .*{nearest}"):
        with_model(name)
    with pytest.raises(ValueError, match="such as RN50"):
        with_model("????")


@pytest.mark.parametrize(
    ("model", "sections", "match"),
    [
        ("convnext_base", {"labels": {"mode": "roi"}}, r"labels.mode: convnext_base can't label with `roi`: .*timm"),
        ("coca_ViT-B-32", {}, "teacher.model: coca_ViT-B-32 can't be used: .*captioning"),
        (
            "ViT-B-32",
            {"pretrain": {"image_size": 31}},
            r"pretrain.image_size: expected at least a cell .*, 32 px \(came: 31\)",
        ),
        ("ViT-B-32", {"finetune": {"train_sizes": (64, 16)}}, r"finetune.train_sizes: .*\(came: 16\)"),
        ("ViT-B-16-SigLIP", {"evaluate": {"image_size": 12}}, r"evaluate.image_size: .*\(came: 12\)"),
        ("RN50", {"labels": {"mode": "roi", "image_size": 15}}, r"labels.image_size: .* 16 px \(came: 15\)"),
        ("small", {"finetune": {"image_size": 15}}, r"finetune.image_size: .*\(came: 15\)"),
        ("ViT-B-16-SigLIP", {"teacher": {"value_blocks": 3}}, r"value_blocks: .* \(came: 3\): only towers of .*ViTs"),
        ("small", {"teacher": {"value_blocks": 1}}, "value_blocks: expected 0 or null for small, a ResNet: only"),
        ("ViT-B-16", {"pretrain": {"global_box": "padded"}}, "pretrain.global_box: .* does not see the padding"),
        ("ViT-B-16", {"labels": {"mode": "roi", "canvas": "padded"}}, "labels.canvas: .* does not see the padding"),
        ("small", {"teacher": {"architecture": {"image_size": 80}}}, r"architecture.image_size\s.*multiple of 32"),
        (
            "small",
            {"teacher": {"architecture": {"text_heads": 0}}},
            r"architecture.text_heads\s.*greater than or equal",
        ),
        (
            "small",
            {"teacher": {"architecture": {"text_heads": 3}}},
            r"teacher.architecture.text_heads\s.*expected a divisor of text_width, which is 128 \(came: 3\)",
        ),
        (
            "ViT-B-16-SigLIP",
            {"teacher": {"weights": "train", "training": {"splits": ["train"]}}},
            "teacher.weights: .*sigmoid",
        ),
    ],
)
def test_what_an_architecture_cannot_do_is_said(model: str, sections: dict[str, Any], match: str) -> None:
    if "SigLIP" in model:  # without it nothing else is said
        pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=match):
        with_model(model, **sections)


@pytest.mark.parametrize(
    ("model", "sections"),
    [
        ("convnext_base", {"labels": {"image_size": 1}}),  # not read by `crop`
        ("RN50", {"pretrain": {"global_box": "padded"}, "labels": {"mode": "roi", "canvas": "padded"}}),
        ("ViT-B-16", {"labels": {"mode": "roi"}, "finetune": {"mask_head": False}}),
        ("ViT-B-32", {"pretrain": {"image_size": 32}}),
        ("ViT-B-32", {"teacher": {"value_blocks": 3}}),
        ("RN50", {"teacher": {"value_blocks": 0}}),
    ],
)
def test_what_it_can_do_is_accepted(model: str, sections: dict[str, Any]) -> None:
    assert with_model(model, **sections).teacher.model == model


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = architectures.importlib.util.find_spec
    monkeypatch.setattr(architectures.importlib.util, "find_spec", lambda n: None if n == "transformers" else real(n))
    with pytest.raises(ValueError, match=r"tokenizer of ViT-B-16-SigLIP .*`siglip`.*pip install transformers"):
        with_model("ViT-B-16-SigLIP")
    with_model("ViT-B-16")
    monkeypatch.setattr(architectures.importlib.util, "find_spec", lambda n: None)
    with pytest.raises(ValueError, match=r"open_clip.* is not installed"):
        with_model("RN50")
    assert tiny_config().teacher.model == "small"  # its name needs nobody


def test_a_crop_only_teacher_goes_as_far_as_the_pairs(tmp_path: Any) -> None:
    config = with_model("convnext_base")
    planner = Planner(config, Folder(str(tmp_path)))
    assert planner.closure(["pairs"])[-1] == "pairs"
    for targets in (None, ["pretrain"], ["evaluate"]):
        with pytest.raises(ValueError, match=r"teacher.model: convnext_base .*(pretrain|evaluate).*run pairs"):
            planner.closure(targets)
    given = with_model("convnext_base", pretrain={"weights": "student"}, finetune={"weights": "detector"})
    check_stages(given, ["pretrain", "finetune"])
    with pytest.raises(ValueError, match="can't take part in evaluate:"):
        check_stages(given, ["evaluate"])
    check_stages(with_model("ViT-B-16"), ["pretrain", "finetune", "evaluate"])


def test_reading_a_configuration_imports_nothing_slow() -> None:
    code = (
        "import sys; from regionclip_core.config.loading import load_config\n"
        "load_config('tiny', ['teacher.model=ViT-B-16', 'teacher.weights=random'])\n"
        "print([name for name in ('torch', 'open_clip', 'timm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
