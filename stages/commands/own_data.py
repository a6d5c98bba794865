"""Looks at the images, captions and boxes that somebody has, through the sources that `data` will read them by."""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from regionclip_core.config.tree import CocoSplit, FolderSplit, Split, TarsSplit
from regionclip_core.datasets.categories import annotation_vocabulary, load_categories
from regionclip_core.datasets.images import EXTENSIONS
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.shard_plan import open_source, plan_shards
from regionclip_core.datasets.source import Source
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import absolute, exists, is_remote, list_files, nearest_file

SAMPLE = 200
"""Images per split that are looked at one by one."""
CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
"""Looked for in the folder of images and in the one above it, where no caption file is given."""
_OPTIONS = {"images": "--images", "urls": "--images", "captions": "--captions", "instances": "--boxes"}


@dataclass
class OwnData:
    """What was found."""

    splits: dict[str, Split] = field(default_factory=dict)
    """By name: `train`; where captions are in a table and boxes in a COCO file, `captioned` before it."""
    captioned: str | None = None
    """The split with captions."""
    boxed: str | None = None
    """The split with boxes of base categories."""
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


def look_at(images: str, captions: str | None, boxes: str | None, classes: str | None) -> OwnData:
    """Return what is there, by the options of `regionclip init`.

    Raises:
        FileNotFoundError, ValueError: nothing that a run could use; the message says what was looked for.
    """
    found = OwnData()
    kind = _kind(images)
    if kind == "tars" and (captions or boxes):
        option, why = ("--captions", "tars hold their own") if captions else ("--boxes", "they need a folder of images")
        raise ValueError(f"{option}: {why}, and --images {images} means tars; leave it out")
    for option, file in (("--captions", captions), ("--boxes", boxes)):
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
    vocabulary = _vocabulary(found, boxes, classes)
    in_coco = captions is not None and captions.lower().endswith(".json")
    if kind == "tars":
        found.splits["train"] = TarsSplit(source="tars", urls=_pattern(images))
        found.captioned = "train"
    elif captions is not None:
        found.captioned = "captioned" if boxes and not in_coco else "train"
        table = None if in_coco else FolderSplit(source="folder", images=images, captions=captions)
        found.splits[found.captioned] = table or CocoSplit(source="coco", images=images, captions=captions)
    if boxes is not None:
        found.splits["train"] = CocoSplit(
            source="coco", images=images, instances=boxes, captions=captions if in_coco else None
        )
        found.boxed = "train"
    with tempfile.TemporaryDirectory(prefix="regionclip-init-") as scratch:
        for name, split in found.splits.items():
            with _by_option():
                _look_at_split(found, name, split, vocabulary, Folder(scratch))
    return found


def _look_at_split(found: OwnData, name: str, split: Split, vocabulary: Vocabulary, scratch: Folder) -> None:
    source = open_source(name, split, 0, vocabulary, scratch)
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
    if name == found.boxed:
        found.lines.append(f"  {_boxes(source, vocabulary)}")


def _boxes(source: Source, vocabulary: Vocabulary) -> str:
    """Return how many boxes there are. Raises ValueError where none is of a base category."""
    counts = Counter(source.categories())
    base, novel = (sum(counts[name] for name in names) for names in (vocabulary.base, vocabulary.novel))
    others = counts.total() - base - novel
    said = (
        f"{base} of {len(vocabulary.base)} base categories, {novel} of {len(vocabulary.novel)} novel ones"
        f"{f', {others} of others' * bool(others)}"
    )
    if not base:
        raise ValueError(f"data.splits.train.instances: expected boxes of base categories to train on; came {said}")
    return f"boxes: {said}"


def _kind(images: str) -> str:
    """Return `folder` or `tars`. Raises FileNotFoundError or ValueError if it is neither, with what is there."""
    here = absolute(images)
    if is_remote(images) or not os.path.isdir(here):
        if set("*?[{") & set(images) or images.lower().endswith((".tar", ".tar.gz", ".tgz")):
            list_files(images)  # says if nothing matches
            return "tars"
        if is_remote(images):
            return "folder"
        if os.path.isfile(here):
            raise ValueError(f"--images: {images} is a file; expected a folder of images, or tars such as 'web/*.tar'")
        raise FileNotFoundError(f"--images: no folder {images!r} (looked from {os.getcwd()}){nearest_file(images)}")
    endings = Counter(name.rpartition(".")[2].lower() if "." in name else "no ending" for name in _files(here))
    if EXTENSIONS & set(endings):
        return "folder"
    if endings["tar"]:
        return "tars"
    there = ", ".join(f"{count} .{ending}" for ending, count in endings.most_common(5)) or "no file at all"
    raise ValueError(
        f"--images: expected images ({', '.join(sorted(EXTENSIONS))}) or .tar files in {images}; there is "
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


def _vocabulary(found: OwnData, boxes: str | None, classes: str | None) -> Vocabulary:
    """Return the categories, and note where they are from: the given classes, or else those of the boxes, all base."""
    if classes is not None:
        found.categories = classes
        vocabulary = replace(load_categories(classes), source=f"--classes {classes}")
    elif boxes is not None:
        found.categories = boxes
        annotated = annotation_vocabulary(absolute(boxes))
        if annotated is None:
            raise ValueError(f"--boxes: {boxes} has no list `categories`; expected COCO's instances_*.json")
        vocabulary = replace(annotated, source=boxes)
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
        raise type(error)(re.sub(r"data\.splits\.\w+\.(\w+)", lambda m: _OPTIONS[m[1]], str(error))) from error
