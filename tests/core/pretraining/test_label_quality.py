"""Label quality against a loop over regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_artifacts import TRAIN, VOCABULARY, Picture, naive_iou, rows_of, write_data

from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.pretraining.concept_truth import CONCEPT_TRUTH, best_and_worst, write_truth
from regionclip_core.pretraining.label_quality import KINDS, concept_categories, label_quality
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import CONCEPTS, LABELS

# "bus", a base category, is not in the pool; the order is another one than the categories', and the pool spells "cat"
# otherwise.
POOL = Vocabulary(("cup", "tree", "kitty", "dog"))
SPELLED = {"kitty": "cat"}
MEANS = [SPELLED.get(name, name) for name in POOL.names]


@pytest.fixture
def concepts(tmp_path: Path) -> Folder:
    folder = Folder(str(tmp_path / "concepts"))
    numbers = dict.fromkeys(("id", "n_words", "n_captions", "n_images", "n_mentions"), 1)
    texts = {"head": "", "surface_forms": [], "source": "parsed", "example": None}
    rows = [{"concept": n, "dataset_class": SPELLED.get(n), **numbers, **texts} for n in POOL.names]
    with folder.write("concepts.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=CONCEPTS), file)
    return folder


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
                    "score": rng.choice([0.0, 0.05, 0.31, 0.5, 0.99, 1.0], size=n).tolist(),
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


def naive(
    data: Folder, labels: dict[str, dict[str, Any]], *splits: str, means: list[str] = MEANS
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and the rows of the table of concepts."""
    regions = kept = 0
    judged: dict[str, list[bool]] = {"base": [], "novel": []}
    truth = {group: dict.fromkeys(KINDS, 0) for group in ("all", "base", "novel")}
    by_score = {kind: [0] * 10 for kind in KINDS}
    concepts: dict[int, list[tuple[str, str]]] = {}
    for image in rows_of(data, *splits):
        row = labels[image.key]
        for box, concept, score, use in zip(*(row[n] for n in ("boxes", "concept_id", "score", "kept")), strict=True):
            regions += 1
            kept += use
            candidates = [
                (naive_iou(box, truth.tolist()), VOCABULARY.names[label])
                for truth, label, crowd in zip(image.boxes, image.box_labels, image.box_crowd, strict=True)
                if label >= 0 and not crowd
            ]
            iou, name = max(candidates, default=(0.0, ""), key=lambda pair: pair[0])
            right = means[concept] == name
            kind = "off_object" if iou < 0.3 else "loose" if iou < 0.5 else "clean" if right else "wrong_name"
            by_score[kind][min(9, int(np.float32(score) * 10))] += 1
            if not use:
                continue
            group = "base" if name in VOCABULARY.base else "novel"
            truth["all"][kind] += 1
            concepts.setdefault(concept, []).append((kind, name))
            if iou > 0:
                truth[group][kind] += 1
            if iou >= 0.5 and name in means:
                judged[group].append(right)
    result = {"regions": regions, "kept": kept, "kept_share": kept / regions, "truth": truth, "by_score": by_score}
    shares = {g: {k: n / max(1, sum(found.values())) for k, n in found.items()} for g, found in truth.items()}
    accuracies = {f"{group}_accuracy": sum(v) / len(v) for group, v in judged.items() if v}
    table = []
    for concept, found in concepts.items():
        kinds, wrong = [kind for kind, _ in found], [name for kind, name in found if kind == "wrong_name"]
        # max takes the first of equals: the category of the lowest row.
        mostly = max(VOCABULARY.names, key=wrong.count) if wrong else None
        counts = {kind: kinds.count(kind) for kind in KINDS}
        own = means[concept] if means[concept] in VOCABULARY.names else None
        row = {"concept": POOL.names[concept], "category": own, "kept": len(found), **counts}
        table.append(row | {"mostly_on": mostly, "mostly_on_count": wrong.count(mostly or "")})
    table.sort(key=lambda row: (row["kept"] - 2 * row["clean"], row["concept"]))
    return result | accuracies | {"truth_shares": shares}, table


