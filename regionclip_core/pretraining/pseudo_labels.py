"""Teacher pseudo labels: which concept a region shows (paper section 3.3, equation 1).

Shapes: R regions, C concepts, D embedding size, k concepts stored per region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher says about R regions. All tensors are on the device of the region features."""

    concept_id: Tensor
    """[R] int64: the most probable concept, the lowest id on a tie."""
    score: Tensor
    """[R] float32: its probability, times the region's weight where there are weights."""
    kept: Tensor
    """[R] bool: score > threshold (strictly, as in the official code)."""
    top_concepts: Tensor
    """[R, k] int64: the k most probable concepts, by falling probability, then by rising id."""
    top_probabilities: Tensor
    """[R, k] float32: their probabilities."""
    residual_mass: Tensor
    """[R] float32: 1 - sum(top_probabilities), never negative, 0 when k = C."""


@torch.no_grad()
def pseudo_labels(
    region_features: Tensor,
    concept_embeddings: Tensor,
    temperature: float,
    threshold: float,
    top_k: int,
    counts: Sequence[int] | None = None,
    chunk: int = 1024,
    weights: Tensor | None = None,
) -> PseudoLabels:
    """Return the softmax of the cosines between regions and concepts, cut to the best k = min(top_k, C).

    Args:
        region_features: [R, D], of any norm.
        concept_embeddings: [C, D], of any norm.
        temperature: divides the cosines (the official teacher: 0.01).
        threshold: a region is kept if its score is above.
        counts: regions per image, in order; None: all are of one image. A label doesn't depend on the other images.
        chunk: regions computed at once, or one image's if it has more; chunk x C probabilities are in memory.
        weights: [R], multiplies the best probability into the score; None: the score is the probability, as in the
            paper. The concepts and their probabilities stay as they are.

    Raises:
        ValueError: if features are not finite.
    """
    assert region_features.shape[1] == concept_embeddings.shape[1] and len(concept_embeddings)
    if not bool(torch.isfinite(region_features).all()):
        raise ValueError("region features hold NaN or infinity: check the teacher's weights and the input images")
    k = min(top_k, len(concept_embeddings))
    concepts = F.normalize(concept_embeddings.float(), dim=1)
    counts = [len(region_features)] if counts is None else counts
    images = torch.split(F.normalize(region_features.float(), dim=1), list(counts))
    at_once = max(1, chunk // max([1, *counts]))
    ids, probabilities = [], []
    for start in range(0, len(images), at_once):
        # Equation 1: CLIP's zero-shot classification, of a region instead of an image, among the pool's concepts.
        # One product per image: its last bits depend on the number of rows.
        cosines = torch.cat([image @ concepts.T for image in images[start : start + at_once]])
        part_ids, part_probabilities = _stable_top_k(torch.softmax(cosines / temperature, dim=1), k)
        ids.append(part_ids)
        probabilities.append(part_probabilities)
    top_concepts, top_probabilities = torch.cat(ids), torch.cat(probabilities)
    # The loss needs the rest of the distribution only as one number (equation 3); the pool has thousands of concepts.
    residual = (1.0 - top_probabilities.double().sum(1)).clamp(min=0.0).float()
    if k == len(concept_embeddings):
        residual = torch.zeros_like(residual)  # no other concept is left that could have a rounding error's mass
    score = top_probabilities[:, 0].clone() if weights is None else top_probabilities[:, 0] * weights
    return PseudoLabels(
        concept_id=top_concepts[:, 0].clone(),
        score=score,
        kept=score > threshold,
        top_concepts=top_concepts,
        top_probabilities=top_probabilities,
        residual_mass=residual,
    )


def _stable_top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return ids and values [R, k] of the k largest in each row of `scores` [R, C], ties to the lower id.

    torch.topk leaves the choice among equals open, so a label could depend on the device. Only rows with a tie across
    the k-th place pay for a full stable sort.
    """
    values, ids = scores.topk(k, dim=1)
    ambiguous = (scores >= values[:, -1:]).sum(1) > k
    if bool(ambiguous.any()):
        order = scores[ambiguous].sort(dim=1, descending=True, stable=True)
        values[ambiguous], ids[ambiguous] = order.values[:, :k], order.indices[:, :k]
    # Sorted by id first, then stably by value: equal values end in the order of their ids.
    ids, by_id = ids.sort(dim=1)
    values, by_value = values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, by_value), values
