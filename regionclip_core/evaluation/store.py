"""Ground truth and detections of a split, taken in image by image and given out category by category.

Average precision needs all detections of a category together, while a model yields them image by image. So they are
matched with the objects as they come, and only the verdicts are stored. Held in memory are `MATCH_ROWS` boxes with
their masks, a block of verdicts, the id of every image and a mark that it has come: 9 bytes an image.

Legend: K categories, A area ranges, I images.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regionclip_core.evaluation.matching import (
    AREAS,
    ImagePair,
    Kind,
    Rules,
    inside_ranges,
    match_images,
)
from regionclip_core.evaluation.truth import ImageDetections, ImageTruth, box_area
from regionclip_core.evaluation.verdicts import VerdictFile, Verdicts

MATCH_ROWS = 1 << 11
"""Boxes, objects and detections, that are gathered before they are matched: about 1.5 kB each at the most."""


class TruthStore:
    """What is known of a split's objects before the first detection. In memory: 8 bytes an image."""

    def __init__(self, categories: int) -> None:
        self._ids = array("q")
        self._sorted: NDArray[np.int64] | None = None
        self._missing_masks = False
        self.counts: NDArray[np.int64] = np.zeros(categories, np.int64)
        """Objects by label [K], crowds left out."""
        self.counts_by_area: NDArray[np.int64] = np.zeros((categories, len(AREAS)), np.int64)
        """The same in each area range [K, A]."""

    @property
    def has_masks(self) -> bool:
        """Whether there are objects, and each has a mask."""
        return not self._missing_masks and bool(self.counts.any())

    def add(self, image: ImageTruth) -> None:
        """One image; none after the first look at `image_ids`."""
        assert self._sorted is None
        self._ids.append(image.image_id)
        known = image.labels >= 0
        if not known.any():
            return
        self._missing_masks |= not image.masks
        area = box_area(np.asarray(image.boxes, np.float64)) if image.area is None else image.area
        counted = known if image.crowd is None else known & ~image.crowd
        labels = image.labels[counted]
        np.add.at(self.counts, labels, 1)
        np.add.at(self.counts_by_area, labels, inside_ranges(area[counted]))

    def image_ids(self) -> NDArray[np.int64]:
        """The images' ids [I], rising. ValueError when two are the same."""
        if self._sorted is None:
            ids = np.sort(np.frombuffer(self._ids, np.int64))
            again = ids[1:][ids[1:] == ids[:-1]]
            if len(again):
                raise ValueError(f"evaluation: two images of the ground truth have the same image_id {again[0]}")
            self._sorted, self._ids = ids, array("q")
        return self._sorted


class DetectionStore:
    """The detections of one model on the images of a TruthStore."""

    def __init__(self, path: Path, truth: TruthStore, rules: Rules, kinds: Sequence[Kind] = ("bbox", "segm")) -> None:
        """`path`: where its scratch files are, without the ending. `kinds`: masks only where all objects have them."""
        categories = len(truth.counts)
        self._truth, self._ids, self._rules = truth, truth.image_ids(), rules
        wanted: list[Kind] = [kind for kind in kinds if kind == "bbox" or truth.has_masks]
        self._files = {kind: VerdictFile(path.with_suffix(f".{kind}"), categories) for kind in wanted}
        self._added = np.zeros(len(self._ids), np.bool_)
        self._pending: list[ImagePair] = []
        self._rows = self._images = self._with_masks = 0

    @property
    def has_masks(self) -> bool:
        """Whether every image came with masks, of however many detections."""
        return 0 < self._images == self._with_masks

    def add(self, image: ImageTruth, found: ImageDetections) -> None:
        """Detections beside the ground truth of their image.

        Raises:
            ValueError: an image that the truth lacks or that came before, or labels outside the vocabulary.
        """
        place = self._place(found)
        self._images += 1
        self._with_masks += found.masks is not None
        if not len(found.labels):
            return
        self._pending.append(ImagePair(place, image, found))
        self._rows += len(image.labels) + len(found.labels)
        if self._rows >= MATCH_ROWS:
            self._match()

    def _place(self, found: ImageDetections) -> int:
        place = int(np.searchsorted(self._ids, found.image_id))
        if place == len(self._ids) or self._ids[place] != found.image_id:
            raise ValueError(f"evaluation: detections of image {found.image_id}, which the ground truth doesn't have")
        if self._added[place]:
            raise ValueError(f"evaluation: detections of image {found.image_id} for the second time")
        last = len(self._truth.counts) - 1
        if len(found.labels) and not 0 <= int(found.labels.min()) <= int(found.labels.max()) <= last:
            raise ValueError(
                f"evaluation: image {found.image_id} has detections outside the vocabulary's rows "
                f"0..{last}: {int(found.labels.min())}..{int(found.labels.max())}"
            )
        self._added[place] = True
        return place

    def _match(self) -> None:
        if not self._pending:
            return
        for kind, file in self._files.items():
            if kind == "bbox" or self.has_masks:
                file.add(*match_images(self._pending, kind, self._rules))
        self._pending, self._rows = [], 0

    def verdicts(self, kind: Kind, label: int) -> Verdicts:
        """What became of the detections of one category, an image's together and by rank."""
        self._match()
        return self._files[kind].read(label)

    def delete(self) -> None:
        """Remove the files."""
        for file in self._files.values():
            file.delete()
