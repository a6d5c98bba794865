"""Average precision by COCO's and LVIS's rules, computed by faster-coco-eval one category at a time.

A model yields detections image by image, while average precision needs all detections of a category together. So
objects and detections are written to temporary files, 72 bytes each plus their masks, and read back by category. In
memory are one category as the library's Python objects, 1.6 kB per detection and four times its mask, so 200 MB for
COCO's persons where each of 5,000 images has 25; 32 kB of curves per category; and less than 1 kB per image.

All scores are percent (0..100), and None where there is no ground truth.

Legend: T IoU thresholds (0.50:0.05:0.95), R recall points (0:0.01:1), K categories, A area ranges, M caps on
detections, G objects and N detections of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_ops
from numpy.typing import NDArray

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, ImageTruth, xywh

Protocol = Literal["coco", "lvis"]
Kind = Literal["bbox", "segm"]
Score = float | None
Scores = dict[str, Any]
"""One model's numbers: by group, `per_category`, and the protocol's own. `metrics.py` has the layout."""

FREQUENCIES = ("rare", "common", "frequent")
"""Groups of the vocabulary behind APr, APc and APf: in at most 10, at most 100 and more training images."""
_CAPS: Mapping[Protocol, tuple[int, ...]] = {"coco": (1, 10, 100), "lvis": (300,)}
"""Detections that count per image and category, highest scores first. Average precision uses the last cap; that of LVIS
holds per image, too."""
FIXED_CAP = 10_000
"""Detections that count per category over the whole split in LVIS's fixed AP, where no image has a cap."""
_THRESHOLDS, _RECALLS = 10, 101
_AREAS = ("all", "small", "medium", "large")


