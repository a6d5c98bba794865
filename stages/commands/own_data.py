"""Looks at the images, captions and boxes that somebody has, through the sources that `data` will read them by."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from regionclip_core.config.tree import CocoSplit, FolderSplit, LvisSplit, Split, TarsSplit
from regionclip_core.datasets.categories import annotation_vocabulary, load_categories
from regionclip_core.datasets.image_list import ListedSource
from regionclip_core.datasets.images import EXTENSIONS
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.shard_plan import open_source, plan_shards
from regionclip_core.datasets.source import Source
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.json_lists import list_entries
from regionclip_core.storage.locations import absolute, exists, is_remote, list_files, nearest_file

SAMPLE = 200
"""Images per split that are looked at one by one."""
CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
"""Looked for in the folder of images and in the one above it, where no caption file is given."""
_OPTIONS = {"images": "images", "urls": "images", "captions": "captions", "instances": "boxes"}
_HALF_LVIS = (
    "expected all that LVIS's files say, or nothing of it: its categories {} `frequency` (r, c or f), its images {} "
    "neg_category_ids and not_exhaustive_category_ids"
)


@dataclass
class OwnData:
    """What was found."""

    splits: dict[str, Split] = field(default_factory=dict)
    """By name: `train`; where captions are in a table and boxes in an annotation file, `captioned` before it; `val`
    where images to evaluate on are given."""
    captioned: str | None = None
    """The split with captions."""
    boxed: str | None = None
    """The split with boxes of base categories."""
    evaluated: str | None = None
    """The split that `evaluate` measures on: `val`, or else the one with boxes; None where it can't run."""
    seen: int = 0
    """How many images of it the trainings see."""
    is_lvis: bool = False
    """Whether the boxes are LVIS's."""
    categories: str | None = None
    """`data.categories`; None where there are neither boxes nor given classes."""
    novel: int = 0
    """How many of the categories are novel."""
    images: dict[str, int] = field(default_factory=dict)
    """Per split, bad ones too; of tars an estimate."""
    captions: int = 0
    """An estimate, by those of the sample."""
    sides: list[int] = field(default_factory=list)
    """Shorter sides of the sample's good images, pixels."""
    lines: list[str] = field(default_factory=list)
    """What to tell: one line per split, and what is odd."""

    @property
    def side(self) -> int:
        """Median of the shorter sides, pixels."""
        return int(statistics.median(self.sides))


def look_at(
    images: str,
    captions: str | None,
    boxes: str | None,
    classes: str | None,
    val_images: str | None,
    val_boxes: str | None,
) -> OwnData:
    """Return what is there, by the options of `regionclip init`.

    Raises:
        FileNotFoundError, ValueError: nothing that a run could use; the message says what was looked for.
    """
    found = OwnData()
    kind = _kind(images)
    if kind == "tars" and (captions or boxes):
        option, why = ("--captions", "tars hold their own") if captions else ("--boxes", "they need a folder of images")
        raise ValueError(f"{option}: {why}, and --images {images} means tars; leave it out")
    if val_boxes is None and val_images is not None:
        raise ValueError("--val-images: `evaluate` compares what is found with boxes; give theirs with --val-boxes")
    if val_boxes is not None and boxes is None:
        raise ValueError(
            "--val-boxes: `evaluate` measures a detector, which is trained on boxes; give them with --boxes"
        )
    if val_boxes is not None and absolute(val_boxes) == absolute(str(boxes)):
        raise ValueError(f"--val-boxes: expected boxes of images that no training sees; {val_boxes} is --boxes as well")
    if val_images is not None and _kind(val_images, "--val-images") == "tars":
        raise ValueError(f"--val-images: expected a folder of images, which boxes need; {val_images} means tars")
    for option, file in (("--captions", captions), ("--boxes", boxes), ("--val-boxes", val_boxes)):
        if file is not None and not exists(absolute(file)):
            raise FileNotFoundError(f"{option}: no file {file!r} (looked from {os.getcwd()}){nearest_file(file)}")
    if kind == "folder":
        captions = captions or _captions_beside(images)
        if captions is None and boxes is None:
            raise FileNotFoundError(
                f"--captions: none are given, and none of {', '.join(CAPTION_FILES)} is in {images} or the folder "
                "above it. Give a caption file (.jsonl, .csv, .tsv, .parquet or COCO's .json), --boxes, or both; "
                "images alone teach nothing. To find objects in them: regionclip detect"
            )
    named = None if boxes is None else _named(boxes, "--boxes")
    found.is_lvis = named is not None and bool(named.groups)
    if val_boxes is not None and bool(_named(val_boxes, "--val-boxes").groups) != found.is_lvis:
        kinds = ("LVIS's", "COCO's") if found.is_lvis else ("COCO's", "LVIS's")
        raise ValueError(
            f"--val-boxes: expected {kinds[0]} form, as --boxes {boxes} has (came: {kinds[1]}, {val_boxes})"
        )
    vocabulary = _vocabulary(found, boxes, named, classes)
    in_coco = captions is not None and captions.lower().endswith(".json")
    if kind == "tars":
        found.splits["train"] = TarsSplit(source="tars", urls=_pattern(images))
        found.captioned = "train"
    elif captions is not None:
        found.captioned = "captioned" if boxes and not in_coco else "train"
        table = None if in_coco else FolderSplit(source="folder", images=images, captions=captions)
        found.splits[found.captioned] = table or CocoSplit(source="coco", images=images, captions=captions)
    if boxes is not None:
        found.splits["train"] = _annotated(found, images, boxes, captions if in_coco else None)
        found.boxed = "train"
    if val_boxes is not None:
        found.splits["val"] = _annotated(found, val_images or images, val_boxes, None)
    with tempfile.TemporaryDirectory(prefix="regionclip-init-") as scratch:
        sources = {
            name: open_source(name, split, 0, vocabulary, Folder(scratch)) for name, split in found.splits.items()
        }
        for name, split in found.splits.items():
            with _by_option():
                _look_at_split(found, name, split, sources[name], vocabulary)
        if found.captioned and found.boxed:
            found.evaluated = "val" if "val" in found.splits else found.boxed
            _look_at_evaluation(found, sources)
    return found


