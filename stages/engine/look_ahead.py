"""What is known to stop a run before its first stage starts, all in one list, each with its setting.

A stage that is done is not looked at: it needs its inputs no more. What a stage says about itself (its settings, its
raw inputs) is looked at by the plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionclip_core.concepts.given_names import read_given
from regionclip_core.concepts.identity import no_pipeline, pipeline_version
from regionclip_core.config.architectures import model_config, tower_of
from regionclip_core.config.tree import Config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.synonyms import categories_by_synonym
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.storage.given_files import TOKENIZER_FILES, clip_files
from regionclip_core.storage.locations import absolute, is_remote, nearest_file, remote
from regionclip_core.storage.weight_files import names_tensor, weight_layout

from .. import declarations
from .curves import no_wandb
from .plan import PlanLine
from .work import resolve_device

OF_THE_PIPELINE = (
    *("duckdb", "faster_coco_eval", "ijson", "ray", "spacy", "spacy_lookups_data"),
    *("tensorboardX", "webdataset"),
)
"""Modules of the extra `pipeline`; what uses a model does without them."""


def look_ahead(
    config: Config, names: Sequence[str], lines: Mapping[str, PlanLine], forced: Collection[str] = ()
) -> list[str]:
    """Return those of the steps `names` that are to run. Raises ValueError if something is known to stop one of them.

    Args:
        lines: `Planner.current()`.
        forced: steps that run although they are done.
    """
    steps = [name for name in names if lines[name].state != "done" or name in forced]
    if steps and (missing := [name for name in OF_THE_PIPELINE if find_spec(name) is None]):
        install = "pip install 'regionclip[pipeline]' (in a clone: '.[pipeline]')"
        raise ValueError(f"a run needs {', '.join(missing)}, which this environment doesn't have: {install}")
    found = [text for name in steps for text in lines[name].wrong]
    to_run = list(dict.fromkeys(lines[name].stage for name in steps))
    # By stage, that of its first round, which reads the files that the config names.
    lines = {line.stage: line for line in reversed(list(lines.values()))}
    data = lines["data"].manifest if "data" in lines else None
    found += _weights(config, to_run, lines)
    if "concepts" in to_run and not lines["concepts"].wrong:
        found += _given_names(config)
    if "labels" in to_run and not lines["labels"].wrong:
        found += _label_files(config)
    found += [*_image_folders(config, to_run), *unusable_splits(config, to_run, data.summary if data else None)]
    pipeline = config.concepts.spacy_model
    if "concepts" in to_run and config.concepts.parser == "spacy" and pipeline_version(pipeline) is None:
        found.append(no_pipeline(pipeline))
    if config.execution.curves == "wandb" and {"teacher", "rpn", "pretrain", "finetune"}.intersection(to_run):
        found += no_wandb()
    if not config.execution.on_cluster:
        found += _not_on_this_machine(config, to_run, lines)
    refuse(found)
    return steps


def refuse(found: Iterable[str]) -> None:
    """Raise ValueError if anything was found."""
    if texts := list(dict.fromkeys(found)):
        several = [f"{len(texts)} wrong; fix them and run again:", *(text.replace("\n", "\n    ") for text in texts)]
        raise ValueError(texts[0] if len(texts) == 1 else "\n  ".join(several))


def _not_on_this_machine(config: Config, to_run: Collection[str], lines: Mapping[str, PlanLine]) -> Iterator[str]:
    """Yield what is missing of the GPU and of what only a tag or a model's name says, and what is wrong with prompts.

    Imports torch, but only where one of these is asked for.
    """
    teacher, device = config.teacher, config.execution.device
    looks: list[tuple[str, Callable[[], object]]] = []
    if "teacher" in to_run:
        files = lines["teacher"].wrong or declarations.STAGES["teacher"].raw_inputs(config)
        if teacher.weights not in ("train", "random") and not files:
            from regionclip_core.models.clip import find_weights

            looks.append(("", partial(find_weights, teacher.model, teacher.weights)))
        text = {} if teacher.model == "small" else model_config(teacher.model)["text_cfg"]
        if text.get("hf_tokenizer_name") and not any(file.endswith(TOKENIZER_FILES[0]) for file in files):
            from regionclip_core.models.tokenization import LocalTokenizer

            looks.append(("teacher.model: ", lambda: LocalTokenizer(text).files))
    if os.path.isfile(teacher.prompts) and {"labels", "finetune", "evaluate"}.intersection(to_run):
        looks.append(("teacher.prompts: ", partial(prompt_templates, teacher.prompts)))
    if device.startswith("cuda") and any(declarations.STAGES[name].uses_gpu for name in to_run):
        looks.append(("", partial(resolve_device, device)))
    for setting, look in looks:
        try:
            look()
        except (OSError, ValueError) as error:
            yield f"{setting}{error}"


def _weights(config: Config, to_run: Collection[str], lines: Mapping[str, PlanLine]) -> Iterator[str]:
    """Yield which files of weights on this machine are none, or not of the teacher's kind, by their first bytes."""
    pretrain = "pretrain.init" if config.pretrain.weights == "train" else "pretrain.weights"
    settings = {"teacher": "teacher.weights", "rpn": "rpn.weights", "pretrain": pretrain}
    if config.labels.weights != "teacher":
        settings["labels"] = "labels.weights"
    if config.finetune.weights != "train":
        settings["finetune"] = "finetune.weights"
    model, towers = config.teacher.model, {"resnet": "visual.layer1.", "vit": "visual.transformer."}
    tower = towers["resnet"] if model == "small" else towers.get(tower_of(model_config(model)).kind, "visual.trunk.")
    for name in [one for one in settings if one in to_run and not lines[one].wrong]:
        files = declarations.STAGES[name].raw_inputs(config)
        if name == "labels":  # which has inputs of other kinds too
            files = clip_files(config.labels.weights, "student")
        files = [file.removeprefix("file://") for file in files]
        for path in [Path(file) for file in files if not is_remote(file) and not file.endswith(".json")]:
            try:
                if not names_tensor(path, weight_layout(path), tower if name == "teacher" else ""):
                    yield (
                        f"teacher.weights: {path} has no tensor {tower}...: no CLIP model of teacher.model: {model}. "
                        "Set teacher.model to the architecture that the file was made with, or give another file; "
                        "`regionclip import` reads those by Hugging Face's, EVA's and Perception Encoder's names"
                    )
            except (OSError, ValueError) as error:
                yield f"{settings[name]}: {error}"


