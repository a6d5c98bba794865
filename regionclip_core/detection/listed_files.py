"""Which name of a list of images means a file: lists name images by a part of their path, or without the ending."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable


class ListedFiles:
    """The names that a list has, such as `val/1.jpg`, and which of them means a file, such as `/data/val/1.jpg`.

    Args:
        endings: False for lists that name images without their ending, as YOLO's label files do.
    """

    def __init__(self, names: Iterable[str], endings: bool = True) -> None:
        self._endings = endings
        self._by_base: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_base[posixpath.basename(_slashes(name))].append(name)

    def meaning(self, file: str) -> str | None:
        """Return the name that means the file; None if there is none.

        The folders count only where several files have one name: the one that gives the most of the path is meant.
        """
        path = _slashes(file)
        if not self._endings:
            path = posixpath.splitext(path)[0]
        found = self._by_base.get(posixpath.basename(path), [])
        if len(found) > 1:
            found = [name for name in found if f"/{path}".endswith(f"/{_slashes(name)}")]
        return max(found, key=len, default=None)


def _slashes(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")
