"""The `detect` command: objects by name in images. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from regionclip_core.config.tree import Config, EvaluateConfig
from regionclip_core.detection.detection_files import DetectionFiles, check_formats, read_ids
from regionclip_core.detection.given_parts import check_second
from regionclip_core.storage.folder import writable_target
from regionclip_core.storage.locations import printable

from .given_images import any_readable, image_files, read_ahead, reason_of, usual_batch
from .known_words import unknown_names
from .model_choice import NO_PARTS, choose_model, with_second
from .workspace_models import ZERO_SHOT, detector_stages, workspace_detector

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from regionclip_core.detection.region_model import RegionModel
    from regionclip_core.detection.results import NamedDetections

    from ..engine.plan import PlanLine

NAME_LENGTH = 60
"""Letters of an image's name in the name of its picture: a file system takes 255 bytes."""


def detect(
    images: Sequence[str],
    source: Config | str,
    *,
    score: float,
    out: str | None = None,
    classes: Sequence[str] = (),
    against: Sequence[str] | Literal["own"] = (),
    name: str = "regionclip",
    parts: Mapping[str, str | None] = NO_PARTS,
    device: str = "auto",
    precision: str | None = None,
    formats: Sequence[str] = (),
    ids: str | None = None,
    picture_nms: float = 0.5,
    batch: int | None = None,
    fuse: str | None = None,
    fuse_crops: bool = False,
    fuse_base: float | None = None,
    fuse_novel: float | None = None,
    **settings: Any,
) -> tuple[int, int]:
    """Write each image with its boxes and masks, `detections.json` and other formats into `out`; prints one line per
    image.

    An image that can't be read, searched or drawn gets its reason in the JSON and on the screen, and the others go on.
    The JSON is written unless no image can be read at all, which is found out before the model is loaded; bytes of a
    name that are no UTF-8 are \\xNN in it. Returns how many images were done, and how many were not.

    Args:
        images: files, folders and globs; URLs too.
        source, name, parts, device, precision: see `choose_model`.
        score: lowest score shown.
        out: a folder; None: the first of detections, detections2, ... that is not there.
        against: see `RegionModel.detect`; `own`: the names that the model comes with.
        formats: see `DetectionFiles`; of the same detections as the JSON.
        ids: an annotation file whose ids COCO's results get.
        picture_nms: see `NamedDetections.without_doubles`; the pictures alone are without them.
        batch: images that are searched at once; None: see `usual_batch`.
        fuse: a CLIP model that takes part in the scores, see `RegionModel.fused`: a folder, or the workspace's
            `student` or `teacher`.
        fuse_crops: it sees crops, with the context of the workspace's labels (of a model's folder: 1.2).
        fuse_base, fuse_novel: exponents; None: those of the config's `evaluate.fusion`, or the defaults.
        settings: see `RegionModel.adjusted`; None leaves a setting to the model.

    Raises:
        ValueError: if there is no such model, or a part of it is missing.
        FileNotFoundError: if something that is named is not there.
    """
    # What a user can get wrong comes before torch and the model, which take seconds to load.
    files = image_files(images)
    writable_target("." if out is None else out)
    chosen_formats = check_formats(formats, files, ids)
    for key in ("objectness", "nms_kind"):
        value, known = settings.get(key), get_args(EvaluateConfig.model_fields[key].annotation)
        if value not in (None, *known):
            raise ValueError(f"--{key.replace('_', '-')} {value}: expected one of {', '.join(known)}")
    if settings.get("nms") is not None and settings.get("nms_kind") == "gaussian":
        raise ValueError("--nms is an IoU, and gaussian soft-NMS uses none: leave it out, or take --nms-kind linear")
    if fuse is None and (fuse_crops or fuse_base is not None or fuse_novel is not None):
        raise ValueError("--fuse-crops, --fuse-base and --fuse-novel are of a second model: name it with --fuse")
    choice = choose_model(source, name, parts, device, precision, "detect", names=bool(classes or against))
    second_lines: dict[str, PlanLine] = {}
    if fuse in ZERO_SHOT and not isinstance(source, str):
        second_lines = detector_stages(source, fuse, f"detect --fuse {fuse}", zero_shot=True)
    elif fuse is not None:
        check_second(fuse)
    coco_ids = None if ids is None else read_ids(ids, files)
    if not any_readable(files):
        return 0, len(files)
    if not isinstance(source, str) and (unknown := unknown_names(source, choice.lines, classes)):
        what = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        print(f"note: no caption of this run names {what}: what is found of it means nothing", file=sys.stderr)
    model = choice.open(with_text=bool(classes or against)).adjusted(**settings)
    if fuse is not None:
        from regionclip_core.detection.assembly import open_model

        if second_lines and not isinstance(source, str):
            second = workspace_detector(source, fuse, second_lines)
        else:
            second = open_model(fuse)
        model = with_second(model, second, source, fuse_crops, fuse_base, fuse_novel)
    from regionclip_core.detection.drawing import draw
    from regionclip_core.detection.drawings import looks_like_a_photograph

    names = model.ready(classes)
    rivals = model.vocabulary.names if against == "own" else against
    if against and not rivals:
        raise ValueError("--against own: this model has no names of its own; give names, or a file of them")
    model.embed(rivals)  # a name that nothing can embed ends the command, not each image
    numbered = (Path(f"detections{number if number > 1 else ''}") for number in count(1))
    target = Path(out) if out is not None else next(path for path in numbered if not os.path.lexists(path))
    others = DetectionFiles(target, chosen_formats, names, coco_ids)
    target.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    best = (0.0, "", "")
    """Score, name and image of the detection with the highest score."""
    photographs: list[str] = []
    """Images that a model which knows drawings only can't know."""
    began = time.monotonic()
    try:
        for group, pixels in read_ahead(files, batch or usual_batch(model)):
            searched = _search(model, pixels, classes, rivals)
            for file, image, result in zip(group, pixels, searched, strict=True):
                entry: dict[str, Any] = {"image": printable(file), "detections": []}
                results.append(entry)
                step = "not read" if isinstance(image, Exception) else "not searched"
                try:
                    if isinstance(image, Exception) or isinstance(result, Exception):
                        raise result if isinstance(result, Exception) else image
                    if model.drawings_only and looks_like_a_photograph(image):
                        photographs.append(entry["image"])
                    if len(result):
                        best = max(best, (float(result.scores[0]), result.names[0], entry["image"]))
                    sure = result.at_least(score)
                    entry |= {"width": result.size[1], "height": result.size[0], "detections": detection_rows(sure)}
                    step = "no picture"
                    number = len(results) - 1
                    picture = target / f"{number:03d}-{printable(Path(file).stem)[:NAME_LENGTH]}.png"
                    shown = sure.without_doubles(picture_nms)
                    draw(image, shown, names, 0).save(picture)
                    entry["picture"] = printable(str(picture))
                    step = "not written"
                    others.add(file, sure)
                    words = ", ".join(f"{row['name']} {row['score']:.2f}" for row in entry["detections"])
                    words = words or f"nothing of {score:g} or more"
                    if doubles := len(sure) - len(shown):
                        words += f" ({doubles} left out of the picture, under a better one)"
                except Exception as error:  # whatever it is, the other images go on
                    words = entry["error"] = printable(f"{step}: {reason_of(error)}")
                place = f"[{len(results)}/{len(files)}] " if len(files) > 1 else ""
                print(f"{place}{entry['image']}: {words}", flush=True)
    finally:
        (target / "detections.json").write_text(json.dumps(results, indent=1))
        others.close()
    took = f" ({len(files)} images in {time.monotonic() - began:.1f} s)" if len(files) > 1 else ""
    print(f"pictures and {', '.join(['detections.json', *chosen_formats])} in {printable(str(target))}{took}")
    if photographs:
        what = "looks" if len(photographs) == 1 else f"and {len(photographs) - 1} more look"
        why = "like a photograph, and this model was trained on drawings only: what it finds there means nothing"
        print(f"note: {photographs[0]} {what} {why}", file=sys.stderr)
    if best[1] and best[0] < score:
        value, name, image = best
        print(f"the best score is {value:.4f}, of {name} in {image}; for more than nothing take a lower --score")
    failed = sum("error" in entry for entry in results)
    return len(results) - failed, failed


def _search(
    model: RegionModel,
    images: Sequence[npt.NDArray[np.uint8] | Exception],
    classes: Sequence[str],
    against: Sequence[str],
) -> list[NamedDetections | Exception]:
    """Return the detections of each image, or what it failed with: where they fail together, they are tried alone."""
    readable = [image for image in images if not isinstance(image, Exception)]
    try:
        found = iter(model.detect(readable, classes, against))
    except Exception as error:
        if len(images) == 1:
            return [error]
        return [one for image in images for one in _search(model, [image], classes, against)]
    return [image if isinstance(image, Exception) else next(found) for image in images]


def detection_rows(found: NamedDetections) -> list[dict[str, Any]]:
    """Return the detections as JSON.

    Each has name, score, xyxy box in the image's own pixels and, where there are masks, the mask of the whole image as
    COCO's compressed run lengths.
    """
    rows: list[dict[str, Any]] = [
        {"name": name, "score": round(score, 4), "box": [round(side, 1) for side in box]}
        for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    for row, mask in zip(rows, found.masks or [], strict=False):  # without a mask head there are none
        row["mask"] = {"size": list(found.size), "counts": mask.decode("ascii")}
    return rows
