"""Colours of the embedded world's objects, for the row of `evaluate.colours`: "red teapot" among all colours.

The index doesn't hold them. Each image is drawn once more, from the seed and its number, which takes 1 to 2 ms.

Legend: G annotated boxes of one image, K categories, C colours, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.config.tree import Config, WorldSplit
from regionclip_core.datasets.world.palette import NAMED
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.evaluation.data import EvaluationData, EvaluationImage
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names


class Colours:
    """Says whether region features of annotated boxes are nearest to the right colour of their own category."""

    def __init__(self, clip: ClipModel, config: Config, evaluation: EvaluationData) -> None:
        """Embed every category in every colour."""
        split = config.data.splits[config.evaluate.split]
        assert isinstance(split, WorldSplit)  # the config is checked
        self._split, self._name, self._seed = split, config.evaluate.split, config.seed
        names = evaluation.vocabulary.names
        embedded = embed_names(clip, [f"{colour} {name}" for name in names for colour in NAMED], config.teacher)
        self._embeddings = F.normalize(embedded, dim=1).view(len(names), len(NAMED), -1)  # [K, C, D]

    def right(self, image: EvaluationImage, features: Tensor) -> Tensor:
        """Return bool[G], on the CPU, of region features [G, D], of any norm, of the image's annotated boxes.

        Raises:
            ValueError: if the drawing's boxes are not those of the index.
        """
        number, split = int(image.row.key), self._split
        sample = make_sample(
            split.kind, self._seed, self._name, number, split.image_size, split.objects, split.object_size
        )
        used = torch.from_numpy(image.row.box_labels >= 0)
        boxes = torch.from_numpy(sample.boxes)
        if boxes.shape != image.row.boxes.shape or not torch.equal(boxes[used], image.boxes):
            raise ValueError(
                f"evaluate.colours: image {number} of split {self._name!r} is not the one that this config draws; run "
                "the data stage with the same seed and split"
            )
        every = list(NAMED)
        wanted = torch.tensor([every.index(colour) for colour in sample.colours])[used]
        own = self._embeddings[image.labels.to(self._embeddings.device)]  # [G, C, D]
        cosines = torch.einsum("gcd,gd->gc", own, F.normalize(features.float(), dim=1).to(own.device))
        return cosines.argmax(dim=1).cpu() == wanted
