"""Pseudo labels and the pretraining losses with their gradients.

R regions, K of them kept, C concepts, D embedding.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.pretraining.losses import image_text_contrastive, region_concept_contrastive, region_distillation
from regionclip_core.pretraining.pseudo_labels import PseudoLabels, pseudo_labels

FILE = "pretrain_losses.npz"
T = 0.01
POOLS = {
    "shared": ("concept_emb", "concept_emb"),
    "separate": ("concept_emb", "teacher_concept_emb"),
    "fallback": ("concept_emb", "concept_emb"),
    "underflow_inf": ("underflow_concept_emb", "underflow_concept_emb"),
    "underflow_nan": ("underflow_concept_emb", "underflow_concept_emb"),
}
"""Student's and teacher's pool of each group."""
UNDERFLOW = ("underflow_inf", "underflow_nan")
LABELS = ("all_concept_scores", "keep_mask", "kept_target_inds", "kept_concept_scores", "kept_target_embs")


@functools.cache
def labels_of(group: str) -> PseudoLabels:
    """Ours of one group, with as many stored probabilities as there are concepts."""
    golden, pool = arrays(FILE), arrays(FILE)[POOLS[group][1]]
    # The official code keeps all regions where none passes; that is what a threshold of 0 does.
    threshold = 0.0 if group == "fallback" else 0.1
    return pseudo_labels(golden[f"{group}/teacher_region_feats"], pool, T, threshold, len(pool))


def label_errors() -> Errors:
    """Everything that the teacher says of a region."""
    golden, found = arrays(FILE), {}
    for group, (student_pool, teacher_pool) in POOLS.items():
        labels = labels_of(group)
        scores = labels.top_probabilities.new_zeros(len(labels.concept_id), len(golden[teacher_pool]))
        scores.scatter_(1, labels.top_concepts, labels.top_probabilities)
        ids = labels.concept_id[labels.kept]
        ours = (scores, labels.kept, ids, scores[labels.kept], golden[student_pool][ids])
        found |= {
            f"{group}/{name}": error(own, golden[f"{group}/{name}"]) for name, own in zip(LABELS, ours, strict=True)
        }
        same = (ids[:, None] == ids[None]).float()
        found[f"{group}/label_matrix"] = error(same, golden[f"{group}/label_matrix"])
    return found


@functools.cache
def loss_of(group: str, loss: str) -> tuple[Tensor, Tensor]:
    """Our loss of one group, labels included, and its gradient in the student's features."""
    golden, labels = arrays(FILE), labels_of(group)
    keep, pool = labels.kept, golden[POOLS[group][0]]
    student = golden[f"{group}/student_region_feats"].clone().requires_grad_()
    if loss == "concept_contrastive":
        value = region_concept_contrastive(student[keep], pool, labels.concept_id[keep], T)
    else:
        teacher = (labels.top_concepts[keep], labels.top_probabilities[keep], labels.residual_mass[keep])
        value = region_distillation(student[keep], pool, *teacher, T)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def loss_errors(loss: str, *groups: str) -> Errors:
    """Errors of the loss and of its gradient."""
    golden, found = arrays(FILE), {}
    for group in groups:
        for name, own in zip((f"loss_{loss}", f"grad_student__loss_{loss}"), loss_of(group, loss), strict=True):
            found[f"{group}/{name}"] = error(own, golden[f"{group}/{name}"])
    return found


def underflow_errors() -> Errors:
    """Where the official distillation is inf or NaN: ours against the formula in float64 log space."""
    golden, found = arrays(FILE), {}
    pool = F.normalize(golden["underflow_concept_emb"].double(), dim=1)
    for group in UNDERFLOW:
        assert not torch.isfinite(golden[f"{group}/loss_region_distill"])
        student = golden[f"{group}/student_region_feats"].double().requires_grad_()
        teacher = F.normalize(golden[f"{group}/teacher_region_feats"].double(), dim=1)
        log_p = (teacher @ pool.T / T).log_softmax(1)
        log_q = (F.normalize(student, dim=1) @ pool.T / T).log_softmax(1)
        value = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        (gradient,) = torch.autograd.grad(value, student)
        own_value, own_gradient = loss_of(group, "region_distill")
        found[f"{group}/loss_region_distill"] = error(own_value, value.detach())
        found[f"{group}/grad_student__loss_region_distill"] = error(own_gradient, gradient)
    return found


