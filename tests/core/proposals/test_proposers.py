"""Proposals of a shard, by every method; and their recall."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_artifacts import (
    Picture,
    rows_of,
    tear,
    tiny_config,
    write_data,
)
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow, read_index
from regionclip_core.proposals.network import build_network
from regionclip_core.proposals.proposers import (
    NetworkBoxes,
    make_proposer,
    propose_shard,
    read_proposals,
)
from regionclip_core.proposals.rpn_folder import rpn_section, write_rpn_folder
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import PROPOSALS


def pattern(method: str, **settings: object) -> Config:
    return tiny_config(proposals={"method": method, **settings})


def row(key: str, width: int = 80, height: int = 60) -> IndexRow:
    return IndexRow(key=key, image_id=0, width=width, height=height)


@pytest.fixture(scope="module")
def rpn(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(str(tmp_path_factory.mktemp("rpn")))
    write_rpn_folder(folder, build_network(tiny_config().rpn, 0).state_dict(), rpn_section(tiny_config().rpn))
    return folder


def network_boxes(rpn: Folder, **proposals: object) -> NetworkBoxes:
    proposer = make_proposer(tiny_config(proposals={"method": "rpn", **proposals}), rpn, "cpu")
    assert isinstance(proposer, NetworkBoxes)
    return proposer


def image(height: int, width: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 6, 6))).float()
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]


def test_given_boxes_are_all_annotated_ones_but_crowds(boxes_data: Folder) -> None:
    rows = rows_of(boxes_data, "train")
    for one, found in zip(rows, make_proposer(pattern("given"), None, "cpu")(rows, []), strict=True):
        expected = [b.tolist() for b, crowd in zip(one.boxes, one.box_crowd, strict=True) if not crowd]
        assert found.boxes.tolist() == expected
        assert found.logits.tolist() == [0.0] * len(expected)


@pytest.mark.parametrize("method", ["grid", "random"])
def test_patterns_depend_on_the_image_alone(method: str) -> None:
    proposer = make_proposer(pattern(method), None, "cpu")
    rows = [row("train/a"), row("train/b"), row("train/c", 200, 33)]
    together = proposer(rows, [])
    torch.manual_seed(1)  # the global generator has no say
    again = [row(one.key, one.width, one.height) for one in rows]
    apart = [make_proposer(pattern(method), None, "cpu")([one], [])[0] for one in reversed(again)][::-1]
    for one, a, b in zip(rows, together, apart, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert 0 < len(a.boxes) == len(a.logits) <= 10 and not a.logits.any()
        x0, y0, x1, y1 = a.boxes.unbind(1)
        assert bool(((x0 >= 0) & (y0 >= 0) & (x1 <= one.width + 1e-4) & (y1 <= one.height + 1e-4)).all())
        assert bool(((x1 > x0) & (y1 > y0)).all())
    assert torch.equal(together[0].boxes, together[1].boxes) == (method == "grid")


def test_random_boxes_follow_the_seed() -> None:
    config = pattern("random")
    one = make_proposer(config, None, "cpu")([row("a")], [])[0]
    other = make_proposer(config.model_copy(update={"seed": 4}), None, "cpu")([row("a")], [])[0]
    assert not torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize(("height", "width"), [(150, 93), (40, 61), (64, 64)])
def test_network_boxes_are_in_original_pixels(rpn: Folder, height: int, width: int) -> None:
    """Against the same network fed by hand, its boxes stretched back side by side."""
    proposer = network_boxes(rpn, max_regions=15)
    pixels = image(height, width)
    found = proposer([row("x", width, height)], [pixels])[0]
    small_h, small_w = round(height * 64 / min(height, width)), round(width * 64 / min(height, width))
    resized = F.interpolate(pixels[None], (small_h, small_w), mode="bilinear", antialias=True)[0]
    shape = (3, 1, 1)
    mean, std = torch.tensor(proposer.network.mean).view(shape), torch.tensor(proposer.network.std).view(shape)
    batch = ((resized.float() / 255 - mean) / std)[None]
    expected = proposer.network.propose(batch, [(small_h, small_w)], 1000, 15, 0.7)[0]
    stretch = torch.tensor([width / small_w, height / small_h] * 2)
    torch.testing.assert_close(found.boxes, expected.boxes * stretch, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert len(found.boxes) == 15
    assert bool((found.logits.diff() <= 0).all())
    limit = torch.tensor([width, height, width, height]) + 1e-3
    assert bool(((found.boxes >= 0) & (found.boxes <= limit)).all())
    assert float(found.boxes[:, 2].max()) > 0.7 * width  # they fill the picture, not its resized copy
    assert float(found.boxes[:, 3].max()) > 0.7 * height


def test_proposals_do_not_depend_on_the_images_beside(rpn: Folder) -> None:
    """Other sizes in the batch would pad an image, and padding changes the features at its edge."""
    shapes = [(64, 90), (90, 64), (64, 90), (64, 70)]
    images = [image(height, width, seed) for seed, (height, width) in enumerate(shapes)]
    rows = [row(str(seed), width, height) for seed, (height, width) in enumerate(shapes)]
    proposer = network_boxes(rpn, max_regions=30)
    for one, pixels, found in zip(rows, images, proposer(rows, images), strict=True):
        alone = proposer([one], [pixels])[0]
        torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.logits, alone.logits, atol=1e-5, rtol=0)


def test_min_objectness_drops_the_improbable(rpn: Folder) -> None:
    pixels, one = image(64, 64), row("x", 64, 64)
    everything = network_boxes(rpn, max_regions=30)([one], [pixels])[0]
    cut = float(torch.sigmoid(everything.logits[10]))
    fewer = network_boxes(rpn, max_regions=30, min_objectness=cut)([one], [pixels])[0]
    expected = [i for i, logit in enumerate(everything.logits.tolist()) if 1 / (1 + np.exp(-logit)) >= cut - 1e-7]
    assert len(expected) == 11
    assert torch.equal(fewer.boxes, everything.boxes[expected])


def test_a_torn_image_is_recorded_and_the_shard_goes_on(boxes_data: Folder, rpn: Folder, tmp_path: Path) -> None:
    proposer = network_boxes(rpn)
    counts, table = propose_shard(proposer, boxes_data, 1)
    assert counts["ok"] == 3
    assert counts["bad_image"] == 1  # the index said so already
    torn = Folder(shutil.copytree(boxes_data.url, tmp_path / "torn").as_posix())
    tear(torn, read_index(torn, 1)[1])
    torn_counts, torn_table = propose_shard(proposer, torn, 1)
    assert torn_table.schema.equals(PROPOSALS)
    before, after = table.to_pylist(), torn_table.to_pylist()
    assert [r["key"] for r in after] == [r.key for r in read_index(torn, 1)]
    assert after[1]["status"] == "bad_image"
    assert "truncated or corrupt" in after[1]["reason"]
    assert after[1]["boxes"] == after[1]["objectness_logit"] == []
    assert after[2] == before[2]
    assert (after[2]["status"], after[2]["reason"]) == ("bad_image", "made to fail")
    for number in (0, 3):
        assert after[number]["status"] == "ok"
        # The batch around an image has changed, so the last bits may.
        np.testing.assert_allclose(after[number]["objectness_logit"], before[number]["objectness_logit"], atol=1e-4)
    assert torn_counts == {"ok": 2, "bad_image": 2, "proposals": sum(len(r["boxes"]) for r in after)}
    for readers in (1, 3):
        assert propose_shard(proposer, torn, 1, readers) == (torn_counts, torn_table)


def test_more_images_than_go_through_at_once(rpn: Folder, tmp_path: Path) -> None:
    """Nineteen pictures of one size: each row is what the picture alone would give."""
    pictures = [Picture(48, 64, ((n, n, n + 20, n + 15),), (n % 4,)) for n in range(19)]
    data = write_data(tmp_path, {"train": [pictures]})
    proposer = network_boxes(rpn)
    _, table = propose_shard(proposer, data, 0)
    reader = ImageReader(data)
    for one, found in zip(read_index(data, 0), table.to_pylist(), strict=True):
        alone = proposer([one], [reader.read_tensor(one)])[0]
        np.testing.assert_allclose(found["objectness_logit"], alone.logits.numpy(), atol=1e-4)
        np.testing.assert_allclose(found["boxes"], alone.boxes.numpy(), atol=1e-2)


def test_proposals_come_back_from_their_table(boxes_data: Folder, tmp_path: Path) -> None:
    _, table = propose_shard(make_proposer(pattern("given"), None, "cpu"), boxes_data, 1)
    out = Folder(str(tmp_path))
    with out.write("proposals-00001.parquet") as file:
        pq.write_table(table, file)
    found = read_proposals(out, 1)
    rows = [one for one in read_index(boxes_data, 1) if one.status == "ok"]
    assert list(found) == [one.key for one in rows]
    for one in rows:
        assert found[one.key].boxes.dtype == found[one.key].logits.dtype == torch.float32
        assert found[one.key].boxes.shape == (len(one.boxes), 4)
        assert torch.equal(found[one.key].boxes, torch.from_numpy(one.boxes))


def test_given_boxes_outside_the_vocabulary_are_counted(boxes_data: Folder) -> None:
    for method, found in (("given", 1), ("grid", 0)):
        counts = propose_shard(make_proposer(pattern(method), None, "cpu"), boxes_data, 1)[0]
        assert counts["outside_the_vocabulary"] == found


def test_the_table_keeps_the_schema_when_there_is_nothing(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": [[Picture(40, 40), Picture(40, 40, status="bad_image")]]})
    counts, table = propose_shard(make_proposer(pattern("given"), None, "cpu"), data, 0)
    assert isinstance(table, pa.Table)
    assert table.schema.equals(PROPOSALS)
    assert counts == {"ok": 1, "bad_image": 1, "proposals": 0}
