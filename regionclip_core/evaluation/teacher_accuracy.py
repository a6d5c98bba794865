"""How well the teacher names what it sees: whole images, crops, and features pooled from the whole image.

The gap between the last and the first two is the domain shift that region-text pretraining is for (paper section 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.evaluator import Top1
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.storage.records import Folder
from regionclip_core.training.image_tally import ImageTally

Accuracy = dict[str, float | None]


class _Namer:
    """Names crops by the nearest class embedding and counts how often that is right."""

    def __init__(self, clip: ClipModel, config: Config, vocabulary: Vocabulary) -> None:
        classes = embed_names(clip, vocabulary.names, config.teacher)
        self._classes = torch.nn.functional.normalize(classes, dim=1)
        self.top1 = Top1(vocabulary)

    def add(self, features: Tensor, labels: Iterable[int]) -> None:
        """Features [N, D] of any norm, and what they are of."""
        cosines = torch.nn.functional.normalize(features, dim=1) @ self._classes.T
        self.top1.add(cosines.cpu().numpy(), np.array(list(labels), dtype=np.int64))


def whole_image_top1(
    clip: ClipModel, config: Config, data: Folder, split: str, tally: ImageTally | None = None
) -> Accuracy:
    """Top-1, percent, over images of `split` that hold exactly one annotated object.

    Each image is seen as CLIP sees images: one square around all of it, at CLIP's own input size. `tally`
    counts those that could be read, and those that couldn't, by their row in the split.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    reader = ImageReader(data)
    encoder = CropEncoder(clip, context=1.0)
    namer = _Namer(clip, config, vocabulary)
    place = -1
    for shard in split_shards(data, (split,)):
        for row in read_index(data, shard):
            place += 1
            if not _has_one_object(row):
                continue
            try:
                image = reader.read(row)
            except BadImage as error:  # it has no pixels to be right or wrong about
                if tally is not None:
                    tally.bad(place, error, row.key)
                continue
            if tally is not None:
                tally.good(place)
            whole = torch.tensor([[0.0, 0.0, image.shape[1], image.shape[0]]])
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            namer.add(encoder([pixels], [whole]), [int(row.box_labels[0])])
    if not namer.top1.boxes:
        raise ValueError(f"evaluate.whole_image_split {split!r} has no readable image with exactly one object")
    return namer.top1.scores()


def _has_one_object(row: IndexRow) -> bool:
    return row.status == "ok" and len(row.boxes) == 1 and bool(row.box_labels[0] >= 0) and not row.box_crowd[0]


def crop_top1(clip: ClipModel, config: Config, evaluation: EvaluationData) -> Accuracy:
    """Top-1, percent, of square crops with `labels.context` around the annotated boxes."""
    encoder = CropEncoder(clip, config.labels.context, config.labels.batch_size)
    namer = _Namer(clip, config, evaluation.vocabulary)
    for images in evaluation.batches(config.evaluate.batch_size):
        features = encoder([i.pixels for i in images], [i.boxes for i in images])
        namer.add(features, [int(label) for i in images for label in i.labels])
    return namer.top1.scores()
