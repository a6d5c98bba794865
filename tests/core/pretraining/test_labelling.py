"""Pseudo labels of a shard against a loop over regions that shares no code with it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_artifacts import (
    Picture,
    network_input,
    pillow_crop,
    region_feature,
    rows_of,
    tear,
    tiny_clip,
    tiny_config,
    write_data,
    write_proposals,
)
from small_towers import VIT
from torch import Tensor

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, build_clip, save_clip
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.pretraining import labelling
from regionclip_core.pretraining.labelling import Labeller, region_embedder
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS, LABELS_WITH_CROPS

POOL = Vocabulary(tuple("abcdefg"))
LOGITS = torch.linspace(3, -3, 9)
PICTURES = [
    Picture(48, 72, ((4, 6, 20, 30), (30, 10, 60, 26)), (0, 1)),
    Picture(48, 72),
    Picture(48, 72, ((10, 10, 40, 40),), (3,)),
    Picture(48, 72, ((0, 0, 64, 20), (8, 24, 28, 44)), (0, 2)),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """Data, teacher, concept embeddings, and proposals: objects, odd places, more than are labelled, none."""
    root = tmp_path_factory.mktemp("inputs")
    names = ("teacher", "labels", "proposals")
    folders = {name: Folder(str(root / name)) for name in names}
    folders["data"] = write_data(root / "data", {"train": [PICTURES]})
    save_clip(tiny_clip(), folders["teacher"])
    generator = torch.Generator().manual_seed(0)
    save_embeddings(folders["labels"], POOL, torch.randn(len(POOL), 16, generator=generator))
    rows = rows_of(folders["data"], "train")
    boxes = {
        rows[0].key: torch.tensor([[4.0, 6, 20, 30], [30, 10, 60, 26], [0, 0, 72, 48]]),
        rows[1].key: torch.zeros(0, 4),
        rows[2].key: torch.tensor([[10.0, 10, 40, 40], [0.5, 0.25, 9.75, 40.5], [60, 40, 72, 48], [3, 3, 5, 5]] * 2),
        rows[3].key: torch.tensor([[8.0, 24, 28, 44]]),
    }
    write_proposals(folders["proposals"], folders["data"], "train", boxes, LOGITS)
    return folders


def label(
    inputs: dict[str, Folder], method: str = "given", **settings: Any
) -> tuple[list[dict[str, Any]], Any, pa.Table]:
    config = tiny_config(labels={"temperature": 0.05, **settings}, proposals={"method": method})
    labeller = Labeller(config, inputs["teacher"], inputs["labels"], "cpu")
    table, counts = labeller.label_shard(inputs["data"], inputs["proposals"], 0)
    return table.to_pylist(), counts, table


def embed(embedder: Any, images: list[Tensor], boxes: list[Tensor]) -> Tensor:
    return embedder.embed([embedder.prepare(image, own) for image, own in zip(images, boxes, strict=True)], boxes)


def crop_feature(clip: ClipModel, pixels: np.ndarray, box: list[float], context: float) -> Tensor:
    with torch.no_grad():
        return clip.model.encode_image(pillow_crop(pixels, box, context, clip)[None])[0]


def roi_feature(clip: ClipModel, pixels: np.ndarray, box: list[float]) -> Tensor:
    """The paper's way on one image of 48 x 72 at a short side of 64."""
    scaled = [v * f for v, f in zip(box, (96 / 72, 64 / 48) * 2, strict=True)]
    with torch.no_grad():
        return region_feature(clip.model.visual, network_input(pixels, (64, 96), clip.mean, clip.std), scaled)


def naive_label(feature: Tensor, inputs: dict[str, Folder], temperature: float) -> list[tuple[float, int]]:
    """(probability, concept), best first."""
    from safetensors.torch import load

    concepts = load(inputs["labels"].read_bytes("concept_embeddings.safetensors"))["embeddings"].double().numpy()
    vector = feature.double().numpy()
    cosines = [float(vector @ c / np.linalg.norm(vector) / np.linalg.norm(c)) for c in concepts]
    weights = [np.exp(cosine / temperature) for cosine in cosines]
    return sorted(((w / sum(weights), i) for i, w in enumerate(weights)), key=lambda pair: -pair[0])


