"""Ground truth beside the detections of the finetuned detectors, on images of the validation split.

The images are spread evenly over those with a novel object; no result enters the choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.report.markup import escape, figure
from regionclip_core.report.pictures import Box, Drawn, Kind, PictureBook, draw
from regionclip_core.report.samples import Detection, SampleImage, read_detections, sample_images
from regionclip_core.storage.records import Folder

SCORE_THRESHOLD = 0.3
"""Detections below this score are not drawn."""
MAX_DRAWN = 8
"""Detections drawn an image, best first."""
MATCH_IOU = 0.5
"""A detection is right when it overlaps an object of its category, not yet found, by this IoU, as AP50 counts."""
DETECTORS = (("clip", "CLIP init"), ("regionclip", "RegionCLIP init"))


def detection_pictures(
    data: Folder, evaluate: Folder, split: str, count: int, vocabulary: Vocabulary, book: PictureBook
) -> str:
    """Rows of pictures: ground truth, CLIP init, RegionCLIP init. Empty when there is nothing to show."""
    detectors = [(name, title) for name, title in DETECTORS if evaluate.exists(f"detections-{name}.json")]
    if not count or not detectors:
        return ""
    novel = set(vocabulary.novel_ids)
    images = sample_images(data, split, count, lambda row: bool(novel & set(true_labels(row))))
    ids = [image.row.image_id for image in images]
    found = {name: read_detections(evaluate, name, ids, SCORE_THRESHOLD) for name, _ in detectors}
    rows = []
    for image in images:
        views = [_truth_view(image, vocabulary, book, split)]
        for name, title in detectors:
            best = found[name][image.row.image_id][:MAX_DRAWN]
            views.append(_detector_view(image, best, title, vocabulary, book, split))
        rows.append(f'<div class="grid three">{"".join(views)}</div>')
    return "\n".join(rows)


def true_labels(row: IndexRow) -> list[int]:
    """Labels of the row's objects that count: in the vocabulary, no crowds."""
    return [int(label) for label in row.box_labels[(row.box_labels >= 0) & ~row.box_crowd]]


def true_boxes(row: IndexRow) -> list[Box]:
    """Boxes of `true_labels`."""
    return [as_box(box) for box in row.boxes[(row.box_labels >= 0) & ~row.box_crowd]]


def as_box(values: Sequence[float]) -> Box:
    """Four numbers as a box of plain floats."""
    x0, y0, x1, y1 = (float(v) for v in values)
    return x0, y0, x1, y1


def truth_drawn(row: IndexRow, vocabulary: Vocabulary, text: bool = True) -> list[Drawn]:
    """The annotated objects, to be drawn in the colour of their kind."""
    return [
        Drawn(box, vocabulary.names[label] if text else "", kind_of(label, vocabulary), hint=vocabulary.names[label])
        for box, label in zip(true_boxes(row), true_labels(row), strict=True)
    ]


def kind_of(label: int, vocabulary: Vocabulary) -> Kind:
    """Base or novel."""
    return "base" if vocabulary.names[label] in vocabulary.base else "novel"


def right(detections: Sequence[Detection], row: IndexRow) -> list[bool]:
    """For each detection, best first, whether it finds an object: same category, MATCH_IOU, each object once.

    As in COCO's evaluation, a detection takes the object it overlaps most among those not yet found.
    """
    boxes, labels = true_boxes(row), np.array(true_labels(row), dtype=np.int64)
    if not boxes or not detections:
        return [False] * len(detections)
    overlap = box_ops.iou(torch.tensor([d.box for d in detections]), torch.tensor(boxes)).numpy()
    free = np.ones(len(boxes), dtype=bool)
    result = []
    for detection, ious in zip(detections, overlap, strict=True):
        usable = np.where(free & (labels == detection.label), ious, 0.0)
        at = int(usable.argmax())
        result.append(bool(usable[at] >= MATCH_IOU))
        if result[-1]:
            free[at] = False
    return result


def _truth_view(image: SampleImage, vocabulary: Vocabulary, book: PictureBook, split: str) -> str:
    picture = book.add(f"{split}/{image.row.key}", image.pixels)
    drawn = truth_drawn(image.row, vocabulary)
    novel = sum(d.kind == "novel" for d in drawn)
    caption = f"<b>Ground truth</b> {len(drawn)} objects, {novel} novel"
    return figure(draw(picture, drawn, f"ground truth of {image.row.key}"), caption)


def _detector_view(
    image: SampleImage,
    detections: Sequence[Detection],
    title: str,
    vocabulary: Vocabulary,
    book: PictureBook,
    split: str,
) -> str:
    picture = book.add(f"{split}/{image.row.key}", image.pixels)
    hits = right(detections, image.row)
    drawn = []
    for detection, hit in zip(detections, hits, strict=True):
        text = f"{vocabulary.names[detection.label]} {detection.score:.2f}"
        hint = f"{text}: {'right' if hit else 'wrong'}"
        drawn.append(Drawn(detection.box, text, kind_of(detection.label, vocabulary), dashed=not hit, hint=hint))
    caption = f"<b>{escape(title)}</b> {_tally(detections, hits, image.row, vocabulary)}"
    return figure(draw(picture, drawn, f"{title}, {image.row.key}"), caption)


def _tally(detections: Sequence[Detection], hits: Sequence[bool], row: IndexRow, vocabulary: Vocabulary) -> str:
    novel = set(vocabulary.novel_ids)
    labels = true_labels(row)
    found_novel = sum(hit and d.label in novel for d, hit in zip(detections, hits, strict=True))
    text = f"found {sum(hits)} of {len(labels)}"
    if of_novel := sum(label in novel for label in labels):
        text += f", novel {found_novel} of {of_novel}"
    wrong = len(hits) - sum(hits)
    return text + (f"; {wrong} wrong" if wrong else "")
