"""Boxes as the files that Label Studio, CVAT and FiftyOne import. Nothing slow is imported."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from regionclip_core.storage.locations import printable

if TYPE_CHECKING:
    from regionclip_core.detection.results import NamedDetections

LOCAL_FILES = "/data/local-files/?d="
"""Before the path of an image on Label Studio's own disk, seen from its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
FROM_NAME, TO_NAME = "label", "image"
"""Of the control and of the object in Label Studio's labeling config."""


class AnnotationTool(ABC):
    """Keeps the boxes of all images, and then gives the files of one program.

    Args:
        classes: the names that boxes can have.
        is_data_set: images are named from the folder of the files on; else from the working directory.
    """

    def __init__(self, classes: Sequence[str], is_data_set: bool) -> None:
        self.classes, self.is_data_set = classes, is_data_set
        self.images: list[str] = []
        """As text already: there may be millions."""

    @abstractmethod
    def add(self, file: str, found: NamedDetections, facts: Mapping[str, str]) -> None:
        """Keep the boxes of one image; arguments as those of `DetectionFiles.add`."""

    @abstractmethod
    def files(self) -> Iterator[tuple[str, str]]:
        """Yield names and contents."""

    def place(self, file: str) -> str:
        """Return where an image is, for a program that runs elsewhere."""
        return printable(file if self.is_data_set or "://" in file else os.path.abspath(file))


class LabelStudio(AnnotationTool):
    """`label-studio-tasks.json`, a task per image with the boxes as its prediction, in percent of the image's sides;
    and the labeling config that they fit, `label-studio-config.xml`.
    """

    def add(self, file: str, found: NamedDetections, facts: Mapping[str, str]) -> None:
        """Keep a task."""
        height, width = found.size
        place = self.place(file)
        result = []
        for number, (name, score, (x0, y0, x1, y1)) in enumerate(_rows(found)):
            sides = {"x": x0 / width, "y": y0 / height, "width": (x1 - x0) / width, "height": (y1 - y0) / height}
            value = {key: 100 * share for key, share in sides.items()} | {"rotation": 0, "rectanglelabels": [name]}
            of_image = {"original_width": width, "original_height": height, "image_rotation": 0}
            of_control = {"type": "rectanglelabels", "from_name": FROM_NAME, "to_name": TO_NAME}
            result.append({"id": f"box{number}", **of_control, **of_image, "score": score, "value": value})
        best = max(found.scores.tolist(), default=0.0)
        data = {"image": place if "://" in place else LOCAL_FILES + place.lstrip("/"), "file": place, **facts}
        prediction = {"model_version": "regionclip", "score": best, "result": result}
        self.images.append(_json({"data": data, "predictions": [prediction]}))

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the tasks and the config."""
        yield "label-studio-tasks.json", _list(self.images)
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name=TO_NAME, value="$image")
        control = ElementTree.SubElement(view, "RectangleLabels", name=FROM_NAME, toName=TO_NAME)
        for name in self.classes:
            ElementTree.SubElement(control, "Label", value=name)
        yield "label-studio-config.xml", _xml(view)


class Cvat(AnnotationTool):
    """`cvat-annotations.xml` in the form "CVAT for images 1.1", which knows an image by its name; and the labels of the
    task that takes them, `cvat-labels.json`, for "Raw" in its form. A box's score is an attribute.
    """

    def add(self, file: str, found: NamedDetections, facts: Mapping[str, str]) -> None:
        """Keep an image."""
        height, width = found.size
        name = file.removeprefix("images/") if self.is_data_set else file  # as it is uploaded
        sizes = {"id": str(len(self.images)), "name": printable(name), "width": str(width), "height": str(height)}
        image = ElementTree.Element("image", sizes)
        for label, score, box in _rows(found):
            corners = {key: f"{side:.2f}" for key, side in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
            kind = {"label": label, "source": "auto", "occluded": "0", "z_order": "0"}
            one = ElementTree.SubElement(image, "box", {**kind, **corners})
            ElementTree.SubElement(one, "attribute", name="score").text = f"{score:.6f}"
        self.images.append(_xml(image))

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield the annotations and the labels."""
        start = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        yield "cvat-annotations.xml", "".join([start, *self.images, "</annotations>\n"])
        score = {"name": "score", "input_type": "text", "mutable": False, "default_value": "", "values": []}
        labels = [{"name": name, "attributes": [score]} for name in self.classes]
        yield "cvat-labels.json", _list(map(_json, labels))


class FiftyOne(AnnotationTool):
    """`samples.json` and `metadata.json` of a FiftyOneDataset; of a data set in its folder, else in `fiftyone/`. Boxes
    are x, y, width and height as shares of the image, in the field `predictions`.
    """

    def add(self, file: str, found: NamedDetections, facts: Mapping[str, str]) -> None:
        """Keep a sample."""
        height, width = found.size
        detections = [
            {
                "_cls": "Detection",
                "label": name,
                "bounding_box": [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                "confidence": score,
            }
            for name, score, (x0, y0, x1, y1) in _rows(found)
        ]
        more = {key: value for key, value in facts.items() if key != "split"}
        tags = [facts["split"]] if "split" in facts else []
        boxes = {"_cls": "Detections", "detections": detections}
        self.images.append(_json({"filepath": self.place(file), "tags": tags, **more, "predictions": boxes}))

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield both. Metadata without a version say that the samples are plain JSON, not documents of a database."""
        folder = "" if self.is_data_set else "fiftyone/"
        metadata = {"media_type": "image", "default_classes": list(self.classes)}
        yield f"{folder}metadata.json", _json(metadata)
        yield f"{folder}samples.json", f'{{"samples": {_list(self.images)}}}\n'


TOOLS: dict[str, Callable[[Sequence[str], bool], AnnotationTool]] = {
    "label-studio": LabelStudio,
    "cvat": Cvat,
    "fiftyone": FiftyOne,
}
"""By the name of their format."""


def _rows(found: NamedDetections) -> Iterator[tuple[str, float, list[float]]]:
    """Yield name, score and box, xyxy in pixels."""
    yield from zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(entries: Iterable[str]) -> str:
    """Return a JSON list, one entry per line."""
    return "[\n" + ",\n".join(entries) + "\n]\n"


def _xml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
