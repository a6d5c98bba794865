"""Decoding: every odd kind of image against a plain reference, every bad one with its reason."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFile

from regionclip_core.datasets import images
from regionclip_core.datasets.images import (
    BadImage,
    ImageReader,
    check_image,
    decode_image,
    encode_png,
    read_header,
    read_image_file,
    to_tensor,
)
from regionclip_core.datasets.index import IndexRow
from regionclip_core.storage.records import Folder


def picture(height: int = 24, width: int = 40, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that lossy formats stay near it."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    planes = [x * 200 / width + rng.integers(20), y * 200 / height + rng.integers(20), (x + y) * 2.0]
    return np.stack(planes, 2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A valid PNG header with hardly any data behind it: a decompression bomb needs no more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(picture()), kind, **options)
    np.testing.assert_array_equal(decode_image(data), picture())
    assert read_header(data).extension == {"PNG": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}[kind]


def test_png_round_trip() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(picture())), picture())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    # How a stored array looks upright, by the EXIF definition of the eight orientations.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture()), "PNG", exif=exif)
    expected = upright(picture())
    np.testing.assert_array_equal(decode_image(data), expected)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


def test_broken_exif_costs_nothing() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF block")
    assert decode_image(data).shape == (24, 40, 3)


def test_grey_palette_and_bilevel() -> None:
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey))), np.stack([grey] * 3, 2))
    palette = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(decode_image(encoded(palette)), np.array(palette.convert("RGB")))
    bits = grey > 90
    expected = np.stack([bits * np.uint8(255)] * 3, 2)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bits))), expected)


def test_sixteen_bits_keep_the_upper_byte() -> None:
    wide = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(wide)))
    np.testing.assert_array_equal(decoded[..., 1], wide // 256)
    assert decoded.shape == (24, 40, 3)


def test_cmyk_jpeg_shows_the_same_colours() -> None:
    flat = np.zeros((32, 32, 3), np.uint8)
    flat[..., 0] = 200
    data = encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(decode_image(data).astype(int), flat.astype(int), atol=6)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        np.testing.assert_allclose(decode_image(data), 10, atol=2)


def test_transparency_is_dropped() -> None:
    rgba = np.dstack([picture(), np.zeros((24, 40), np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(rgba, "RGBA"))), picture())


JPEG = encoded(Image.fromarray(picture(240, 320)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image at all, but long enough to be sniffed", "no image of a known format"),
        (JPEG[: len(JPEG) // 2], "truncated or corrupt"),
        (encode_png(picture())[:-40], "truncated or corrupt"),
        (encode_png(picture(1, 1)), "too small: 1 x 1"),
        (encode_png(picture(4, 300)), "too small: 300 x 4"),
        (png_of_claimed_size(30_000, 30_000), "too large"),
        (png_of_claimed_size(12_000, 9_000), "too large: 12000 x 9000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "no image of a known format"),
        (encoded(Image.fromarray(np.zeros((16, 16), np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((16, 16), 70_000, np.int32)), "TIFF"), "pixels from 70000 to 70000"),
        (encoded(Image.fromarray(np.full((16, 16), -1, np.int32)), "TIFF"), "pixels from -1 to -1"),
    ],
)
def test_bad_images_say_why(data: bytes, reason: str) -> None:
    for read in (decode_image, check_image):
        with pytest.raises(BadImage) as caught:
            read(data)
        assert caught.value.status == "bad_image"
        assert reason in caught.value.reason


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", must_not_run)
    with pytest.raises(BadImage, match="too large"):
        decode_image(png_of_claimed_size(9_000, 9_000))


def test_no_flipped_bit_of_a_png_changes_pixels_unnoticed() -> None:
    """Pillow decodes pixels without looking at their checksum, and would show noise."""
    data, shown, found = encode_png(picture()), 0, 0
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        try:
            check_image(bytes(flipped))
            np.testing.assert_array_equal(decode_image(bytes(flipped)), picture())
        except BadImage:
            found += 1
        try:
            shown += not np.array_equal(np.asarray(Image.open(io.BytesIO(flipped))), picture())
        except Exception:
            continue
    assert found >= len(data) - 12  # the last chunk is empty
    assert shown  # Pillow alone lets some through


def test_what_follows_the_end_of_a_png_is_no_concern() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(picture()) + b"trailing bytes"), picture())


def test_every_truncation_of_a_jpeg_is_an_image_or_a_reason() -> None:
    small = encoded(Image.fromarray(picture()), "JPEG")
    outcomes = set()
    for length in range(0, len(small), 7):
        try:
            outcomes.add(decode_image(small[:length]).shape)
        except BadImage:
            outcomes.add("bad")
    assert "bad" in outcomes
    assert outcomes <= {"bad", (24, 40, 3)}


def test_check_agrees_with_decode() -> None:
    header = check_image(JPEG)
    assert (header.height, header.width, header.extension) == (240, 320, "jpg")
    assert decode_image(JPEG).shape == (240, 320, 3)


def test_bad_image_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImage("bad_image", "empty")))
    assert (error.status, error.reason, str(error)) == ("bad_image", "empty", "bad_image: empty")


def test_tensor_layout() -> None:
    tensor = to_tensor(picture())
    assert tensor.shape == (3, 24, 40)
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), picture())


def test_thirty_two_bits_that_fit_sixteen_are_read() -> None:
    wide = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.int32)
    data = encoded(Image.fromarray(wide), "TIFF")
    assert check_image(data).width == 40
    np.testing.assert_array_equal(decode_image(data)[..., 1], wide // 256)


class TestImageFile:
    def bad(self, url: str) -> str:
        with pytest.raises(BadImage) as caught:
            read_image_file(url)
        assert caught.value.status == "bad_image"
        assert len(caught.value.reason) < 500
        return caught.value.reason

    def test_what_is_wrong_with_one_file(self, tmp_path) -> None:
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        (tmp_path / "dangling.jpg").symlink_to("/nowhere")
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "plain").write_bytes(b"x")
        reasons = {
            "x" * 300: "File name too long",
            "y/" * 3000: "File name too long",
            "loop.jpg": "symbolic links",
            **dict.fromkeys(["dangling.jpg", "folder.jpg", "gone.jpg", "plain/x.jpg"], "no file"),
        }
        for name, reason in reasons.items():
            assert reason in self.bad(f"{tmp_path}/{name}")
        assert read_image_file(f"file://{tmp_path}/plain") == read_image_file(f"{tmp_path}/plain") == b"x"

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL])
    def test_a_refused_file_is_bad(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        monkeypatch.setattr(images, "open_location", raising(OSError(number, os.strerror(number))))
        assert f"can't open /a.jpg ({os.strerror(number)})" in self.bad("/a.jpg")

    @pytest.mark.parametrize(
        "error",
        [OSError(n, "x") for n in (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)]
        + [ConnectionError("no connection"), TimeoutError("late"), OSError("of no number")],
        ids=repr,
    )
    def test_a_broken_store_is_no_bad_image(self, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
        monkeypatch.setattr(images, "open_location", raising(error))
        with pytest.raises(OSError, match=re.escape(str(error))) as caught:
            read_image_file("/a.jpg")
        assert caught.value is error


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


class TestReader:
    def rows(self, folder: Folder) -> list[tuple[IndexRow, np.ndarray]]:
        """Images behind each other in one file of the data folder."""
        pictures = [picture(seed=seed) for seed in range(3)]
        packed = [encode_png(p) for p in pictures]
        offsets = [100 + sum(map(len, packed[:i])) for i in range(3)]
        folder.write_bytes("images-00000.tar", bytes(100) + b"".join(packed))
        return [
            (IndexRow(str(i), i, "images-00000.tar", offsets[i], len(packed[i]), 40, 24), pictures[i]) for i in range(3)
        ]

    @pytest.mark.parametrize("remote", [False, True])
    def test_ranges_in_any_order(self, tmp_path, remote: bool) -> None:
        folder = Folder(f"memory://{tmp_path.name}/data" if remote else str(tmp_path))
        with ImageReader(folder) as reader:
            for row, expected in reversed(self.rows(folder)):
                np.testing.assert_array_equal(reader.read(row), expected)

    def test_own_file_by_absolute_path_and_url(self, tmp_path) -> None:
        import fsspec

        data = encode_png(picture())
        (tmp_path / "a.png").write_bytes(data)
        url = f"memory://{tmp_path.name}/a.png"
        with fsspec.open(url, "wb") as file:
            file.write(data)
        reader = ImageReader(Folder(str(tmp_path / "nowhere")))
        for where in (str(tmp_path / "a.png"), url):
            for size in (-1, len(data)):
                row = IndexRow("a", 0, where, 0, size, 40, 24)
                assert reader.read_bytes(row) == data
                np.testing.assert_array_equal(reader.read(row), picture())

    def test_what_does_not_fit_the_index_is_bad(self, tmp_path) -> None:
        folder = Folder(str(tmp_path))
        row, _ = self.rows(folder)[2]
        reader = ImageReader(folder)
        with pytest.raises(BadImage, match="the index says 24 x 40"):
            reader.read(IndexRow("k", 0, row.url, row.offset, row.size, 24, 40))
        with pytest.raises(BadImage, match="ends 50 bytes before"):
            reader.read(IndexRow("k", 0, row.url, row.offset + 50, row.size, 40, 24))
        with pytest.raises(BadImage, match="no file"):
            reader.read(IndexRow("k", 0, str(tmp_path / "gone.jpg"), 0, -1, 40, 24))
        with pytest.raises(BadImage, match="has no image"):
            reader.read(IndexRow("k", 0, status="bad_caption", reason="line 3: not valid JSON"))
        with pytest.raises(FileNotFoundError):  # the artifact itself is broken: that is no bad sample
            reader.read(IndexRow("k", 0, "images-00009.tar", 512, 10, 40, 24))
