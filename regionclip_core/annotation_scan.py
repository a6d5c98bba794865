"""Where everything about each image of a split stands in its annotation files, so that a shard reads only its own.

The files are scanned once, when the images are counted, and the result is kept beside the artifact until the stage is
done. It takes 12 bytes an annotation and 14 an image; while scanning, also the ids and names of all images.

N images of the split, A annotations of one file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from regionclip_core.artifacts import Folder
from regionclip_core.json_lists import decode_entry, list_entries
from regionclip_core.locations import open_location

Image = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Ranges:
    """Bytes of entries of one file."""

    offsets: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AnnotationScan:
    """The images of a split, joined by id over its files, and their annotations."""

    image_file: npt.NDArray[np.int8]
    """[N] which file lists the image."""
    images: Ranges
    """[N]"""
    duplicates: npt.NDArray[np.bool_]
    """[N] whether the id or the file name has been seen before."""
    annotations: tuple[Ranges, ...]
    """Of each file, [A], by image; those of one image in the order of the file."""
    first: tuple[npt.NDArray[np.int64], ...]
    """Of each file, [N + 1]: image n's annotations are first[n] to first[n + 1]."""
    categories: tuple[dict[Any, str], ...]
    """Of each file: name by category id."""

    def __len__(self) -> int:
        return len(self.image_file)

    def save(self, folder: Folder, name: str) -> None:
        """Write it to `folder` as `<name>.npz`."""
        arrays: dict[str, Any] = {"image_file": self.image_file, "duplicates": self.duplicates}
        arrays |= {"image_offsets": self.images.offsets, "image_bytes": self.images.bytes}
        for i, (ranges, first) in enumerate(zip(self.annotations, self.first, strict=True)):
            arrays |= {f"offsets{i}": ranges.offsets, f"bytes{i}": ranges.bytes, f"first{i}": first}
        names = json.dumps([list(one.items()) for one in self.categories]).encode()
        buffer = io.BytesIO()
        np.savez(buffer, categories=np.frombuffer(names, np.uint8), **arrays)
        folder.write_bytes(f"{name}.npz", buffer.getvalue())

    @classmethod
    def load(cls, folder: Folder, name: str) -> AnnotationScan | None:
        """What `save` wrote; None if it did not."""
        if not folder.exists(f"{name}.npz"):
            return None
        with np.load(io.BytesIO(folder.read_bytes(f"{name}.npz")), allow_pickle=False) as found:
            categories = tuple(dict(map(tuple, one)) for one in json.loads(found["categories"].tobytes()))
            files = range(len(categories))
            return cls(
                found["image_file"],
                Ranges(found["image_offsets"], found["image_bytes"]),
                found["duplicates"],
                tuple(Ranges(found[f"offsets{i}"], found[f"bytes{i}"]) for i in files),
                tuple(found[f"first{i}"] for i in files),
                categories,
            )


@dataclass
class _FileScan:
    """One file as it is scanned. Ids are replaced by their number in order of appearance, over all files."""

    image_ids: list[int] = field(default_factory=list)
    image_names: list[str | None] = field(default_factory=list)
    image_offsets: array[int] = field(default_factory=lambda: array("q"))
    image_bytes: array[int] = field(default_factory=lambda: array("i"))
    owners: array[int] = field(default_factory=lambda: array("i"))
    """Of each annotation, its image's id."""
    offsets: array[int] = field(default_factory=lambda: array("q"))
    bytes: array[int] = field(default_factory=lambda: array("i"))
    categories: dict[Any, str] = field(default_factory=dict)