def _annotated(found: OwnData, images: str, boxes: str, captions: str | None) -> Split:
    """Return the split of an annotation file."""
    if found.is_lvis:
        return LvisSplit(source="lvis", images=images, instances=boxes, captions=captions)
    return CocoSplit(source="coco", images=images, instances=boxes, captions=captions)


def _look_at_evaluation(found: OwnData, sources: Mapping[str, Source]) -> None:
    """Note which images `evaluate` measures on, and whether trainings see them."""

    def files(name: str) -> set[str]:
        source = sources[name]
        assert isinstance(source, ListedSource)  # tars and boxes don't go together
        folder = absolute(str(getattr(found.splits[name], "images", ""))).rstrip("/")
        return {f"{folder}/{file}" for piece in source.pieces(SAMPLE) for file in source.file_names(piece)}

    if found.evaluated != "val":
        found.lines.append(
            "evaluate measures on train, the images of the training: a check that it learned, no result. For one, give "
            "images that no training sees: --val-images DIR --val-boxes FILE"
        )
        return
    val = files("val")
    found.seen = len(val & set().union(*(files(name) for name in found.splits if name != "val")))
    found.lines.append(
        f"evaluate measures on val, of whose images the trainings see {found.seen or 'none'}"
        + (": leave them out of --captions, --boxes or --val-boxes for a result" * bool(found.seen))
    )


def _look_at_split(found: OwnData, name: str, split: Split, source: Source, vocabulary: Vocabulary) -> None:
    plans = plan_shards({name: source}, SAMPLE)
    try:
        source.check(plans[0].piece)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{_some_images(split)}") from error
    rows = list(islice(chain.from_iterable(source.samples(plan, None) for plan in plans), SAMPLE))
    good, bad = [row for row in rows if row.ok], [row for row in rows if not row.ok]
    if not good:
        first = f" The first: {bad[0].key}: {bad[0].reason}" if bad else ""
        raise ValueError(f"data.splits.{name}.images: none of the first {len(rows)} images can be used.{first}")
    is_tars = isinstance(split, TarsSplit)
    count = _images_in_tars(split, rows) if isinstance(split, TarsSplit) else plans[-1].piece.stop
    found.images[name] = count
    sides = [min(row.width, row.height) for row in good]
    found.sides += sides
    about = "about " * (is_tars and count > len(rows))
    line = f"{name}: {about}{count} images, {len(rows)} looked at; shorter side {min(sides)} to {max(sides)} px, "
    line += f"median {int(statistics.median(sides))}"
    if name == found.captioned:
        per_image = sum(len(row.captions) for row in good) / len(good)
        if not per_image:
            raise ValueError(f"data.splits.{name}.captions: none of the first {len(rows)} images has a caption")
        found.captions = round(per_image * count)
        line += (
            f"; about {found.captions} captions, such as {next(row.captions[0] for row in good if row.captions)[:60]!r}"
        )
    found.lines.append(line)
    if bad:
        found.lines.append(f"  {len(bad)} of the {len(rows)} can't be used. The first: {bad[0].key}: {bad[0].reason}")
    if found.is_lvis and name != "captioned" and all("lost_image_labels" in row.lost for row in good):
        raise ValueError(f"data.splits.{name}.instances: {_HALF_LVIS.format('have a', 'have no lists')}")
    if name in (found.boxed, "val"):
        found.lines.append(f"  {_boxes(name, source, vocabulary)}")


def _boxes(name: str, source: Source, vocabulary: Vocabulary) -> str:
    """Return how many boxes there are. Raises ValueError where none is of a category that they are there for."""
    counts = Counter(source.categories())
    base, novel = (sum(counts[name] for name in names) for names in (vocabulary.base, vocabulary.novel))
    others = counts.total() - base - novel
    said = (
        f"{base} of {len(vocabulary.base)} base categories, {novel} of {len(vocabulary.novel)} novel ones"
        f"{f', {others} of others' * bool(others)}"
    )
    if name == "train" and not base:
        raise ValueError(f"data.splits.train.instances: expected boxes of base categories to train on; came {said}")
    if not base + novel:
        raise ValueError(f"data.splits.{name}.instances: expected boxes to measure on; came {said}")
    return f"boxes: {said}"


