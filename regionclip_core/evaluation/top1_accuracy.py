"""Top-1 accuracies: how often the best category of a given box, crop or whole image is the right one.

The teacher names whole images and crops better than features pooled from the whole image. That gap is the domain shift
that region-text pretraining is for (paper section 1).

Legend: N boxes, K categories, D embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.average_precision import Score, label_groups
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.storage.records import Folder
from regionclip_core.training.unreadable_images import UnreadableImages


class Top1:
    """Share of boxes whose best category is right, from two counts per category."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._right = np.zeros(len(vocabulary), np.int64)
        self._all = np.zeros(len(vocabulary), np.int64)

    def add(self, logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> None:
        """Add boxes: `logits` [N, K] without the background's, `labels` [N] rows of the vocabulary."""
        count = len(self._vocabulary)
        assert logits.shape == (len(labels), count)
        self.count(logits.argmax(axis=1) == labels, labels)

    def count(self, right: NDArray[np.bool_], labels: NDArray[np.int64]) -> None:
        """Add boxes: whether each is right, [N], and rows of the vocabulary, `labels` [N]."""
        self._all += np.bincount(labels, minlength=len(self._vocabulary))
        self._right += np.bincount(labels[right], minlength=len(self._vocabulary))

    def scores(self) -> dict[str, Score]:
        """Return percent by group of categories; None for a group without boxes."""
        groups = label_groups(self._vocabulary)
        counts = {name: (self._right[rows].sum(), self._all[rows].sum()) for name, rows in groups.items()}
        return {name: float(right / total * 100) if total else None for name, (right, total) in counts.items()}

    def mean_class(self) -> dict[str, Score]:
        """Return the mean over a group's categories that have boxes, percent: each counts alike, rare or not."""
        groups = label_groups(self._vocabulary)
        seen = {name: [row for row in rows if self._all[row]] for name, rows in groups.items()}
        return {
            name: float((self._right[rows] / self._all[rows]).mean() * 100) if rows else None
            for name, rows in seen.items()
        }


def whole_image_top1(
    clip: ClipModel, config: Config, data: Folder, split: str, unreadable: UnreadableImages
) -> dict[str, Score]:
    """Return the top-1 accuracy over images of `split` that hold exactly one annotated object.

    Each image is seen as CLIP sees images: one square around all of it, at CLIP's own input size. `unreadable`
    takes those that can't be read.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    reader = ImageReader(data)
    encoder = CropEncoder(clip, context=1.0)
    classes, top1 = embed_names(clip, vocabulary.names, config.teacher), Top1(vocabulary)
    for shard in split_shards(data, (split,)):
        for row in read_index(data, shard, vocabulary.digest):
            if not row.ok or len(row.boxes) != 1 or row.box_labels[0] < 0 or row.box_crowd[0]:
                continue
            pixels = unreadable.read(row.key, reader.read_tensor, row)
            if pixels is None:
                continue
            whole = torch.tensor([[0.0, 0.0, pixels.shape[2], pixels.shape[1]]])
            top1.add(_cosines(encoder([pixels], [whole]), classes), row.box_labels.astype(np.int64))
    scores = top1.scores()
    if scores["all"] is None:
        raise ValueError(f"evaluate.whole_image_split {split!r} has no readable image with exactly one object")
    return scores


def crop_top1(clip: ClipModel, config: Config, evaluation: EvaluationData) -> Top1:
    """Return the accuracies of square crops with `labels.context` around the annotated boxes."""
    encoder = CropEncoder(clip, config.labels.context, config.labels.batch_size)
    classes, top1 = embed_names(clip, evaluation.vocabulary.names, config.teacher), Top1(evaluation.vocabulary)
    for images in evaluation.batches(config.evaluate.batch_size):
        features = encoder([i.pixels for i in images], [i.boxes for i in images])
        top1.add(_cosines(features, classes), torch.cat([i.labels for i in images]).numpy())
    return top1


def _cosines(features: Tensor, classes: Tensor) -> NDArray[np.float32]:
    """Return cosines [N, K] of features [N, D] and class embeddings [K, D], both of any norm."""
    normalize = torch.nn.functional.normalize
    cosines: NDArray[np.float32] = (normalize(features, dim=1) @ normalize(classes, dim=1).T).cpu().numpy()
    return cosines
