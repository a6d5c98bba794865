"""Pseudo labels against the official ones and against a full sort."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import GOLDEN as GOLDEN_FOLDER

from regionclip_core.pretraining.pseudo_labels import pseudo_labels

GOLDEN = np.load(GOLDEN_FOLDER / "pretrain_losses.npz")


def golden(name):
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize(
    ("group", "pool"),
    [
        ("shared", "concept_emb"),
        ("separate", "teacher_concept_emb"),
        ("fallback", "concept_emb"),
        ("underflow_inf", "underflow_concept_emb"),
        ("underflow_nan", "underflow_concept_emb"),
    ],
)
def test_labels_match_the_official_ones(group, pool):
    concepts = golden(pool)
    features = golden(f"{group}/teacher_region_feats")
    labels = pseudo_labels(features, concepts, temperature=0.01, threshold=0.1, top_k=len(concepts))
    scores = torch.zeros(len(features), len(concepts))
    scores.scatter_(1, labels.top_concepts, labels.top_probabilities)
    torch.testing.assert_close(scores, golden(f"{group}/all_concept_scores"), atol=1e-6, rtol=1e-5)
    keep = golden(f"{group}/keep_mask")
    if group != "fallback":  # the official fallback keeps all; here the caller decides
        assert torch.equal(labels.kept, keep)
    assert torch.equal(labels.concept_id[keep], golden(f"{group}/kept_target_inds"))
    assert torch.equal(labels.score, labels.top_probabilities[:, 0])
    assert torch.equal(labels.residual_mass, torch.zeros(len(features)))


def test_threshold_is_strict():
    concepts = torch.eye(4)
    labels = pseudo_labels(torch.ones(1, 4), concepts, temperature=1.0, threshold=0.25, top_k=4)
    assert labels.score.item() == 0.25
    assert not labels.kept.item()
    assert pseudo_labels(torch.ones(1, 4), concepts, 1.0, 0.2499, 4).kept.item()


@pytest.mark.parametrize("k", [1, 3, 7, 40])
def test_top_k_is_a_full_stable_sort(k):
    generator = torch.Generator().manual_seed(3)
    concepts = torch.randn(20, 8, generator=generator).repeat(2, 1)  # every concept twice: ties in every row
    concepts = concepts[torch.randperm(40, generator=generator)]
    features = torch.randn(50, 8, generator=generator)
    labels = pseudo_labels(features, concepts, 0.1, 0.1, k, chunk=50)
    p = torch.softmax(F.normalize(features, dim=1) @ F.normalize(concepts, dim=1).T / 0.1, dim=1).numpy()
    order = np.stack([np.lexsort((np.arange(40), -row)) for row in p])[:, :k]
    assert np.array_equal(labels.top_concepts.numpy(), order)
    assert np.array_equal(labels.top_probabilities.numpy(), np.take_along_axis(p, order, 1))
    np.testing.assert_allclose(labels.residual_mass.numpy(), 1 - np.sort(p, 1)[:, ::-1][:, :k].sum(1), atol=2e-6)


def test_exact_ties_go_to_the_lower_id():
    concepts = torch.eye(5)[[0, 1, 0, 1, 2]]
    labels = pseudo_labels(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), concepts, 0.5, 0.1, top_k=3)
    assert labels.top_concepts.tolist() == [[0, 1, 2]]


def test_chunks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    features, concepts = torch.randn(37, 16, generator=generator), torch.randn(9, 16, generator=generator)
    whole = pseudo_labels(features, concepts, 0.05, 0.3, 4)
    parts = pseudo_labels(features, concepts, 0.05, 0.3, 4, chunk=5)
    assert torch.equal(whole.top_concepts, parts.top_concepts)
    torch.testing.assert_close(whole.top_probabilities, parts.top_probabilities)


def test_more_than_all_concepts_gives_all():
    labels = pseudo_labels(torch.randn(2, 4), torch.randn(3, 4), 0.1, 0.1, top_k=16)
    assert labels.top_concepts.shape == (2, 3)
    assert labels.residual_mass.tolist() == [0.0, 0.0]


def test_no_regions():
    labels = pseudo_labels(torch.zeros(0, 4), torch.randn(3, 4), 0.1, 0.1, top_k=2)
    assert len(labels.concept_id) == 0
    assert labels.top_concepts.shape == (0, 2)
    assert labels.kept.dtype == torch.bool


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        pseudo_labels(torch.full((2, 4), float("nan")), torch.ones(3, 4), 0.01, 0.1, 4)


@pytest.mark.parametrize("chunk", [1, 10, 1024])
def test_labels_of_several_images_are_those_of_each_in_every_bit(chunk):
    generator = torch.Generator().manual_seed(5)
    concepts, counts = torch.randn(300, 64, generator=generator), [7, 0, 1, 30, 5, 12]
    features = torch.randn(sum(counts), 64, generator=generator)
    together = pseudo_labels(features, concepts, 0.1, 0.1, 5, counts, chunk)
    each = [pseudo_labels(image, concepts, 0.1, 0.1, 5) for image in torch.split(features, counts)]
    for name, found in vars(together).items():
        assert torch.equal(found, torch.cat([vars(one)[name] for one in each]))
