"""How well the teacher names what it sees: whole images, crops, and features pooled from the whole image.

The gap between the last and the first two is the domain shift that region-text pretraining is for (paper section 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.clip import ClipModel
from regionclip_core.config import Config
from regionclip_core.crops import CropEncoder
from regionclip_core.evaluating import EvaluationData
from regionclip_core.evaluation import top1_accuracy
from regionclip_core.finetuning import class_embeddings
from regionclip_core.images import BadImage, ImageReader
from regionclip_core.index import read_index, split_shards
from regionclip_core.vocabulary import Vocabulary

Accuracy = dict[str, float | None]


def _score(features: Tensor, labels: list[int], clip: ClipModel, vocabulary: Vocabulary, config: Config) -> Accuracy:
    classes = class_embeddings(clip, vocabulary.names, config)
    logits = torch.nn.functional.normalize(features, dim=1) @ torch.nn.functional.normalize(classes, dim=1).T
    return top1_accuracy(logits.cpu().numpy(), np.array(labels, dtype=np.int64), vocabulary)


def whole_image_top1(clip: ClipModel, config: Config, data: Folder, split: str) -> Accuracy:
    """Top-1, percent, over images of `split` that hold exactly one annotated object.

    Each image is seen as CLIP sees images: one square around all of it, at CLIP's own input size.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    reader = ImageReader(data)
    encoder = CropEncoder(clip, context=1.0)
    features, labels = [], []
    for shard in split_shards(data, (split,)):
        for row in read_index(data, shard):
            if row.status != "ok" or len(row.boxes) != 1 or row.box_labels[0] < 0 or row.box_crowd[0]:
                continue
            try:
                image = reader.read(row)
            except BadImage:
                continue  # it has no pixels to be right or wrong about
            whole = torch.tensor([[0.0, 0.0, image.shape[1], image.shape[0]]])
            features.append(encoder([torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))], [whole]))
            labels.append(int(row.box_labels[0]))
    if not labels:
        raise ValueError(f"evaluate.whole_image_split {split!r} has no readable image with exactly one object")
    return _score(torch.cat(features), labels, clip, vocabulary, config)


def crop_top1(clip: ClipModel, config: Config, evaluation: EvaluationData) -> Accuracy:
    """Top-1, percent, of square crops with `labels.context` around the annotated boxes."""
    encoder = CropEncoder(clip, config.labels.context, config.labels.batch_size)
    features, labels = [], []
    for images in evaluation.batches(config.evaluate.batch_size):
        features.append(encoder([i.pixels for i in images], [i.boxes for i in images]))
        labels += [int(label) for i in images for label in i.labels]
    return _score(torch.cat(features), labels, clip, evaluation.vocabulary, config)
