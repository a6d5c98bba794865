"""The `detect` command: objects by name in images. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from regionclip_core.config.nearest import nearest
from regionclip_core.config.tree import Config, EvaluateConfig, ExecutionConfig
from regionclip_core.datasets.images import BadImage, check_image, decode_image, read_image_file
from regionclip_core.detection.given_parts import check_model, check_parts, check_second
from regionclip_core.storage.folder import Folder, writable_target
from regionclip_core.storage.given_files import is_model_folder
from regionclip_core.storage.locations import list_files, printable, remote
from regionclip_core.threads import set_threads, set_usual_threads
from stages.commands.workspace_models import ZERO_SHOT, detector_stages, workspace_detector
from stages.engine.work import resolve_device

if TYPE_CHECKING:
    from regionclip_core.detection.inference import Detections
    from stages.engine.plan import PlanLine

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
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
    parts: Mapping[str, str | None],
    device: str = "auto",
    precision: str | None = None,
    fuse: str | None = None,
    fuse_crops: bool = False,
    fuse_base: float | None = None,
    fuse_novel: float | None = None,
    **settings: Any,
) -> bool:
    """Write each image with its boxes and masks, and `detections.json`, into `out`; prints one line per image.

    An image that can't be read, searched or drawn gets its reason in the JSON and on the screen, and the others go on.
    The JSON is written unless no image can be read at all, which is found out before the model is loaded; bytes of a
    name that are no UTF-8 are \\xNN in it. Returns whether any image was done.

    Args:
        images: files, folders and globs; URLs too.
        source: the config of a workspace, or a model's folder.
        score: lowest score shown.
        out: a folder; None: the first of detections, detections2, ... that is not there.
        name: which of the workspace's detectors, or its student or teacher, not finetuned.
        parts: rpn, text, prompts and embeddings of `with_parts`.
        precision: as `execution.precision`; None: the config's, or `auto`.
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
    for key in ("objectness", "nms_kind"):
        value, known = settings.get(key), get_args(EvaluateConfig.model_fields[key].annotation)
        if value not in (None, *known):
            raise ValueError(f"--{key.replace('_', '-')} {value}: expected one of {', '.join(known)}")
    if settings.get("nms") is not None and settings.get("nms_kind") == "gaussian":
        raise ValueError("--nms is an IoU, and gaussian soft-NMS uses none: leave it out, or take --nms-kind linear")
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    known = get_args(ExecutionConfig.model_fields["precision"].annotation)
    if precision not in (None, *known):
        raise ValueError(f"--precision {precision}: expected one of {', '.join(known)}")
    check_parts(**parts)
    if (parts["text"] or parts["prompts"]) and not classes:
        raise ValueError("--text and --prompts are for the names of --classes: give these too, or leave them out")
    if fuse is None and (fuse_crops or fuse_base is not None or fuse_novel is not None):
        raise ValueError("--fuse-crops, --fuse-base and --fuse-novel are of a second model: name it with --fuse")
    lines: dict[str, PlanLine] = {}
    second_lines: dict[str, PlanLine] = {}
    set_usual_threads()
    if isinstance(source, str):
        check_model(source, has_names=bool(classes or parts["embeddings"]), has_rpn=parts["rpn"] is not None)
    else:
        lines = detector_stages(source, name, "detect", zero_shot=True)
        if parts["rpn"] is None and source.proposals.method != "rpn":
            raise ValueError(f"proposals.method is {source.proposals.method}: give a proposal network with --rpn")
        if source.execution.threads:
            set_threads(source.execution.threads)
    if fuse in ZERO_SHOT and not isinstance(source, str):
        second_lines = detector_stages(source, fuse, f"detect --fuse {fuse}", zero_shot=True)
    elif fuse is not None:
        check_second(fuse)
    if not any_readable(files):
        return False
    device = resolve_device(device, "--device")
    from regionclip_core.detection.assembly import open_model, with_parts
    from regionclip_core.detection.drawing import draw
    from regionclip_core.precision import set_precision

    usual = "auto" if isinstance(source, str) else source.execution.precision
    set_precision(precision or usual, device, "--precision" if precision else "execution.precision")
    if isinstance(source, str):
        model = open_model(source, **parts, device=device, with_text=bool(classes))
    else:
        model = with_parts(workspace_detector(source, name, lines), **parts).to(device)
    model = model.adjusted(**settings)
    if fuse is not None:
        config = Config() if isinstance(source, str) else source
        own, context = config.evaluate.fusion, config.labels.context
        second = workspace_detector(config, fuse, second_lines) if second_lines else open_model(fuse)
        if own.temperature is not None:
            second.detector.temperature = own.temperature
        base = own.base if fuse_base is None else fuse_base
        novel = own.novel if fuse_novel is None else fuse_novel
        model = model.fused(second, base, novel, context if fuse_crops else None)
    names = model.ready(classes)
    own = (Path(f"detections{number if number > 1 else ''}") for number in count(1))
    target = Path(out) if out is not None else next(path for path in own if not os.path.lexists(path))
    target.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    best = (0.0, "", "")
    """Score, name and image of the detection with the highest score."""
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
                if len(found):
                    best = max(best, (float(found.scores[0]), names[int(found.labels[0])], entry["image"]))
                entry |= {"width": width, "height": height, "detections": rows}
                step = "no picture"
                picture = target / f"{number:03d}-{printable(Path(file).stem)[:NAME_LENGTH]}.png"
                draw(pixels, found, names, score).save(picture)
                entry["picture"] = printable(str(picture))
                words = (
                    ", ".join(f"{row['name']} {row['score']:.2f}" for row in rows) or f"nothing of {score:g} or more"
                )
            except Exception as error:  # whatever it is, the other images go on
                reason = str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"
                words = entry["error"] = printable(f"{step}: {reason}")
            print(f"{entry['image']}: {words}")
    finally:
        (target / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"pictures and detections.json in {printable(str(target))}")
    if best[1] and best[0] < score:
        value, name, image = best
        print(f"the best score is {value:.4f}, of {name} in {image}; for more than nothing take a lower --score")
    return any("error" not in entry for entry in results)


