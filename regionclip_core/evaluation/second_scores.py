"""Probabilities by a second classifier, for the rows of `evaluate.fusion`: made in one pass, read by later ones.

Legend: G annotated boxes and R proposals of one image, K categories.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from regionclip_core.config.tree import Config, FusionConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.data import EvaluationData, EvaluationImage
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import embed_names


class SecondScores:
    """float32 [G + R, K] of each image, in a temporary file that disappears with this object.

    Four bytes per box and category: 126 MB for the 4,836 images of COCO's open-vocabulary validation set with 100
    proposals, 29 GB for LVIS's 19,809 with 300.
    """

    def __init__(self, categories: int) -> None:
        self._categories = categories
        self._file = tempfile.TemporaryFile(prefix="regionclip-evaluation-")  # noqa: SIM115 (open as long as the object)
        self._places: dict[int, tuple[int, int]] = {}  # offset and rows, by image id

    def add(self, image: EvaluationImage, probabilities: Tensor) -> None:
        """Keep the probabilities of an image's annotated boxes and, after them, its proposals."""
        assert probabilities.shape == (len(image.boxes) + len(image.proposals.boxes), self._categories)
        self._places[image.row.image_id] = (self._file.seek(0, 2), len(probabilities))
        self._file.write(probabilities.float().cpu().contiguous().numpy().tobytes())

    def read(self, image: EvaluationImage) -> tuple[Tensor, Tensor]:
        """Return float32 [G, K] of the annotated boxes and [R, K] of the proposals.

        Raises:
            ValueError: if the image could not be read when the others were added.
        """
        if image.row.image_id not in self._places:
            raise ValueError(f"image {image.row.key} can be read now, but could not a moment ago; run the stage again")
        offset, rows = self._places[image.row.image_id]
        self._file.seek(offset)
        content = bytearray(self._file.read(4 * rows * self._categories))
        every = torch.frombuffer(content, dtype=torch.float32) if rows else torch.zeros(0)
        every = every.view(rows, self._categories)
        return every[: len(image.boxes)], every[len(image.boxes) :]


def exponents(fusion: FusionConfig, vocabulary: Vocabulary) -> Tensor:
    """Return the exponent [K] of the second probability in a finetuned detector's scores."""
    base = set(vocabulary.base)
    return torch.tensor([fusion.base if name in base else fusion.novel for name in vocabulary.names])


def second_temperature(config: Config, clip: ClipModel) -> float:
    """Return the temperature of the second probability: by default that of the zero-shot rows."""
    return config.evaluate.fusion.temperature or config.finetune.temperature or 1 / clip.logit_scale


def crop_scores(
    clip: ClipModel, config: Config, evaluation: EvaluationData, tick: Callable[[int], None]
) -> SecondScores:
    """Return the probabilities of the crops around all boxes (`labels.context`); `tick` counts the images done."""
    encoder = CropEncoder(clip, config.labels.context, config.labels.batch_size)
    classes = torch.nn.functional.normalize(embed_names(clip, evaluation.vocabulary.names, config.teacher), dim=1)
    scores = SecondScores(len(evaluation.vocabulary))
    with torch.inference_mode():
        for images in evaluation.batches(1):  # the crops of one image are many
            for image in images:
                features = encoder([image.pixels], [torch.cat((image.boxes, image.proposals.boxes))])
                cosines = torch.nn.functional.normalize(features, dim=1) @ classes.T
                scores.add(image, (cosines / second_temperature(config, clip)).softmax(dim=1))
                tick(1)
    return scores
