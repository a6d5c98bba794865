"""What became of each detection, in a scratch file that is written image by image and read category by category.

A verdict is 24 bytes. Held in memory are the verdicts of one block while writing, those of one category while reading,
and where the categories begin in each block, 4 bytes each: 0.01 bytes a verdict for COCO's 80 categories, 0.15 for
LVIS's 1,203. Legend: T IoU thresholds, A area ranges, K categories, n verdicts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 15
"""Verdicts gathered before they are written."""
BITS = 40
"""A area ranges by T thresholds, in this order."""
VERDICT = np.dtype(
    [
        ("image", "<u4"),  # place of the image in the order of image ids
        ("rank", "<u2"),  # place among the detections of its image and category, best first
        ("score", "<f8"),
        ("matched", "u1", (BITS // 8,)),  # bits: it was given an object
        ("ignored", "u1", (BITS // 8,)),  # bits: it counts neither for nor against
    ]
)
Verdicts = NDArray[np.void]
"""[n] of VERDICT."""
Starts = NDArray[np.uint32]


class VerdictFile:
    """Blocks of verdicts, each sorted by category."""

    def __init__(self, path: Path, categories: int) -> None:
        self._path, self._categories = path, categories
        self._pending: list[tuple[NDArray[np.int64], Verdicts]] = []
        self._rows = 0
        self._starts: list[Starts] = []
        """[K + 1] for each block: where in it the categories begin."""
        self._file = path.open("w+b")

    def add(self, labels: NDArray[np.int64], verdicts: Verdicts) -> None:
        """Verdicts of some images, `labels` [n] 0..K-1; an image's in one call, and those of a category by rank."""
        self._pending.append((labels, verdicts))
        self._rows += len(labels)
        if self._rows >= BLOCK_ROWS:
            self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        labels = np.concatenate([labels for labels, _ in self._pending])
        order = np.argsort(labels, kind="stable")
        self._starts.append(np.searchsorted(labels[order], np.arange(self._categories + 1)).astype(np.uint32))
        self._file.seek(0, 2)
        self._file.write(np.concatenate([verdicts for _, verdicts in self._pending])[order].tobytes())
        self._pending, self._rows = [], 0

    def read(self, label: int) -> Verdicts:
        """The verdicts of one category, an image's together and by rank."""
        self._write()
        counts = [int(starts[label + 1] - starts[label]) for starts in self._starts]
        found = np.empty(sum(counts), VERDICT)
        begin = place = 0
        for starts, count in zip(self._starts, counts, strict=True):
            if count:
                self._file.seek((begin + int(starts[label])) * VERDICT.itemsize)
                found[place : place + count] = np.frombuffer(self._file.read(count * VERDICT.itemsize), VERDICT)
                place += count
            begin += int(starts[-1])
        return found

    def delete(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink()
