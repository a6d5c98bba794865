"""`regionclip init`: a commented config that fits somebody's own images, captions and boxes."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from regionclip_core.config.architectures import model_config, tower_of, why_not_buildable
from regionclip_core.config.loading import parse_config
from regionclip_core.config.schema import SCHEMA_FILE
from regionclip_core.config.yaml_text import parse_yaml

from .own_data import OwnData, look_at

RANDOM = "random"


def init(
    images: str,
    captions: str | None,
    boxes: str | None,
    val_images: str | None,
    val_boxes: str | None,
    classes: str | None,
    out: str,
    model: str | None,
    weights: str | None,
    force: bool,
) -> list[str]:
    """Write a config; return lines that say what was found and what to do next.

    Raises ValueError or FileNotFoundError for options that don't fit and for data that no run could use.
    """
    file = Path(os.path.expanduser(out))
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"--out: expected a new file in a folder that is there, such as my.yaml (came: {out!r})")
    if file.exists() and not force:
        raise ValueError(f"--out: {out} is there; give another name, or --force to write over it")
    weights = weights or RANDOM
    model = model or ("small" if weights == RANDOM else "RN50")
    mode = _mode(model, weights)
    data = look_at(images, captions, boxes, classes, val_images, val_boxes)
    values = settings_for(data, model, weights, mode)
    stages = "" if data.boxed and data.captioned else " pretrain" if data.captioned else " proposals"
    environment = Environment(  # YAML and no HTML: texts are quoted by the filter
        loader=PackageLoader(__package__, "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "printable": _printable}
    schema = os.path.relpath(SCHEMA_FILE, file.parent.resolve())
    quoted = shlex.quote(out)
    template = environment.get_template("init.yaml.j2")
    splits = {name: split.model_dump(exclude_defaults=True, mode="json") for name, split in data.splits.items()}
    text = template.render(
        data=data, file=quoted, schema=schema, stages=stages, splits=splits, workspace=f"runs/{file.stem}", **values
    )
    parse_config(parse_yaml(text, out), out)
    file.write_text(text, encoding="utf-8")
    what = f"model {model} with {'random weights, a rehearsal' if weights == RANDOM else f'weights {weights}'}"
    return [
        *data.lines,
        f"wrote {out}: {what}, for {stages.strip() or 'all stages'}. Next:",
        f"  regionclip check{stages} --config {quoted}",
        f"  regionclip run{stages} --config {quoted}",
    ]


def settings_for(data: OwnData, model: str, weights: str, mode: str) -> dict[str, Any]:
    """Return the sizes and numbers of steps that fit what was found, and the choice of model, by the template's names.

    Networks see the images at about their own size: enlarging them costs time and adds nothing. The limits are the
    paper's 800 pixels, and in a rehearsal CLIP's 224.
    """
    rehearsal = weights == RANDOM
    boxed = data.images.get(data.boxed or "", 0)
    captioned = data.images.get(data.captioned or "", 0)
    side = max(32, min(224 if rehearsal else 800, 32 * round(data.side / 32)))
    large = side >= 320
    batch, box_batch = (min(4 if rehearsal else 16, max(1, count)) for count in (captioned, boxed))
    return {
        "rehearsal": rehearsal,
        "model": model,
        "weights": weights,
        "mode": mode,
        "side": side,
        "longest": round(side * 5 / 3),  # 1333 at 800, as in the paper
        # At least twenty shards for the workers to share.
        "shard_size": max(10, min(500, sum(data.images.values()) // 20)),
        # Rises with the root of the captions: 3 of 250, 28 of 20,000, and the paper's 100 of 3 million.
        "min_count": max(1, min(100, round(data.captions**0.5 / 5))),
        "backbone": "resnet50_fpn" if large else "small",
        "proposals": 12 if rehearsal else 300 if large else 50,
        "regions": 8 if rehearsal else 100 if large else 12,
        "batch": batch,
        "box_batch": box_batch,
        # Twenty passes over the images, and twelve over those with boxes, as COCO's official schedule.
        "pretrain_steps": 4 if rehearsal else max(200, 20 * captioned // batch),
        "rpn_steps": 4 if rehearsal else max(200, 12 * boxed // box_batch),
        "finetune_steps": 3 if rehearsal else max(200, 12 * boxed // box_batch),
    }


def _text(value: str) -> str:
    """Return a text as YAML, in quotes where it needs them."""
    return value if re.fullmatch(r"[A-Za-z/][\w./-]*", value) and parse_yaml(value, "") == value else json.dumps(value)


def _printable(text: str) -> str:
    """Return a text that can be in a comment: a file's name may hold the end of a line."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _mode(model: str, weights: str) -> str:
    """Return how the teacher labels regions. Raises ValueError for a model that can't take part in a run."""
    if weights == "train":
        raise ValueError(
            "--weights: train needs a section of its own (teacher.training); expected `random`, a tag such as openai, "
            "a file, or a folder from `regionclip import`"
        )
    if model == "small":
        return "crop"
    try:
        description = model_config(model)
    except ValueError as error:
        raise ValueError(str(error).replace("teacher.model:", "--model:")) from error
    reason = why_not_buildable(description) or tower_of(description).no_regions
    if reason is not None:
        raise ValueError(f"--model: {model} can't be a student: {reason}; take an RN, ViT, EVA02, PE-Core or SigLIP")
    return "roi"
