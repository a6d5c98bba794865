"""The pretraining losses against official values and gradients, and against naive loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import GOLDEN as GOLDEN_FOLDER

from regionclip_core.pretraining.losses import (
    crop_distillation,
    image_text_contrastive,
    region_concept_contrastive,
    region_distillation,
)
from regionclip_core.pretraining.pseudo_labels import pseudo_labels

GOLDEN = np.load(GOLDEN_FOLDER / "pretrain_losses.npz")
T = 0.01
POOLS = {
    "shared": ("concept_emb", "concept_emb"),
    "separate": ("concept_emb", "teacher_concept_emb"),
    "fallback": ("concept_emb", "concept_emb"),
    "underflow_inf": ("underflow_concept_emb", "underflow_concept_emb"),
    "underflow_nan": ("underflow_concept_emb", "underflow_concept_emb"),
}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def run_group(group, loss):
    """The loss of one golden group, labels included, and its gradient."""
    student_pool, teacher_pool = (golden(name) for name in POOLS[group])
    labels = pseudo_labels(golden(f"{group}/teacher_region_feats"), teacher_pool, T, 0.1, len(teacher_pool))
    keep = golden(f"{group}/keep_mask")
    student = golden(f"{group}/student_region_feats").requires_grad_()
    if loss == "concept_contrastive":
        value = region_concept_contrastive(student[keep], student_pool, labels.concept_id[keep], T)
    else:
        teacher = (labels.top_concepts[keep], labels.top_probabilities[keep], labels.residual_mass[keep])
        value = region_distillation(student[keep], student_pool, *teacher, T)
    value.backward()
    return value.detach(), student.grad


@pytest.mark.parametrize("group", ["shared", "separate", "fallback"])
@pytest.mark.parametrize("loss", ["concept_contrastive", "region_distill"])
def test_region_losses_match_the_official_ones(group, loss):
    value, gradient = run_group(group, loss)
    torch.testing.assert_close(value, golden(f"{group}/loss_{loss}"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, golden(f"{group}/grad_student__loss_{loss}"), rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("group", ["underflow_inf", "underflow_nan"])
def test_distillation_is_finite_where_the_official_one_underflows(group):
    assert not torch.isfinite(golden(f"{group}/loss_region_distill"))
    value, gradient = run_group(group, "region_distill")
    pool = golden("underflow_concept_emb").double()
    teacher = golden(f"{group}/teacher_region_feats").double()
    student = golden(f"{group}/student_region_feats").double()
    log_p = (F.normalize(teacher, dim=1) @ F.normalize(pool, dim=1).T / T).log_softmax(1)
    log_q = (F.normalize(student, dim=1) @ F.normalize(pool, dim=1).T / T).log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    assert torch.isfinite(gradient).all()


def test_image_text_matches_the_official_one():
    image = golden("img_txt/global_feats").requires_grad_()
    value = image_text_contrastive(image, golden("img_txt/text_embs"), T)
    value.backward()
    torch.testing.assert_close(value.detach(), golden("img_txt/loss_img_txt_level"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(image.grad, golden("img_txt/grad_global_feats"), rtol=1e-4, atol=5e-6)


def test_contrast_counts_every_region_as_a_column():
    generator = torch.Generator().manual_seed(5)
    student, concepts = torch.randn(9, 6, generator=generator), torch.randn(5, 6, generator=generator)
    ids = torch.tensor([0, 0, 0, 3, 3, 4, 1, 1, 0])
    total = 0.0
    for i in range(9):
        terms = [torch.cosine_similarity(student[i], concepts[ids[j]], dim=0).div(0.1).exp() for j in range(9)]
        same = sum(term for term, j in zip(terms, range(9), strict=True) if ids[j] == ids[i])
        total -= torch.log(same / sum(terms))
    value = region_concept_contrastive(student, concepts, ids, 0.1)
    assert value.item() == pytest.approx(total.item() / 9, rel=1e-5)


def test_contrast_with_one_concept_is_zero():
    value = region_concept_contrastive(torch.randn(4, 6), torch.randn(5, 6), torch.full((4,), 2), 0.1)
    assert value.item() == 0.0


@pytest.mark.parametrize("k", [1, 4, 11])
def test_sparse_distillation_is_the_divergence_of_k_plus_one_buckets(k):
    generator = torch.Generator().manual_seed(k)
    student, concepts = torch.randn(7, 8, generator=generator), torch.randn(12, 8, generator=generator)
    labels = pseudo_labels(torch.randn(7, 8, generator=generator), concepts, 0.2, 0.0, k)
    q = torch.softmax(F.normalize(student, dim=1) @ F.normalize(concepts, dim=1).T / 0.2, dim=1).double()
    expected = 0.0
    for r in range(7):
        listed = labels.top_concepts[r].tolist()
        pairs = [(p, q[r, c]) for p, c in zip(labels.top_probabilities[r].double(), listed, strict=True)]
        pairs.append((labels.residual_mass[r].double(), sum(q[r, c] for c in range(12) if c not in listed)))
        expected += sum(p * (p / other).log() for p, other in pairs).item()
    teacher = (labels.top_concepts, labels.top_probabilities, labels.residual_mass)
    assert region_distillation(student, concepts, *teacher, 0.2).item() == pytest.approx(expected / 7, rel=1e-4)


def test_sparse_distillation_never_exceeds_the_full_one():
    generator = torch.Generator().manual_seed(0)
    student, concepts = torch.randn(30, 8, generator=generator), torch.randn(25, 8, generator=generator)
    teacher = torch.randn(30, 8, generator=generator)
    values = []
    for k in (1, 5, 15, 25):
        labels = pseudo_labels(teacher, concepts, 0.1, 0.0, k)
        parts = (labels.top_concepts, labels.top_probabilities, labels.residual_mass)
        values.append(region_distillation(student, concepts, *parts, 0.1).item())
    assert values == sorted(values)


def test_certain_teacher_without_residual_has_finite_gradients():
    student = torch.randn(3, 8, requires_grad=True)
    concepts = torch.randn(6, 8)
    ids, certain = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([[1.0, 0.0]] * 3)
    value = region_distillation(student, concepts, ids, certain, torch.zeros(3), 0.01)
    value.backward()
    log_q = (F.normalize(student, dim=1) @ F.normalize(concepts, dim=1).T / 0.01).log_softmax(1)
    assert value.item() == pytest.approx(-log_q[[0, 1, 2], [0, 2, 4]].mean().item(), rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_nothing_is_a_zero_that_can_be_differentiated():
    student = torch.zeros(0, 8, requires_grad=True)
    concepts = torch.randn(4, 8)
    no_ids = torch.zeros(0, dtype=torch.int64)
    losses = [
        region_concept_contrastive(student, concepts, no_ids, T),
        region_distillation(student, concepts, no_ids.view(0, 2), torch.zeros(0, 2), torch.zeros(0), T),
        image_text_contrastive(student, torch.zeros(0, 8), T),
        crop_distillation(student, torch.zeros(0, 8)),
        crop_distillation(student, torch.zeros(0, 8), weights=torch.zeros(0)),
    ]
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0.0] * 5
    assert student.grad.shape == (0, 8)


@pytest.mark.parametrize("weighted", [False, True])
def test_crop_distillation_is_one_minus_the_cosine_region_by_region(weighted):
    generator = torch.Generator().manual_seed(4)
    student, crops = torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator).half()
    weights = torch.rand(6, generator=generator) if weighted else None
    total = divisor = 0.0
    for r in range(6):
        a, b = student[r].double().numpy(), crops[r].double().numpy()
        weight = float(weights[r]) if weighted else 1.0
        total += weight * (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        divisor += weight
    assert crop_distillation(student, crops, weights=weights).item() == pytest.approx(total / divisor, rel=1e-5)
    given = crop_distillation(student, crops, torch.tensor(2.5), weights)
    assert given.item() == pytest.approx(total / 2.5, rel=1e-5)


def test_a_regions_weight_is_how_often_it_counts():
    """Against each loss of one region by itself; the columns of the contrast are those of the whole batch."""
    generator = torch.Generator().manual_seed(6)
    student, concepts = torch.randn(5, 8, generator=generator), torch.randn(7, 8, generator=generator)
    labels = pseudo_labels(torch.randn(5, 8, generator=generator), concepts, 0.2, 0.0, 3)
    columns = torch.bincount(labels.concept_id, minlength=7)
    teacher = (labels.top_concepts, labels.top_probabilities, labels.residual_mass)
    weights = torch.rand(5, generator=generator)
    losses = {
        "contrast": lambda rows, **more: region_concept_contrastive(
            student[rows], concepts, labels.concept_id[rows], 0.2, columns, **more
        ),
        "distill": lambda rows, **more: region_distillation(
            student[rows], concepts, *(part[rows] for part in teacher), 0.2, **more
        ),
    }
    every = slice(0, 5)
    for name, loss in losses.items():
        single = [loss(slice(r, r + 1)).item() for r in range(5)]
        total = sum(w * one for w, one in zip(weights.tolist(), single, strict=True))
        found = loss(every, weights=weights)
        assert found.item() == pytest.approx(total / weights.sum().item(), rel=1e-5), name
        assert loss(every, weights=weights, divisor=torch.tensor(2.0)).item() == pytest.approx(total / 2, rel=1e-5)
        assert loss(every, weights=torch.full((5,), 0.3)).item() == pytest.approx(loss(every).item(), rel=1e-5)


def test_gather_takes_the_whole_batch():
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)
    rest = iter([F.normalize(image[4:], dim=1), F.normalize(text[4:], dim=1)])  # the other rank's
    value = image_text_contrastive(image[:4], text[:4], 0.1, gather=lambda x: torch.cat([x, next(rest)]))
    assert value.item() == pytest.approx(image_text_contrastive(image, text, 0.1).item(), rel=1e-6)


def test_norms_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    student, concepts = torch.randn(5, 8, generator=generator), torch.randn(4, 8, generator=generator)
    ids = torch.tensor([0, 1, 2, 3, 0])
    one = region_concept_contrastive(student, concepts, ids, 0.1)
    other = region_concept_contrastive(student * 7, concepts * 0.1, ids, 0.1)
    torch.testing.assert_close(one, other)


def test_rows_that_do_not_belong_together_are_refused():
    """A residual mass of one row would be spread over all regions without a word."""
    with pytest.raises(AssertionError):
        region_concept_contrastive(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), T)
    with pytest.raises(AssertionError):
        image_text_contrastive(torch.zeros(2, 4), torch.zeros(1, 4), T)
