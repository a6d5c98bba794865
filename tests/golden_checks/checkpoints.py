"""Names, shapes and trained parts of the full-size official models against ours, all without memory for weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from golden_checks.table import Errors, Row, arrays
from regionclip_core.config.tree import OptimConfig, RpnConfig
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.models.clip import ClipModel, build_clip, named_architecture
from regionclip_core.models.official_keys import STUDENT, TEACHER, TEXT, split_clip, split_detector
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_weights import backbone_of, from_official
from regionclip_core.training.optim import make_optimizer

FILE, RPN_FILE = "state_dict_keys.json", "official_rpn_keys.json"
Shapes = dict[str, tuple[int, ...]]
FREEZE_AT = 2
PROMPT_TOOL = "concept_extract_rn50"
"""The official tool that embeds names: its text encoder is trainable by configuration, and never trained."""


@functools.cache
def clip(model: str) -> ClipModel:
    """The architecture with its tensors on the meta device."""
    with torch.device("meta"):
        return build_clip(named_architecture(model), model, 0)


@functools.cache
def encoder(model: str) -> RegionEncoder:
    """The visual tower as training has it."""
    made = region_encoder(clip(model))
    made.freeze(FREEZE_AT)
    return made


def architecture(name: str) -> str:
    """RN50 or RN50x4, by the configuration's name."""
    return "RN50x4" if "rn50x4" in name else "RN50"


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes but for the counters that the official norms don't have."""
    return {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def official(name: str) -> dict[str, Tensor]:
    """A state dict of the stored names and shapes."""
    stored: Mapping[str, list[int]] = arrays(FILE)[name]["state_dict"]
    return {key: torch.empty(tuple(shape), device="meta") for key, shape in stored.items()}


@functools.cache
def detector(name: str) -> OpenVocabularyDetector:
    """Our detector of one configuration, with as many classes as its classifier has."""
    rows, width = arrays(FILE)[name]["state_dict"]["roi_heads.box_predictor.cls_score.weight"]
    with torch.device("meta"):
        names = [str(i) for i in range(rows)]
        made = OpenVocabularyDetector(
            encoder(architecture(name)), torch.empty(rows, width), names, 0.01, "zero", name.startswith("lvis")
        )
    made.encoder.freeze(FREEZE_AT)
    return made


@functools.cache
def network(backbone: str) -> ProposalNetwork:
    """Our proposal network."""
    with torch.device("meta"):
        return ProposalNetwork(RpnConfig(backbone=backbone))  # type: ignore[arg-type]


def differing(ours: Shapes, wanted: Shapes) -> int:
    """Names that only one side has, or that have another shape."""
    return len({*ours.items()} ^ {*wanted.items()})


def name_errors() -> Errors:
    """Entries of each official model that import leaves without a place in ours, or ours that it leaves unfilled."""
    return {f"{name}/state_dict": float(_misplaced(name)) for name in arrays(FILE)}


def _misplaced(name: str) -> int:
    state, model = official(name), clip(architecture(name))
    wrong, placed = 0, set()
    if any(key.startswith(TEXT) for key in state):
        for part in (STUDENT, TEACHER):
            if any(key.startswith(part) for key in state):
                found = split_clip({k: v for k, v in state.items() if k.startswith((part, TEXT))}, part)
                wanted = shapes(model.model.state_dict())
                wanted.pop("logit_scale")  # not part of the official files: import adds it
                wrong += differing(shapes(found.own), wanted)
                placed |= found.renamed.keys()
    if any(key.startswith("roi_heads.") for key in state):
        found = split_detector(state)
        own = {k: v for k, v in found.own.items() if not k.startswith("official.")}
        wanted = {f"detector.{k}": s for k, s in shapes(detector(name).state_dict()).items()}
        for ours in ("class_embeddings", "background_logit"):  # made of the classifier's own rows by the import
            wanted.pop(f"detector.{ours}")
        wrong += differing(shapes(own), wanted)
        placed |= found.renamed.keys()
    branch = {key: value for key, value in state.items() if key.startswith("offline_")}
    if branch:
        renamed = from_official(branch)
        wrong += differing(shapes(renamed), shapes(network(backbone_of(renamed)).state_dict()))
        placed |= branch.keys()
    left = [key for key in state.keys() - placed if not key.endswith("num_batches_tracked")]
    return wrong + len(left)


def branch_errors() -> Errors:
    """The same of the proposal branches alone, under either of their prefixes."""
    found = {}
    for backbone, stored in arrays(RPN_FILE).items():
        state = {key: torch.empty(tuple(shape), device="meta") for key, shape in stored.items()}
        wanted = shapes(network(backbone).state_dict())
        for prefix in ("offline_", ""):
            renamed = from_official({key.replace("offline_", prefix): value for key, value in state.items()})
            wrong = differing(shapes(renamed), wanted)
            for key in stored:
                found[f"{backbone}/{key}"] = max(found.get(f"{backbone}/{key}", 0.0), float(wrong))
    return found


def trainable(name: str) -> nn.Module:
    """What is trained in a configuration."""
    return encoder(architecture(name)) if name.startswith("pretrain") else detector(name)


def training_errors() -> Errors:
    """Trained numbers, the parts that they are in, and the optimiser's one group of tensors."""
    found: dict[str, float] = {}
    for name, golden in arrays(FILE).items():
        if name == PROMPT_TOOL:
            continue
        module = trainable(name)
        parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        found[f"{name}/n_trainable"] = float(sum(p.numel() for p in parameters.values()) != golden["n_trainable"])
        found[f"{name}/trainable_prefixes"] = float({_official_part(key) for key in parameters} != {*_parts(golden)})
        groups = make_optimizer(module, _optim(golden)).param_groups
        ours = [{"lr": g["lr"], "weight_decay": g["weight_decay"], "count": len(g["params"])} for g in groups]
        found[f"{name}/optimizer_param_groups"] = float(ours != golden["optimizer_param_groups"])
    return found


def _optim(golden: Mapping[str, Any]) -> OptimConfig:
    group = golden["optimizer_param_groups"][0]
    return OptimConfig(optimizer="sgd", lr=group["lr"], weight_decay=group["weight_decay"])


def _parts(golden: Mapping[str, Any]) -> list[str]:
    return list(golden["trainable_prefixes"])


def _official_part(name: str) -> str:
    first = name.removeprefix("encoder.").split(".")[0]
    if first == "box_regressor":
        return "roi_heads.box_predictor"
    return "roi_heads.mask_head" if first == "mask_head" else f"backbone.{first}"


_NOT_COMPARED = "*/config */options */n_params */frozen_param_prefixes */non_persistent_buffers"

ROWS = [
    Row(
        FILE,
        "*/state_dict",
        "official_keys.split_clip, split_detector, rpn_weights.from_official",
        0.0,
        name_errors,
        "names without a place, or of another shape; our modules are built at full size",
    ),
    Row(
        FILE,
        " ".join(
            f"{stem}*/{key}"
            for key in ("n_trainable", "trainable_prefixes", "optimizer_param_groups")
            for stem in ("pretrain", "coco", "lvis", "zeroshot")
        ),
        "region_encoder.RegionEncoder.freeze(2), OpenVocabularyDetector, optim.make_optimizer",
        0.0,
        training_errors,
        "`freeze_at: 2`, `background: zero`",
    ),
    Row(FILE, _NOT_COMPARED, "input", note="how the official models were built"),
    Row(
        FILE,
        f"{PROMPT_TOOL}/n_trainable {PROMPT_TOOL}/trainable_prefixes {PROMPT_TOOL}/optimizer_param_groups",
        "input",
        note="the tool that embeds names trains nothing",
    ),
    Row(RPN_FILE, "*", "rpn_weights.from_official", 0.0, branch_errors, "the three proposal branches by themselves"),
]
