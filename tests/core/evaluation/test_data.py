"""What the evaluate stage reads: which images and boxes, shard by shard, and annotations that fit the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifacts import TRAIN, VOCABULARY, Picture, rows_of, tiny_config, write_data, write_proposals

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow, index_name, read_index, split_shards, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation import data as evaluation_data
from regionclip_core.evaluation.data import EvaluationData, truth_of
from regionclip_core.storage.records import Folder

CONFIG = tiny_config(evaluate={"split": "val"})


def artifacts(url: Path, shards: list[list[Picture]]) -> tuple[Folder, Folder]:
    data, proposals = write_data(url / "data", {"val": shards}), Folder(str(url / "proposals"))
    boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(data, "val") if row.status == "ok"}
    write_proposals(proposals, data, "val", boxes, torch.linspace(3, -3, 20))
    return data, proposals


def rewrite(data: Folder, **columns: Sequence[np.ndarray | None]) -> None:
    """Replace columns of the split's index, one value per row."""
    number = 0
    for shard in split_shards(data, ("val",)):
        rows: list[IndexRow] = []
        for row in read_index(data, shard):
            rows.append(replace(row, **{name: values[number] for name, values in columns.items()}))
            number += 1
        with data.write(index_name(shard)) as file:
            write_index(file, rows, VOCABULARY.digest)


def test_what_is_read(tmp_path: Path) -> None:
    data, proposals = artifacts(tmp_path, TRAIN)
    evaluation = EvaluationData(CONFIG, data, proposals)
    rows = [row for row in rows_of(data, "val") if row.status == "ok"]
    assert [row.key for row in evaluation.rows()] == [row.key for row in rows]
    assert evaluation.count == len(rows) == 7
    assert evaluation.outside == 1
    assert evaluation.category_ids == [0, 1, 2, 3]
    with ImageReader(data) as reader:
        images = [image for batch in evaluation.batches(3) for image in batch]
        for row, image in zip(rows, images, strict=True):
            truth = truth_of(row)
            assert image.row.key == row.key
            assert torch.equal(image.pixels, reader.read_tensor(row))
            known = [i for i in range(len(row.boxes)) if row.box_labels[i] >= 0]
            usable = [i for i in known if not row.box_crowd[i]]
            assert image.boxes.tolist() == row.boxes[usable].tolist()
            assert image.labels.tolist() == row.box_labels[usable].tolist()
            assert image.proposals.boxes.tolist() == row.boxes.tolist()
            assert (truth.image_id, truth.width, truth.height) == (row.image_id, row.width, row.height)
            assert truth.boxes.tolist() == row.boxes[known].tolist()
            assert truth.labels.tolist() == row.box_labels[known].tolist()
            assert truth.crowd is not None
            assert truth.crowd.tolist() == row.box_crowd[known].tolist()
            assert truth.area is not None
            assert truth.area.tolist() == row.box_area[known].tolist()
            assert truth.masks is truth.neg_labels is truth.not_exhaustive_labels is None
    assert [len(batch) for batch in evaluation.batches(3)] == [3, 3, 1]
    ahead = EvaluationData(CONFIG, data, proposals, readers=2)
    halved = [image for batch in ahead.batches(3, lambda pixels: pixels[:, ::2]) for image in batch]
    assert [image.row.key for image in halved] == [image.row.key for image in images]
    assert all(torch.equal(a.pixels, b.pixels[:, ::2]) for a, b in zip(halved, images, strict=True))
    empty = Folder(str(tmp_path / "none"))
    write_proposals(empty, data, "val", {}, torch.zeros(0))
    with pytest.raises(ValueError, match=r"evaluate\.split 'val' has no readable image with proposals"):
        EvaluationData(CONFIG, data, empty)


def test_proposals_of_other_images_are_refused(tmp_path: Path) -> None:
    _, proposals = artifacts(tmp_path, [[Picture(48, 64)] * 2])
    more, _ = artifacts(tmp_path / "more", [[Picture(48, 64)] * 3])
    with pytest.raises(ValueError, match=r"shard 0: row 2 is of image None, in the data index of 'val/0002'"):
        EvaluationData(CONFIG, more, proposals)