def label_groups(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Return rows of the vocabulary by group: base, novel, all, and the vocabulary's own groups."""
    row_of = {name: row for row, name in enumerate(vocabulary.names)}
    own = {group: sorted(row_of[name] for name in members) for group, members in vocabulary.groups}
    everything = {"base": list(vocabulary.base_ids), "novel": list(vocabulary.novel_ids)}
    return {**everything, "all": list(range(len(vocabulary))), **own}


class Evaluator:
    """The ground truth of a split, against which the detections of several models are measured.

    `coco`: COCO's rules, crowds included. `lvis`: the federated rule. An image has categories with objects, categories
    that are known to be absent, and others, whose detections don't count. Where not all objects of a category are
    annotated, its unmatched detections don't count as mistakes.
    """

    def __init__(self, vocabulary: Vocabulary, protocol: Protocol, fixed_ap: bool = False) -> None:
        """`fixed_ap`: see `fixed`."""
        missing = set(FREQUENCIES) - {name for name, _ in vocabulary.groups}
        if protocol == "lvis" and missing:
            raise ValueError(
                f"evaluate.protocol lvis: the categories have no group {', '.join(sorted(missing))}, which APr, APc "
                "and APf are averages of; set data.categories to an LVIS annotation file"
            )
        self.vocabulary = vocabulary
        self.protocol: Protocol = protocol
        self.fixed_ap = fixed_ap
        self.counts: NDArray[np.int64] = np.zeros(len(vocabulary), np.int64)
        """Objects by label [K], without crowds."""
        self._images: dict[int, dict[str, Any]] = {}
        """Entries of COCO's and LVIS's annotation files by image id. Labels are the category ids."""
        self._objects = CategoryRows()

    @property
    def has_masks(self) -> bool:
        """Whether there are objects and all of them have masks."""
        return self._objects.has_masks

    def add_truth(self, image: ImageTruth, name: str | None = None) -> None:
        """Add one image, with or without objects; `name` is for messages. All images come before any detections.

        Raises:
            ValueError: if the image is annotated for the other protocol.
        """
        where = f"image {image.image_id if name is None else name}"
        assert image.image_id not in self._images, f"{where} for the second time"
        entry: dict[str, Any] = {"id": image.image_id, "height": image.height, "width": image.width}
        self._images[image.image_id] = entry
        kept = image.labels >= 0
        area = xywh(image.boxes)[:, 2:].prod(axis=1) if image.area is None else image.area
        crowd = np.zeros(len(kept), np.bool_) if image.crowd is None else image.crowd
        if self.protocol == "lvis":
            if image.neg_labels is None or image.not_exhaustive_labels is None:
                raise ValueError(
                    f"evaluate.protocol lvis: {where} has no list of absent categories (neg_category_ids), which the "
                    "federated rule needs; evaluate a split with `source: lvis`, or set evaluate.protocol: coco"
                )
            kept, crowd = kept & (area > 0), np.zeros(len(kept), np.bool_)  # as in lvis-api
            # The library counts detections of the categories that are listed here or have objects; `add` needs both.
            entry["neg_category_ids"] = np.union1d(image.labels[kept], image.neg_labels).tolist()
            entry["not_exhaustive_category_ids"] = image.not_exhaustive_labels.tolist()
        elif image.neg_labels is not None:
            raise ValueError(
                f"evaluate.protocol coco: {where} is annotated for some categories only (LVIS), and COCO's rules would "
                "count correct detections of the others as mistakes; set evaluate.protocol: lvis"
            )
        if kept.any():
            self._objects.add(image, kept, area=area, crowd=crowd, score=np.zeros(len(kept)))
            self.counts += np.bincount(image.labels[kept & ~crowd], minlength=len(self.counts))

    def add(self, detections: CategoryRows, found: ImageDetections, every: bool = False) -> None:
        """Add one image's detections, each image once, to `detections`: those of one model, empty at first.

        `every`: also those that no rule but fixed AP's looks at.
        """
        kept = np.ones(len(found.labels), np.bool_)
        if self.protocol == "lvis" and not every:
            kept[np.argsort(-found.scores, kind="stable")[_CAPS["lvis"][-1] :]] = False
            # The library would leave these categories out, too; this way their detections need not be written.
            kept &= np.isin(found.labels, self._images[found.image_id]["neg_category_ids"])
        crowd = np.zeros(len(kept), np.bool_)
        detections.add(found, kept, area=found.boxes[:, 2:].prod(axis=1), crowd=crowd, score=found.scores)

    def evaluate(self, detections: CategoryRows, kind: Kind = "bbox", only: str | None = None) -> Scores:
        """Return the scores of one model.

        Args:
            detections: of any images that have ground truth; the other images count as empty.
            kind: `segm` measures masks, which all objects and detections must have.
            only: the one group whose names the model was asked for; all numbers are of this group's categories.
        """
        groups = label_groups(self.vocabulary)
        labels = sorted(groups["all" if only is None else only])
        precision, recall = self.curves(detections, kind, labels)
        scores: Scores = {
            name: {
                "ap50": _percent(precision[0][:, rows, 0]),
                "ap": _percent(precision[:, :, rows, 0]),
                "categories": int((self.counts[rows] > 0).sum()),
                "boxes": int(self.counts[rows].sum()),
            }
            for name, rows in (groups if only is None else {only: groups[only]}).items()
        }
        scores["per_category"] = {self.vocabulary.names[row]: _percent(precision[0, :, row, 0]) for row in labels}
        parts = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
        parts |= {f"AP{area[0]}": precision[..., i] for i, area in enumerate(_AREAS) if i}
        caps = _CAPS[self.protocol]
        if self.protocol == "coco":
            parts |= {f"AR{cap}": recall[..., 0, i] for i, cap in enumerate(caps)}
        else:
            parts |= {f"AP{name[0]}": precision[:, :, groups[name], 0] for name in FREQUENCIES}
            parts["AR@300"] = recall[..., 0, -1]
        end = "" if self.protocol == "coco" else "@300"
        parts |= {f"AR{area[0]}{end}": recall[..., i, -1] for i, area in enumerate(_AREAS) if i}
        scores[self.protocol] = {name: _percent(values) for name, values in parts.items()}
        return scores

    def fixed(self, detections: CategoryRows, kind: Kind = "bbox") -> dict[str, Score]:
        """Return LVIS's fixed AP (Dave et al. 2021): the FIXED_CAP best detections of each category count.

        With a cap per image, categories compete for places in it, and AP rewards scores that are not comparable between
        categories. `detections`: every one, see `add`.
        """
        groups = label_groups(self.vocabulary)
        precision, _ = self.curves(detections, kind, groups["all"], fixed=True)
        every = precision[..., 0]
        parts = {"AP": every, "AP50": every[0], "AP75": every[5]}
        parts |= {f"AP{name[0]}": every[:, :, groups[name]] for name in FREQUENCIES}
        return {name: _percent(values) for name, values in parts.items()}

    def curves(
        self, detections: CategoryRows, kind: Kind, labels: Sequence[int], fixed: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return precision [T, R, K, A] at the largest cap, and recall [T, K, A, M].

        They are -1 for categories that are not in `labels` or have no objects. `fixed`: by the rule of `fixed`.
        """
        precision = np.full((_THRESHOLDS, _RECALLS, len(self.counts), len(_AREAS)), -1.0)
        recall = np.full((_THRESHOLDS, len(self.counts), len(_AREAS), len(_CAPS[self.protocol])), -1.0)
        for label in labels:
            if self.counts[label]:
                precision[:, :, label], recall[:, label] = self._category(detections, kind, label, fixed)
        return precision, recall

    def _category(
        self, detections: CategoryRows, kind: Kind, label: int, fixed: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return precision [T, R, A] and recall [T, A, M] of one category; its memory is freed on return."""
        lvis = self.protocol == "lvis"
        objects = self._annotations(self._objects.read(label), kind)
        rows = detections.read(label)
        if fixed:
            best = np.sort(np.argsort(-rows["score"].to_numpy(), kind="stable")[:FIXED_CAP])
            # The others take a place among the best, but are on images that don't count for this category.
            ids = rows["image_id"].to_numpy()[best].tolist()
            rows = rows.take(best[[label in self._images[one]["neg_category_ids"] for one in ids]])
        found = self._annotations(rows, kind)
        if kind == "segm":
            for one in found:  # the size of a detection is that of its mask
                one["area"] = float(mask_ops.area(one["segmentation"]))
        if lvis:
            found = [one for one in found if one["area"] > 0]  # lvis-api leaves out the others
        # Images with neither objects nor detections of the category would change nothing.
        images = {one["image_id"]: self._images[one["image_id"]] for one in (*objects, *found)}
        category = {"id": label, "name": self.vocabulary.names[label], "frequency": "f"}  # any frequency will do
        base = {"images": list(images.values()), "categories": [category]}
        sides = (COCO({**base, "annotations": rows}) for rows in (objects, found))
        evaluator = COCOeval_faster(*sides, kind, lvis_style=lvis, print_function=lambda *_: None)
        evaluator.params.maxDets = [FIXED_CAP] if fixed else list(_CAPS[self.protocol])
        evaluator.evaluate()
        evaluator.accumulate()
        return evaluator.eval["precision"][:, :, 0, :, -1], evaluator.eval["recall"][:, 0]

    def _annotations(self, rows: pa.Table, kind: Kind) -> list[dict[str, Any]]:
        """Return rows as COCO's annotations. Ids start at 1, since 0 means "not matched" to the library."""
        boxes = rows["bbox"].combine_chunks().flatten().to_numpy().reshape(-1, 4).tolist()
        names = ("image_id", "label", "area", "crowd", "score")
        columns = (rows[name].to_numpy().tolist() for name in names)
        annotations = [
            {
                "id": i,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": crowd,
                "score": score,
            }
            for i, (box, image, label, area, crowd, score) in enumerate(zip(boxes, *columns, strict=True), start=1)
        ]
        if kind == "segm":
            for one, mask in zip(annotations, rows["mask"], strict=True):
                image = self._images[one["image_id"]]
                counts = mask.as_py().decode("ascii")
                one["segmentation"] = {"size": [image["height"], image["width"]], "counts": counts}
        return annotations


def _percent(values: NDArray[np.float64]) -> Score:
    """Return the mean of the values that have ground truth (not -1), in percent; None if there are none."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else None
