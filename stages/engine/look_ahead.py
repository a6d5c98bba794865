"""What is known to stop a run before its first stage starts, all in one list, each with its setting.

A stage that is done is not looked at: it needs its inputs no more. What a stage says about itself (its settings, its
raw inputs) is looked at by the plan.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from regionclip_core.concepts.identity import no_pipeline, pipeline_version
from regionclip_core.config.architectures import model_config
from regionclip_core.config.tree import Config, TeacherConfig
from regionclip_core.storage.given_files import TOKENIZER_FILES
from regionclip_core.storage.locations import absolute, is_remote, nearest_file, remote
from stages import declarations
from stages.engine.plan import PlanLine
from stages.engine.work import resolve_device


def look_ahead(
    config: Config, names: Sequence[str], lines: Mapping[str, PlanLine], forced: Collection[str] = ()
) -> list[str]:
    """Return those of the stages `names` that are to run. Raises ValueError if something is known to stop one of them.

    Args:
        lines: `Planner.current()`.
        forced: stages that run although they are done.
    """
    to_run = [name for name in names if lines[name].state != "done" or name in forced]
    data = lines["data"].manifest if "data" in lines else None
    found = [text for name in to_run for text in lines[name].wrong]
    found += [*_image_folders(config, to_run), *unusable_splits(config, to_run, data.summary if data else None)]
    pipeline = config.concepts.spacy_model
    if "concepts" in to_run and config.concepts.parser == "spacy" and pipeline_version(pipeline) is None:
        found.append(no_pipeline(pipeline))
    if not config.execution.on_cluster:
        found += _not_on_this_machine(config, to_run)
    refuse(found)
    return to_run


def refuse(found: Iterable[str]) -> None:
    """Raise ValueError if anything was found."""
    texts = list(dict.fromkeys(found))
    if len(texts) == 1:
        raise ValueError(texts[0])
    if texts:
        indented = [text.replace("\n", "\n    ") for text in texts]
        raise ValueError("\n  ".join([f"{len(texts)} wrong, nothing is run:", *indented]))


def _not_on_this_machine(config: Config, to_run: Collection[str]) -> Iterator[str]:
    """Yield what is missing of the GPU, and of what only a tag or a name of a model says; imports torch for these."""
    teacher, device = config.teacher, config.execution.device
    if "teacher" in to_run:
        with suppress(OSError, ValueError):  # the plan has said why
            yield from _clip_parts(teacher, declarations.STAGES["teacher"].raw_inputs(config))
    if device.startswith("cuda") and any(declarations.STAGES[name].uses_gpu for name in to_run):
        try:
            resolve_device(device)
        except ValueError as error:
            yield str(error)


def _clip_parts(teacher: TeacherConfig, files: Sequence[str]) -> Iterator[str]:
    """Yield which weights of a tag, and which tokenizer, are not in a local cache. `files`: those of `weights`."""
    try:
        if teacher.weights not in ("train", "random") and not files:
            from regionclip_core.models.clip import find_weights

            find_weights(teacher.model, teacher.weights)
    except (OSError, ValueError) as error:
        yield str(error)
    text = {} if teacher.model == "small" else model_config(teacher.model)["text_cfg"]
    if text.get("hf_tokenizer_name") and not any(file.endswith(TOKENIZER_FILES[0]) for file in files):
        from regionclip_core.models.tokenization import LocalTokenizer

        try:
            len(LocalTokenizer(text).files)
        except OSError as error:
            yield f"teacher.model: {error}"


def _image_folders(config: Config, to_run: Collection[str]) -> Iterator[str]:
    """Yield the image folders that can't be there. Stores are not asked: `data` does that."""
    training = config.teacher.training
    read = {
        "data": tuple(config.data.splits),
        "teacher": training.splits if training else (),
        "rpn": (config.rpn.split,),
        "proposals": config.proposals.splits,
        "labels": config.labels.splits,
        "pairs": config.labels.splits,
        "finetune": (config.finetune.split,),
        "evaluate": (config.evaluate.split,),
    }
    reads_data = [name for name in to_run if name == "data" or "data" in declarations.STAGES[name].needs(config)]
    for name in dict.fromkeys(split for stage in reads_data for split in read.get(stage, ())):
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
    """Yield which captions or boxes the stages that are to run don't find in their splits.

    summary: of `data`; without it, only what the config alone shows.
    """
    splits, training = config.data.splits, config.teacher.training
    readers: dict[str, tuple[str, tuple[str, ...]]] = {
        "concepts": ("concepts.splits", config.concepts.splits),
        "pairs": ("labels.splits", config.labels.splits),
    }
    if training is not None and config.teacher.weights == "train":
        readers["teacher"] = ("teacher.training.splits", training.splits)
    keys: dict[tuple[str, ...], list[str]] = {}  # by the splits that they name: one line says all
    for stage, (key, names) in readers.items():
        if stage in stages:
            keys.setdefault(names, []).append(key)
    without = (summary or {}).get("without_captions", ())
    for names, named_by in keys.items():
        files = {name: getattr(splits[name], "captions", "with the images") for name in names}
        if not any(file and name not in without for name, file in files.items()):
            where = ", ".join(f"data.splits.{name}.captions: {file or 'not set'}" for name, file in files.items())
            yield (
                f"{', '.join(named_by)}: expected images with captions, came 0 captions in "
                f"{', '.join(map(repr, names))} ({where}). Give a file with captions or another split; stages that "
                "need no captions can be run by name"
            )
    boxes: dict[tuple[str, str], list[str]] = {}
    for stage, kind in (("rpn", "base"), ("finetune", "base"), ("evaluate", "base or novel")):
        if stage in stages and "data" in declarations.STAGES[stage].needs(config):
            boxes.setdefault((getattr(config, stage).split, kind), []).append(stage)
    for (name, kind), read_by in boxes.items():
        file = "drawn" if splits[name].source == "world" else getattr(splits[name], "instances", None)
        there = summary["boxes"].get(name, {}) if summary else dict.fromkeys(["base_boxes"] if file else [], 1)
        if not any(there.get(f"{one}_boxes") for one in kind.split(" or ")):
            shown = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in there.items()) or "none at all"
            yield (
                f"{', '.join(f'{stage}.split' for stage in read_by)}: {' and '.join(read_by)} "
                f"need{'s' * (len(read_by) == 1)} boxes of {kind} categories, and split {name!r} has {shown}. Fix its "
                f"annotations (data.splits.{name}.instances: {file or 'not set'}) or give another split; stages that "
                "need no boxes can be run by name"
            )