@pytest.mark.parametrize("mode", ["crop", "roi"])
def test_rows_against_a_loop_over_regions(inputs: dict[str, Folder], mode: str) -> None:
    everything, _, _ = label(inputs, mode=mode, max_regions=5)
    cut = float(np.median([score for row in everything for score in row["score"]])) + 1e-4
    found, counts, table = label(inputs, mode=mode, max_regions=5, top_k=3, threshold=cut)
    assert table.schema.equals(LABELS)
    clip, reader = tiny_clip(), ImageReader(inputs["data"])
    from regionclip_core.proposals.proposers import read_proposals

    proposals = read_proposals(inputs["proposals"], 0)
    rows = rows_of(inputs["data"], "train")
    assert [row["key"] for row in found] == [row.key for row in rows]
    kept = []
    for row, one in zip(rows, found, strict=True):
        boxes = proposals[row.key].boxes[:5].tolist()
        assert one["boxes"] == boxes
        assert one["objectness_logit"] == LOGITS[: len(boxes)].tolist()
        assert len(one["concept_id"]) == len(boxes)
        pixels = reader.read(row)
        for i, box in enumerate(boxes):
            feature = crop_feature(clip, pixels, box, 1.2) if mode == "crop" else roi_feature(clip, pixels, box)
            best = naive_label(feature, inputs, 0.05)
            assert one["concept_id"][i] == best[0][1] == one["top_concepts"][i][0]
            assert one["top_concepts"][i] == [concept for _, concept in best[:3]]
            np.testing.assert_allclose(one["top_probabilities"][i], [p for p, _ in best[:3]], rtol=2e-3)
            assert one["score"][i] == one["top_probabilities"][i][0]
            assert one["residual_mass"][i] == pytest.approx(sum(p for p, _ in best[3:]), rel=2e-3, abs=1e-6)
            assert one["kept"][i] == (best[0][0] > cut)
            kept.append(one["kept"][i])
    assert len(kept) == 3 + 0 + 5 + 1
    assert 0 < sum(kept) < len(kept)
    assert counts == {"ok": 4, "regions": 9, "regions_kept": sum(kept)}


def test_the_score_is_the_probability_times_a_power_of_the_objectness(inputs: dict[str, Folder]) -> None:
    plain, _, before = label(inputs, "rpn", objectness_power=0.0)
    assert before.equals(label(inputs)[2])
    cut = 0.5
    found, counts, _ = label(inputs, "rpn", objectness_power=2.5, threshold=cut)
    kept = []
    for one, old in zip(found, plain, strict=True):
        objectness = [1 / (1 + math.exp(-logit)) for logit in one["objectness_logit"]]
        expected = [row[0] * o**2.5 for row, o in zip(old["top_probabilities"], objectness, strict=True)]
        np.testing.assert_allclose(one["score"], expected, rtol=1e-6)
        assert one["kept"] == [score > cut for score in expected]
        changed = {"score", "kept"}
        assert {k: v for k, v in one.items() if k not in changed} == {k: v for k, v in old.items() if k not in changed}
        kept += one["kept"]
    assert 0 < sum(kept) < len(kept) and counts["regions_kept"] == sum(kept)


@pytest.mark.parametrize("method", ["given", "grid", "random"])
def test_boxes_without_an_objectness_count_as_one(inputs: dict[str, Folder], method: str) -> None:
    assert label(inputs, method, objectness_power=2.0)[2].equals(label(inputs, "rpn")[2])


@pytest.mark.parametrize("mode", ["crop", "roi"])
def test_crop_features_are_the_teachers_embeddings_of_crops_one_by_one(inputs: dict[str, Folder], mode: str) -> None:
    """In both modes; nothing else of the labels changes in any bit."""
    plain, before, _ = label(inputs, mode=mode)
    found, counts, table = label(inputs, mode=mode, crop_features=True, context=1.4 if mode == "roi" else 1.2)
    assert table.schema.equals(LABELS_WITH_CROPS)
    assert table.schema.metadata == {b"vocabulary": POOL.digest.encode(), b"crops": b"16"}
    assert counts == before
    clip, reader = tiny_clip(), ImageReader(inputs["data"])
    regions = 0
    for row, one, old in zip(rows_of(inputs["data"], "train"), found, plain, strict=True):
        crops = np.array(one.pop("crops"), np.float32).reshape(len(one["boxes"]), 16)
        assert one == old
        for box, crop in zip(one["boxes"], crops, strict=True):
            feature = crop_feature(clip, reader.read(row), box, 1.4 if mode == "roi" else 1.2)
            np.testing.assert_allclose(crop, (feature / feature.norm()).numpy(), atol=1e-3)
            regions += 1
    assert regions == counts["regions"] > 5


