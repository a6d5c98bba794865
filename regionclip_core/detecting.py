"""Detection on images of one's own, with any list of names.

K names, R proposals of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.clip import ClipModel, load_clip
from regionclip_core.config import Config
from regionclip_core.detector import OpenVocabularyDetector, load_detector
from regionclip_core.finetuning import class_embeddings
from regionclip_core.image_batch import batch_images
from regionclip_core.inference import Detections, InferenceSettings
from regionclip_core.proposing import NetworkBoxes, make_proposer, proposer_row

_PICTURE_SIDE = 512  # smaller pictures are enlarged, so that labels can be read


@dataclass(frozen=True)
class Finder:
    """A finetuned detector with its proposer, ready for images."""

    detector: OpenVocabularyDetector
    clip: ClipModel
    proposer: NetworkBoxes
    config: Config

    @classmethod
    def load(cls, config: Config, detector: Folder, student: Folder, rpn: Folder, names: Sequence[str]) -> Finder:
        """Read the artifacts and classify into `names`.

        Raises:
            ValueError: if the pipeline's proposals do not come from a network: there is nothing to propose with.
        """
        if config.proposals.method != "rpn":
            raise ValueError(
                f"detect needs a proposal network, but proposals.method is {config.proposals.method}; set it to rpn"
            )
        clip = load_clip(student)
        model = load_detector(detector, stem="regionclip")
        model.set_vocabulary(class_embeddings(clip, tuple(names), config), names)
        proposer = make_proposer(config, rpn, "cpu")
        assert isinstance(proposer, NetworkBoxes)
        return cls(model.eval(), clip, proposer, config)

    def find(self, pixels: np.ndarray) -> Detections:
        """Detections in uint8[H, W, 3] RGB pixels, boxes in its own pixels, best first."""
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        settings = self.config.evaluate
        with torch.inference_mode():
            proposals = self.proposer([proposer_row(pixels)], [tensor])[0]
            batch = batch_images([tensor], settings.image_size, settings.max_size, self.clip.mean, self.clip.std)
            boxes: list[Tensor] = [batch.to_input(0, proposals.boxes)]
            rules = InferenceSettings.from_config(settings, finetuned=True)
            return self.detector.detect(batch, boxes, [proposals.logits], rules, box_deltas=True)[0]


def draw(pixels: np.ndarray, found: Detections, names: Sequence[str], score: float) -> Image.Image:
    """The image with a labelled box for every detection of at least `score`."""
    image = Image.fromarray(pixels)
    scale = max(1, round(_PICTURE_SIDE / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    shown = [i for i in range(len(found)) if float(found.scores[i]) >= score]
    for i in reversed(shown):  # the best on top
        x0, y0, x1, y1 = (float(v) * scale for v in found.boxes[i])
        label = f"{names[int(found.labels[i])]} {float(found.scores[i]):.2f}"
        pen.rectangle((x0, y0, x1, y1), outline=(220, 30, 60), width=2)
        left, top, right, bottom = pen.textbbox((x0 + 2, max(0.0, y0 - 13)), label)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=(220, 30, 60))
        pen.text((x0 + 2, max(0.0, y0 - 13)), label, fill=(255, 255, 255))
    return image
