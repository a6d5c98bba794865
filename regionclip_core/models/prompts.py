"""Prompts: names become sentences, and the sentences of a name become one text embedding.

Shapes: K names, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regionclip_core.models.clip import ClipModel


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
