"""The presets: all parse, and those for real data have the official hyper-parameters."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from places import ROOT

from regionclip_core.config.loading import load_config, preset_names
from regionclip_core.config.tree import Config, FusionConfig
from regionclip_core.detection.inference import InferenceSettings
from stages.cli import app
from stages.commands.comparisons.ablate import load_ablation
from stages.declarations import STAGES

PAGE = ROOT / "docs" / "REPRODUCE.md"

# Numbers of the official configurations and scripts, written down apart from the presets.
SGD = {"optimizer": "sgd", "lr": 0.002, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "steps"}
PRETRAINING = {
    "labels.mode": "roi",
    "labels.threshold": 0.1,
    "labels.temperature": 0.01,
    "labels.image_size": 800,
    "labels.max_size": 1333,
    "labels.resize": "pretraining",
    "pretrain.weights": "train",
    "pretrain.steps": 600_000,
    "pretrain.batch_size": 96,
    "pretrain.regions_per_image": 100,
    "pretrain.image_size": 800,
    "pretrain.max_size": 1333,
    "pretrain.resize": "pretraining",
    "pretrain.flip": 0.5,
    "pretrain.freeze_at": 2,
    "pretrain.temperature": 0.01,
    "pretrain.contrastive_weight": 1.0,
    "pretrain.distill_weight": 1.0,
    "pretrain.image_text_weight": 1.0,
    "pretrain.optim.warmup_steps": 1000,
    "pretrain.optim.warmup_factor": 1e-3,
    "pretrain.optim.drops": (300_000, 525_000),
    "pretrain.optim.drop_factor": 0.1,
    "pretrain.optim.clip_norm": 5.0,
    "pretrain.optim.clip_per_tensor": True,
    **{f"pretrain.optim.{key}": value for key, value in SGD.items()},
}
DETECTION = {
    "concepts.min_count": 100,
    "teacher.weights": "openai",
    "teacher.prompts": "clip81",
    "teacher.normalize_prompts": False,
    "finetune.batch_size": 16,
    "finetune.regions_per_image": 512,
    "finetune.positive_fraction": 0.25,
    "finetune.train_sizes": (640, 672, 704, 736, 768, 800),
    "finetune.max_size": 1333,
    "finetune.flip": 0.5,
    "finetune.freeze_at": 2,
    "finetune.temperature": 0.01,
    "finetune.background": "zero",
    "finetune.optim.warmup_steps": 5000,
    "finetune.optim.warmup_factor": 1e-3,
    "finetune.optim.drop_factor": 0.1,
    "finetune.optim.clip_norm": None,
    **{f"finetune.optim.{key}": value for key, value in SGD.items()},
    "evaluate.image_size": 800,
    "evaluate.max_size": 1333,
    "evaluate.batch_size": 1,
    "evaluate.nms": 0.5,
    "evaluate.nms_kind": "gaussian",
    "evaluate.annotated_only": True,
    "evaluate.zero_shot_background": "zero",
    "evaluate.objectness": "raw_logit",
    "evaluate.report_probability": False,
}
COCO = {
    "data.categories": "coco_ovd",
    "finetune.sampling": "uniform",
    "finetune.steps": 90_000,
    "finetune.optim.drops": (60_000, 80_000),
    "finetune.background_weight": 0.2,
    "finetune.focal_gamma": 0.5,
    "finetune.mask_head": False,
    "evaluate.protocol": "coco",
    "evaluate.score_threshold": 0.001,
    "evaluate.given_score_threshold": None,
    "evaluate.max_detections": 100,
    "evaluate.finetuned_objectness": "none",
}
COCO_PROPOSALS = {
    "rpn.backbone": "resnet50_c4",
    "proposals.pre_nms": 6000,
    "proposals.nms": 0.7,
    "proposals.max_regions": 1000,
}
LVIS = {
    "rpn.backbone": "resnet50_fpn_lsj",
    "proposals.pre_nms": 1000,
    "proposals.nms": 0.7,
    "proposals.max_regions": 1000,
    "finetune.sampling": "repeat_factor",
    "finetune.repeat_threshold": 0.001,
    "finetune.steps": 180_000,
    "finetune.optim.drops": (120_000, 160_000),
    "finetune.background_weight": 0.8,
    "finetune.focal_gamma": None,
    "finetune.mask_head": True,
    "evaluate.protocol": "lvis",
    "evaluate.score_threshold": 0.02,
    "evaluate.given_score_threshold": 0.0001,
    "evaluate.max_detections": 300,
    "evaluate.finetuned_objectness": "raw_logit",
}
CC3M_PROPOSALS = {
    "rpn.backbone": "resnet50_fpn",
    "proposals.pre_nms": 1000,
    "proposals.nms": 0.5,
    "proposals.max_regions": 300,
    "concepts.splits": ("cc3m",),
    "labels.splits": ("cc3m",),
    "data.splits.cc3m.source": "tars",
}
OFFICIAL: dict[str, dict[str, Any]] = {
    f"{data}_{model.lower()}": PRETRAINING | DETECTION | settings | {"teacher.model": model}
    for data, settings in (
        ("coco", COCO | COCO_PROPOSALS),
        ("lvis", LVIS),
        ("cc3m", COCO | CC3M_PROPOSALS),
    )
    for model in ("RN50", "RN50x4")
}


def at(config: Config, path: str) -> Any:
    """The setting at a dotted path."""
    value: Any = config
    for key in path.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value


def test_there_is_a_table_for_every_preset_of_real_data() -> None:
    assert set(preset_names()) - {"default", "best", "tiny", "coco_tiny"} == set(OFFICIAL)


@pytest.mark.parametrize("name", preset_names())
def test_presets_parse_and_every_stage_can_be_planned(name: str) -> None:
    config = load_config(name)
    assert config.workspace == f"runs/{name}"
    for stage in STAGES.values():
        assert set(stage.needs(config)) <= set(STAGES)
    for finetuned in (True, False):
        InferenceSettings.from_config(config.evaluate, finetuned=finetuned)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_hyper_parameters(name: str) -> None:
    config = load_config(name)
    found = {path: at(config, path) for path in OFFICIAL[name]}
    assert found == OFFICIAL[name]


@pytest.mark.parametrize("data", ["coco", "lvis", "cc3m"])
def test_rn50x4_differs_by_its_model_and_place_only(data: str) -> None:
    small, large = (load_config(f"{data}_{model}").model_dump() for model in ("rn50", "rn50x4"))
    for tree in (small, large):
        tree["workspace"] = tree["teacher"]["model"] = ""
    assert small == large


def test_lvis_reads_masks_and_takes_rare_categories_as_novel() -> None:
    for name in ("lvis_rn50", "lvis_rn50x4"):
        config = load_config(name)
        assert {split.source for split in config.data.splits.values()} == {"lvis"}
        assert all(split.masks for split in config.data.splits.values())  # type: ignore[union-attr]
        assert config.data.categories == config.data.splits["train"].instances  # type: ignore[union-attr]


def test_coco_tiny_measures_all_categories_of_the_protocol() -> None:
    from regionclip_core.datasets.categories import load_categories

    config = load_config("coco_tiny")
    assert len(load_categories(config.data.categories)) == 65
    assert config.teacher.model == "RN50"


def commands() -> list[list[str]]:
    """The command lines in docs/REPRODUCE.md, as a shell would cut them."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line.replace("<its folder>", "0123456789ab"), comments=True) for line in lines if line.strip()]


def test_the_commands_to_reproduce_the_tables_are_commands() -> None:
    """Every command line is understood, and every run in it is of a config that is in order."""
    runs = 0
    for name, command, *arguments in commands():
        assert name == "regionclip"
        parsed = typer.main.get_command(app).commands[command].make_context(command, list(arguments)).params
        if command != "run":
            continue
        runs += 1
        config = load_config(parsed["config"], list(parsed["overrides"] or []))
        assert set(parsed["stages"] or ()) <= set(STAGES)
        needed = set(STAGES["evaluate"].needs(config))
        if config.finetune.weights != "train":
            assert not {"labels", "pairs"} & needed
            assert config.proposals.splits == (config.evaluate.split,)
    assert runs == 7


def test_the_ablation_s_last_variant_is_the_preset_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = load_ablation("docs/ablation.yaml")
    found, preset = table.configs["best", 0].model_dump(), load_config("best").model_dump()
    different = {section for section in preset if found[section] != preset[section]}
    assert different == {"workspace", "execution", "finetune"}
    assert table.configs["paper", 0].evaluate.model_copy(update={"fusion": FusionConfig()}) == load_config().evaluate
