"""How good pseudo labels are where boxes are annotated: for the labels stage's summary and its table of concepts; no
stage reads it.

R regions of one image, C concepts, K categories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchvision.ops import box_iou

from regionclip_core.concepts.rules.component import noun_lemmas
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.synonyms import categories_by_synonym
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.pretraining.concept_truth import CONCEPT_TRUTH
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import labelled_boxes

KINDS = ("clean", "wrong_name", "loose", "off_object")
_UNNAMED = len(KINDS)  # counts as `wrong_name`, but no label could have been right: the object's name isn't in the pool
_GROUPS = ("base", "novel", "nothing")  # of the object that a region overlaps best; `nothing`: it overlaps none
_BINS = 10


def label_quality(
    data: Folder, concepts: Folder, labels: Folder, splits: Iterable[str], synonyms: str | None = None
) -> tuple[dict[str, Any], pa.Table | None]:
    """Measure the share of regions kept, and what the kept labels are in the splits that have boxes.

    A region belongs to the object that it overlaps best. Its label is `clean` (IoU >= 0.5, and the concept names the
    object, see `concept_categories`), `wrong_name` (IoU >= 0.5), `loose` (IoU >= 0.3: a part, or too large a box) or
    `off_object`. Objects of no category and crowds are no objects here. `synonyms`: as `labels.synonyms`.

    Returns:
        the summary and, with annotated splits, a table of CONCEPT_TRUTH with a row per concept of a kept label; in its
        order those come first of which most labels are clean, counted as clean labels less the others. The summary:
        `regions`, `kept`, `kept_share`; `base_accuracy` and `novel_accuracy`, clean labels as a share of those with
        IoU >= 0.5 on objects whose name is in the pool, where there are any. With annotated splits also `truth` and
        `truth_shares`, kept labels by kind for all regions and by the object's group, and `by_score`: all labelled
        regions, kept or not, per kind a list of ten counts, by score from 0 to 1.
    """
    categories = Vocabulary.from_json(data.read_json("categories.json"))
    pool, _ = load_embeddings(labels)
    category_C = concept_categories(concepts, pool.names, categories, synonyms)
    named_K = np.isin(np.arange(len(categories)), category_C)
    novel_K = np.isin(np.arange(len(categories)), categories.novel_ids)
    regions = kept = 0
    totals = np.zeros((2, len(_GROUPS), _BINS, len(KINDS) + 1), np.int64)  # by kept, group, score and kind
    of_concepts = np.zeros((len(pool), len(KINDS) + 1), np.int64)  # kept labels, by concept and kind
    mistaken: Counter[int] = Counter()  # kept labels of a wrong name: concept * K + the object's category
    for split in splits:
        counts, annotated = np.zeros_like(totals), False
        concept_counts, mistakes = np.zeros_like(of_concepts), Counter[int]()
        for shard in split_shards(data, [split]):
            images = {row.key: row for row in read_index(data, shard, categories.digest)}
            with labels.open(f"labels-{shard:05d}.parquet") as file:
                rows = pq.read_table(file, columns=["key", "boxes", "concept_id", "score", "kept"]).to_pylist()
            for row in rows:
                regions += len(row["kept"])
                kept += sum(row["kept"])
                boxes, truth = labelled_boxes(images[row["key"]], range(len(categories)))
                annotated = annotated or len(boxes) > 0
                if not row["boxes"]:
                    continue
                overlap, category = _best_object(row["boxes"], boxes, truth)
                concept, use = np.asarray(row["concept_id"]), np.asarray(row["kept"])
                right = category_C[concept] == category
                kind = np.select([overlap < 0.3, overlap < 0.5, right, named_K[category]], [3, 2, 0, 1], _UNNAMED)
                group = np.where(overlap > 0, novel_K[category].astype(int), 2)
                score = np.minimum((np.asarray(row["score"], np.float32) * _BINS).astype(int), _BINS - 1)
                np.add.at(counts, (use.astype(int), group, score, kind), 1)
                np.add.at(concept_counts, (concept[use], kind[use]), 1)
                wrong = use & ((kind == 1) | (kind == _UNNAMED))
                mistakes.update((concept[wrong] * len(categories) + category[wrong]).tolist())
        totals += counts * annotated
        of_concepts += concept_counts * annotated
        mistaken.update(mistakes)  # none where nothing is annotated
    summary: dict[str, Any] = {"regions": regions, "kept": kept, "kept_share": kept / max(1, regions)}
    by_group = totals[1].sum(axis=1)
    for name, count in zip(("base", "novel"), by_group, strict=False):
        if on_object := count[[0, 1]].sum():
            summary[f"{name}_accuracy"] = float(count[0] / on_object)
    table = None
    if totals.any():
        table = _by_concept(pool.names, categories, category_C, of_concepts, mistaken)
        groups = {"all": by_group.sum(axis=0), "base": by_group[0], "novel": by_group[1]}
        truth_of = {name: _by_kind(count) for name, count in groups.items()}
        summary["truth"] = truth_of
        summary["truth_shares"] = {
            name: {kind: n / max(1, sum(found.values())) for kind, n in found.items()}
            for name, found in truth_of.items()
        }
        summary["by_score"] = _by_kind(totals.sum(axis=(0, 1)).T)
    return summary, table


def concept_categories(
    concepts: Folder, pool: Sequence[str], categories: Vocabulary, synonyms: str | None = None
) -> npt.NDArray[np.int64]:
    """Return int64[C], the category that each concept of the pool names, a row of `categories`; -1: none.

    A concept names a category if it is spelled like it, or is how the pool spells it ("ski" for "skis"). With
    `synonyms`, a file as `labels.synonyms` names it, also if it is one of the category's synonyms there, or the plural
    of its name or of a synonym. `pool`: names of the concepts, which are those of `concepts` and then perhaps others.
    """
    with concepts.open_table("concepts.parquet") as file:
        own = pq.read_table(file, columns=["dataset_class"])["dataset_class"].to_pylist()
    spelled = [name if own is None else own for name, own in zip(pool, own, strict=False)] + list(pool[len(own) :])
    row = {name: number for number, name in enumerate(categories.names)}
    if synonyms is not None:
        row = categories_by_synonym(synonyms, categories, "labels.synonyms")
        row = {_singular(name): number for name, number in row.items()} | row
        spelled = [name if name in row else _singular(name) for name in spelled]
    return np.array([row.get(name, -1) for name in spelled], np.int64)


def _singular(name: str) -> str:
    """Return a name with its last word in the singular."""
    words = name.split()
    return " ".join([*words[:-1], *noun_lemmas(words)[-1:]])


def _by_concept(
    pool: Sequence[str],
    categories: Vocabulary,
    category_C: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    mistaken: Counter[int],
) -> pa.Table:
    """Return CONCEPT_TRUTH; `counts` [C, kinds] of kept labels, `mistaken` as in `label_quality`."""
    worst: dict[int, tuple[int, int]] = {}  # by concept: how often, and minus the category
    for key, count in mistaken.items():
        concept, category = divmod(key, len(categories))
        worst[concept] = max(worst.get(concept, (0, 0)), (count, -category))
    rows = []
    for concept in np.flatnonzero(counts.sum(axis=1)).tolist():
        by_kind, (often, category) = _by_kind(counts[concept]), worst.get(concept, (0, 0))
        row = {
            "concept": pool[concept],
            "category": categories.names[category_C[concept]] if category_C[concept] >= 0 else None,
            "kept": int(counts[concept].sum()),
            **by_kind,
            "mostly_on": categories.names[-category] if often else None,
            "mostly_on_count": often,
        }
        rows.append(row)
    rows.sort(key=lambda row: (row["kept"] - 2 * row["clean"], row["concept"]))
    return pa.Table.from_pylist(rows, schema=CONCEPT_TRUTH)


def _best_object(
    regions: list[list[float]], boxes: torch.Tensor, truth: torch.Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return float32[R], each region's highest IoU with an object, and int64[R], that object's category; 0 and 0."""
    if not len(boxes):
        return np.zeros(len(regions), np.float32), np.zeros(len(regions), np.int64)
    overlap, best = box_iou(torch.tensor(regions), boxes).max(dim=1)
    return overlap.numpy(), truth[best].numpy()


def _by_kind(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return {kind: count or counts} of an array by kind, `_UNNAMED` added to `wrong_name`."""
    found = dict(zip(KINDS, (counts[0], counts[1] + counts[_UNNAMED], counts[2], counts[3]), strict=True))
    return {kind: count.tolist() for kind, count in found.items()}