@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
@pytest.mark.parametrize("seed", [0, 1])
def test_against_a_loop(
    boxes_data: Folder, concepts: Folder, tmp_path: Path, splits: tuple[str, ...], seed: int
) -> None:
    labels, rows = write_labels(tmp_path, boxes_data, seed)
    expected, lines = naive(boxes_data, rows, *splits)
    found, table = label_quality(boxes_data, concepts, labels, splits)
    assert found == expected
    assert table is not None and table.schema.equals(CONCEPT_TRUTH) and table.to_pylist() == lines
    assert [row["category"] for row in lines].count(None) == 1 and all(row["mostly_on_count"] for row in lines)
    assert json.loads(json.dumps(found)) == found  # a summary is JSON
    assert {"base_accuracy", "novel_accuracy"} <= found.keys()
    assert 0 < found["base_accuracy"] < 1
    assert min(min(counts.values()) for counts in found["truth"].values()) > 0
    assert found["truth"]["all"]["off_object"] > sum(found["truth"][g]["off_object"] for g in ("base", "novel"))
    assert sum(map(sum, found["by_score"].values())) == found["regions"]


def test_a_group_that_nothing_hits_has_no_accuracy(boxes_data: Folder, concepts: Folder, tmp_path: Path) -> None:
    labels, _ = write_labels(tmp_path, boxes_data, 0, far=500.0)
    found, table = label_quality(boxes_data, concepts, labels, ("train",))
    assert table is not None and set(table["mostly_on"].to_pylist()) == {None}
    assert found["regions"] > 0
    assert set(found) == {"regions", "kept", "kept_share", "truth", "truth_shares", "by_score"}
    assert found["truth"]["all"]["off_object"] == found["kept"]


def test_a_split_without_boxes_has_no_truth(concepts: Folder, tmp_path: Path) -> None:
    bare = write_data(tmp_path / "bare", {"train": [[Picture(48, 72)]], "val": [[Picture(48, 72)]]})
    labels, _ = write_labels(tmp_path, bare, 0)
    summary, table = label_quality(bare, concepts, labels, ("train", "val"))
    assert set(summary) == {"regions", "kept", "kept_share"} and table is None
    boxed = Picture(48, 72, ((4, 4, 24, 24),), (0,))
    mixed = write_data(tmp_path / "mixed", {"train": [[Picture(48, 72)]], "val": [[boxed]]})
    labels, rows = write_labels(tmp_path, mixed, 0)
    found, table = label_quality(mixed, concepts, labels, ("train", "val"))
    expected, lines = naive(mixed, rows, "val")
    assert found["truth"] == expected["truth"] and table is not None and table.to_pylist() == lines
    assert sum(found["truth"]["all"].values()) < found["kept"]


def test_right_labels_are_all_right(boxes_data: Folder, concepts: Folder, tmp_path: Path) -> None:
    labels, _ = write_labels(tmp_path, boxes_data, 0)
    for shard in split_shards(boxes_data, ("train",)):
        rows = []
        for image in read_index(boxes_data, shard):
            use = [i for i, n in enumerate(image.box_labels) if n >= 0 and VOCABULARY.names[n] in MEANS]
            n = len(use)
            rows.append(
                {
                    "key": image.key,
                    "status": image.status,
                    "boxes": image.boxes[use].tolist(),
                    "concept_id": [MEANS.index(VOCABULARY.names[image.box_labels[i]]) for i in use],
                    "kept": [True] * n,
                }
                | {name: [0.0] * n for name in ("objectness_logit", "score", "residual_mass")}
                | {"top_concepts": [[0]] * n, "top_probabilities": [[0.5]] * n}
            )
        with labels.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=LABELS), file)
    found, table = label_quality(boxes_data, concepts, labels, ("train",))
    assert table is not None and {row["mostly_on"] for row in table.to_pylist()} == {None}
    count = sum(sum(n in (0, 1, 3) for n in picture.labels) for shard in TRAIN for picture in shard)
    crowd = {"clean": count - 1, "wrong_name": 0, "loose": 0, "off_object": 1}  # one is a crowd, which is no object
    assert found.pop("truth")["all"] == crowd
    assert found.pop("truth_shares")["novel"] == {"clean": 1, "wrong_name": 0, "loose": 0, "off_object": 0}
    assert found.pop("by_score")["clean"] == [count - 1] + [0] * 9
    assert found == {"regions": count, "kept": count, "kept_share": 1, "base_accuracy": 1, "novel_accuracy": 1}