def _given_names(config: Config) -> Iterator[str]:
    """Yield what is wrong with the names that a person gives the pool."""
    try:
        read_given(config.concepts)
    except (OSError, ValueError) as error:
        yield str(error)


def _label_files(config: Config) -> Iterator[str]:
    """Yield what is wrong with the files of labels, corrections and synonyms, as far as they alone show it."""
    labels, looks = config.labels, list[Callable[[], object]]()
    if labels.source is not None:
        from regionclip_core.pretraining.label_source import check_source  # loads Arrow

        looks.append(partial(check_source, labels.source))
    if labels.corrections is not None:
        from regionclip_core.pretraining.corrections import read_corrections  # loads torch

        looks.append(partial(read_corrections, labels.corrections))
    if labels.synonyms is not None:
        categories = load_categories(config.data.categories)
        looks.append(partial(categories_by_synonym, labels.synonyms, categories, "labels.synonyms"))
    for look in looks:
        try:
            look()
        except (OSError, ValueError) as error:
            yield str(error)


def _reads(config: Config, stages: Iterable[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the setting that names the splits that a stage reads, and the splits, for those of the stages that do."""
    training = config.teacher.training
    named = {
        "data": ("data.splits", tuple(config.data.splits)),
        "concepts": ("concepts.splits", config.concepts.splits),
        "teacher": ("teacher.training.splits", training.splits if training else ()),
        "rpn": ("rpn.split", (config.rpn.split,)),
        "proposals": ("proposals.splits", config.proposals.splits),
        "labels": ("labels.splits", config.labels.splits),
        "pairs": ("labels.splits", config.labels.splits),
        "finetune": ("finetune.split", (config.finetune.split,)),
        "evaluate": ("evaluate.split", (config.evaluate.split,)),
    }
    if config.concepts.file is not None:  # the pool needs no captions
        del named["concepts"]
    reading = [n for n in stages if n == "data" or "data" in declarations.STAGES[n].needs(config)]
    return {name: named[name] for name in reading if name in named}


def _image_folders(config: Config, to_run: Collection[str]) -> Iterator[str]:
    """Yield the image folders that can't be there. Stores are not asked: `data` does that."""
    read = _reads(config, (name for name in to_run if name != "concepts"))
    for name in dict.fromkeys(name for _, names in read.values() for name in names):
        folder, key = getattr(config.data.splits[name], "images", None), f"data.splits.{name}.images"
        if not isinstance(folder, str):  # tars have none, and the world has a number there
            continue
        if is_remote(folder):
            try:
                with remote(folder):
                    pass
            except ValueError as error:
                yield f"{key}: {error}"
        elif not config.execution.on_cluster and not os.path.isdir(here := absolute(folder.removeprefix("file://"))):
            yield f"{key}: no folder {here}; give the folder in which the file names start{nearest_file(here)}"


def unusable_splits(config: Config, stages: Collection[str], summary: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield which captions or boxes the stages that are to run don't find in their splits, one line per cause.

    summary: of `data`; without it, only what the config alone shows.
    """
    splits, read = config.data.splits, _reads(config, stages)

    def read_by(*readers: str) -> dict[tuple[str, ...], list[str]]:
        there = [stage for stage in readers if stage in read]
        return {read[one][1]: [stage for stage in there if read[stage][1] == read[one][1]] for one in there}

    without = (summary or {}).get("without_captions", ())
    for names, readers in read_by("concepts", "pairs", "teacher").items():
        files = {name: getattr(splits[name], "captions", "with the images") for name in names}
        if not any(file and name not in without for name, file in files.items()):
            where = ", ".join(f"data.splits.{name}.captions: {file or 'not set'}" for name, file in files.items())
            yield (
                f"{', '.join(read[stage][0] for stage in readers)}: expected images with captions, came 0 captions in "
                f"{', '.join(map(repr, names))} ({where}). Give a file with captions or another split; stages that "
                "need no captions can be run by name"
            )
    of_boxes = [("base", *one) for one in read_by("rpn", "finetune").items()]
    for kind, (name,), readers in [*of_boxes, *(("base or novel", *one) for one in read_by("evaluate").items())]:
        file = "drawn" if splits[name].source == "world" else getattr(splits[name], "instances", None)
        there = summary["boxes"].get(name, {}) if summary else dict.fromkeys(["base_boxes"] if file else [], 1)
        if not any(there.get(f"{one}_boxes") for one in kind.split(" or ")):
            shown = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in there.items()) or "none at all"
            yield (
                f"{', '.join(read[stage][0] for stage in readers)}: {' and '.join(readers)} "
                f"need{'s' * (len(readers) == 1)} boxes of {kind} categories, and split {name!r} has {shown}. Fix its "
                f"annotations (data.splits.{name}.instances: {file or 'not set'}) or give another split; stages that "
                "need no boxes can be run by name"
            )