def test_shards_are_read_when_their_images_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not held: a batch may span two of them."""
    data, proposals = artifacts(tmp_path, [[Picture(48, 64)] * 2, [Picture(48, 64)] * 3, [Picture(48, 64)] * 2])
    evaluation = EvaluationData(CONFIG, data, proposals)
    seen: list[int] = []

    def spy(folder: Folder, shard: int, digest: str | None = None) -> list[IndexRow]:
        seen.append(shard)
        return read_index(folder, shard, digest)

    monkeypatch.setattr(evaluation_data, "read_index", spy)
    progress = [(len(batch), list(seen)) for batch in evaluation.batches(2)]
    assert progress == [(2, [0]), (2, [0, 1]), (2, [0, 1, 2]), (1, [0, 1, 2])]


def test_images_without_objects_can_be_left_out(tmp_path: Path) -> None:
    data, proposals = artifacts(tmp_path, TRAIN)
    evaluation = EvaluationData(tiny_config(evaluate={"split": "val", "annotated_only": True}), data, proposals)
    kept = [row.key for row in rows_of(data, "val") if row.status == "ok" and (row.box_labels >= 0).any()]
    assert [row.key for row in evaluation.rows()] == kept
    assert [image.row.key for batch in evaluation.batches(4) for image in batch] == kept
    assert evaluation.count == len(kept) == 6


def test_boxes_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    data, proposals = artifacts(tmp_path, TRAIN)
    data.write_json("categories.json", Vocabulary(("cat", "dog", "bus", "mug")).to_json())
    with pytest.raises(ValueError, match="its box labels are of vocabulary"):
        EvaluationData(CONFIG, data, proposals)


def test_masks_and_image_labels_follow_the_boxes(tmp_path: Path) -> None:
    data, _ = artifacts(tmp_path, [[Picture(48, 64, ((4, 6, 20, 30), (30, 10, 60, 26), (1, 1, 9, 9)), (0, -1, 3))]])
    absent, partly = np.array([1, -1], np.int32), np.array([3], np.int32)
    rewrite(data, box_masks=[[b"a", b"b", b"c"]], neg_labels=[absent], not_exhaustive_labels=[partly])
    truth = truth_of(rows_of(data, "val")[0])
    assert truth.masks == [b"a", b"c"]
    assert truth.neg_labels is not None and truth.neg_labels.tolist() == [1]
    assert truth.not_exhaustive_labels is not None and truth.not_exhaustive_labels.tolist() == [3]


def lvis(config: Config) -> Config:
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"protocol": "lvis"})})


def test_annotations_must_fit_the_protocol(tmp_path: Path) -> None:
    data, proposals = artifacts(tmp_path, [[Picture(48, 64, ((4, 6, 20, 30),), (0,))], [Picture(48, 64)]])
    with pytest.raises(ValueError, match=r"lvis: the categories have no group common, frequent, rare"):
        EvaluationData(lvis(CONFIG), data, proposals)
    groups = (("rare", ("dog", "cup")), ("common", ("cat",)), ("frequent", ("bus",)))
    data.write_json("categories.json", Vocabulary(VOCABULARY.names, VOCABULARY.base, groups).to_json())
    with pytest.raises(ValueError, match=r"lvis: image val/0000 of split 'val' has no list of absent categories"):
        EvaluationData(lvis(CONFIG), data, proposals)
    none, some = np.zeros(0, np.int32), np.array([1], np.int32)
    rewrite(data, neg_labels=[some, none], not_exhaustive_labels=[none, none])
    assert EvaluationData(lvis(CONFIG), data, proposals).count == 2
    with pytest.raises(ValueError, match=r"coco: image val/0000 of split 'val' is annotated for some categories only"):
        EvaluationData(CONFIG, data, proposals)