@pytest.mark.parametrize(
    ("lists", "means"),
    [
        ("dog: [trees]", ["cup", "dog", "cat", "dog"]),  # the list has the plural of a concept
        ("bus: [tree, coach]\ncup: [mug]", ["cup", "bus", "cat", "dog"]),
        ("cup: [dog]", MEANS),  # a category's own name is no synonym
        ("cat: [animal]", MEANS),
    ],
)
def test_synonyms_and_plurals_count_where_a_list_is_given(
    boxes_data: Folder, concepts: Folder, tmp_path: Path, lists: str, means: list[str]
) -> None:
    labels, rows = write_labels(tmp_path, boxes_data, 0)
    (tmp_path / "own.yaml").write_text(lists)
    found, table = label_quality(boxes_data, concepts, labels, ("train", "val"), str(tmp_path / "own.yaml"))
    expected, lines = naive(boxes_data, rows, "train", "val", means=means)
    assert found == expected and table is not None and table.to_pylist() == lines
    plain, _ = label_quality(boxes_data, concepts, labels, ("train", "val"))
    assert (plain == found) == (means == MEANS)


def test_plurals_of_concepts(concepts: Folder, tmp_path: Path) -> None:
    """Of names that a file of labels added to the pool."""
    (tmp_path / "own.yaml").write_text("bus: [motor coach]\ncup: [mug]")
    pool = (*POOL.names, "dogs", "motor coaches", "mugs", "buses", "house")
    found = concept_categories(concepts, pool, VOCABULARY, str(tmp_path / "own.yaml")).tolist()
    assert found == [3, -1, 0, 1, 1, 2, 3, 2, -1]
    assert concept_categories(concepts, pool, VOCABULARY).tolist() == [3, -1, 0, 1, -1, -1, -1, -1, -1]


def test_a_synonym_of_two_categories_is_refused(concepts: Folder, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("cup: [vessel]\nbus: [vessel]")
    with pytest.raises(ValueError, match=r"own.yaml: 'vessel' is a synonym of 'bus' and of 'cup'; labels.synonyms"):
        concept_categories(concepts, POOL.names, VOCABULARY, str(tmp_path / "own.yaml"))
    with pytest.raises(FileNotFoundError, match=r"labels.synonyms: 'wrld' .*nearest: world"):
        concept_categories(concepts, POOL.names, VOCABULARY, "wrld")


def test_the_first_and_the_last_lines(boxes_data: Folder, concepts: Folder, tmp_path: Path) -> None:
    labels, _ = write_labels(tmp_path, boxes_data, 0)
    assert best_and_worst(labels, 3) == ([], [])
    _, table = label_quality(boxes_data, concepts, labels, ("train",))
    assert table is not None
    write_truth(labels, table)
    rows = table.to_pylist()
    assert len(rows) == 4
    assert best_and_worst(labels, 1) == (rows[:1], rows[3:])
    assert best_and_worst(labels, 3) == (rows[:3], rows[3:])
    assert best_and_worst(labels, 2) == (rows[:2], [rows[3], rows[2]])
    assert best_and_worst(labels, 9) == (rows, [])
