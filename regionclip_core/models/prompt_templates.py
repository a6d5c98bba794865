"""Templates that turn names into sentences: built in, or from a text file. Imports nothing slow."""

from __future__ import annotations

import os

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.datasets.vocabulary import DATA_FOLDER
from regionclip_core.storage.locations import exists, nearest_file, read_location

SINGLE = ("a photo of a {}.",)
SHORT = ("{}.", "a {}.", "a photo of a {}.", "a picture of a {}.", "a small {}.", "a large {}.", "there is a {} here.")


def prompt_templates(spec: str, setting: str = "teacher.prompts") -> tuple[str, ...]:
    """Return templates with one `{}` each, where the name goes.

    Args:
        spec: `single`, `short`, `clip81` (the paper's), or a text file at a path or URL with one template per line;
            blank lines and lines that start with # are skipped.
        setting: what the user set, for the message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line doesn't hold exactly one `{}`.
    """
    if spec in ("single", "short"):
        return SINGLE if spec == "single" else SHORT
    path = str(DATA_FOLDER / "prompts_clip81.txt") if spec == "clip81" else spec
    if not exists(path):
        near = nearest_hint(spec, ("single", "short", "clip81")) or nearest_file(spec)
        raise FileNotFoundError(
            f"{setting}: {spec!r} is not `single`, `short` or `clip81`, and no such file is there (looked from "
            f"{os.getcwd()}); expected a text file with one template per line{near}"
        )
    lines = [line.strip() for line in decode_text(read_location(path), path).splitlines()]
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"{path}: the template {template!r} must hold {{}} exactly once, where the name goes")
    if not templates:
        raise ValueError(f"{path} holds no template")
    return templates
