"""Checks between the sections of a configuration, and of what the teacher's architecture can do."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from regionclip_core.config.architectures import NO_VALUES, RESNET_STRIDE, model_config, tower_of, why_not_buildable
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.rounds import is_student
from regionclip_core.config.tree import Config, FinetuneConfig, PretrainConfig, Split, TeacherTraining


def check_config(config: Config, stages: Collection[str] = ()) -> list[str]:
    """Return one line per setting that doesn't fit another one, or that the teacher's architecture can't do.

    A section that the config doesn't have is looked at only if its stage is one of `stages`, which are to run.
    """
    read = {*config.model_fields_set, *stages}
    for checks in ([_unknown_splits], [_between_sections, _processes, _architecture]):
        # With a split that doesn't exist the other checks would repeat, or stumble over, what the first one found.
        if found := [line for check in checks for line in check(config) if line.split(".")[0] in read]:
            return found
    return []


def same_images(splits: Mapping[str, Split]) -> list[str]:
    """Return a sentence per annotation file, caption file or set of tars that several splits take their images from."""
    named: dict[str, list[str]] = {}
    for name, split in splits.items():
        lists = [getattr(split, key, None) for key in ("urls", "instances", "captions")]
        if file := next(filter(None, lists), None):
            named.setdefault(file if "://" in file else os.path.abspath(os.path.expanduser(file)), []).append(name)
    return [
        f"the splits {' and '.join(map(repr, names))} have the same images (of {file}): a score on images that a model "
        "was trained on says little about others"
        for file, names in named.items()
        if len(names) > 1
    ]


def _unknown_splits(config: Config) -> Iterator[str]:
    wanted: list[tuple[str, Sequence[str]]] = [
        ("concepts.splits", config.concepts.splits),
        ("proposals.splits", config.proposals.splits),
        ("labels.splits", config.labels.splits),
        ("rpn.split", (config.rpn.split,)),
        ("finetune.split", (config.finetune.split,)),
        ("evaluate.split", (config.evaluate.split,)),
    ]
    if config.evaluate.whole_image_split is not None:
        wanted.append(("evaluate.whole_image_split", (config.evaluate.whole_image_split,)))
    if config.teacher.training is not None:
        wanted.append(("teacher.training.splits", config.teacher.training.splits))
    if config.teacher.weights == "train" and config.teacher.training is None:
        yield "teacher.training: missing; teacher.weights: train needs it, with its splits"
    known = sorted(config.data.splits)
    if not known:
        yield "data.splits: missing; it has no default"
    for path, names in wanted:
        if not names and not (path == "concepts.splits" and config.concepts.file is not None):
            yield f"{path}: expected at least one split of data.splits, which has {known} (came: [])"
        for name in dict.fromkeys(names):
            if name not in known:
                yield (
                    f"{path}: expected a split of data.splits, which has {known} (came: {name!r})"
                    f"{nearest_hint(name, known)}"
                )
            elif names.count(name) > 1:
                yield f"{path}: expected each split once (came: {list(names)})"


def _between_sections(config: Config) -> Iterator[str]:
    for path, names in [
        ("labels.splits", config.labels.splits if config.labels.source is None else ()),
        ("finetune.split", (config.finetune.split,)),
        ("evaluate.split", (config.evaluate.split,)),
    ]:
        for name in names:
            if name not in config.proposals.splits:
                yield f"{path}: split {name!r} has no proposals; add it to proposals.splits"
    for section in ("rpn", "labels", "pretrain", "finetune", "evaluate"):
        settings = getattr(config, section)
        read = section != "labels" or _labels_by_roi(config)
        if read and settings.max_size < (shorter := settings.image_size):
            yield (
                f"{section}.max_size: expected at least {section}.image_size, which is {shorter} "
                f"(came: {settings.max_size})"
            )
    for name, split in config.data.splits.items():
        if split.source == "world" and split.kind == "scene" and split.object_size[0] * split.image_size < 8:
            yield (
                f"data.splits.{name}.object_size: expected objects of at least 8 pixels, a share of "
                f"{8 / split.image_size:.3g} of image_size {split.image_size} (came: {list(split.object_size)})"
            )
    if drawn := [side for side in config.finetune.train_sizes if side > config.finetune.max_size]:
        yield f"finetune.train_sizes: expected at most finetune.max_size, {config.finetune.max_size} (came: {drawn[0]})"
    names = ("contrastive_weight", "distill_weight", "image_text_weight", "crop_weight")
    weights = [getattr(config.pretrain, name) for name in names]
    if not any(weights):
        yield (
            f"pretrain.contrastive_weight: expected one of {', '.join(names[:-1])} and {names[-1]} above 0 "
            f"(came: {weights})"
        )
    yield from _crop_features(config)
    if config.concepts.file is not None and config.concepts.max_concepts is not None:
        yield (
            "concepts.max_concepts: expected null with concepts.file, which is the pool as it is (came: "
            f"{config.concepts.max_concepts})"
        )
    for key, default in {"unknown_names": "drop", "source_probabilities": "source"}.items():
        if config.labels.source is None and (came := getattr(config.labels, key)) != default:
            yield f"labels.{key}: is of labels.source, which is null; set both, or leave it out (came: {came!r})"
    if config.labels.source is not None and config.labels.objectness_power:
        yield (
            "labels.objectness_power: expected 0 with labels.source, whose boxes have no objectness (came: "
            f"{config.labels.objectness_power})"
        )
    named = config.labels.source is not None and config.labels.source_probabilities == "source"
    if config.labels.weights != "teacher" and named:
        yield (
            "labels.weights: expected teacher with labels.source, whose regions have names, or set "
            f"labels.source_probabilities: teacher (came: {config.labels.weights!r})"
        )
    yield from _rounds(config)
    if config.labels.canvas == "padded" and not _labels_by_roi(config):
        yield "labels.canvas: `padded` is of labels.mode roi; crops have no canvas. Set image, or labels.mode: roi"
    if config.pairs.min_regions > config.pairs.max_regions:
        yield (
            f"pairs.min_regions: expected at most pairs.max_regions, which is {config.pairs.max_regions} "
            f"(came: {config.pairs.min_regions})"
        )
    evaluated = config.data.splits.get(config.evaluate.split)
    if config.evaluate.colours and (evaluated is None or evaluated.source != "world"):
        yield "evaluate.colours: only the embedded world says what colour an object has; set it false"
    if config.evaluate.masks and not getattr(evaluated, "masks", False):
        yield (
            f"evaluate.masks: the split {config.evaluate.split!r} reads none; set data.splits."
            f"{config.evaluate.split}.masks: true where its annotations have them, or evaluate.masks: false"
        )
    if config.evaluate.fixed_ap and config.evaluate.protocol != "lvis":
        yield "evaluate.fixed_ap: is of evaluate.protocol lvis; set it false, or evaluate an LVIS split by its protocol"
    raw = [n for n in ("objectness", "finetuned_objectness") if getattr(config.evaluate, n) == "raw_logit"]
    if raw and config.proposals.method != "rpn":  # their logits are all 0, and so would be every score
        yield (
            f"evaluate.{raw[0]}: raw_logit multiplies with the objectness of a proposal network, and "
            f"proposals.method {config.proposals.method} has none; set evaluate.{raw[0]}: none"
        )
    if config.finetune.mask_head and config.finetune.weights == "train":
        name = config.finetune.split
        if not getattr(config.data.splits.get(name), "masks", False):
            yield (
                f"finetune.mask_head: split {name!r} has no masks to learn from; set masks: true in "
                f"data.splits.{name}, which must be a coco or lvis split"
            )


def _labels_by_roi(config: Config) -> bool:
    """Return whether the regions of a round are labelled by RoIAlign."""
    return config.labels.mode == "roi" or (config.rounds > 1 and config.labels.later_rounds.mode == "roi")


def _rounds(config: Config) -> Iterator[str]:
    """Yield why there can't be so many rounds, and what is asked of later ones where there is none."""
    for path in ("labels.weights", "pretrain.init"):
        section, key = path.split(".")
        if is_student(came := getattr(getattr(config, section), key)):
            yield f"{path}: expected a folder; `rounds` gives the student of an earlier round (came: {came!r})"
    labels = config.labels
    if config.rounds == 1:
        if labels.later_rounds != type(labels).model_fields["later_rounds"].default:
            yield "labels.later_rounds: there is one round; set rounds: 2, or leave it out"
        return
    if config.pretrain.weights != "train":
        yield f"pretrain.weights: expected train with rounds above 1 (came: {config.pretrain.weights!r})"
    if labels.source is not None and labels.source_probabilities == "source":
        yield (
            "labels.source_probabilities: with rounds above 1 the student labels the boxes of labels.source; set "
            "teacher, or rounds: 1 (came: 'source')"
        )


