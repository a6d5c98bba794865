"""Region-text pretraining: what a batch holds, what the losses are, what moves and what does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import (
    COLOURS,
    Picture,
    painted_box,
    region_feature,
    tiny_clip,
    tiny_config,
    unnormalised,
)
from torch import Tensor

from regionclip_core.config.tree import Config, PretrainConfig
from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.ops.image_batch import pixel_batch
from regionclip_core.pretraining import student as student_module
from regionclip_core.pretraining.pairs import RegionPairs, RegionSample
from regionclip_core.pretraining.region_batches import RegionBatch, collate
from regionclip_core.pretraining.student import (
    RegionPretrainer,
    average_weights,
    make_student,
    pretrain_student,
)
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import FitResult, fit

CONCEPTS = 5
FOUR = ((4, 6, 20, 30), (30, 10, 60, 26), (22, 30, 40, 46), (46, 28, 62, 44))


def settings(**values: Any) -> PretrainConfig:
    return tiny_config(pretrain=values).pretrain


def sample(number: int, height: int = 48, width: int = 64, regions: int = 4, others: bool = False) -> RegionSample:
    """Region n has the colour of concept n, and every other number of it follows from n as well.

    With `others`, the rest of the four are regions that are not kept, and all have crops.
    """
    picture = Picture(height, width, FOUR[:regions], tuple(range(regions)))
    ids, rest = torch.arange(regions), torch.arange(regions, 4 if others else regions)
    return RegionSample(
        key=str(number),
        image_bytes=encode_png(picture.pixels()),
        captions=(f"first of {number}", f"second of {number}"),
        boxes=torch.tensor(FOUR[:regions]).float().reshape(-1, 4),
        concept_id=ids,
        score=0.5 + 0.1 * ids,
        top_concepts=torch.stack([ids, (ids + 1) % CONCEPTS, (ids + 2) % CONCEPTS], 1),
        top_probabilities=torch.stack([0.5 + 0.1 * ids, 0.1 + 0 * ids, 0.05 * ids], 1).float(),
        residual_mass=0.4 - 0.15 * ids.float().clamp(max=2.5),
        other_boxes=torch.tensor(FOUR).float()[rest],
        other_score=0.1 + 0.05 * rest,
        crops=crop_embeddings(number)[: regions + len(rest)] if others else None,
    )


def collated(*arguments: Any, **named: Any) -> RegionBatch:
    """Return a batch as the trainer gets it, normalised."""
    return collate(*arguments, **named).to("cpu")


def crop_embeddings(number: int) -> Tensor:
    """Of the four regions of a sample: float16[4, 16]."""
    return torch.randn(4, 16, generator=torch.Generator().manual_seed(50 + number)).half()


def embeddings() -> Tensor:
    rows = torch.randn(CONCEPTS, 16, generator=torch.Generator().manual_seed(3))
    return rows / rows.norm(dim=1, keepdim=True)


def canvas(batch: RegionBatch, i: int, clip: ClipModel) -> np.ndarray:
    height, width = batch.images.sizes[i]
    return unnormalised(batch.images.tensor[i, :, :height, :width], clip.mean, clip.std)


@pytest.mark.parametrize(("image_size", "flip"), [(48, 0.0), (48, 1.0), (90, 0.5)])
def test_collated_regions_are_where_their_pixels_are(image_size: int, flip: float) -> None:
    clip, resized = tiny_clip(), image_size != 48
    chosen = settings(image_size=image_size, flip=flip, regions_per_image=3)
    mirrored = set()
    for step in range(4):
        batch = collated(
            [sample(0), sample(1, 48, 80), sample(2, regions=2)], chosen, clip.mean, clip.std, seed=0, step=step
        )
        assert [len(boxes) for boxes in batch.boxes] == [3, 3, 2]
        regions = iter(zip(batch.concept_id_R, batch.top_concepts_RK, batch.top_probabilities_RK, strict=True))
        row = 0
        for i, boxes in enumerate(batch.boxes):
            pixels, seen = canvas(batch, i, clip), []
            for box in boxes:
                concept, top, probabilities = next(regions)
                found = painted_box(pixels, COLOURS[concept], tolerance=110 if resized else 60)
                np.testing.assert_allclose(box.numpy(), found, atol=1.0 if resized else 0.01)
                n = int(concept)
                assert top.tolist() == [n, (n + 1) % CONCEPTS, (n + 2) % CONCEPTS]
                np.testing.assert_allclose(probabilities.numpy(), [0.5 + 0.1 * n, 0.1, 0.05 * n], rtol=1e-6)
                assert float(batch.residual_mass_R[row]) == pytest.approx(0.4 - 0.15 * min(n, 2.5))
                seen.append(n)
                row += 1
                plain = torch.tensor(FOUR[n]).float() * (batch.images.sizes[i][0] / 48)
                mirrored.add(bool((box - plain).abs().max() > 1.0))
            assert seen == sorted(set(seen))
        assert batch.concept_id_R.dtype == batch.top_concepts_RK.dtype == torch.int64
        assert row == len(batch.concept_id_R) == 8
    assert mirrored == {0.0: {False}, 1.0: {True}, 0.5: {False, True}}[flip]


@pytest.mark.parametrize(("resize", "width"), [("detection", 45), ("pretraining", 44)])
def test_images_are_resized_by_the_rule_of_the_settings(resize: str, width: int) -> None:
    """33 x 44.7: rounded or cut off, bilinear or bicubic; the boxes follow."""
    clip, one = tiny_clip(), sample(0, 48, 65)
    chosen = settings(image_size=33, flip=0.0, regions_per_image=4, resize=resize)
    batch = collated([one], chosen, clip.mean, clip.std, seed=0, step=0)
    expected = pixel_batch([one.image], 33, 1333, clip.mean, clip.std, resize).to("cpu")
    assert batch.images.sizes == [(33, width)]
    assert torch.equal(batch.images.tensor, expected.tensor)
    torch.testing.assert_close(batch.boxes[0], one.boxes * torch.tensor([width / 65, 33 / 48] * 2))


def test_every_region_and_caption_has_its_turn() -> None:
    clip, chosen = tiny_clip(), settings(regions_per_image=2)
    batches = [collated([sample(7), sample(8)], chosen, clip.mean, clip.std, 0, step) for step in range(25)]
    assert {tuple(batch.concept_id_R[:2].tolist()) for batch in batches} == {
        (a, b) for a in range(4) for b in range(a + 1, 4)
    }
    assert {batch.captions[0] for batch in batches} == {"first of 7", "second of 7"}
    assert {batch.captions[1] for batch in batches} == {"first of 8", "second of 8"}


def test_what_a_sample_draws_follows_seed_step_and_place_in_the_global_batch() -> None:
    clip, chosen = tiny_clip(), settings(regions_per_image=2)
    samples = [sample(n) for n in range(6)]

    def drawn(samples: list[RegionSample], *place: int) -> list[str]:
        batch = collated(samples, chosen, clip.mean, clip.std, *place)
        concepts = batch.concept_id_R.reshape(-1, 2).tolist()
        return [str(one) for one in zip(concepts, batch.captions, [b.tolist() for b in batch.boxes], strict=True)]

    whole = drawn(samples, 0, 0)
    assert whole == drawn(samples, 0, 0)
    assert whole != drawn(samples, 1, 0) != drawn(samples, 0, 1) != whole
    for rank in (0, 1, 2):
        assert drawn(samples[rank::3], 0, 0, rank, 3) == whole[rank::3]
    same = drawn([sample(0)] * 6, 0, 0)
    assert len(set(same)) > 1


def naive_losses(
    batch: RegionBatch, clip: ClipModel, temperature: float, global_box: str
) -> tuple[float, float, float]:
    """The three unweighted losses, every region and image encoded by itself, written out in loops."""
    visual, concepts = clip.model.visual, embeddings().double().numpy()

    def unit(vector: Tensor) -> np.ndarray:
        values = vector.double().numpy()
        return values / np.linalg.norm(values)

    regions, images = [], []
    with torch.no_grad():
        for i, boxes in enumerate(batch.boxes):
            one = batch.images.tensor[i : i + 1]
            regions += [unit(region_feature(visual, one, box.tolist())) for box in boxes]
            height, width = batch.images.sizes[i] if global_box == "image" else one.shape[2:]
            images.append(unit(region_feature(visual, one, [0, 0, width, height])))
        texts = [unit(clip.model.encode_text(clip.tokenizer([c]))[0]) for c in batch.captions]
    ids = batch.concept_id_R.tolist()
    contrast = []
    for region, own in zip(regions, ids, strict=True):
        weights = [np.exp(region @ concepts[other] / temperature) for other in ids]
        right = sum(w for w, other in zip(weights, ids, strict=True) if other == own)
        contrast.append(-np.log(right / sum(weights)))
    distill = []
    for r, region in enumerate(regions):
        q = np.exp(concepts @ region / temperature)
        q /= q.sum()
        top = batch.top_concepts_RK[r].tolist()
        pairs = [(p, q[c]) for p, c in zip(batch.top_probabilities_RK[r].tolist(), top, strict=True)]
        pairs.append((float(batch.residual_mass_R[r]), sum(q[c] for c in range(CONCEPTS) if c not in top)))
        distill.append(sum(p * np.log(p / other) for p, other in pairs if p > 0))
    logits = np.array([[image @ text / temperature for text in texts] for image in images])
    rows = [-np.log(np.exp(logits[i, i]) / np.exp(logits[i]).sum()) for i in range(len(images))]
    columns = [-np.log(np.exp(logits[i, i]) / np.exp(logits[:, i]).sum()) for i in range(len(images))]
    return float(np.mean(contrast)), float(np.mean(distill)), float(np.mean(rows + columns))


def pretrainer(chosen: PretrainConfig, clip: ClipModel, temperature: float = 0.2) -> RegionPretrainer:
    return RegionPretrainer(make_student(clip, chosen), clip, embeddings(), temperature, chosen)


@pytest.mark.parametrize("global_box", ["image", "padded"])
def test_losses_are_those_of_regions_encoded_one_by_one(global_box: str) -> None:
    """Images of two sizes, one of them without a region."""
    clip = tiny_clip()
    chosen = settings(global_box=global_box, contrastive_weight=0.5, distill_weight=2.0, image_text_weight=3.0)
    samples = [sample(0), sample(1, 48, 80), sample(2, regions=0), sample(3, 64, 64)]
    batch = collated(samples, chosen, clip.mean, clip.std, 0, 0)
    found = {name: float(value.detach()) for name, value in pretrainer(chosen, clip).train()(batch).items()}
    contrast, distill, image_text = naive_losses(batch, tiny_clip(), 0.2, global_box)
    assert found == pytest.approx(
        {
            "loss_region_contrastive": 0.5 * contrast,
            "loss_region_distill": 2.0 * distill,
            "loss_image_text": 3.0 * image_text,
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("weigh_by_score", [False, True])
def test_crops_are_distilled_into_kept_regions_and_others(weigh_by_score: bool) -> None:
    """Two of four regions drawn of each kind, mirrored or not; each encoded by itself, its crop found by its box."""
    clip = tiny_clip()
    chosen = settings(crop_weight=2.0, weigh_by_score=weigh_by_score, regions_per_image=2, image_size=48)
    samples = [sample(0, others=True, regions=3), sample(1, 48, 80, regions=1, others=True)]
    samples += [sample(2, regions=4, others=True), sample(3, regions=0, others=True)]
    batch = collated(samples, chosen, clip.mean, clip.std, 0, 0)
    assert [len(boxes) for boxes in batch.boxes] == [2, 1, 2, 0]
    assert [len(boxes) for boxes in batch.crops.other_boxes] == [1, 2, 0, 2]
    found = pretrainer(chosen, clip).train()(batch)
    sum(found.values()).backward()
    total = divisor = 0.0
    visual, sides = tiny_clip().model.visual, set()
    for i, one in enumerate(samples):
        width = batch.images.sizes[i][1]
        for boxes, is_kept in ((batch.boxes[i], True), (batch.crops.other_boxes[i], False)):
            for box in boxes.tolist():
                mirrored = [width - box[2], box[1], width - box[0], box[3]]
                [region] = [n for n, four in enumerate(FOUR) if list(four) in (box, mirrored)]
                sides.add(list(FOUR[region]) == box)
                assert is_kept == (region < len(one.boxes))
                with torch.no_grad():
                    feature = region_feature(visual, batch.images.tensor[i : i + 1], box).double()
                crop = crop_embeddings(i)[region].double()
                score = (0.5 + 0.1 * region if is_kept else 0.1 + 0.05 * region) if weigh_by_score else 1.0
                total += score * (1 - float(torch.cosine_similarity(feature, crop, dim=0)))
                divisor += score
    assert sides == {False, True}
    assert float(found["loss_crop"].detach()) == pytest.approx(2.0 * total / divisor, rel=1e-4)
    # The three losses have the kept regions alone, the same ones as without crops.
    plain = settings(weigh_by_score=weigh_by_score, regions_per_image=2, image_size=48)
    kept_only = [replace(one, crops=None, other_boxes=one.other_boxes[:0]) for one in samples]
    without = pretrainer(plain, tiny_clip()).train()(collated(kept_only, plain, clip.mean, clip.std, 0, 0))
    assert without.keys() == found.keys() - {"loss_crop"}
    for name, value in without.items():
        assert float(found[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


def test_regions_weigh_by_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, chosen = tiny_clip(), settings(weigh_by_score=True, image_size=48)
    batch = collated([sample(0), sample(1, regions=2)], chosen, clip.mean, clip.std, 0, 0)
    torch.testing.assert_close(batch.score_R, 0.5 + 0.1 * batch.concept_id_R)
    found = pretrainer(chosen, clip).train()(batch)
    equal = replace(batch, score_R=torch.full_like(batch.score_R, 0.4))
    evenly = pretrainer(chosen, clip).train()(equal)
    plain = pretrainer(settings(image_size=48), clip).train()(batch)
    for name in ("loss_region_contrastive", "loss_region_distill"):
        assert evenly[name].item() == pytest.approx(plain[name].item(), rel=1e-5)
        assert found[name].item() != pytest.approx(plain[name].item(), rel=1e-4)
    assert found["loss_image_text"].item() == plain["loss_image_text"].item()


def test_a_loss_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny_clip()
    chosen = settings(contrastive_weight=0.0, distill_weight=0.0, image_text_weight=0.0, crop_weight=1.0)
    trainer = pretrainer(chosen, clip).train()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    for name in ("region_concept_contrastive", "region_distillation", "image_text_contrastive"):
        monkeypatch.setattr(student_module, name, never)
    monkeypatch.setattr(type(clip), "encode_text", never)
    losses = trainer(collated([sample(0, others=True)], chosen, clip.mean, clip.std, 0, 0))
    sum(losses.values()).backward()
    assert [name for name, value in losses.items() if value.item() == 0] == [
        *("loss_region_contrastive", "loss_region_distill", "loss_image_text")
    ]
    assert losses["loss_crop"].item() > 0.1
    assert float(trainer.student.attnpool.c_proj.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("freeze_at", [0, 2, 4])
def test_gradients_reach_the_unfrozen_student_only(freeze_at: int) -> None:
    clip, chosen = tiny_clip(), settings(freeze_at=freeze_at)
    trainer = pretrainer(chosen, clip).train()
    batch = collated([sample(0), sample(1)], chosen, clip.mean, clip.std, 0, 0)
    sum(trainer(batch).values()).backward()
    parts = [("conv1", "conv2", "conv3"), ("layer1",), ("layer2",), ("layer3",)][:freeze_at]
    frozen = {name for part in parts for name in part}
    for name, parameter in trainer.named_parameters():
        owner, _, rest = name.partition(".")
        norm = ".bn" in f".{rest}" or ".downsample.1." in rest
        if owner == "student" and rest.split(".")[0] not in frozen and not norm:
            assert parameter.grad is not None, name
            # The key's bias shifts all scores alike: its gradient is there, and zero.
            assert rest == "attnpool.k_proj.bias" or float(parameter.grad.abs().max()) > 0, name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name  # or data-parallel training would wait for its gradient
    assert not trainer.concept_embeddings_CD.requires_grad


def test_a_batch_without_any_region_still_trains() -> None:
    clip, chosen = tiny_clip(), settings()
    trainer = pretrainer(chosen, clip).train()
    losses = trainer(collated([sample(0, regions=0), sample(1, regions=0)], chosen, clip.mean, clip.std, 0, 0))
    sum(losses.values()).backward()
    assert float(losses["loss_region_contrastive"].detach()) == float(losses["loss_region_distill"].detach()) == 0
    assert float(trainer.student.attnpool.c_proj.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        ("region_contrastive", 0.2),
        ("region_distill", 0.2),
        ("crop", 0.2),
        ("image_text", 0.01),
    ],  # the embeddings of untrained texts are close together
)
def test_a_repeated_batch_is_learned(tmp_path: Path, name: str, temperature: float) -> None:
    weights = {"contrastive": "region_contrastive", "distill": "region_distill"}
    weights |= {name: name for name in ("image_text", "crop")}
    chosen = settings(freeze_at=0, **{f"{key}_weight": float(name == loss) for key, loss in weights.items()})
    clip = tiny_clip()
    samples = [sample(0, others=True), sample(1, 48, 80, others=True), sample(2, 64, 64, others=True)]
    batch = collated(samples, chosen, clip.mean, clip.std, 0, 0)
    trainer = pretrainer(chosen, clip, temperature)
    trainer.student.train()
    result = fit(
        trainer,
        lambda step: batch,
        optim=chosen.optim.model_copy(update={"lr": 5e-3, "clip_norm": None}),
        steps=90,
        seed=0,
        checkpoints=Folder(str(tmp_path)),
        checkpoint_every=100,
        progress=lambda *_: None,
    )
    first, last = result.history[0], result.history[-1]
    assert last["loss"] == last[f"loss_{name}"] < 0.6 * first["loss"]


Run = Callable[..., tuple[FitResult, RegionPairs, RegionEncoder, ClipModel]]


@pytest.fixture
def pretrain(world: dict[str, Folder], tmp_path: Path) -> Run:
    """Two steps on the world's pairs."""

    def run(name: str = "run", labels: Folder | None = None, **values: Any) -> Any:
        config: Config = tiny_config(pretrain=values)
        clip = load_clip(world["teacher"])
        student = make_student(clip, config.pretrain)
        result, samples = pretrain_student(
            student,
            clip,
            labels or world["labels"],
            world["pairs"],
            config,
            device="cpu",
            checkpoints=Folder(str(tmp_path / name)),
            progress=lambda *_: None,
        )
        return result, samples, student, clip

    return run