@pytest.mark.parametrize(("mode", "proposed"), [("crop", 2), ("roi", 2), ("crop", 0)])
def test_boxes_of_a_grid_come_after_the_proposals_and_are_never_kept(
    inputs: dict[str, Folder], mode: str, proposed: int
) -> None:
    settings = {"mode": mode, "crop_features": True, "threshold": 0.0}
    plain, _, _ = label(inputs, max_regions=max(proposed, 1), **settings)
    found, counts, _ = label(inputs, max_regions=proposed, grid_scales=[0.5, 1.0], **settings)
    # A 48 x 72 image: squares of 48 at two places, of 24 at 3 x 5 places, at most half a side apart.
    grid = [[x, 0.0, x + 48, 48.0] for x in (0.0, 24.0)]
    grid += [[x, y, x + 24, y + 24] for y in (0.0, 12.0, 24.0) for x in (0.0, 12.0, 24.0, 36.0, 48.0)]
    clip, reader = tiny_clip(), ImageReader(inputs["data"])
    for row, one, old in zip(rows_of(inputs["data"], "train"), found, plain, strict=True):
        count = min(len(old["boxes"]), proposed)
        assert one["boxes"] == old["boxes"][:count] + grid
        assert one["kept"] == [True] * count + [False] * len(grid)
        assert one["objectness_logit"][count:] == [0.0] * len(grid)
        np.testing.assert_allclose(one["score"][:count], old["score"][:count], rtol=1e-5)
        feature = crop_feature(clip, reader.read(row), grid[0], 1.2)
        np.testing.assert_allclose(one["crops"][count], (feature / feature.norm()).numpy(), atol=1e-3)
        best = naive_label(crop_feature(clip, reader.read(row), grid[3], 1.2), inputs, 0.05)[0]
        if mode == "crop":
            assert (one["concept_id"][count + 3], pytest.approx(best[0], rel=2e-3)) == (
                best[1],
                one["score"][count + 3],
            )
    assert counts["regions"] == sum(len(one["boxes"]) for one in found)
    assert counts["regions_kept"] == sum(len(one["boxes"]) - len(grid) for one in found)


@pytest.mark.parametrize("resize", ["detection", "pretraining"])
def test_roi_features_are_of_the_image_resized_by_the_rule_of_the_settings(
    inputs: dict[str, Folder], resize: str
) -> None:
    """48 x 72 to 33 x 49.5: rounded or cut off, bilinear or bicubic."""
    clip, row = tiny_clip(), rows_of(inputs["data"], "train")[0]
    pixels = ImageReader(inputs["data"]).read(row)
    settings = tiny_config(labels={"mode": "roi", "image_size": 33, "resize": resize}).labels
    boxes = torch.tensor([[4.0, 6, 20, 30], [30, 10, 60, 26], [0, 0, 72, 48]])
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    with torch.no_grad():
        found = embed(region_embedder(settings, clip, "cpu"), [image], [boxes])
    shape = (33, 50) if resize == "detection" else (33, 49)
    method = "bilinear" if resize == "detection" else "bicubic"
    resized = torch.nn.functional.interpolate(image[None], shape, mode=method, antialias=True)[0].numpy()
    canvas = network_input(resized.transpose(1, 2, 0), shape, clip.mean, clip.std)
    for box, feature in zip(boxes.tolist(), found, strict=True):
        scaled = [v * f for v, f in zip(box, (shape[1] / 72, 33 / 48) * 2, strict=True)]
        with torch.no_grad():
            expected = region_feature(clip.model.visual, canvas, scaled)
        torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("description", [None, VIT], ids=["resnet", "vit"])
