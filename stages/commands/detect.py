"""The `detect` command: objects by name in images. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from regionclip_core.config.tree import Config, EvaluateConfig
from regionclip_core.datasets.images import BadImage, decode_image, read_image_file
from regionclip_core.storage.given_files import holds_detector
from regionclip_core.storage.locations import list_files, printable
from regionclip_core.threads import set_threads, set_usual_threads
from stages.commands.workspace_models import detector_stages, workspace_detector
from stages.engine.work import resolve_device

if TYPE_CHECKING:
    from regionclip_core.detection.inference import Detections
    from stages.engine.plan import PlanLine

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PROMPT_SETS = ("single", "short", "clip81")
NAME_LENGTH = 60
"""Letters of an image's name in the name of its picture: a file system takes 255 bytes."""


def detect(
    images: Sequence[str],
    source: Config | str,
    *,
    score: float,
    out: str | None = None,
    classes: Sequence[str] = (),
    name: str = "regionclip",
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    embeddings: str | None = None,
    device: str = "auto",
    **settings: Any,
) -> bool:
    """Write each image with its boxes and masks, and `detections.json`, into `out`; prints one line per image.

    An image that can't be read, searched or drawn gets its reason in the JSON and on the screen, and the others go on.
    The JSON is written in any case; bytes of a name that are no UTF-8 are \\xNN in it. Returns whether any image was
    done.

    Args:
        images: files, folders and globs; URLs too.
        source: the config of a workspace, or a model's folder.
        score: lowest score shown.
        out: a folder; None: the first of detections, detections2, ... that is not there.
        name: which of the workspace's detectors, or its student or teacher, not finetuned.
        rpn, text, prompts, embeddings: see `with_parts`.
        settings: see `RegionModel.adjusted`; None leaves a setting to the model.

    Raises:
        ValueError: if there is no such model, or a part of it is missing.
        FileNotFoundError: if something that is named is not there.
    """
    # What a user can get wrong comes before torch and the model, which take seconds to load.
    files = image_files(images)
    if out is not None and ("://" in out or (os.path.exists(out) and not os.path.isdir(out))):
        raise ValueError(f"--out {out}: expected a local folder")
    if repeated := [one for one, times in Counter(classes).items() if times > 1]:
        raise ValueError(f"--classes names {repeated[:5]} more than once; each name makes one class")
    for key in ("objectness", "nms_kind"):
        value, known = settings.get(key), get_args(EvaluateConfig.model_fields[key].annotation)
        if value not in (None, *known):
            raise ValueError(f"--{key.replace('_', '-')} {value}: expected one of {', '.join(known)}")
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    parts = {"rpn": rpn, "text": text, "prompts": prompts, "embeddings": embeddings}
    for option, place in parts.items():
        if place not in (None, *PROMPT_SETS) and "://" not in place and not os.path.exists(place):
            sets = f", and it is none of {', '.join(PROMPT_SETS)}" if option == "prompts" else ""
            raise FileNotFoundError(f"--{option} {place}: there is no such file or folder{sets}")
    lines: dict[str, PlanLine] = {}
    set_usual_threads()
    if isinstance(source, str):
        holds_detector(source)  # refuses a folder without a model
    else:
        lines = detector_stages(source, name, "detect", zero_shot=True)
        if source.execution.threads:
            set_threads(source.execution.threads)
    device = resolve_device(device, "--device")
    from regionclip_core.detection.assembly import open_model, with_parts
    from regionclip_core.detection.drawing import draw

    if isinstance(source, str):
        model = open_model(source, **parts, device=device, with_text=bool(classes))
    else:
        model = with_parts(workspace_detector(source, name, lines), **parts).to(device)
    model = model.adjusted(**settings)
    names = model.ready(classes)
    own = (Path(f"detections{number if number > 1 else ''}") for number in count(1))
    target = Path(out) if out is not None else next(path for path in own if not os.path.lexists(path))
    target.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    try:
        for number, file in enumerate(files):
            entry: dict[str, Any] = {"image": printable(file), "detections": []}
            results.append(entry)
            step = "not read"
            try:
                pixels = decode_image(read_image_file(file))
                step = "not searched"
                [found] = model.detect(pixels, classes)
                height, width = pixels.shape[:2]
                rows = detection_rows(found, names, (height, width), score)
                entry |= {"width": width, "height": height, "detections": rows}
                step = "no picture"
                picture = target / f"{number:03d}-{printable(Path(file).stem)[:NAME_LENGTH]}.png"
                draw(pixels, found, names, score).save(picture)
                entry["picture"] = printable(str(picture))
                words = ", ".join(f"{row['name']} {row['score']:.2f}" for row in rows) or "nothing above the score"
            except Exception as error:  # whatever it is, the other images go on
                reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
                words = entry["error"] = printable(f"{step}: {reason}")
            print(f"{entry['image']}: {words}")
    finally:
        (target / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"pictures and detections.json in {printable(str(target))}")
    return any("error" not in entry for entry in results)


def image_files(arguments: Sequence[str]) -> list[str]:
    """Return the files, the images inside folders, and what globs match, in order, each once.

    Raises:
        ValueError: for a folder without images.
        FileNotFoundError: where a named file is not there, or a glob matches nothing.
    """
    found: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(p for p in Path(argument).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{argument} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += map(str, inside)
        elif os.path.exists(argument) or argument.startswith(("http://", "https://")):  # a web server's ? is no glob
            found.append(argument)
        elif any(c in argument for c in "*?["):
            found += [url for url, _ in list_files(argument)]
        elif "://" in argument:
            found.append(argument)
        else:
            raise FileNotFoundError(f"no file {printable(argument)}, looked for in {os.getcwd()}")
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
