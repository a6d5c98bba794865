"""`export labels`: pseudo labels with their images as the data set of another program; and `show labels --pictures`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import EXTENSIONS
from regionclip_core.detection.detection_files import DetectionFiles, check_formats
from regionclip_core.storage.folder import free_target, whole_or_nothing
from regionclip_core.storage.locations import printable
from regionclip_core.threads import set_usual_threads
from stages.commands.finished import finished, folder_of, undisturbed

if TYPE_CHECKING:
    from regionclip_core.datasets.index import IndexRow
    from regionclip_core.pretraining.kept_labels import ImageLabels

IMAGES = ("copy", "refer")
_NAME_LENGTH = 60  # letters of a key in the name of its image: a file system takes 255 bytes


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
    from regionclip_core.pretraining.kept_labels import pool_names, read_kept

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


def write_pictures(config: Config, concept: str, out: str, most: int) -> None:
    """Write pictures of the regions that are labelled with a concept, and labels.csv, into the new folder `out`.

    The kept ones with the highest scores, these first in the names of the files; at most `most`.

    Raises:
        ValueError: if the pool has no such concept, or no region is labelled with it.
    """
    target = free_target(out)
    lines = finished(config, ["data", "labels"], purpose="show labels --pictures")
    set_usual_threads()  # before torch is imported
    import torch

    from regionclip_core.datasets.images import ImageReader
    from regionclip_core.datasets.index import IndexRow, read_index, split_shards, splits_of_shards
    from regionclip_core.detection.drawing import draw
    from regionclip_core.detection.inference import Detections
    from regionclip_core.pretraining.corrected_exports import LIST, LIST_COLUMNS
    from regionclip_core.pretraining.kept_labels import best_regions, concept_number, pool_names

    data, labels = folder_of(lines["data"]), folder_of(lines["labels"])
    with undisturbed(lines.values()):
        names = pool_names(labels)
        found = best_regions(labels, split_shards(data, config.labels.splits), concept_number(names, concept), most)
        if not found:
            raise ValueError(f"no kept label is {concept!r}; `regionclip show labels` has the concepts that are")
        split_of, images = splits_of_shards(data), dict[int, Mapping[int, IndexRow]]()
        for shard in {one.shard for one in found}:
            wanted = {one.row for one in found if one.shard == shard}
            images[shard] = {row: image for row, image in enumerate(read_index(data, shard)) if row in wanted}
        with whole_or_nothing(target) as folder, ImageReader(data) as reader:
            place = Path(folder.url)
            with (place / LIST).open("w", encoding="utf-8", newline="") as listed:
                rows = csv.writer(listed, lineterminator="\n")
                rows.writerow(LIST_COLUMNS)
                for number, one in enumerate(found, start=1):
                    image = images[one.shard][one.row]
                    score, zero = torch.tensor([one.score]), torch.zeros(1, dtype=torch.int64)
                    region = Detections(torch.tensor([one.box]), score, zero, zero)
                    picture = f"{file_name(number, image.key)}.png"
                    draw(reader.read(image), region, [concept], 0).save(place / picture)
                    own = (box_text(one.box), concept, f"{one.score:.6f}", split_of[one.shard], picture)
                    rows.writerow((image.key, *own))
    print(f"{len(found)} pictures of {concept!r}, highest scores first, and {LIST} in {out}")


def file_name(number: int, key: str) -> str:
    """Return a name, without ending, for a file of an image: a key is never trusted as a path."""
    stem, ending = os.path.splitext(key)
    name = stem if ending[1:].lower() in EXTENSIONS else key
    return f"{number:06d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-_NAME_LENGTH:]}"


def box_text(box: Sequence[float]) -> str:
    """Return a box as `labels.corrections` has it."""
    return " ".join(f"{side:.2f}" for side in box)


def _own_file(image: IndexRow) -> str:
    """Return where an image is that is a file of its own. ValueError for one in a tar."""
    if image.offset:
        raise ValueError(
            f"--images refer: {printable(image.key)} is inside {printable(image.url)}, and programs open files; leave "
            "it out, to copy the images"
        )
    return image.url if "://" in image.url else os.path.abspath(image.url)
