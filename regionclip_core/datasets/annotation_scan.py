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

from regionclip_core.datasets.json_lists import decode_entry, list_entries
from regionclip_core.storage.locations import open_location
from regionclip_core.storage.records import Folder

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
    lost: int
    """Annotations of all files that are of no image that any of the files lists."""

    def __len__(self) -> int:
        return len(self.image_file)

    def save(self, folder: Folder, name: str) -> None:
        """Write it to `folder` as `<name>.npz`."""
        arrays: dict[str, Any] = {"image_file": self.image_file, "duplicates": self.duplicates}
        arrays |= {"image_offsets": self.images.offsets, "image_bytes": self.images.bytes, "lost": np.int64(self.lost)}
        for i, (ranges, first) in enumerate(zip(self.annotations, self.first, strict=True)):
            arrays |= {f"offsets{i}": ranges.offsets, f"bytes{i}": ranges.bytes, f"first{i}": first}
        names = json.dumps([list(one.items()) for one in self.categories]).encode()
        buffer = io.BytesIO()
        np.savez(buffer, categories=np.frombuffer(names, np.uint8), **arrays)
        folder.write_bytes(f"{name}.npz", buffer.getvalue())

    @classmethod
    def load(cls, folder: Folder, name: str) -> AnnotationScan | None:
        """What `save` wrote; None if it did not, or did in an earlier version of this program."""
        if not folder.exists(f"{name}.npz"):
            return None
        with np.load(io.BytesIO(folder.read_bytes(f"{name}.npz")), allow_pickle=False) as found:
            if "lost" not in found:
                return None
            categories = tuple(dict(map(tuple, one)) for one in json.loads(found["categories"].tobytes()))
            files = range(len(categories))
            return cls(
                found["image_file"],
                Ranges(found["image_offsets"], found["image_bytes"]),
                found["duplicates"],
                tuple(Ranges(found[f"offsets{i}"], found[f"bytes{i}"]) for i in files),
                tuple(found[f"first{i}"] for i in files),
                categories,
                int(found["lost"]),
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
    lost: int = 0
    """Annotations that are no object or name no image."""
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
        ValueError: not JSON, not of COCO's form, or a file none of whose annotations is of an image of the split.
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
    every_id = list(ids)
    images = [one for one, position in zip(every_id, position_of, strict=True) if position >= 0]
    for url, file, (ranges, _) in zip(urls, files, grouped, strict=True):
        # Images without a usable id are bad samples, each for itself: they don't tell that the file is another's.
        if len(file.owners) + file.lost and not len(ranges.offsets) and any(isinstance(one, int) for one in images):
            raise ValueError(_strangers(url, file, every_id, images))
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
        _lost(files, len(ids)),
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
        elif key == "annotations":
            found.lost += 1
        elif key == "categories":
            _add_category(found.categories, value, url)
    if not {"images", "annotations"} <= lists:
        raise ValueError(f"{url}: expected a COCO annotation file with the lists `images` and `annotations`")
    return found


def _add_category(categories: dict[Any, str], value: Any, url: str) -> None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "id" not in value:
        raise ValueError(f"{url}: expected categories with `id` and `name`, found {str(value)[:200]}")
    key, name = hashable(value["id"]), value["name"]
    if categories.setdefault(key, name) != name:
        raise ValueError(
            f"{url}: the categories {categories[key]!r} and {name!r} both have the id {key!r}, so that it says of no "
            "box what it shows; give each category its own id"
        )


def _lost(files: Sequence[_FileScan], ids: int) -> int:
    """Annotations of no listed image. One of an image that was left out on purpose is not lost."""
    listed = np.zeros(ids, np.bool_)
    for file in files:
        listed[file.image_ids] = True
    return sum(file.lost + int(np.count_nonzero(~listed[np.asarray(file.owners, np.int64)])) for file in files)


def _strangers(url: str, file: _FileScan, ids: Sequence[Any], images: Sequence[Any]) -> str:
    """What is wrong with a file whose annotations are all of other images."""
    named = list(dict.fromkeys(ids[number] for number in file.owners[:1000]))
    told = f"their `image_id` are {_some(named)}" if named else "they name no `image_id`"
    return (
        f"{url}: none of its {len(file.owners) + file.lost} annotations is of an image of the split: {told}, the "
        f"images' `id` are {_some(images)}; give files that belong together"
    )


def _some(values: Sequence[Any]) -> str:
    return ", ".join([repr(value)[:50] for value in values[:5]] + ["..."] * (len(values) > 5))


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
        for offset, size in zip(ranges.offsets[start:stop].tolist(), ranges.bytes[start:stop].tolist(), strict=True):
            data = self.read_bytes(file, offset, size)
            try:
                yield decode_entry(data)
            except ValueError as error:
                raise ValueError(f"{self._urls[file]} has changed since this run began; run again") from error

    def read_bytes(self, file: int, offset: int, size: int) -> bytes:
        """`size` bytes of file number `file`, fewer at its end."""
        if file not in self._open:
            self._open[file] = _on_disk(self._urls[file])
        return os.pread(self._open[file].fileno(), size, offset)

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
