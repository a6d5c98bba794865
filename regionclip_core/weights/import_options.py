"""What can be said about the options of an import before its tensors are read; imports nothing slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionclip_core.config.architectures import model_config, why_not_buildable
from regionclip_core.config.encodings import decode_text
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.datasets.categories import read_names
from regionclip_core.storage.folder import free_target
from regionclip_core.storage.weight_files import weight_layout

KINDS = ("detector", "pretrained", "rpn", "embeddings", "clip")
"""What can be imported."""


def check_options(file: str, out: str, names: str | None, model: str | None, kind: str | None) -> Path:
    """Return the folder to write; FileNotFoundError or ValueError if something given to `import` can't be right."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--kind: expected one of {', '.join(KINDS)} (came: {kind!r}){nearest_hint(kind, KINDS)}")
    target = free_target(out)
    if "://" in file:
        raise ValueError(f"{file}: expected a file of this machine; download it first")
    if model is not None:
        read_model(model)
    if names is not None:
        read_names(names, "--names")
    weight_layout(Path(file))
    return target


def read_model(model: str) -> tuple[str, dict[str, Any]]:
    """Return name and `model_cfg` of the architecture that `--model` names: open_clip's, or a JSON file's.

    Raises:
        FileNotFoundError: there is no such JSON file.
        ValueError: the name is unknown, the file has no description, or the model can't be built.
    """
    if model.endswith(".json"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"--model {model}: no such file")
        try:
            described = json.loads(decode_text(path.read_bytes(), path.name))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"--model {model}: not valid JSON ({error})") from None
        described = described if isinstance(described, dict) else {}
        config = described.get("model_cfg", described)
        name = str(described.get("name", path.stem))
    else:
        try:
            name, config = model, model_config(model)
        except ValueError as error:
            raise ValueError(str(error).replace("teacher.model", "--model").replace("`small` or an", "an")) from None
    if reason := why_not_buildable(config):
        raise ValueError(f"--model {model} can't be used: {reason}")
    return name, config
