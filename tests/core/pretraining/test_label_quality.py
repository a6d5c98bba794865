"""Label quality against a loop over regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_artifacts import TRAIN, VOCABULARY, naive_iou, rows_of

from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.pretraining.labelling import label_quality
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS

# "bus", a base category, is not in the pool; the order is another one than the categories'.
POOL = Vocabulary(("cup", "tree", "cat", "dog"))


def write_labels(url: Path, data: Folder, seed: int, far: float = 5.0) -> tuple[Folder, dict[str, dict[str, Any]]]:
    """Regions around the objects with ids drawn at random, some kept; bad images get empty rows."""
    folder, rng = Folder(str(url)), np.random.default_rng(seed)
    save_embeddings(folder, POOL, torch.randn(len(POOL), 4))
    written = {}
    for shard in split_shards(data, ("train", "val")):
        rows = []
        for image in read_index(data, shard):
            n = 0 if image.status != "ok" else int(rng.integers(40, 60))
            anchors = image.boxes if len(image.boxes) else np.array([[4, 4, 24, 24]], np.float32)
            boxes = anchors[rng.integers(len(anchors), size=n)] + rng.normal(0, far, (n, 4))
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            rows.append(
                {
                    "key": image.key,
                    "status": image.status,
                    "boxes": boxes.astype(np.float32).tolist(),
                    "objectness_logit": [0.0] * n,
                    "concept_id": rng.integers(len(POOL), size=n).tolist(),
                    "score": [0.5] * n,
                    "kept": (rng.uniform(size=n) < 0.7).tolist(),
                    "top_concepts": [[0]] * n,
                    "top_probabilities": [[0.5]] * n,
                    "residual_mass": [0.5] * n,
                }
            )
        written.update({row["key"]: row for row in rows})
        with folder.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=LABELS), file)
    return folder, written


def naive(data: Folder, labels: dict[str, dict[str, Any]], *splits: str) -> dict[str, float]:
    regions = kept = 0
    judged: dict[str, list[bool]] = {"base": [], "novel": []}
    for image in rows_of(data, *splits):
        row = labels[image.key]
        for box, concept, use in zip(row["boxes"], row["concept_id"], row["kept"], strict=True):
            regions += 1
            kept += use
            candidates = [
                (naive_iou(box, truth.tolist()), VOCABULARY.names[label])
                for truth, label, crowd in zip(image.boxes, image.box_labels, image.box_crowd, strict=True)
                if label >= 0 and not crowd
            ]
            iou, name = max(candidates, default=(0.0, ""), key=lambda pair: pair[0])
            if use and iou >= 0.5 and name in POOL.names:
                judged["base" if name in VOCABULARY.base else "novel"].append(POOL.names[concept] == name)
    result = {"regions": regions, "kept": kept, "kept_share": kept / regions}
    return result | {f"{group}_accuracy": sum(v) / len(v) for group, v in judged.items() if v}


@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(boxes_data: Folder, tmp_path: Path, splits: tuple[str, ...], seed: int) -> None:
    labels, rows = write_labels(tmp_path, boxes_data, seed)
    expected = naive(boxes_data, rows, *splits)
    found = label_quality(boxes_data, labels, splits)
    assert found == pytest.approx(expected)
    assert {"base_accuracy", "novel_accuracy"} <= found.keys()
    assert 0 < found["base_accuracy"] < 1


def test_a_group_that_nothing_hits_is_left_out(boxes_data: Folder, tmp_path: Path) -> None:
    labels, _ = write_labels(tmp_path, boxes_data, 0, far=500.0)
    found = label_quality(boxes_data, labels, ("train",))
    assert found["regions"] > 0
    assert set(found) == {"regions", "kept", "kept_share"}


def test_right_labels_are_all_right(boxes_data: Folder, tmp_path: Path) -> None:
    labels, _ = write_labels(tmp_path, boxes_data, 0)
    for shard in split_shards(boxes_data, ("train",)):
        rows = []
        for image in read_index(boxes_data, shard):
            use = [i for i, n in enumerate(image.box_labels) if n >= 0 and VOCABULARY.names[n] in POOL.names]
            n = len(use)
            rows.append(
                {
                    "key": image.key,
                    "status": image.status,
                    "boxes": image.boxes[use].tolist(),
                    "concept_id": [POOL.names.index(VOCABULARY.names[image.box_labels[i]]) for i in use],
                    "kept": [True] * n,
                }
                | {name: [0.0] * n for name in ("objectness_logit", "score", "residual_mass")}
                | {"top_concepts": [[0]] * n, "top_probabilities": [[0.5]] * n}
            )
        with labels.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=LABELS), file)
    found = label_quality(boxes_data, labels, ("train",))
    count = sum(sum(n in (0, 1, 3) for n in picture.labels) for shard in TRAIN for picture in shard)
    assert found == {"regions": count, "kept": count, "kept_share": 1, "base_accuracy": 1, "novel_accuracy": 1}
