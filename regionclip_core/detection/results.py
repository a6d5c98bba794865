"""What `RegionModel.detect` gives: detections that know their names, as a picture, a table or COCO's results.

Legend: N detections of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.ops import nms

from regionclip_core.detection.drawing import draw
from regionclip_core.detection.given_images import ImageLike, pixels_of
from regionclip_core.detection.inference import Detections

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

PICTURE_NMS = 0.5
"""IoU with a better detection, of whatever name, above which one is left out of a picture."""


@dataclass(frozen=True, kw_only=True)
class NamedDetections(Detections):
    """One image's detections, highest score first, with their names; all on the CPU.

    >>> import regionclip_core
    >>> model = regionclip_core.load("detector")
    >>> [found] = model.detect("photo.jpg", ["cup", "traffic light"])
    >>> set(found.names) <= {"cup", "traffic light"}
    True
    >>> found.names[0], found.boxes[0], found.scores[0]  # doctest: +ELLIPSIS
    ('...', tensor([...]), tensor(...))
    """

    classes: tuple[str, ...]
    """The names that were looked for; `labels` are rows of it."""
    size: tuple[int, int]
    """(height, width) of the image, pixels."""

    @property
    def names(self) -> list[str]:
        """N names, one per detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    def of(self, rows: Iterable[int]) -> NamedDetections:
        """Return some of the detections, by row."""
        kept = list(rows)
        masks = None if self.masks is None else [self.masks[row] for row in kept]
        index = torch.tensor(kept, dtype=torch.int64)
        columns = (self.boxes[index], self.scores[index], self.labels[index], self.proposal[index])
        return NamedDetections(*columns, masks, classes=self.classes, size=self.size)

    def at_least(self, score: float) -> NamedDetections:
        """Return the detections of at least `score`."""
        return self.of((self.scores >= score).nonzero().flatten().tolist())

    def without_doubles(self, iou: float = PICTURE_NMS) -> NamedDetections:
        """Return the detections without those whose box overlaps a better one's by an IoU above `iou`.

        Names make no difference here, while the NMS of the model acts per name: what is "cup" and, less surely, "mug"
        keeps the better of the two.
        """
        return self.of(nms(self.boxes, self.scores, iou).tolist())

    def plot(self, image: ImageLike, score: float = 0.3, iou: float = PICTURE_NMS) -> Image.Image:
        """Draw the boxes, names, scores and masks into the image that was searched; returns a new Pillow image.

        >>> import regionclip_core
        >>> [found] = regionclip_core.load("detector").detect("photo.jpg", ["cup", "dog"])
        >>> found.plot("photo.jpg", score=0.2).save("found.png")

        Args:
            image: small images are enlarged, so that names can be read.
            score: lowest score shown.
            iou: see `without_doubles`; 1 shows all.

        Raises:
            ValueError: if the image has another size than the one that was searched, or can't be read.
        """
        pixels = pixels_of(image)
        if pixels.shape[:2] != self.size:
            came, searched = (f"{width} x {height}" for height, width in (pixels.shape[:2], self.size))
            raise ValueError(f"expected the image that was searched, of {searched} pixels, got one of {came}")
        return draw(pixels, self.without_doubles(iou), self.classes, score)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per detection: name, score, label, xmin, ymin, xmax, ymax (pixels).

        >>> import regionclip_core
        >>> [found] = regionclip_core.load("detector").detect("photo.jpg", ["cup", "dog"])
        >>> list(found.to_pandas())
        ['name', 'score', 'label', 'xmin', 'ymin', 'xmax', 'ymax']

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        columns: dict[str, Any] = {"name": self.names, "score": self.scores.numpy(), "label": self.labels.numpy()}
        sides = zip(("xmin", "ymin", "xmax", "ymax"), self.boxes.numpy().T, strict=True)
        return pd.DataFrame({**columns, **dict(sides)})

    def to_supervision(self) -> sv.Detections:
        """Return the detections as supervision's, with masks where there are any, and names as `data["class_name"]`.

        >>> import regionclip_core
        >>> [found] = regionclip_core.load("detector").detect("photo.jpg", ["cup", "dog"])
        >>> theirs = found.to_supervision()
        >>> len(theirs) == len(found)
        True

        Raises:
            ImportError: without supervision.
        """
        try:
            import supervision as sv
        except ImportError as error:
            raise ImportError("to_supervision needs supervision: pip install supervision") from error
        masks = None
        if self.masks is not None:
            bitmaps = [coco_mask.decode(self.run_lengths(mask)).astype(bool) for mask in self.masks]
            masks = np.stack(bitmaps) if bitmaps else np.zeros((0, *self.size), bool)
        return sv.Detections(
            xyxy=self.boxes.numpy(),
            mask=masks,
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_coco(self, image_id: int, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Return the detections as COCO's results: xywh boxes in pixels, masks as compressed run lengths.

        >>> import regionclip_core
        >>> [found] = regionclip_core.load("detector").detect("photo.jpg", ["cup", "dog"])
        >>> results = found.to_coco(7, category_ids={"cup": 47, "dog": 18})
        >>> sorted(results[0])
        ['bbox', 'category_id', 'image_id', 'score']

        Args:
            image_id: of the annotation file.
            category_ids: the annotation file's ids by name; None takes the rows of `classes`.
        """
        ids = {name: row for row, name in enumerate(self.classes)} if category_ids is None else category_ids
        if missing := sorted(set(self.names) - ids.keys()):
            raise ValueError(f"category_ids has no id for {missing[:5]}; it has {list(ids)[:5]} ...")
        boxes = torch.cat((self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]), dim=1).tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": ids[name], "bbox": box, "score": score}
            for name, box, score in zip(self.names, boxes, self.scores.tolist(), strict=True)
        ]
        for row, mask in zip(rows, self.masks or [], strict=False):  # without a mask head there are none
            row["segmentation"] = {**self.run_lengths(mask), "counts": mask.decode("ascii")}
        return rows

    def run_lengths(self, counts: bytes) -> dict[str, Any]:
        """Return one of `masks` as pycocotools takes it."""
        return {"size": list(self.size), "counts": counts}
