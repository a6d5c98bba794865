"""Encoded images: header checks, decoding to RGB, and reading by the data index.

Shapes: H height, W width. Every decoded image is uint8 [H, W, 3], RGB, turned upright by its EXIF orientation.

Web data holds broken and hostile files, so that each failure is a `BadImage` with a status and a reason, and sizes are
checked from the header before a pixel is decoded.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from regionclip_core.datasets.index import IndexRow
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import is_of_the_file, open_location

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 2**26
"""Largest image decoded, in pixels (8192 x 8192, 201 MB as RGB)."""
MIN_SIDE = 8
"""Smallest side of a usable image, in pixels; web sets hold many one-pixel placeholders."""
MAX_BYTES = 2**28
"""Largest encoded image read, in bytes."""

# Only these parsers of Pillow are offered the bytes: fewer doors for hostile files, and no vector formats.
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})

# Pillow warns about odd metadata, and of large images: MAX_PIXELS is lower. Once for the process, since
# `warnings.catch_warnings` changes the filters of all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

REMOTE_BLOCK = 2**23  # bytes fetched at a time from a remote tar; a stage reads the images of a shard in order


class BadImage(ValueError):
    """An image that can't be used. `status` goes to the row's status column, `reason` beside it."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(status, reason)  # both in args, so that the exception survives pickling
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


@dataclass(frozen=True)
class ImageHeader:
    """What the header says: upright size in pixels, and the file extension that fits the format."""

    width: int
    height: int
    extension: str


def read_header(data: bytes) -> ImageHeader:
    """Return size and format of an encoded image, without decoding it.

    Raises:
        BadImage: empty, of no known format, or of a size outside MIN_SIDE and MAX_PIXELS.
    """
    image = _open(data)
    width, height = image.size
    if _orientation(image) >= 5:  # orientations 5 to 8 are turned by 90 degrees
        width, height = height, width
    # MPO: a JPEG with further pictures behind it, which Pillow's JPEG parser renames.
    return ImageHeader(width, height, FORMATS["JPEG" if image.format == "MPO" else str(image.format)])