def _crop_features(config: Config) -> Iterator[str]:
    """Yield what is asked of embeddings of crops that nothing stores, and of regions that nothing writes."""
    labels, pairs, pretrain = config.labels, config.pairs, config.pretrain
    if not labels.crop_features:
        for path, came in {
            "labels.grid_scales": list(labels.grid_scales),
            "pairs.other_regions": pairs.other_regions,
            "pretrain.crop_weight": pretrain.crop_weight if pretrain.weights == "train" else 0,
        }.items():
            if came:
                yield f"{path}: needs the teacher's embeddings of crops; set labels.crop_features: true (came: {came})"
    elif labels.grid_scales and not pairs.other_regions:
        yield (
            "pairs.other_regions: expected at least 1, or the boxes of labels.grid_scales, which are never kept, reach "
            "no training (came: 0)"
        )
    if not labels.max_regions and not labels.grid_scales:
        yield "labels.max_regions: expected at least 1, or boxes from labels.grid_scales (came: 0)"


def _processes(config: Config) -> Iterator[str]:
    """Yield why the trainings of this configuration can't run in `execution.train_workers` processes."""
    workers = config.execution.train_workers
    if workers > 1 and config.execution.backend == "local":
        yield f"execution.train_workers: several processes need execution.backend: ray (came: {workers} with local)"
        return
    trained: dict[str, TeacherTraining | PretrainConfig | FinetuneConfig] = {}
    if config.teacher.weights == "train" and config.teacher.training is not None:
        trained["teacher.training"] = config.teacher.training
    if config.pretrain.weights == "train":
        trained["pretrain"] = config.pretrain
    if config.finetune.weights == "train":
        trained["finetune"] = config.finetune
    sizes = {section: settings.batch_size for section, settings in trained.items()}
    if any(size % workers for size in sizes.values()):
        shown = ", ".join(f"{section}.batch_size {size}" for section, size in sizes.items())
        shared = math.gcd(*sizes.values())
        fits = max(number for number in range(1, workers) if shared % number == 0)
        yield f"execution.train_workers: expected a number that divides {shown} (came: {workers}); nearest: {fits}"


