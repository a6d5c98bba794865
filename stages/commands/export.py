"""The `export` command: a workspace's labels and models, and those of an imported folder, for other programs."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.tree import Config
from regionclip_core.detection.detection_files import DetectionFiles, check_formats
from regionclip_core.storage.folder import Folder, free_target, whole_or_nothing, writable_target
from regionclip_core.storage.given_files import clip_folder, clip_layout, is_model_folder
from regionclip_core.storage.locations import printable
from regionclip_core.threads import set_usual_threads

from ..engine.plan import PlanLine
from .finished import finished, folder_of, undisturbed
from .workspace_models import USEFUL, ZERO_SHOT, detector_stages, run_vocabulary, workspace_detector

if TYPE_CHECKING:
    from regionclip_core.datasets.index import IndexRow
    from regionclip_core.pretraining.kept_labels import ImageLabels

FORMATS = {
    "student": ("open_clip", "official"),
    "teacher": ("open_clip",),
    "detector": ("detector", "official", "onnx"),
}
"""What can be written of what; the first is the default."""
IMAGES = ("copy", "refer")
"""What becomes of the images of exported labels; the first is the default."""


def export(what: str, source: Config | str, out: str, format: str | None, name: str | None) -> None:
    """Write `what` (of FORMATS) from `source`, the config of a workspace or a model's folder, to `out`; prints what.

    `name` chooses the workspace's detector. `out` is a folder that must not exist or be empty, or with the official
    format a file that must not exist; it appears whole or not at all.

    Raises:
        ValueError: if there is no such model or format, or the model has no place in the format.
    """
    if what not in FORMATS:
        raise ValueError(f"export {what}: expected one of {', '.join(FORMATS)}, labels")
    format = format or FORMATS[what][0]
    if format not in FORMATS[what]:
        raise ValueError(f"--format {format}: a {what} can be exported as {' or '.join(FORMATS[what])}")
    if format == "onnx" and (missing := [module for module in ("onnx", "onnxscript") if find_spec(module) is None]):
        install = "pip install 'regionclip[onnx]' (in a clone: '.[onnx]')"
        raise ImportError(f"--format onnx needs {' and '.join(missing)}: {install}")
    if name is not None and what != "detector":
        raise ValueError(f"--name {name} is of detectors, and this exports the {what}: leave it out")
    name = name or "regionclip"
    target, file = None, Path(out)
    if format != "official":
        if file.suffix in (".pth", ".pt", ".safetensors", ".onnx"):
            raise ValueError(f"--out {out}: {format} is a folder; name one, or take --format official, which is a file")
        target = free_target(out)
    elif file.suffix not in (".pth", ".pt") or file.exists():
        there = ", and this is there already" if file.exists() else ""
        raise ValueError(f"--out {out}: the official format is one new file, such as model.pth{there}")
    else:
        writable_target(str(file.parent))
    lines: dict[str, PlanLine] = {}
    if isinstance(source, str):
        _check_model(what, source, format)
    elif what == "detector":
        lines = detector_stages(source, name, "export")
    else:
        lines = finished(source, [ZERO_SHOT[what]], USEFUL, "export")
    set_usual_threads()  # before torch is imported
    if target is not None:
        with whole_or_nothing(target) as folder:
            if format == "onnx":
                _write_onnx(source, folder, name, lines)
            else:
                _write(what, source, folder, name, lines)
        print(f"{what} in {out}: {', '.join(sorted(path.name for path in target.iterdir()))}")
        return
    from regionclip_core.weights.exporting import save_official

    if isinstance(source, str):
        count = save_official(Folder(source), file)
    else:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        # The way to official names starts from our folders.
        with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=file.absolute().parent) as temporary:
            _write(what, source, Folder(temporary), name, lines)
            count = save_official(Folder(temporary), file)
    print(f"{what} in {out}: {count} tensors under the official names")


def _check_model(what: str, source: str, format: str) -> None:
    """Raise ValueError if a folder given with --model has nothing to export as `what`."""
    if (what == "detector") != is_model_folder(Folder(source)):
        raise ValueError(f"--model {source} holds no {what}; say what it is: export student, or export detector")
    if format == "detector":
        raise ValueError(f"--model {source} is a detector folder already: copy it, or give --format official")
    if format == "open_clip" and not clip_layout(clip_folder(source, "student" if what == "student" else "teacher")):
        raise ValueError(f"--model {source} holds no CLIP model: expected open_clip_config.json or clip.json in it")


def _write_onnx(source: Config | str, folder: Folder, name: str, lines: dict[str, PlanLine]) -> None:
    from regionclip_core.detection.model_folder import load_model
    from regionclip_core.weights.onnx_model import export_onnx

    given = isinstance(source, str)
    export_onnx(folder, load_model(Folder(source)) if given else workspace_detector(source, name, lines))


def _write(what: str, source: Config | str, folder: Folder, name: str, lines: dict[str, PlanLine]) -> None:
    from regionclip_core.detection.drawings import knows_drawings_only, of_drawings_only
    from regionclip_core.detection.model_folder import save_model
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import NamePrompts, read_prompts
    from regionclip_core.weights.exporting import export_open_clip
    from regionclip_core.weights.model_card import RunFacts, clip_card, detector_card

    if isinstance(source, str):
        place = clip_folder(source, "student" if what == "student" else "teacher")
        given = load_clip(place)
        export_open_clip(folder, given, clip_card(given, what, None), read_prompts(place), of_drawings_only(place))
        return
    with undisturbed(lines.values()):
        made = {stage: asdict(line.manifest) for stage, line in lines.items() if line.manifest is not None}
        metrics = folder_of(lines["evaluate"]).read_json("metrics.json") if "evaluate" in lines else None
        facts = RunFacts(source, made, metrics, run_vocabulary(source, lines))
        clip = None if what == "detector" else load_clip(folder_of(lines[ZERO_SHOT[what]]))
    if clip is None:
        model = workspace_detector(source, name, lines)
        save_model(folder, model, str(detector_card(model, name, facts)))
    else:
        drawings_only = knows_drawings_only(source, "student" if what == "student" else "teacher")
        prompts = NamePrompts.from_config(source.teacher)
        export_open_clip(folder, clip, clip_card(clip, what, facts), prompts, drawings_only)


def export_labels(
    config: Config,
    out: str,
    formats: str | None = None,
    splits: Sequence[str] = (),
    min_score: float = 0.0,
    limit: int | None = None,
    images: str = "copy",
) -> int:
    """Write the kept labels of a workspace, and their images, into the new folder `out`; prints what.

    Beside the formats' files there is labels.csv, a line per label. Images without labels are left out. An image that
    can't be read gets its reason on the screen, and the others go on. Returns how many these are.

    Args:
        formats: some of FORMATS, with commas between them; None: coco.
        splits: some of labels.splits; empty: all.
        min_score: labels of a lower score are left out.
        limit: images at most, the first ones.
        images: `copy` writes them into `out`/images; `refer` names them where they are.

    Raises:
        ValueError: if there are no labels, or an option can't be met.
    """
    if images not in IMAGES:
        raise ValueError(f"--images {images}: expected {' or '.join(IMAGES)}{nearest_hint(images, IMAGES)}")
    chosen = check_formats([formats or "coco"], (), None)
    if images == "refer" and "yolo" in chosen:
        raise ValueError(
            "--images refer: YOLO's trainers look for labels beside the images; leave it out, to copy them"
        )
    for split in splits:
        if split not in config.labels.splits:
            known = config.labels.splits
            raise ValueError(f"--split {split}: expected one of labels.splits, {[*known]}{nearest_hint(split, known)}")
    target = free_target(out)
    lines = finished(config, ["data", "labels"], purpose="export labels")
    set_usual_threads()  # before torch is imported
    import numpy as np
    import torch

    from regionclip_core.datasets.images import BadImage, ImageReader, read_header, upright_file
    from regionclip_core.detection.results import NamedDetections
    from regionclip_core.pretraining.corrected_exports import LIST, LIST_COLUMNS
    from regionclip_core.pretraining.corrections import box_text
    from regionclip_core.pretraining.kept_labels import file_name, pool_names, read_kept

    data, labels = folder_of(lines["data"]), folder_of(lines["labels"])

    def chosen_images() -> Iterator[tuple[str, ImageLabels]]:
        return islice(read_kept(data, labels, splits or config.labels.splits, min_score), limit)

    failed = done = boxes = 0
    with undisturbed(lines.values()), whole_or_nothing(target) as folder, ImageReader(data) as reader:
        pool = pool_names(labels)
        used = sorted({number for _, one in chosen_images() for number in one.concept_id.tolist()})
        if not used:
            raise ValueError(
                f"no label of {', '.join(splits or config.labels.splits)} is kept with a score of {min_score:g} or "
                "more; lower --min-score or labels.threshold (`regionclip show labels` has the scores)"
            )
        classes, place = tuple(pool[number] for number in used), Path(folder.url)
        files = DetectionFiles(place, chosen, classes, is_data_set=True)
        with (place / LIST).open("w", encoding="utf-8", newline="") as listed:
            rows = csv.writer(listed, lineterminator="\n")
            rows.writerow(LIST_COLUMNS)
            for number, (split, one) in enumerate(chosen_images()):
                try:
                    if images == "copy":
                        content, header = upright_file(reader.read_bytes(one.image))
                        name = f"images/{file_name(number, one.image.key)}.{header.extension}"
                    else:
                        content, name = b"", _own_file(one.image)
                        header = read_header(reader.read_bytes(one.image))
                    if (header.width, header.height) != (one.image.width, one.image.height):
                        raise BadImage("bad_image", f"{header.width} x {header.height} pixels, not those of the index")
                except BadImage as error:
                    failed += 1
                    print(f"{printable(one.image.key)}: not read: {error}")
                    continue
                if content:
                    (place / "images").mkdir(exist_ok=True)
                    (place / name).write_bytes(content)
                tensors = (torch.from_numpy(one.boxes), torch.from_numpy(one.score))
                found = NamedDetections(
                    *tensors,
                    torch.from_numpy(np.searchsorted(used, one.concept_id)),
                    torch.zeros(len(one.score), dtype=torch.int64),
                    classes=classes,
                    size=(one.image.height, one.image.width),
                )
                files.add(name, found, key=printable(one.image.key), split=split)
                for called, score, box in zip(found.names, one.score.tolist(), one.boxes.tolist(), strict=True):
                    rows.writerow((one.image.key, box_text(box), called, f"{score:.6f}", split, name))
                done, boxes = done + 1, boxes + len(found)
        files.close()
    print(f"{boxes} labels of {len(classes)} concepts on {done} images in {out}: {', '.join((*chosen, LIST))}")
    return failed


def _own_file(image: IndexRow) -> str:
    """Return where an image is that is a file of its own. ValueError for one in a tar."""
    if image.offset:
        raise ValueError(
            f"--images refer: {printable(image.key)} is inside {printable(image.url)}, and programs open files; leave "
            "it out, to copy the images"
        )
    return image.url if "://" in image.url else os.path.abspath(image.url)