def _named(file: str, option: str) -> Vocabulary:
    """Return the categories of an annotation file, with groups if it is LVIS's.

    Raises ValueError for a file that names none, or says only half of what LVIS's do.
    """
    annotated = annotation_vocabulary(absolute(file))
    if annotated is None:
        raise ValueError(
            f"{option}: {file} has no list `categories`; expected COCO's instances_*.json or LVIS's lvis_v1_*.json"
        )
    if annotated.groups:  # whether images have the lists is seen when they are looked at
        return annotated
    first = next((value for key, text, value in list_entries(absolute(file)) if key == "images" and text), None)
    if isinstance(first, dict) and first.keys() & {"neg_category_ids", "not_exhaustive_category_ids"}:
        raise ValueError(f"{option}: {file}: {_HALF_LVIS.format('have no', 'have the lists')}")
    return annotated


def _kind(images: str, option: str = "--images") -> str:
    """Return `folder` or `tars`. Raises FileNotFoundError or ValueError if it is neither, with what is there."""
    here = absolute(images)
    if is_remote(images) or not os.path.isdir(here):
        if set("*?[{") & set(images) or images.lower().endswith((".tar", ".tar.gz", ".tgz")):
            list_files(images)  # says if nothing matches
            return "tars"
        if is_remote(images):
            return "folder"
        if os.path.isfile(here):
            raise ValueError(f"{option}: {images} is a file; expected a folder of images, or tars such as 'web/*.tar'")
        raise FileNotFoundError(f"{option}: no folder {images!r} (looked from {os.getcwd()}){nearest_file(images)}")
    endings = Counter(name.rpartition(".")[2].lower() if "." in name else "no ending" for name in _files(here))
    if EXTENSIONS & set(endings):
        return "folder"
    if endings["tar"]:
        return "tars"
    there = ", ".join(f"{count} .{ending}" for ending, count in endings.most_common(5)) or "no file at all"
    raise ValueError(
        f"{option}: expected images ({', '.join(sorted(EXTENSIONS))}) or .tar files in {images}; there is "
        f"{there.replace('.no ending', 'without an ending')}"
    )


def _pattern(images: str) -> str:
    return f"{images.rstrip('/')}/*.tar" if os.path.isdir(absolute(images)) else images


def _files(folder: str) -> Iterator[str]:
    """Yield the files below a folder by their paths in it; hidden ones are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.relpath(f"{place}/{name}", folder) for name in sorted(names) if not name.startswith("."))


def _captions_beside(images: str) -> str | None:
    """Return the caption file that is in the folder of images, or in the one above it."""
    here = images.rstrip("/")
    places = [
        f"{folder}/{name}" if folder else name for folder in (here, os.path.dirname(here)) for name in CAPTION_FILES
    ]
    return next((place for place in places if exists(absolute(place))), None)


def _some_images(split: Split) -> str:
    """Return, for a message that no image was found by its name, which ones the folder has."""
    folder = absolute(str(getattr(split, "images", "")))
    names = (
        [] if is_remote(folder) else list(islice((n for n in _files(folder) if n.rpartition(".")[2] in EXTENSIONS), 3))
    )
    return f". It has {', '.join(map(repr, names))}, ..." if names else ""


def _vocabulary(found: OwnData, boxes: str | None, named: Vocabulary | None, classes: str | None) -> Vocabulary:
    """Return the categories, and note where they are from: the given classes, or else those of the boxes, `named`."""
    if classes is not None:
        found.categories = classes
        vocabulary = replace(load_categories(classes), source=f"--classes {classes}")
        if found.is_lvis and not vocabulary.groups:
            raise ValueError(
                f"--classes: {boxes} is an LVIS file, whose rare categories are novel; leave --classes out, since "
                f"LVIS's evaluation needs to know what is rare, common and frequent, which {classes} doesn't say"
            )
    elif named is not None and boxes is not None:
        found.categories = boxes
        vocabulary = replace(named, source=boxes)
    else:
        return Vocabulary(())
    found.novel = len(vocabulary.novel)
    return vocabulary


def _images_in_tars(split: TarsSplit, rows: list[IndexRow]) -> int:
    """Return how many samples the tars hold, about, if they are as large as those of the sample on average."""
    sizes = dict(list_files(split.urls))
    if len(rows) < SAMPLE or min(sizes.values()) < 0:  # a web server may not say how large a file is
        return len(rows)
    last = rows[-1]
    passed = list(dict.fromkeys(row.url for row in rows))[:-1]
    read = sum(sizes[url] for url in passed) + last.offset + last.size
    return round(sum(sizes.values()) / read * len(rows))


@contextmanager
def _by_option() -> Iterator[None]:
    """Name the option of the command line instead of the setting in errors of the sources."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        named = re.sub(
            r"data\.splits\.(\w+)\.(\w+)", lambda m: f"--{'val-' * (m[1] == 'val')}{_OPTIONS[m[2]]}", str(error)
        )
        raise type(error)(named) from error
