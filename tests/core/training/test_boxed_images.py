"""Training from rows on disk is training from lists in memory, to the bit."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mask_samples import add_masks
from small_artifacts import BASE_IDS, rows_of, tiny_clip, tiny_config, write_proposals
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.detection.finetuning import FinetuneData, build_detector, finetune_data, finetune_detector
from regionclip_core.pretraining.captioned_images import CaptionedImage, captioned_images
from regionclip_core.proposals import recall
from regionclip_core.proposals.network import build_network, train_network
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.proposals.recall import recall_of_splits
from regionclip_core.storage.records import Folder
from regionclip_core.training import boxed_images as module
from regionclip_core.training.boxed_images import BoxedImage, boxed_images
from regionclip_core.training.sampling import repeat_factors
from regionclip_core.training.unreadable_images import UnreadableImages
from stages.base import StageContext
from stages.teacher import WORK

State = dict[str, Tensor]


def plain_list(
    data: Folder, split: str, allowed: Collection[int], masks: bool = False, proposals: Folder | None = None
) -> list[BoxedImage]:
    """`boxed_images`, box by box and all in memory."""
    found: dict[str, Tensor] = {}
    if proposals is not None:
        for shard in data.read_json("splits.json")[split]["shards"]:
            found |= {key: one.boxes for key, one in read_proposals(proposals, shard).items()}
    images = []
    for row in rows_of(data, split):
        kept = [i for i in range(len(row.boxes)) if row.box_labels[i] in allowed and not row.box_crowd[i]]
        if row.status == "ok" and kept and (proposals is None or row.key in found):
            images.append(
                BoxedImage(
                    row,
                    torch.from_numpy(row.boxes[kept]),
                    torch.from_numpy(row.box_labels[kept]).long(),
                    torch.zeros(0, 4) if proposals is None else found[row.key],
                    [row.box_masks[i] for i in kept] if masks else None,
                )
            )
    return images


def proposals_of(url: Path, data: Folder, leave_out: str = "") -> Folder:
    """Random boxes, a few to each readable image; one image may be left out."""
    folder, rng, boxes = Folder(str(url)), np.random.default_rng(0), {}
    for number, row in enumerate(rows_of(data, "train")):
        corner = rng.uniform(0, 30, (4 + number, 2))
        if row.status == "ok" and row.key != leave_out:
            boxes[row.key] = torch.from_numpy(np.hstack([corner, corner + rng.uniform(6, 18, corner.shape)])).float()
    write_proposals(folder, data, "train", boxes, torch.linspace(4, -4, 20))
    return folder


@pytest.mark.parametrize("allowed", [BASE_IDS, (0, 1, 2, 3), (3,), (-1, 1)])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("with_proposals", [False, True])
def test_images_are_those_of_a_loop(
    boxes_data: Folder, tmp_path: Path, allowed: tuple[int, ...], masks: bool, with_proposals: bool
) -> None:
    data = Folder(shutil.copytree(boxes_data.url, tmp_path / "data").as_posix())
    add_masks(data, "train")
    proposals = proposals_of(tmp_path / "proposals", data, "train/0000") if with_proposals else None
    expected = plain_list(data, "train", allowed, masks, proposals)
    images = boxed_images(data, "train", allowed, masks, proposals)
    assert len(images) == len(expected) > 0
    for number in reversed(range(len(images))):
        found, wanted = images[number], expected[number]
        assert (found.row.key, found.row.url, found.row.offset) == (wanted.row.key, wanted.row.url, wanted.row.offset)
        assert (found.row.width, found.row.height) == (wanted.row.width, wanted.row.height)
        for name in ("boxes", "labels", "extra"):
            assert torch.equal(getattr(found, name), getattr(wanted, name))
            assert getattr(found, name).dtype == getattr(wanted, name).dtype
        assert found.masks == wanted.masks
    assert [labels.tolist() for labels in images.labels()] == [image.labels.tolist() for image in expected]


def test_proposals_of_other_images_are_refused(boxes_data: Folder, tmp_path: Path) -> None:
    data = Folder(shutil.copytree(boxes_data.url, tmp_path / "data").as_posix())
    proposals = proposals_of(tmp_path / "proposals", data)
    file = tmp_path / "proposals" / "proposals-00001.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(ValueError, match=r"shard 1: row 0 is of image 'train/0005', in the data index of 'train/0004'"):
        boxed_images(data, "train", BASE_IDS, proposals=proposals)


def test_one_shard_is_in_memory_at_a_time(boxes_data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both while training rows are read and while the recall is counted."""
    proposals = proposals_of(tmp_path, boxes_data)

    class Held(dict[str, Any]):
        """A dict that weak references can point to."""

    def watched(read: Callable[..., Any], alive: list[Any], wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        def reading(*arguments: Any) -> Any:
            # The loop variable still holds the shard before this one.
            assert sum(one() is not None for one in alive) <= 1
            found = wrap(read(*arguments))
            alive.append(weakref.ref(found))
            return found

        return reading

    monkeypatch.setattr(module, "split_shards", lambda *_: [0, 1, 0, 1])
    monkeypatch.setattr(recall, "split_shards", lambda *_: [0, 1, 0, 1])
    tables: list[Any] = []
    monkeypatch.setattr(module, "read_proposal_table", watched(module.read_proposal_table, tables, lambda table: table))
    assert len(boxed_images(boxes_data, "train", set(BASE_IDS), False, proposals)) == 10
    found: list[Any] = []
    monkeypatch.setattr(recall, "read_proposals", watched(read_proposals, found, Held))
    assert recall_of_splits(boxes_data, proposals, ("train",))
    assert len(tables) == len(found) == 4


def state_of(module: torch.nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("sampling", ["uniform", "repeat_factor"])
def test_finetuning_from_lists_gives_the_same_detector(boxes_data: Folder, tmp_path: Path, sampling: str) -> None:
    changes = {"sampling": sampling, "repeat_threshold": 0.9, "train_sizes": [40, 56], "steps": 4, "mask_head": True}
    config: Config = tiny_config(finetune=changes)
    data = Folder(shutil.copytree(boxes_data.url, tmp_path / "data").as_posix())
    add_masks(data, "train")
    proposals = proposals_of(tmp_path / "proposals", data, "train/0000")
    lazy = finetune_data(config, data, proposals, False)
    images = plain_list(data, "train", BASE_IDS, True, proposals)
    rows = {label: row for row, label in enumerate(BASE_IDS)}
    listed = [
        BoxedImage(i.row, i.boxes, torch.tensor([rows[int(n)] for n in i.labels]), i.extra, i.masks) for i in images
    ]
    factors = None
    if sampling == "repeat_factor":
        factors = repeat_factors(lambda: (image.labels.numpy() for image in listed), 0.9)
        assert lazy.factors is not None
        assert lazy.factors.tobytes() == factors.tobytes()
    results = []
    for name, training in (("lazy", lazy), ("list", FinetuneData(listed, lazy.names, UnreadableImages(), factors))):
        clip = tiny_clip()
        detector = build_detector(clip, training.names, config)
        start = state_of(detector)
        finetune_detector(
            detector, clip, training, data, config, device="cpu",
            checkpoints=Folder(str(tmp_path / name)), progress=lambda *_: None,
        )  # fmt: skip
        assert any(not torch.equal(start[key], tensor) for key, tensor in detector.state_dict().items())
        results.append(state_of(detector))
    assert_same(*results)


def test_a_proposal_network_from_lists_is_the_same(
    boxes_data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, results = tiny_config().rpn, []
    for name in ("lazy", "list"):
        network = build_network(settings, 1)
        train_network(
            network, boxes_data, settings, seed=1, device="cpu",
            checkpoints=Folder(str(tmp_path / name)), progress=lambda *_: None,
        )  # fmt: skip
        results.append(state_of(network))
        monkeypatch.setattr("regionclip_core.proposals.network.boxed_images", plain_list)
    assert_same(*results)
    start = state_of(build_network(settings, 1))
    assert any(not torch.equal(start[name], results[0][name]) for name in start)


def captioned_list(data: Folder, splits: Sequence[str], readers: int = 1) -> list[CaptionedImage]:
    """`captioned_images`, all in memory."""
    reader = ImageReader(data)
    usable = [row for row in rows_of(data, *splits) if row.status == "ok" and row.captions]
    return [CaptionedImage(row.key, partial(reader.read, row), tuple(row.captions)) for row in usable]


def test_captioned_images_are_those_of_a_loop(boxes_data: Folder) -> None:
    images, expected = (read(boxes_data, ("train", "val")) for read in (captioned_images, captioned_list))
    assert len(images) == len(expected) == 14
    for number in (13, 0, 7, 7, 3):
        assert images[number].key == expected[number].key
        assert images[number].captions == expected[number].captions
        assert np.array_equal(images[number].read(), expected[number].read())
    assert images[7].read() is images[7].read()  # kept


def test_a_teacher_from_lists_is_the_same(
    world: dict[str, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"splits": ["train", "val"], "steps": 4, "batch_size": 4, "checkpoint_every": 4}
    config, results = tiny_config(teacher={"weights": "train", "training": training}), []
    for name in ("lazy", "list"):
        out = Folder(str(tmp_path / name))
        summary = WORK.run(StageContext(config, out, {"data": world["data"]}))
        results.append((out.read_bytes("clip.safetensors"), out.read_bytes("history.json"), summary["pairs"]))
        monkeypatch.setattr(
            "stages.teacher.captioned_images",
            captioned_list,
        )
    assert results[0] == results[1]
    assert results[0][0] != world["teacher"].read_bytes("clip.safetensors")  # they did train