def check_image(data: bytes) -> ImageHeader:
    """Return `read_header`, once all pixels have been decoded (JPEGs at an eighth of their size, which is faster).

    Raises:
        BadImage: as `read_header`, and for truncated or corrupt pixel data.
    """
    header = read_header(data)
    _load(data, small=True)
    return header


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode to uint8 [H, W, 3] RGB, upright.

    CMYK, palette and grey images are converted, 16-bit ones keep their upper byte, of animations the first frame is
    taken, transparency is dropped (as `convert("RGB")` in CLIP's and detectron2's own readers).

    Raises:
        BadImage: empty, unknown, truncated or corrupt, too small, or too large to be decoded safely.
    """
    image = _load(data)
    if _orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's convert would clip it at 255 instead of scaling
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow wants this step, or it warns
    return np.array(image.convert("RGB"))  # a copy: writable


def upright_file(data: bytes) -> tuple[bytes, ImageHeader]:
    """Return an encoded image that programs show alike, and its header: one that its EXIF orientation turns becomes an
    upright PNG, any other is left as it is. Raises BadImage as `read_header` and `decode_image`."""
    header = read_header(data)
    if _orientation(_open(data)) > 1:
        data = encode_png(decode_image(data))
        header = read_header(data)
    return data, header


def read_image_file(url: str) -> bytes:
    """Return the encoded bytes of an image that is a file of its own, at a path or URL.

    Raises:
        BadImage: there is no such file, it can't be opened, or it has more than MAX_BYTES.
        OSError: an error that is not about this file alone: no connection, wrong credentials, a full disk.
    """
    shown = url if len(url) <= 300 else f"{url[:300]}..."
    try:
        with open_location(url) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        if not is_of_the_file(error, url):
            raise
        absent = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
        of_the_server = f" ({error.__cause__})" if error.__cause__ is not None else ""  # such as: can't connect
        reason = f"no file {shown}{of_the_server}" if absent else f"can't open {shown} ({error.strerror or error})"
        raise BadImage("bad_image", reason) from error
    if len(data) > MAX_BYTES:
        raise BadImage("bad_image", f"{shown} has more than {MAX_BYTES} bytes")
    return data


def to_tensor(image: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return a uint8 [H, W, 3] image as a contiguous uint8 tensor [3, H, W]."""
    import torch  # here, since the workers of the data stage need no torch, which takes seconds to load

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, 3] RGB as PNG, at level 1: more takes two to three times as long and gains little."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    """Parse the header and check the size; nothing is decoded yet."""
    if not data:
        raise BadImage("bad_image", "empty file (0 bytes)")
    with _refusing(f"no image of a known format; it begins with {data[:8]!r}"):
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage("bad_image", f"too large: {width} x {height} pixels, at most {MAX_PIXELS} in all")
    if min(width, height) < MIN_SIDE:
        raise BadImage("bad_image", f"too small: {width} x {height} pixels, each side at least {MIN_SIDE}")
    return image


def _load(data: bytes, small: bool = False) -> Image.Image:
    """Decode the pixels; `small` gives a JPEG at an eighth of its size."""
    image = _open(data)
    with _refusing("truncated or corrupt"):
        if image.format == "PNG":
            # Pillow decodes pixels without looking at their checksum, and would show a flipped bit as noise.
            image.verify()
            image = _open(data)
        if small:
            image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()
    if image.mode == "F":
        raise BadImage("bad_image", "floating-point pixels have no fixed range")
    if image.mode == "I":  # 32 bits, in which 16-bit images are held too
        low, high = cast(tuple[int, int], image.getextrema())
        if low < 0 or high > 0xFFFF:
            raise BadImage("bad_image", f"pixels from {low} to {high}, expected 16 bits")
    return image


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Raise BadImage for what Pillow raises on corrupt bytes, which is any of the built-in exceptions."""
    try:
        yield
    except (MemoryError, BadImage):
        raise
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            what = "too large"
        text = str(error).split("<_io", 1)[0].strip().splitlines()  # without Pillow's memory addresses
        raise BadImage("bad_image", f"{what} ({(text[0] if text else type(error).__name__)[:200]})") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is broken."""
    try:
        value = int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block must not cost the image
        return 1
    return value if 1 <= value <= 8 else 1


class ImageReader:
    """Reads the images of index rows from a data folder, local files or any fsspec URL.

    Rows of one file are best read in order: the file stays open between calls, and a remote one is fetched in large
    ranges. Several threads may read with one reader.

    Args:
        data_folder: the finished data artifact, which relative urls of rows refer to.
    """

    def __init__(self, data_folder: Folder) -> None:
        self._folder = data_folder
        self._url: str | None = None
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()  # of the open file and its position

    def read_bytes(self, row: IndexRow) -> bytes:
        """Return the encoded bytes of the row's image, unmodified.

        Raises:
            BadImage: the image file is missing, larger than MAX_BYTES, or not as long as the index says.
            FileNotFoundError: a file of the data folder itself is missing.
        """
        if not row.url:
            raise BadImage("bad_image", f"row {row.key!r} has no image ({row.reason})")
        if row.offset == 0:  # a file of its own: in a tar, a header comes first
            data = read_image_file(row.url)
            if row.size >= 0 and len(data) != row.size:
                raise BadImage("bad_image", f"{row.url} has {len(data)} bytes, the index says {row.size}")
            return data
        with self._lock:
            if self._file is None or self._url != row.url:
                self.close()
                inside = "://" not in row.url and not os.path.isabs(row.url)
                self._file = open_location(self._folder.path(row.url) if inside else row.url, REMOTE_BLOCK)
                self._url = row.url
            self._file.seek(row.offset)
            data = self._file.read(row.size)
        if len(data) != row.size:
            raise BadImage("bad_image", f"{row.url} ends {row.size - len(data)} bytes before the image does")
        return data

    def read(self, row: IndexRow) -> npt.NDArray[np.uint8]:
        """Return the decoded image, uint8 [H, W, 3] RGB.

        Raises:
            BadImage: can't be read or decoded, or its size is not the index's (its boxes would not fit it).
        """
        image = decode_image(self.read_bytes(row))
        height, width = image.shape[:2]
        if (width, height) != (row.width, row.height):
            reason = (
                f"decoded to {width} x {height} pixels, the index says {row.width} x {row.height}; the file may have "
                "been resized or turned after the annotations were made"
            )
            raise BadImage("bad_image", reason)
        return image

    def read_tensor(self, row: IndexRow) -> torch.Tensor:
        """Return `read`'s image as a tensor, uint8 [3, H, W]."""
        return to_tensor(self.read(row))

    def __reduce__(self) -> tuple[type[ImageReader], tuple[Folder]]:
        """Pickle as a reader that has no file open."""
        return ImageReader, (self._folder,)

    def close(self) -> None:
        """Close the open file, if any."""
        if self._file is not None:
            self._file.close()
        self._file = self._url = None

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