def test_regions_feel_nothing_of_images_of_other_sizes(description: dict[str, Any] | None) -> None:
    """Padding to a shared canvas would change the features at an image's right and lower edge."""
    clip = tiny_clip() if description is None else build_clip(description, "test", seed=0)
    embedder = region_embedder(tiny_config(labels={"mode": "roi", "image_size": 64}).labels, clip, "cpu")
    shapes = [(48, 72), (72, 48), (48, 60), (50, 50), (48, 90)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]
    boxes = [torch.tensor([[0.0, 0, w, h], [w / 2, h / 3, w, h], [3, 4, 30, 40]]) for h, w in shapes]
    boxes[3] = boxes[3][:0]
    with torch.inference_mode():
        together = torch.split(embed(embedder, images, boxes), [len(b) for b in boxes])
        for image, image_boxes, features in zip(images, boxes, together, strict=True):
            assert torch.equal(features, embed(embedder, [image], [image_boxes]))


def test_a_padded_canvas_is_shared_by_the_images_in_their_order() -> None:
    """As in the official code, where the images of a GPU share one; each by itself on that canvas, by hand."""
    clip = tiny_clip()
    settings = tiny_config(
        labels={"mode": "roi", "image_size": 64, "resize": "pretraining", "canvas": "padded", "images_per_canvas": 2}
    )
    shapes = [(64, 72), (96, 64), (64, 64), (80, 64), (128, 64)]  # of the shorter side wanted: none is resized
    canvases = [(96, 72), (96, 72), (80, 64), (80, 64), (128, 64)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator) for shape in shapes]
    boxes = [torch.tensor([[0.0, 0, w, h], [w / 2, h / 3, w, h], [3, 4, 30, 40]]) for h, w in shapes]
    boxes[1] = boxes[1][:0]
    with torch.inference_mode():
        found = embed(region_embedder(settings.labels, clip, "cpu"), images, boxes)
        assert len(found) == 12
        single = region_embedder(tiny_config(labels={"mode": "roi", "image_size": 64}).labels, clip, "cpu")
        alone = embed(single, images, boxes)
        rows = iter(found)
        for image, (h, w), (canvas_h, canvas_w), own in zip(images, shapes, canvases, boxes, strict=True):
            pixels = network_input(image.numpy().transpose(1, 2, 0), (h, w), clip.mean, clip.std)
            canvas = torch.nn.functional.pad(pixels, (0, canvas_w - w, 0, canvas_h - h))
            for box in own.tolist():
                expected = region_feature(clip.model.visual, canvas, box)
                torch.testing.assert_close(next(rows), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[:3], alone[:3], atol=1e-3)  # the canvas is wider than the image
    torch.testing.assert_close(found[-3:], alone[-3:], atol=1e-5, rtol=1e-4)  # alone on its canvas