def image_text_errors() -> Errors:
    """The image-text loss and its gradient."""
    golden = arrays(FILE)
    image = golden["img_txt/global_feats"].clone().requires_grad_()
    value = image_text_contrastive(image, golden["img_txt/text_embs"], T)
    (gradient,) = torch.autograd.grad(value, image)
    return {
        "img_txt/loss_img_txt_level": error(value, golden["img_txt/loss_img_txt_level"]),
        "img_txt/grad_global_feats": error(gradient, golden["img_txt/grad_global_feats"]),
    }


def negative_log_probabilities(logits: Tensor) -> Tensor:
    """-log softmax of any logits [R, C], each entry by a call of `region_concept_contrastive`; float64.

    Unit vectors whose cosines are T * logits represent regions and concepts. In the call for (r, c) concept c is the
    label of region r, and each other concept that of a region without likeness to any, whose loss is log C.
    """
    rows, columns = logits.shape
    logits = logits.double()
    temperature = 0.9 / torch.linalg.matrix_norm(logits, 2).item()  # small enough for the Gram matrix to be positive
    cosines = logits * temperature
    gram = torch.eye(rows + columns, dtype=torch.float64, device=logits.device)
    gram[:rows, rows:], gram[rows:, :rows] = cosines, cosines.T
    vectors = F.pad(torch.linalg.cholesky(gram), (0, 1))  # one more axis, orthogonal to all
    regions, concepts = vectors[:rows], vectors[rows:]
    result, labels = torch.empty_like(logits), torch.arange(columns, device=logits.device)
    for r in range(rows):
        for c in range(columns):
            batch = logits.new_zeros(columns, rows + columns + 1)
            batch[:, -1] = 1.0
            batch[c] = regions[r]
            mean = region_concept_contrastive(batch, concepts, labels, temperature)
            result[r, c] = mean * columns - (columns - 1) * math.log(columns)
    return result


def multi_instance_errors() -> Errors:
    """The three modes of the official multi-instance cross entropy, put together from our probabilities."""
    golden = arrays(FILE)
    loss = negative_log_probabilities(golden["mil/logits"])
    positive, weights = golden["mil/targets"].double(), golden["mil/weights"].double()
    summed = -(torch.exp(-loss) * positive).sum(1).log()
    averaged = summed + positive.sum(1).log()
    ours = {"loss_sum": summed.mean(), "loss_avg": averaged.mean(), "loss_sum_weighted": (summed * weights).mean()}
    return {f"mil/{name}": error(value, golden[f"mil/{name}"]) for name, value in ours.items()}


ROWS = [
    Row(FILE, "*concept_emb */teacher_region_feats */student_region_feats", "input"),
    Row(FILE, "img_txt/global_feats img_txt/text_embs mil/logits mil/targets mil/weights", "input"),
    Row(
        FILE,
        " ".join(f"*/{name}" for name in (*LABELS, "label_matrix")),
        "pseudo_labels.pseudo_labels",
        1e-5,
        label_errors,
        "`fallback`: where no region passes the threshold the official code keeps all, ours none; compared at "
        "`labels.threshold: 0`",
    ),
    Row(
        FILE,
        "*/loss_concept_contrastive */grad_student__loss_concept_contrastive",
        "losses.region_concept_contrastive, backward",
        5e-5,
        lambda: loss_errors("concept_contrastive", *POOLS),
        "the multi-instance cross entropy of the pipeline: one column per distinct concept, weighted",
    ),
    Row(
        FILE,
        " ".join(f"{g}/loss_region_distill {g}/grad_student__loss_region_distill" for g in POOLS if g not in UNDERFLOW),
        "losses.region_distillation, backward",
        5e-5,
        lambda: loss_errors("region_distill", *(g for g in POOLS if g not in UNDERFLOW)),
        "with `labels.top_k` as large as the pool",
    ),
    Row(
        FILE,
        "underflow_*/loss_region_distill underflow_*/grad_student__loss_region_distill",
        "losses.region_distillation, backward",
        1e-5,
        underflow_errors,
        "the official values are inf and NaN (see below); ours are finite, compared with the formula in float64",
    ),
    Row(
        FILE,
        "img_txt/loss_img_txt_level img_txt/grad_global_feats",
        "losses.image_text_contrastive, backward",
        5e-5,
        image_text_errors,
    ),
    Row(
        FILE,
        "mil/loss_sum mil/loss_avg mil/loss_sum_weighted",
        "losses.region_concept_contrastive",
        1e-5,
        multi_instance_errors,
        "every probability comes from our function; like the official recipe, the pipeline uses the plain sum of "
        "positives (`loss_sum`), so their average and the row weights are put together by the check",
    ),
]
