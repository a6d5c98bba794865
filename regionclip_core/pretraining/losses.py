"""The losses of region-text pretraining, without their weights: the paper's three (section 3.3, equations 2-4), and the
distillation of crops.

Shapes: R regions, C concepts, D embedding size, B images, k stored teacher concepts. Features may have any norm;
every loss normalises them. A loss over nothing (R = 0, B = 0) is a zero that can be differentiated.

Where several processes (ranks) train together, R are the regions of one. The region losses then need two facts about
all ranks: `divisor`, the mean number of regions per rank (with `weights`, of their sum), so that the mean over ranks of
the returned values is the loss of the global batch; and for the contrast, how many regions of the global batch have
each concept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from regionclip_core.precision import in_float32


@in_float32
def region_concept_contrastive(
    student: Tensor,
    concept_embeddings: Tensor,
    concept_id: Tensor,
    temperature: float,
    column_counts: Tensor | None = None,
    divisor: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the region-concept contrast among the concepts present in the batch; a scalar (paper equation 2).

    Args:
        student: [R, D]
        concept_embeddings: [C, D]
        concept_id: [R] int64, the pseudo labels.
        column_counts: [C] int64, regions of each concept on all ranks; None counts the regions given here, as the
            official code does on each GPU.
        divisor: of the sum over regions; None is R, or the sum of `weights`.
        weights: [R], of the regions; None: all alike. How often a concept is a column doesn't depend on them.
    """
    assert student.shape[1] == concept_embeddings.shape[1] and len(concept_id) == len(student)
    if not len(student):
        return student.sum() * 0.0
    if column_counts is None:
        column_counts = torch.bincount(concept_id, minlength=len(concept_embeddings))
    # The official loss contrasts a region with one column per *region*: the embedding of that region's concept. Its
    # positives are all columns of the row's own concept, their probabilities summed inside the log. Columns of one
    # concept are equal, so here each concept is one column, weighted by how often it occurs: n exp(x) is
    # exp(x + log n). The value is the same, from R x (distinct concepts) products instead of R x R.
    present = column_counts.nonzero().flatten()
    columns = F.normalize(concept_embeddings[present], dim=1)
    logits = F.normalize(student, dim=1) @ columns.T / temperature + column_counts[present].to(student.dtype).log()
    own_column = torch.searchsorted(present, concept_id.contiguous())
    if weights is None:
        return F.cross_entropy(logits, own_column, reduction="sum") / (len(student) if divisor is None else divisor)
    return _mean(F.cross_entropy(logits, own_column, reduction="none"), weights, divisor)


@in_float32
def region_distillation(
    student: Tensor,
    concept_embeddings: Tensor,
    top_concepts: Tensor,
    top_probabilities: Tensor,
    residual_mass: Tensor,
    temperature: float,
    divisor: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return KL(teacher || student) over the concept pool, mean over regions; a scalar (paper equation 3).

    Args:
        student: [R, D]
        concept_embeddings: [C, D]
        top_concepts: [R, k] int64, the teacher's most probable concepts.
        top_probabilities: [R, k], what the teacher gives them.
        residual_mass: [R], the rest of the teacher's probability.
        divisor: of the sum over regions; None is R, or the sum of `weights`.
        weights: [R], of the regions; None: all alike.
    """
    assert student.shape[1] == concept_embeddings.shape[1]
    assert len(top_concepts) == len(top_probabilities) == len(residual_mass) == len(student)
    if not len(student):
        return student.sum() * 0.0
    # log_softmax stays finite where the log of a softmax, as in the official code, underflows.
    logits = F.normalize(student, dim=1) @ F.normalize(concept_embeddings, dim=1).T / temperature
    log_q = logits.log_softmax(dim=1)
    teacher = top_probabilities.to(log_q.dtype)
    divergence = (torch.xlogy(teacher, teacher) - teacher * log_q.gather(1, top_concepts)).sum(1)
    if top_concepts.shape[1] < len(concept_embeddings):
        # The other C - k concepts are one bucket: the teacher's residual mass against the student's probability of
        # them all together. This is a lower bound of the full divergence, and equal to it when k = C.
        rest = residual_mass.to(log_q.dtype)
        log_q_rest = log_q.scatter(1, top_concepts, float("-inf")).logsumexp(dim=1)
        divergence = divergence + torch.xlogy(rest, rest) - rest * log_q_rest
    return _mean(divergence, weights, divisor)


@in_float32
def crop_distillation(
    student: Tensor, crops: Tensor, divisor: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Return 1 - cosine(student, teacher) of regions, mean over regions; a scalar. It needs no concept.

    Args:
        student: [R, D]
        crops: [R, D], the teacher's embedding of each region's own crop, of any floating dtype.
        divisor: of the sum over regions; None is R, or the sum of `weights`.
        weights: [R], of the regions; None: all alike.
    """
    assert student.shape == crops.shape
    if not len(student):
        return student.sum() * 0.0
    teacher = F.normalize(crops.to(student.dtype), dim=1)
    return _mean(1 - (F.normalize(student, dim=1) * teacher).sum(1), weights, divisor)


def _mean(values_R: Tensor, weights_R: Tensor | None, divisor: Tensor | None) -> Tensor:
    """Return the weighted sum by its divisor: the weights' sum, or R, where none is given."""
    if weights_R is None:
        return values_R.sum() / (len(values_R) if divisor is None else divisor)
    total = weights_R.sum().clamp(min=torch.finfo(weights_R.dtype).tiny) if divisor is None else divisor
    return (weights_R * values_R).sum() / total


@in_float32
def image_text_contrastive(
    image: Tensor, text: Tensor, temperature: float, gather: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return CLIP's symmetric contrast of B images with their B captions; a scalar (paper equation 4).

    `image` [B, D] and `text` [B, D]: row i of one belongs to row i of the other. `gather` concatenates a tensor over
    all ranks *with gradient*, so that every rank evaluates the loss of the global batch; None takes this process's
    batch alone.
    """
    assert image.shape == text.shape
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    if gather is not None:
        image, text = gather(image), gather(text)
    if not len(image):
        return (image.sum() + text.sum()) * 0.0
    # Each image has to find its own caption among all captions of the batch, and each caption its own image.
    logits = image @ text.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