def test_a_shard_is_cut_into_whole_canvases(
    tmp_path: Path, inputs: dict[str, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "_IMAGES_AT_ONCE", 4)
    pictures = [Picture(48 + 8 * n, 64, ((4, 6, 20, 30), (16, 10, 44, 46)), (n % 4, 1)) for n in range(7)]
    data, proposals = write_data(tmp_path / "data", {"train": [pictures]}), Folder(str(tmp_path / "proposals"))
    rows = rows_of(data, "train")
    write_proposals(proposals, data, "train", {row.key: torch.from_numpy(row.boxes) for row in rows}, LOGITS)
    padded = {"mode": "roi", "canvas": "padded", "images_per_canvas": 3, "temperature": 0.05}
    found, _, _ = label({**inputs, "data": data, "proposals": proposals}, **padded)
    embedder = region_embedder(tiny_config(labels=padded).labels, tiny_clip(), "cpu")
    with ImageReader(data) as reader, torch.inference_mode():
        for group in (rows[:3], rows[3:6], rows[6:]):
            images, boxes = [reader.read_tensor(row) for row in group], [torch.from_numpy(row.boxes) for row in group]
            features = embed(embedder, images, boxes)
            best = [naive_label(feature, inputs, 0.05)[0][0] for feature in features]
            scores = [score for row in found[: len(group)] for score in row["score"]]
            np.testing.assert_allclose(scores, best, rtol=1e-4)
            del found[: len(group)]


def test_proposals_of_other_images_are_refused(inputs: dict[str, Folder], tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {"train": [PICTURES[:3]]})
    with pytest.raises(ValueError, match=r"proposals of shard 0: row 3 is of image 'train/0003', in the .* of None"):
        label({**inputs, "data": data})


def test_labels_of_an_image_are_the_same_in_every_bit_alone_and_among_others_of_other_sizes(
    tmp_path: Path, inputs: dict[str, Folder]
) -> None:
    """One shard of five pictures, and five of one."""
    objects = ((4, 6, 20, 30), (16, 10, 44, 46))
    pictures = [Picture(48 + 8 * (n % 3), 48 + 16 * (n // 3), objects, (n % 4, 1)) for n in range(5)]

    def labelled(name: str, shards: list[list[Picture]]) -> list[list[dict[str, Any]]]:
        data, proposals = write_data(tmp_path / name, {"train": shards}), Folder(str(tmp_path / f"{name}-proposals"))
        boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(data, "train")}
        write_proposals(proposals, data, "train", boxes, LOGITS)
        config = tiny_config(labels={"temperature": 0.05, "mode": "roi"})
        labeller = Labeller(config, inputs["teacher"], inputs["labels"], "cpu")
        return [labeller.label_shard(data, proposals, shard)[0].to_pylist() for shard in range(len(shards))]

    [together] = labelled("together", [pictures])
    alone = labelled("alone", [[picture] for picture in pictures])
    assert [one["key"] for one in together] == [f"train/{n:04d}" for n in range(5)]
    for found, [expected] in zip(together, alone, strict=True):
        assert found == expected
    assert len({tuple(one["score"]) for one in together}) == 5


def test_the_threshold_is_strict_and_marks_only(inputs: dict[str, Folder]) -> None:
    everything, _, _ = label(inputs, threshold=0.0)
    scores = [score for row in everything for score in row["score"]]
    cut = sorted(scores)[4]
    some, _, _ = label(inputs, threshold=cut)
    assert [k for row in some for k in row["kept"]] == [score > cut for score in scores]
    for a, b in zip(everything, some, strict=True):
        assert {k: v for k, v in a.items() if k != "kept"} == {k: v for k, v in b.items() if k != "kept"}


def test_all_concepts_leave_no_residual_mass(inputs: dict[str, Folder]) -> None:
    rows, _, _ = label(inputs, top_k=50)
    for row in rows:
        for top, mass in zip(row["top_probabilities"], row["residual_mass"], strict=True):
            assert len(top) == len(POOL)
            assert sum(top) == pytest.approx(1, abs=1e-6)
            assert mass == 0


def test_no_temperature_takes_the_teachers_own(inputs: dict[str, Folder]) -> None:
    assert tiny_clip().logit_scale == pytest.approx(1 / 0.07)
    default, _, _ = label(inputs, temperature=None)
    given, _, _ = label(inputs, temperature=0.07)
    other, _, _ = label(inputs, temperature=0.08)
    np.testing.assert_allclose(default[0]["score"], given[0]["score"], rtol=1e-5)
    assert np.abs(np.array(other[0]["score"]) - given[0]["score"]).max() > 1e-3


def test_the_pools_digest_travels_with_the_table(inputs: dict[str, Folder], tmp_path: Path) -> None:
    assert label(inputs)[2].schema.metadata == {b"vocabulary": POOL.digest.encode()}
    other = Vocabulary(tuple("abcdefh"))
    save_embeddings(Folder(str(tmp_path)), other, torch.randn(7, 16))
    table = label({**inputs, "labels": Folder(str(tmp_path))})[2]
    assert table.schema.metadata == {b"vocabulary": other.digest.encode()}


@pytest.mark.parametrize("mode", ["crop", "roi"])
def test_a_torn_image_costs_itself(inputs: dict[str, Folder], tmp_path: Path, mode: str) -> None:
    before, _, _ = label(inputs, mode=mode)
    data = Folder(shutil.copytree(inputs["data"].url, tmp_path / "torn").as_posix())
    tear(data, rows_of(data, "train")[0])
    after, counts, _ = label({**inputs, "data": data}, mode=mode)
    assert (after[0]["status"], after[0]["key"]) == ("bad_image", before[0]["key"])
    assert "truncated or corrupt" in after[0]["reason"]
    assert all(value == [] for value in after[0].values() if isinstance(value, list))
    assert after[1] == before[1]
    for a, b in zip(after[2:], before[2:], strict=True):
        assert a["concept_id"] == b["concept_id"]
        np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)
    assert counts["bad_image"] == 1
    assert counts["regions"] == sum(len(row["boxes"]) for row in before[1:])


def test_what_the_proposals_could_not_read_stays_marked(inputs: dict[str, Folder], tmp_path: Path) -> None:
    rows = rows_of(inputs["data"], "train")
    proposals = Folder(str(tmp_path))
    write_proposals(proposals, inputs["data"], "train", {rows[3].key: torch.tensor([[8.0, 24, 28, 44]])}, LOGITS)
    found, counts, _ = label({**inputs, "proposals": proposals})
    assert [row["status"] for row in found] == ["bad_image"] * 3 + ["ok"]
    crops = label({**inputs, "proposals": proposals}, crop_features=True, grid_scales=[0.5])[0]
    assert [len(row["crops"]) for row in crops] == [len(row["boxes"]) for row in crops] == [0, 0, 0, 16]
    assert found[0]["reason"] == "not in the test"
    assert counts == {"bad_image": 3, "ok": 1, "regions": 1, "regions_kept": 1}


@pytest.mark.parametrize("mode", ["crop", "roi"])
def test_a_shard_without_any_region(inputs: dict[str, Folder], tmp_path: Path, mode: str) -> None:
    empty = {row.key: torch.zeros(0, 4) for row in rows_of(inputs["data"], "train")}
    proposals = Folder(str(tmp_path))
    write_proposals(proposals, inputs["data"], "train", empty, LOGITS)
    rows, counts, table = label({**inputs, "proposals": proposals}, mode=mode)
    assert counts == {"ok": 4, "regions": 0, "regions_kept": 0}
    assert all(row["boxes"] == row["kept"] == row["top_concepts"] == [] for row in rows)
    assert table.schema.equals(LABELS)


def test_more_images_than_are_labelled_at_once(tmp_path: Path, inputs: dict[str, Folder]) -> None:
    """Thirty-five of one size in a shard: each row is what the picture gives in a shard of its own."""
    pictures = [Picture(40, 40, ((n % 20, n // 2, n % 20 + 18, n // 2 + 20),), (n % 4,)) for n in range(35)]

    def labelled(url: Path, some: list[Picture]) -> list[dict[str, Any]]:
        data, proposals = write_data(url / "data", {"train": [some]}), Folder(str(url / "proposals"))
        boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(data, "train")}
        write_proposals(proposals, data, "train", boxes, LOGITS)
        return label({**inputs, "data": data, "proposals": proposals}, mode="roi")[0]

    together = labelled(tmp_path / "all", pictures)
    for number in (0, 15, 16, 34):
        alone = labelled(tmp_path / str(number), [pictures[number]])[0]
        assert together[number]["boxes"] == alone["boxes"]
        np.testing.assert_allclose(together[number]["score"], alone["score"], atol=1e-5)


@pytest.mark.parametrize("mode", ["crop", "roi"])
def test_readers_change_no_bit(tmp_path: Path, inputs: dict[str, Folder], mode: str) -> None:
    """Pictures of three sizes, one of them torn, one without regions, more than go through at once."""
    pictures = [Picture(40 + 8 * (n % 3), 48, ((n % 20, n // 2, n % 20 + 18, n // 2 + 20),), (1,)) for n in range(37)]
    data, proposals = write_data(tmp_path / "data", {"train": [pictures]}), Folder(str(tmp_path / "proposals"))
    rows = rows_of(data, "train")
    boxes = {row.key: torch.from_numpy(row.boxes) for row in rows} | {rows[5].key: torch.zeros(0, 4)}
    write_proposals(proposals, data, "train", boxes, LOGITS)
    tear(data, rows[20])
    config = tiny_config(labels={"temperature": 0.05, "mode": mode})
    tables = []
    for readers in (0, 1, 3):
        labeller = Labeller(config, inputs["teacher"], inputs["labels"], "cpu", readers)
        table, counts = labeller.label_shard(data, proposals, 0)
        assert counts == {"ok": 36, "bad_image": 1, "regions": 35, "regions_kept": 35}
        tables.append(table)
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    # From Python lists, as a reader of the schema would build them.
    assert tables[0].equals(pa.Table.from_pylist(tables[0].to_pylist(), schema=tables[0].schema))
    assert {len(row["score"]) for row in tables[0].to_pylist()} == {0, 1}