def _architecture(config: Config) -> Iterator[str]:
    """Yield what the configuration asks of the teacher's architecture that it can't do for any stage."""
    name = config.teacher.model
    if name == "small":
        if config.teacher.value_blocks:
            yield f"teacher.value_blocks: expected 0 or null for small, a ResNet: {NO_VALUES}"
        yield from _too_small(config, "small", RESNET_STRIDE)
        return
    try:
        description = model_config(name)
    except ValueError as error:
        yield str(error)
        return
    if reason := why_not_buildable(description):
        yield f"teacher.model: {name} can't be used: {reason}"
        return
    if config.teacher.weights == "train" and "init_logit_bias" in description:
        yield (
            f"teacher.weights: {name} needs a sigmoid loss per pair, and `train` has only CLIP's softmax loss; give "
            "weights"
        )
    if description["text_cfg"].get("hf_tokenizer_name") and importlib.util.find_spec("transformers") is None:
        yield (
            f"teacher.model: the tokenizer of {name} needs the package transformers (the extra `siglip`): pip install "
            "transformers"
        )
    tower = tower_of(description)
    if config.teacher.value_blocks and not tower.has_values:
        yield f"teacher.value_blocks: expected 0 or null for {name} (came: {config.teacher.value_blocks}): {NO_VALUES}"
    if tower.no_regions is None:
        assert tower.stride is not None
        yield from _too_small(config, name, tower.stride)
        padded = {"pretrain.global_box": config.pretrain.global_box, "labels.canvas": config.labels.canvas}
        for path in (path for path, kind in padded.items() if tower.kind != "resnet" and kind == "padded"):
            yield (
                f"{path}: `padded` is the official code's canvas of image and padding, and {name}, a ViT, does not see "
                "the padding; set image"
            )
    elif config.labels.mode == "roi":
        yield (
            f"labels.mode: {name} can't label with `roi`: {tower.no_regions}. Set labels.mode: crop, or take an RN, "
            "ViT, EVA02, PE-Core or SigLIP architecture"
        )


def _too_small(config: Config, name: str, stride: int) -> Iterator[str]:
    """Yield the inputs that are smaller than one cell of the feature map."""
    sides = [
        (f"{stage}.image_size", getattr(config, stage).image_size) for stage in ("pretrain", "finetune", "evaluate")
    ]
    sides += [("finetune.train_sizes", side) for side in config.finetune.train_sizes]
    if _labels_by_roi(config):
        sides.append(("labels.image_size", config.labels.image_size))
    for path, side in sides:
        if side < stride:
            yield f"{path}: expected at least a cell of {name}'s feature map, {stride} px (came: {side})"


def check_stages(config: Config, stages: Collection[str]) -> None:
    """Raise ValueError if `stages`, which are to run, lack settings or ask what the teacher's architecture can't do.

    This is no part of loading a config: with a teacher without region features the stages up to the pseudo labels can
    run, and a run of some stages needs no sections of others.
    """
    if lines := check_config(config, stages):
        advice = "add them to the config, or name the stages to run, such as `regionclip run data`:"
        raise ValueError("\n  ".join([f"what is to run needs more settings; {advice}", *lines]))
    if config.teacher.model == "small":
        return
    tower = tower_of(model_config(config.teacher.model))
    trained = {"pretrain": config.pretrain.weights == "train", "finetune": config.finetune.weights == "train"}
    blocked = [stage for stage, needs in {**trained, "evaluate": True}.items() if needs and stage in stages]
    if tower.no_regions is not None and blocked:
        raise ValueError(
            f"teacher.model: {config.teacher.model} can label regions with labels.mode: crop, but can't take part in "
            f"{', '.join(blocked)}: {tower.no_regions}. Take an RN, ViT, EVA02, PE-Core or SigLIP architecture, or "
            "stop earlier with `regionclip run pairs`"
        )
