"""Prompts: names become sentences, and the sentences of a name become one text embedding.

Shapes: K names, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regionclip_core.config.encodings import decode_text
from regionclip_core.datasets.vocabulary import DATA_FOLDER
from regionclip_core.models.clip import ClipModel
from regionclip_core.storage.locations import exists, read_location

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
        raise FileNotFoundError(f"{setting}: {spec!r} is not `single`, `short`, `clip81` or a text file")
    lines = [line.strip() for line in decode_text(read_location(path), path).splitlines()]
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"{path}: the template {template!r} must hold {{}} exactly once, where the name goes")
    if not templates:
        raise ValueError(f"{path} holds no template")
    return templates


def fill_template(template: str, name: str) -> str:
    """Put `name` in place of `{}`, by the official rule: commas are removed, "+" becomes a space, no other changes."""
    return template.replace("{}", name.replace(",", "").replace("+", " "))


def embed_texts(
    clip: ClipModel,
    names: Sequence[str],
    templates: Sequence[str],
    normalize_prompts: bool,
    batch_size: int = 256,
) -> Tensor:
    """Return one text embedding per name, averaged over its prompts: float32[K, D] on the model's device, no gradient.

    Args:
        normalize_prompts: True: every prompt's embedding is normalised, then averaged, and rows have norm 1 (CLIP's
            ensembling). False: the plain mean of raw embeddings, as the official RegionCLIP tool stores it.
        batch_size: prompts that go through the model at once.
    """
    texts = [fill_template(template, name) for name in names for template in templates]
    sums = torch.zeros((len(names), clip.embed_dim), device=clip.device)
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            features = clip.encode_text(texts[start : start + batch_size]).float()
            if normalize_prompts:
                features = F.normalize(features, dim=1)
            name_of = torch.arange(start, start + len(features), device=clip.device) // len(templates)
            sums.index_add_(0, name_of, features)
    mean = sums / len(templates)
    return F.normalize(mean, dim=1) if normalize_prompts else mean
