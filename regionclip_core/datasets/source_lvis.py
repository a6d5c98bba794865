"""LVIS v1 annotations: COCO's form, with cleaned names and with what is known of each image's categories.

LVIS is federated: a category is annotated in some images only. An image lists the categories that are known to be
absent from it (`neg_category_ids`) and those of which not every object is annotated (`not_exhaustive_category_ids`);
of a category that it neither lists nor has a box of, nothing is known.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from regionclip_core.datasets.annotation_scan import AnnotationScan, Image, hashable
from regionclip_core.datasets.coco_source import CocoSource, url_name
from regionclip_core.datasets.vocabulary import clean_lvis_name

_LISTS = {"neg_labels": "neg_category_ids", "not_exhaustive_labels": "not_exhaustive_category_ids"}


class LvisSource(CocoSource):
    """As CocoSource, but boxes match the vocabulary by the cleaned name, and the captions are of LVIS's images only.

    Categories outside the vocabulary are left out of both lists. A list that is missing or names what is no category
    costs what is wrong in it: the row is counted as lost_image_labels.
    """

    caption_images = False

    def _file_name(self, image: Image) -> str | None:
        """What `coco_url` ends with: LVIS draws from two folders of images, which `file_name` need not tell."""
        return url_name(image) or super()._file_name(image)

    def _category_names(self, scan: AnnotationScan) -> dict[Any, str]:
        names = super()._category_names(scan)
        repeated = [name for name, count in Counter(names.values()).items() if count > 1]
        if repeated:
            raise ValueError(
                f"{self._split.instances}: several categories are called {repeated[0]!r} once cleaned; boxes are "
                "matched by name, so rename one"
            )
        return names

    def _category_name(self, name: str) -> str:
        return clean_lvis_name(name)

    def _image_labels(self, image: Image, categories: dict[Any, str]) -> tuple[dict[str, Any], list[str]]:
        columns: dict[str, Any] = {}
        problems = []
        for column, field in _LISTS.items():
            ids = image.get(field)
            if not isinstance(ids, list):
                problems.append(f"{field} is not a list of category ids")
                ids = []
            named = [categories[hashable(one)] for one in ids if hashable(one) in categories]
            if len(named) < len(ids):
                problems.append(f"{field} holds ids that are no category of the file")
            rows = {self._row_of[name] for name in named if name in self._row_of}
            columns[column] = np.array(sorted(rows), np.int32)
        return columns, problems