def any_readable(files: Sequence[str]) -> bool:
    """Return whether one of the images can be read; prints the reasons if not. Looks up to the first good one.

    Raises:
        OSError: none can be read, and of one the store could not be reached.
    """
    failures: list[OSError] = []
    reasons: list[str] = []
    for file in files:
        try:
            check_image(read_image_file(file))
            return True
        except BadImage as error:
            reasons.append(printable(f"{file}: not read: {error}"))
        except OSError as error:
            failures.append(error)
    for reason in reasons:
        print(reason)
    if failures:
        raise failures[0]
    return False


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
                advice = "a model is given with --model" if is_model_folder(Folder(argument)) else "name another"
                others = Counter(p.suffix.lower() or "others" for p in Path(argument).rglob("*") if p.is_file())
                came = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(5)) or "no file"
                if others.keys() & {".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".arw", ".jxl"}:
                    advice = "convert them to JPEG or PNG"
                raise ValueError(
                    f"{argument} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) but {came}; {advice}"
                )
            found += map(str, inside)
        elif os.path.exists(argument) or argument.startswith(("http://", "https://")):  # a web server's ? is no glob
            found.append(argument)
        elif any(c in argument for c in "*?["):
            found += [url for url, _ in list_files(argument)]
        elif "://" in argument:
            with remote(argument):  # refuses an unknown protocol
                found.append(argument)
        else:
            raise FileNotFoundError(
                f"no file {printable(argument)}, looked for in {os.getcwd()}; {_what_was_meant(argument)}"
            )
    return list(dict.fromkeys(found))


def _what_was_meant(argument: str) -> str:
    folder, name = os.path.split(argument.replace("\\", "/"))
    near = nearest(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    hint = "check its folder and ending" if folder or "." in name else "names to look for go into --classes"
    return f"nearest: {printable(os.path.join(folder, near[0]))}" if near else hint


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
