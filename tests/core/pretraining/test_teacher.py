"""Training CLIP: the crop against Pillow, the order of the pairs, the loss against open_clip's."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.loss import ClipLoss
from PIL import Image
from small_artifacts import tiny_clip, unnormalised
from small_towers import SIGLIP, small_clip

from regionclip_core.config.tree import OptimConfig, TeacherTraining
from regionclip_core.datasets.images import BadImage
from regionclip_core.datasets.index import IndexRow
from regionclip_core.models.clip import ClipModel
from regionclip_core.pretraining.captioned_images import (
    CaptionedImage,
    CaptionedImages,
    ClipBatch,
    ClipBatches,
    augment,
)
from regionclip_core.pretraining.teacher import ClipTrainer, tokens_of_captions
from regionclip_core.training.optim import make_optimizer


def training(**values: Any) -> TeacherTraining:
    return TeacherTraining(**{"splits": ("train",), "batch_size": 4, "flip": 0.5, "min_crop": 0.3, **values})


def crop(image: np.ndarray, seed: int, side: int = 60, **values: Any) -> np.ndarray:
    return augment(image, side, training(**values), np.random.default_rng(seed))


def ramp(height: int, width: int) -> np.ndarray:
    """Red is a pixel's column, green its row, in steps that fill 0..255."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)[None] * (255 // width)
    image[..., 1] = np.arange(height)[:, None] * (255 // height)
    return image


def read_off(out: np.ndarray, height: int, width: int) -> tuple[tuple[float, float, float, float], bool]:
    """Where the pixels of an augmented ramp came from, as an xyxy box, and whether they were mirrored."""
    side = len(out)
    centres = np.arange(side) + 0.5
    inner = slice(8, side - 8)  # the edges of the image bend the ramp
    columns = out[:, :, 0].astype(float).mean(0) / (255 // width) + 0.5
    rows = out[:, :, 1].astype(float).mean(1) / (255 // height) + 0.5
    flipped = columns[-9] < columns[8]
    columns = columns[::-1] if flipped else columns
    (step_x, left), (step_y, top) = (
        np.polyfit(centres[inner], columns[inner], 1),
        np.polyfit(centres[inner], rows[inner], 1),
    )
    return (left, top, left + step_x * side, top + step_y * side), flipped


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("height", "width"), [(80, 120), (120, 60)])
def test_augment_is_a_crop_inside_the_image_resized_as_pillow_does(seed: int, height: int, width: int) -> None:
    box, flipped = read_off(crop(ramp(height, width), seed), height, width)
    x0, y0, x1, y1 = box
    assert x0 > -0.4
    assert y0 > -0.4
    assert x1 < width + 0.4
    assert y1 < height + 0.4
    share = (x1 - x0) * (y1 - y0) / (width * height)
    assert 0.28 < share <= 1.02
    # In units of the image's own sides, so that the shape of the crop is that of the image within 3:4.
    assert 0.72 < ((x1 - x0) / width) / ((y1 - y0) / height) < 1.38
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    inside = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    expected = np.asarray(Image.fromarray(smooth).resize((60, 60), Image.Resampling.BILINEAR, box=inside)).astype(float)
    found = crop(smooth, seed).astype(float)
    assert np.abs((found[:, ::-1] if flipped else found) - expected).max() <= 6
    assert np.abs((found if flipped else found[:, ::-1]) - expected).max() > 30


def test_augment_varies_and_follows_its_settings() -> None:
    image = ramp(80, 120)
    boxes = [read_off(crop(image, seed), 80, 120) for seed in range(40)]
    assert len({tuple(np.round(box)) for box, _ in boxes}) > 30
    assert 5 < sum(flipped for _, flipped in boxes) < 35
    assert not any(read_off(crop(image, seed, flip=0.0), 80, 120)[1] for seed in range(20))
    assert all(read_off(crop(image, seed, flip=1.0), 80, 120)[1] for seed in range(20))
    x0, y0, x1, y1 = read_off(crop(image, 0, min_crop=1.0), 80, 120)[0]
    assert (x1 - x0) * (y1 - y0) / 9600 > 0.84  # the area is whole, but for the side that the shape would push out
    assert crop(image, 0, side=32).shape == (32, 32, 3)


def numbered(count: int, bad: tuple[int, ...] = ()) -> list[CaptionedImage]:
    """Picture n has the grey level 10 n and two captions that name it."""

    def read(n: int) -> np.ndarray:
        if n in bad:
            raise BadImage("bad_image", f"{n} is torn")
        return np.full((20, 30, 3), 10 * n, np.uint8)

    return [CaptionedImage(str(n), partial(read, n), (f"one {n}", f"two {n}")) for n in range(count)]


def batches_of(images: list[CaptionedImage], clip: ClipModel, **values: Any) -> ClipBatches:
    sizes = {"image_size": clip.image_size, "mean": clip.mean, "std": clip.std}
    return ClipBatches(images=images, training=training(), **sizes, **values)


def levels(batch: ClipBatch) -> list[int]:
    """Which pictures a batch holds."""
    return [
        round(float(unnormalised(image, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD).mean()) / 10) for image in batch.images
    ]


def test_epochs_are_permutations_and_captions_stay_with_their_images() -> None:
    clip = tiny_clip()
    at = batches_of(numbered(12), clip, seed=1)
    batches = [at(step) for step in range(30)]
    seen = [n for batch in batches for n in levels(batch)]
    captions = [caption for batch in batches for caption in batch.captions]
    epochs = [seen[start : start + 12] for start in range(0, 120, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert [int(caption.split()[1]) for caption in captions] == seen
    for n in range(12):  # drawn again each time
        assert {c.split()[0] for c, m in zip(captions, seen, strict=True) if m == n} == {"one", "two"}
    assert batches[0].images.shape == (4, 3, 32, 32)
    assert batches[0].images.dtype == torch.float32


def test_ranks_share_the_global_batch() -> None:
    clip = tiny_clip()
    whole = batches_of(numbered(10), clip, seed=1)
    parts = [batches_of(numbered(10), clip, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(6):
        assert levels(whole(step)) == levels(parts[0](step)) + levels(parts[1](step))
        assert len(parts[0](step).captions) == 2


def test_a_batch_depends_on_its_step_alone() -> None:
    clip = tiny_clip()
    straight = batches_of(numbered(10), clip, seed=1)
    expected = [straight(step) for step in range(5)][4]
    again = batches_of(numbered(10), clip, seed=1)(4)
    other = batches_of(numbered(10), clip, seed=2)(4)
    assert torch.equal(again.images, expected.images)
    assert again.captions == expected.captions != other.captions


def test_a_torn_image_is_replaced_together_with_its_caption() -> None:
    at = batches_of(numbered(8, bad=(3,)), tiny_clip(), seed=0)
    whole = batches_of(numbered(8), tiny_clip(), seed=0)
    batches = [at(step) for step in range(2)]
    order = [n for step in range(3) for n in levels(whole(step))]
    assert [n for batch in batches for n in levels(batch)] == [
        order[place + 1] if order[place] == 3 else order[place] for place in range(8)
    ]
    for batch in batches:
        assert [int(caption.split()[1]) for caption in batch.captions] == levels(batch)


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 4 exceeds the 3 captioned images"):
        batches_of(numbered(3), tiny_clip(), seed=0)
    with pytest.raises(ValueError, match="batch_size 4 does not divide among 3 workers"):
        batches_of(numbered(9), tiny_clip(), seed=0, world_size=3)


@pytest.mark.parametrize(("log_scale", "scale"), [(2.0, np.exp(2.0)), (9.0, 100.0)])
def test_loss_and_gradients_are_those_of_open_clip(log_scale: float, scale: float) -> None:
    clip, reference = tiny_clip(), tiny_clip()
    for one in (clip, reference):
        one.model.double().logit_scale.data.fill_(log_scale)
    trainer = ClipTrainer(clip).train()
    reference.model.train()
    captions = ["a cat", "two dogs on a mat", "a bus", "the red cup"]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = trainer(ClipBatch(images, captions))
    image = torch.nn.functional.normalize(reference.model.encode_image(images), dim=1)
    text = torch.nn.functional.normalize(reference.model.encode_text(reference.tokenizer(captions)), dim=1)
    expected = ClipLoss()(image, text, reference.model.logit_scale.exp().clamp(max=100.0))
    assert list(losses) == ["loss_image_text"]
    torch.testing.assert_close(losses["loss_image_text"], expected)
    assert reference.model.logit_scale.exp().clamp(max=100.0).item() == pytest.approx(scale)
    losses["loss_image_text"].backward()
    expected.backward()
    for (name, one), other in zip(trainer.named_parameters(), reference.model.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, atol=1e-9, rtol=1e-6, msg=name)


def test_only_the_tokens_of_the_captions_train() -> None:
    """The same losses and weights as with the whole table, but for the decay of rows that no caption has."""
    captions = [("a cat", "a red cat"), ("two dogs on a mat",), ("a bus", "the bus"), ("the red cup!",)]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = ClipBatch(images, [texts[-1] for texts in captions])
    clip, whole = tiny_clip(), tiny_clip()
    before = whole.model.token_embedding.weight.detach().clone()
    used = torch.unique(torch.cat([clip.tokenizer(list(texts)).flatten() for texts in captions]))
    losses: dict[str, list[float]] = {}

    def train(name: str, one: ClipModel) -> None:
        trainer = ClipTrainer(one).train()
        optimizer = make_optimizer(trainer, OptimConfig(lr=1e-2, weight_decay=0.1))
        for _ in range(3):
            [loss] = trainer(batch).values()
            losses.setdefault(name, []).append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with tokens_of_captions(clip, captions) as short:
        assert short.model.token_embedding.weight.shape == (len(used), before.shape[1])
        with pytest.raises(AssertionError, match="not announced"):
            short.encode_text(["an elephant"])
        train("short", short)
    train("whole", whole)
    assert losses["short"] == losses["whole"]
    for (name, one), other in zip(clip.model.named_parameters(), whole.model.parameters(), strict=True):
        if name == "token_embedding.weight":
            assert torch.equal(one[used], other[used]) and not torch.equal(one[used], before[used])
            others = torch.ones(len(one), dtype=torch.bool)
            others[used] = False
            assert torch.equal(one[others], before[others])
        else:
            assert torch.equal(one, other), name
    assert torch.equal(clip.encode_text(["a cat"]), whole.encode_text(["a cat"]))


def test_a_text_tower_of_another_kind_keeps_its_table() -> None:
    clip = small_clip(SIGLIP)
    with tokens_of_captions(clip, [("a cat",)]) as same:
        assert same is clip


def test_the_cache_gives_what_reading_gives_and_keeps_to_its_budget() -> None:
    reads: list[str] = []

    class Rows(list[IndexRow]):
        def value(self, column: str, number: int) -> Any:
            return getattr(self[number], column)

    class Reader:
        def read(self, row: IndexRow) -> np.ndarray:
            reads.append(row.key)
            return np.full((4, 4, 3), ord(row.key), np.uint8)  # 48 bytes

    rows: Any = Rows(IndexRow(key, number, captions=[key]) for number, key in enumerate("abc"))
    reader: Any = Reader()
    images = CaptionedImages(rows, reader, cache_bytes=100)
    for _ in range(3):
        for number, key in enumerate("abc"):
            assert np.array_equal(images[number].read(), np.full((4, 4, 3), ord(key), np.uint8))
    assert [reads.count(key) for key in "abc"] == [1, 1, 3]