def scan_annotations(
    urls: Sequence[str], file_name: Callable[[Image], str | None], every_image: bool = True
) -> AnnotationScan:
    """Scan annotation files (instances or captions) and join them by image id.

    Args:
        urls: one or more files; all images of the first, then those that only later ones have.
        file_name: the name of an entry of `images`, by which duplicates are told.
        every_image: False takes the images of the first file only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not of COCO's form.
    """
    ids: dict[Any, int] = {}
    files = [_scan_file(url, ids, file_name) for url in urls]
    chosen: list[tuple[int, int]] = []  # (file, place in its list) of each image
    known: set[int] = set()
    for number, file in enumerate(files if every_image else files[:1]):
        chosen += [(number, i) for i, image_id in enumerate(file.image_ids) if image_id not in known]
        known |= set(file.image_ids)
    duplicates = np.zeros(len(chosen), np.bool_)
    position_of = np.full(len(ids), -1, np.int64)
    names: set[str | None] = set()
    for position, (number, i) in enumerate(chosen):
        image_id, name = files[number].image_ids[i], files[number].image_names[i]
        duplicates[position] = position_of[image_id] >= 0 or name in names
        if position_of[image_id] < 0:
            position_of[image_id] = position
        names.add(name)
    grouped = [_by_image(file, position_of, len(chosen)) for file in files]
    return AnnotationScan(
        np.array([number for number, _ in chosen], np.int8),
        Ranges(
            np.array([files[number].image_offsets[i] for number, i in chosen], np.int64),
            np.array([files[number].image_bytes[i] for number, i in chosen], np.int32),
        ),
        duplicates,
        tuple(ranges for ranges, _ in grouped),
        tuple(first for _, first in grouped),
        tuple(file.categories for file in files),
    )


def _scan_file(url: str, ids: dict[Any, int], file_name: Callable[[Image], str | None]) -> _FileScan:
    found = _FileScan()
    lists = set()
    for key, value, offset, size in list_entries(url):
        if size == 0:
            lists.add(key)
        elif key == "images":
            image = value if isinstance(value, dict) else {}
            found.image_ids.append(ids.setdefault(hashable(image.get("id")), len(ids)))
            found.image_names.append(file_name(image))
            found.image_offsets.append(offset)
            found.image_bytes.append(size)
        elif key == "annotations" and isinstance(value, dict) and "image_id" in value:
            found.owners.append(ids.setdefault(hashable(value["image_id"]), len(ids)))
            found.offsets.append(offset)
            found.bytes.append(size)
        elif key == "categories":
            if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "id" not in value:
                raise ValueError(f"{url}: expected categories with `id` and `name`, found {str(value)[:200]}")
            found.categories[hashable(value["id"])] = value["name"]
    if not {"images", "annotations"} <= lists:
        raise ValueError(f"{url}: expected a COCO annotation file with the lists `images` and `annotations`")
    return found


def _by_image(file: _FileScan, position_of: npt.NDArray[np.int64], images: int) -> tuple[Ranges, npt.NDArray[np.int64]]:
    """The file's annotations of the split's images, ordered by image, and where each image's begin."""
    positions = position_of[np.asarray(file.owners, np.int64)]
    order = np.argsort(positions, kind="stable")
    order = order[np.searchsorted(positions[order], 0) :]  # -1: of images that the split does not have
    first = np.searchsorted(positions[order], np.arange(images + 1))
    return Ranges(np.asarray(file.offsets, np.int64)[order], np.asarray(file.bytes, np.int32)[order]), first


class EntryReader:
    """Reads single entries of files by their bytes. A remote file is first copied whole, to this machine's disk.

    Files are opened, or copied, when they are first read, and stay so until `close`, or until nobody holds the reader.
    A pickled reader has none open.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)
        self._open: dict[int, BinaryIO] = {}

    def read(self, file: int, ranges: Ranges, start: int, stop: int) -> Iterator[Any]:
        """Entries start to stop of `ranges`, which are of file number `file`.

        Raises:
            ValueError: the file is not what was scanned.
        """
        if stop > start and file not in self._open:
            self._open[file] = _on_disk(self._urls[file])
        for offset, size in zip(ranges.offsets[start:stop].tolist(), ranges.bytes[start:stop].tolist(), strict=True):
            try:
                yield decode_entry(os.pread(self._open[file].fileno(), size, offset))
            except ValueError as error:
                raise ValueError(f"{self._urls[file]} has changed since this run began; run again") from error

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_urls": self._urls, "_open": {}}

    def __enter__(self) -> EntryReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _on_disk(url: str) -> BinaryIO:
    if "://" not in url:
        return open(url, "rb")
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (closed by the reader)
    with open_location(url) as remote:
        shutil.copyfileobj(remote, copy, 1 << 20)
    copy.flush()
    return copy


def hashable(value: Any) -> Any:
    """An id as a key of a dict, whatever JSON value it is."""
    return value if isinstance(value, (int, str, float)) else repr(value)
