"""Recall of proposals against loops over boxes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifacts import BASE_IDS, NOVEL_IDS, TRAIN, Picture, naive_iou, rows_of, write_data, write_proposals
from torch import Tensor

from regionclip_core.datasets.index import IndexRow
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals import recall
from regionclip_core.proposals.recall import covered, recall_of_splits
from regionclip_core.storage.records import Folder


def test_recall_counts_what_a_naive_loop_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "TOPS", (1, 5, 12))
    generator = torch.Generator().manual_seed(0)
    truth = [torch.rand(n, 4, generator=generator) * 40 for n in (3, 0, 4)]
    truth = [torch.cat((b[:, :2], b[:, :2] + 10 + b[:, 2:]), dim=1) for b in truth]
    noise = [torch.randn(12, 4, generator=generator) * 5 for _ in truth]
    proposals = [(b.repeat(4, 1)[:12] + n[: len(b) * 4]) if len(b) else n for b, n in zip(truth, noise, strict=True)]
    proposals[2] = proposals[2][:0]  # an image without proposals
    counts: Counter[str] = Counter()
    for one, boxes in zip(proposals, truth, strict=True):
        counts.update(covered(one, boxes))
    for top in (1, 5, 12):
        hits = sum(
            any(box_ops.iou(box[None], p[None]).item() >= 0.5 for p in image[:top])
            for image, boxes in zip(proposals, truth, strict=True)
            for box in boxes
        )
        assert counts[f"recall@{top}"] == hits
    assert 0 < counts["recall@12"] < 7


def naive_recall(rows: list[IndexRow], boxes: dict[str, Tensor], ids: tuple[int, ...], top: int) -> float:
    hits = total = 0
    for one in rows:
        if one.key not in boxes:
            continue
        for box, label, crowd in zip(one.boxes.tolist(), one.box_labels, one.box_crowd, strict=True):
            if crowd or label not in ids:
                continue
            total += 1
            hits += any(naive_iou(box, other) >= 0.5 for other in boxes[one.key][:top].tolist())
    return hits / total


def test_recall_against_a_loop(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {"train": TRAIN, "val": TRAIN, "empty": [[Picture(40, 40)]]})
    proposals = Folder(str(tmp_path / "proposals"))
    rng = np.random.default_rng(0)
    boxes: dict[str, Tensor] = {}
    for one in rows_of(data, "train", "val", "empty"):
        if one.status != "ok" or one.key.endswith("3"):  # an unreadable image counts neither way
            continue
        near = one.boxes.repeat(20, 0) + rng.normal(0, 6, (20 * len(one.boxes), 4)).astype(np.float32)
        near = near[(near[:, 2] > near[:, 0]) & (near[:, 3] > near[:, 1])]
        boxes[one.key] = torch.from_numpy(rng.permutation(near)).float()
    assert "train/0003" not in boxes
    for split in ("train", "val", "empty"):
        write_proposals(proposals, data, split, boxes, torch.zeros(1000))
    result = recall_of_splits(data, proposals, ("train", "val", "empty"))
    assert set(result) == {"train", "val"}
    values = set()
    for split in ("train", "val"):
        for group, ids in (("base", BASE_IDS), ("novel", NOVEL_IDS)):
            for top in (10, 50, 100):
                expected = naive_recall(rows_of(data, split), boxes, ids, top)
                assert result[split][f"{group}_recall@{top}"] == pytest.approx(expected)
                values.add(expected)
    assert len(values) > 1
