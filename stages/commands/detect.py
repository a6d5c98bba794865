"""The `detect` command: objects by name in images. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import BadImage, decode_image, read_image_file
from regionclip_core.detection.assembly import open_model, with_parts
from regionclip_core.detection.drawing import draw
from regionclip_core.detection.inference import Detections, Objectness
from regionclip_core.storage.locations import list_files
from stages.commands.workspace_models import workspace_detector
from stages.engine.work import resolve_device

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def detect(
    images: Sequence[str],
    source: Config | str,
    *,
    out: str,
    score: float,
    classes: Sequence[str] = (),
    name: str = "regionclip",
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    nms: float | None = None,
    max_detections: int | None = None,
    objectness: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
) -> None:
    """Write each image with its boxes and masks, and `detections.json`, into `out`; prints one line per image.

    An image that can't be read gets its reason in the JSON and on the screen, and the others go on.

    Args:
        images: files, folders and globs; URLs too.
        source: the config of a workspace with a finished detector, or a model's folder.
        score: lowest score shown.
        name: which of the workspace's detectors.
        rpn: and the other settings: see the command line; None leaves a setting to the model.

    Raises:
        ValueError: if there is no such model, or a part of it is missing.
    """
    files = image_files(images)
    if objectness is not None and objectness not in get_args(Objectness):
        raise ValueError(f"--objectness {objectness}: expected one of {', '.join(get_args(Objectness))}")
    device = resolve_device(device)
    if isinstance(source, str):
        model = open_model(source, rpn=rpn, text=text, prompts=prompts, device=device, with_text=bool(classes))
    else:
        model = with_parts(workspace_detector(source, name, "detect")[0], rpn, text, prompts).to(device)
    model = model.adjusted(image_size, nms=nms, max_detections=max_detections, objectness=objectness)
    names = model.ready(classes)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        try:
            pixels = decode_image(read_image_file(file))
        except (BadImage, OSError) as error:
            print(f"{file}: not read: {error}")
            results.append({"image": file, "error": str(error), "detections": []})
            continue
        [found] = model.detect(pixels, classes)
        picture = target / f"{number:03d}-{Path(file).stem}.png"
        draw(pixels, found, names, score).save(picture)
        height, width = pixels.shape[:2]
        rows = detection_rows(found, names, (height, width), score)
        words = [f"{row['name']} {row['score']:.2f}" for row in rows]
        print(f"{file}: {', '.join(words) or 'nothing above the score'}")
        results.append({"image": file, "width": width, "height": height, "picture": str(picture), "detections": rows})
    (target / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"pictures and detections.json in {target}")


def image_files(arguments: Sequence[str]) -> list[str]:
    """Return the files, the images inside folders, and what globs match, in order, each once.

    Raises:
        ValueError: for a folder without images.
        FileNotFoundError: where a glob matches nothing.
    """
    found: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(p for p in Path(argument).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{argument} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += map(str, inside)
        elif not os.path.exists(argument) and any(c in argument for c in "*?["):
            found += [url for url, _ in list_files(argument)]
        else:
            found.append(argument)
    return list(dict.fromkeys(found))


def detection_rows(
    found: Detections, names: Sequence[str], size: tuple[int, int], score: float
) -> list[dict[str, Any]]:
    """Return the detections of at least `score`, highest first, as JSON.

    Each has name, score, xyxy box in the image's own pixels and, where there are masks, the mask of the whole image as
    COCO's compressed run lengths; `size` is (height, width).
    """
    rows = []
    for i in range(len(found)):
        if float(found.scores[i]) < score:
            continue
        row: dict[str, Any] = {
            "name": names[int(found.labels[i])],
            "score": round(float(found.scores[i]), 4),
            "box": [round(float(v), 1) for v in found.boxes[i]],
        }
        if found.masks is not None:
            row["mask"] = {"size": list(size), "counts": found.masks[i].decode("ascii")}
        rows.append(row)
    return rows
