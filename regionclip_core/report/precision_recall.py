"""Precision against recall at IoU 0.5, from the stored detections, by the evaluation's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from regionclip_core.config.tree import Config
from regionclip_core.evaluation.average_precision import label_groups
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, xywh
from regionclip_core.report.samples import Detection
from regionclip_core.storage.records import Folder

RECALL = np.linspace(0, 100, 101)
"""The recalls, percent, at which precision is given."""


class PrecisionRecall:
    """The ground truth of the evaluated split, for the curves of several detectors."""

    def __init__(self, config: Config, data: Folder, proposals: Folder) -> None:
        """Read the annotations. Raises ValueError as EvaluationData."""
        self._evaluator = EvaluationData(config, data, proposals).evaluator
        self._rows = CategoryRows()

    def add(self, image: int, found: Sequence[Detection]) -> None:
        """Add one image's detections, each image once."""
        boxes = xywh(np.array([one.box for one in found], np.float64).reshape(-1, 4))
        scores, labels = np.array([one.score for one in found]), np.array([one.label for one in found])
        self._evaluator.add(self._rows, ImageDetections(image, boxes, scores, labels))

    def curves(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """Return by group the precision in percent at RECALL, its mean over the group's categories, and start over.

        The mean of a curve is the group's AP50. Groups without any object are left out.
        """
        groups = label_groups(self._evaluator.vocabulary)
        precision = self._evaluator.curves(self._rows, "bbox", groups["all"])[0][0, :, :, 0]
        self._rows = CategoryRows()
        seen = {group: [row for row in rows if self._evaluator.counts[row]] for group, rows in groups.items()}
        return {group: 100 * precision[:, rows].mean(axis=1) for group, rows in seen.items() if rows}