def test_pretraining_moves_the_student_and_nothing_else(pretrain: Run, world: dict[str, Folder]) -> None:
    result, samples, student, clip = pretrain()
    assert (result.steps, len(samples)) == (2, world["pairs"].read_json("pairs.json")["samples"])
    teacher = load_clip(world["teacher"]).model.state_dict()
    for name, tensor in clip.model.state_dict().items():
        assert torch.equal(tensor, teacher[name]), name
    frozen = ("conv1", "conv2", "conv3", "layer1")
    for name, parameter in student.named_parameters():
        if name == "attnpool.k_proj.bias":  # its gradient is rounding noise around zero
            continue
        moved = not torch.equal(parameter, teacher[f"visual.{name}"])
        assert moved != (name.split(".")[0] in frozen or not parameter.requires_grad), name
    for name, buffer in student.named_buffers():
        assert torch.equal(buffer, teacher[f"visual.{name}"]), name
    assert not student.training


def test_the_weight_average_is_plain_arithmetic() -> None:
    start, trained = tiny_clip(0).model.visual.state_dict(), tiny_clip(1).model.visual.state_dict()
    start["bn1.running_mean"], trained["bn1.running_mean"] = torch.full((4,), 2.0), torch.full((4,), 4.0)
    trained["conv1.weight"] = start["conv1.weight"].clone()
    trained["bn1.num_batches_tracked"] = torch.tensor(7)
    found = average_weights(start, trained, 0.7)
    assert found.keys() == trained.keys()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = 0.7 * trained[name].double() + 0.3 * start[name].double()
            torch.testing.assert_close(tensor, expected.float(), msg=name)
    assert torch.equal(found["conv1.weight"], start["conv1.weight"])  # frozen: in every bit
    assert float(found["bn1.running_mean"][0]) == pytest.approx(3.4)
    assert int(found["bn1.num_batches_tracked"]) == 7
    whole = average_weights(start, trained, 1.0)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in whole.items())


def test_no_temperature_takes_the_teachers_own(pretrain: Run) -> None:
    default, given, other = (pretrain(str(t), temperature=t)[0].history for t in (None, 0.07, 0.1))
    assert default[0]["loss"] == pytest.approx(given[0]["loss"], rel=1e-4)
    assert default[0]["loss"] != pytest.approx(other[0]["loss"], rel=1e-2)


def test_another_pool_is_refused(pretrain: Run, tmp_path: Path) -> None:
    pool = Vocabulary(("another", "pool"))
    save_embeddings(Folder(str(tmp_path / "labels")), pool, torch.randn(2, 16))
    with pytest.raises(ValueError, match=rf"made with the concept pool \w+, expected {pool.digest[:12]}"):
        pretrain(labels=Folder(str(tmp_path / "labels")))
