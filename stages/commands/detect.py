"""The `detect` command: objects by name in images of one's own. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from regionclip_core.config.tree import Config

if TYPE_CHECKING:
    from regionclip_core.detection.finder import Finder
    from regionclip_core.detection.inference import Detections, Objectness

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Request:
    """What the user asked for; None leaves a setting to the model."""

    images: Sequence[str]
    """Files, folders and globs; URLs too."""
    out: str
    score: float
    """Lowest score shown."""
    classes: tuple[str, ...] = ()
    name: str = "regionclip"
    """Which of the workspace's detectors."""
    rpn: str | None = None
    text: str | None = None
    prompts: str | None = None
    nms: float | None = None
    max_detections: int | None = None
    objectness: str | None = None
    """`none`, `sigmoid` or `raw_logit`; see InferenceSettings."""
    image_size: int | None = None
    device: str = "auto"


def detect(request: Request, source: Config | str) -> None:
    """Write each image with its boxes and masks, and `detections.json`, into `request.out`; prints a line an image.

    `source`: the config of a workspace with a finished detector, or a model's folder. An image that can't be read gets
    its reason in the JSON and on the screen, and the others go on.

    Raises:
        ValueError: if there is no such model, or a part of it is missing.
    """
    from stages.engine.work import resolve_device

    files = image_files(request.images)
    finder = _finder(request, source, resolve_device(request.device))
    finder = finder.adjusted(request.nms, request.max_detections, _objectness(request.objectness), request.image_size)
    target = Path(request.out)
    target.mkdir(parents=True, exist_ok=True)
    results = [_one(finder, file, target, number, request.score) for number, file in enumerate(files)]
    (target / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"pictures and detections.json in {target}")


def _objectness(choice: str | None) -> Objectness | None:
    from regionclip_core.detection.inference import Objectness

    kinds = get_args(Objectness)
    if choice is not None and choice not in kinds:
        raise ValueError(f"--objectness {choice}: expected one of {', '.join(kinds)}")
    return cast("Objectness | None", choice)


def image_files(arguments: Sequence[str]) -> list[str]:
    """Files, the images inside folders, and what globs match, in order, each once.

    Raises:
        ValueError: for a folder without images; FileNotFoundError where a glob matches nothing.
    """
    from regionclip_core.storage.locations import list_files

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


def _finder(request: Request, source: Config | str, device: str) -> Finder:
    from regionclip_core.detection.finder import Finder, finder_of_folder, name_encoder, set_names, with_network

    if isinstance(source, str):
        return finder_of_folder(
            source,
            names=request.classes,
            rpn=request.rpn,
            text=request.text,
            prompts=request.prompts,
            device=device,
        )
    from regionclip_core.detection.run_model import run_encoder
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import NamePrompts
    from regionclip_core.storage.given_files import clip_folder
    from stages.commands.run_models import workspace_detector

    model, _ = workspace_detector(source, request.name, "detect")
    if request.rpn is not None:
        model = with_network(model, request.rpn)
    if request.classes:
        assert model.text is not None  # a run's detector comes with its CLIP
        encode = run_encoder(model.text, source)
        other = request.text is not None or request.prompts is not None
        if other:
            clip = model.text if request.text is None else load_clip(clip_folder(request.text, "student"))
            encode = name_encoder(clip, NamePrompts.from_config(source.teacher), request.prompts)
        set_names(model, request.classes, encode, anew=other)
    return Finder.from_model(model, device)


def _one(finder: Finder, file: str, target: Path, number: int, score: float) -> dict[str, Any]:
    """One image's entry in detections.json; its picture is written."""
    from regionclip_core.datasets.images import BadImage, decode_image, read_image_file
    from regionclip_core.detection.drawing import draw

    try:
        pixels = decode_image(read_image_file(file))
    except (BadImage, OSError) as error:
        print(f"{file}: not read: {error}")
        return {"image": file, "error": str(error), "detections": []}
    found = finder.find(pixels)
    picture = target / f"{number:03d}-{Path(file).stem}.png"
    draw(pixels, found, finder.names, score).save(picture)
    height, width = pixels.shape[:2]
    shown = detection_rows(found, finder.names, (height, width), score)
    words = [f"{row['name']} {row['score']:.2f}" for row in shown]
    print(f"{file}: {', '.join(words) or 'nothing above the score'}")
    return {"image": file, "width": width, "height": height, "picture": str(picture), "detections": shown}


def detection_rows(
    found: Detections, names: Sequence[str], size: tuple[int, int], score: float
) -> list[dict[str, Any]]:
    """Detections of at least `score`, best first: name, score, xyxy box in the image's own pixels and, where there are
    masks, the mask of the whole image as COCO's compressed run lengths; `size` is (height, width).
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
