"""The three losses of region-text pretraining (paper section 3.3, equations 2-4), unweighted.

Shapes: R regions, C concepts, D embedding size, B images, k stored teacher concepts. Features may have any norm;
every loss normalises them. A loss over nothing (R = 0, B = 0) is a zero that can be differentiated.

Where several processes (ranks) train together, R are the regions of one. The region losses take what they must know
of the others: `divisor`, the regions of all ranks divided by the ranks, so that the mean over ranks of what they
return is the loss of the global batch; and for the contrast, which concepts the others' regions have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def region_concept_contrastive(
    student: Tensor,
    concept_embeddings: Tensor,
    concept_id: Tensor,
    temperature: float,
    column_counts: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Tensor:
    """Region-concept contrast among the concepts present in the batch; a scalar (paper equation 2).

    `student` [R, D]; `concept_embeddings` [C, D]; `concept_id` [R] int64, the pseudo labels. The official loss has
    one column a *region*, holding the embedding of that region's concept, and sums the probabilities of all columns
    with the row's own concept inside the log. Columns of one concept are equal, so they are evaluated once and
    weighted by how often they stand there: the same number from R x (distinct concepts) products.

    `column_counts` int64 [C]: how many columns of each concept there are, all ranks together; None takes the regions
    given here alone, as the official code does on each GPU. `divisor` of the sum over regions; None is R.
    """
    _check_regions(student, concept_embeddings, temperature)
    _check_length("concept_id", concept_id, len(student))
    if not len(student):
        return student.sum() * 0.0
    if column_counts is None:
        column_counts = torch.bincount(concept_id, minlength=len(concept_embeddings))
    present = column_counts.nonzero().flatten()
    columns = F.normalize(concept_embeddings[present], dim=1)
    logits = F.normalize(student, dim=1) @ columns.T / temperature + column_counts[present].to(student.dtype).log()
    own_column = torch.searchsorted(present, concept_id.contiguous())
    return F.cross_entropy(logits, own_column, reduction="sum") / (len(student) if divisor is None else divisor)


def region_distillation(
    student: Tensor,
    concept_embeddings: Tensor,
    top_concepts: Tensor,
    top_probabilities: Tensor,
    residual_mass: Tensor,
    temperature: float,
    divisor: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) over the concept pool, mean over regions; a scalar (paper equation 3).

    `student` [R, D]; `concept_embeddings` [C, D]; `top_concepts` [R, k] int64 and `top_probabilities` [R, k], the
    teacher's best; `residual_mass` [R], the rest of its probability. The k concepts enter exactly. The rest is one
    bucket, compared with the student's probability of all other concepts together: a lower bound of the full
    divergence, and equal to it when k = C. Everything stays in log space, so it is finite where the official log of
    a softmax underflows. `divisor` of the sum over regions; None is R.
    """
    _check_regions(student, concept_embeddings, temperature)
    for name, value in [("top_concepts", top_concepts), ("top_probabilities", top_probabilities)]:
        _check_length(name, value, len(student))
    _check_length("residual_mass", residual_mass, len(student))
    if not len(student):
        return student.sum() * 0.0
    logits = F.normalize(student, dim=1) @ F.normalize(concept_embeddings, dim=1).T / temperature
    log_q = logits.log_softmax(dim=1)
    teacher = top_probabilities.to(log_q.dtype)
    divergence = (torch.xlogy(teacher, teacher) - teacher * log_q.gather(1, top_concepts)).sum(1)
    if top_concepts.shape[1] < len(concept_embeddings):
        rest = residual_mass.to(log_q.dtype)
        log_q_rest = log_q.scatter(1, top_concepts, float("-inf")).logsumexp(dim=1)
        divergence = divergence + torch.xlogy(rest, rest) - rest * log_q_rest
    return divergence.sum() / (len(student) if divisor is None else divisor)


def image_text_contrastive(
    image: Tensor, text: Tensor, temperature: float, gather: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """CLIP's symmetric contrast of B images with their B captions; a scalar (paper equation 4).

    `image` [B, D], `text` [B, D]; row i of one belongs to row i of the other. `gather` concatenates a tensor over
    all ranks *with gradient* (all ranks then evaluate the same loss); None takes this process's batch alone.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image_text_contrastive wants two [B, D] of one shape, got {tuple(image.shape)} and {tuple(text.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    if gather is not None:
        image, text = gather(image), gather(text)
    if not len(image):
        return (image.sum() + text.sum()) * 0.0
    logits = image @ text.T / temperature
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _check_regions(student: Tensor, concept_embeddings: Tensor, temperature: float) -> None:
    if student.ndim != 2 or concept_embeddings.ndim != 2 or student.shape[1] != concept_embeddings.shape[1]:
        raise ValueError(
            "region losses want student features [R, D] and concept embeddings [C, D] of one D, got "
            f"{tuple(student.shape)} and {tuple(concept_embeddings.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _check_length(name: str, value: Tensor, length: int) -> None:
    if len(value) != length:
        raise ValueError(f"{name} has {len(value)} rows for {length} student regions; pass the same kept regions")
