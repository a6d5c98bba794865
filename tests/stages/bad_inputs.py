"""Every kind of damaged, odd or hostile input, each under a name that says what it is."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_inputs import NAMES, encoded, picture, tar_bytes

from regionclip_core.storage.folder import Folder

SIDE = 80


def pixels(number: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """uint8[height, width, 3]: a picture of the embedded world, repeated or cut to size."""
    image = picture("bad", number).image
    return np.tile(image, (-(-height // SIDE), -(-width // SIDE), 1))[:height, :width]


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(side: int) -> bytes:
    """A PNG that says it is side x side and holds next to nothing."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(Image.fromarray(pixels(1, 60, SIDE)), "JPEG", exif=exif)


def _flipped_bit() -> bytes:
    """In the pixels of a PNG that is stored, not compressed: Pillow would show it as another colour."""
    data = bytearray(_saved(Image.fromarray(pixels()), "PNG", compress_level=0))
    data[len(data) // 2] ^= 16
    return bytes(data)


def good_images() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Odd but usable: bytes by file name, and the upright (width, height)."""
    image, square = Image.fromarray(pixels()), (SIDE, SIDE)
    grey16 = (pixels()[..., 1].astype(np.uint16) << 8) + 7
    frames = [Image.fromarray(pixels(n)) for n in range(3)]
    return {
        "plain.jpg": (encoded(pixels()), square),
        "cmyk.jpg": (_saved(image.convert("CMYK"), "JPEG"), square),
        "sixteen_bits.png": (_saved(Image.fromarray(grey16), "PNG"), square),
        "palette.png": (_saved(image.quantize(16), "PNG"), square),
        "grey.jpg": (_saved(image.convert("L"), "JPEG"), square),
        "transparent.png": (_saved(image.convert("RGBA"), "PNG"), square),
        "animated.gif": (_saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), square),
        "animated.webp": (_saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), square),
        "turned.jpg": (_turned(), (60, SIDE)),
        "long.png": (_saved(Image.fromarray(pixels(0, 10, 30_000)), "PNG"), (30_000, 10)),
        "tiny.png": (_saved(Image.fromarray(pixels(0, 8, 8)), "PNG"), (8, 8)),
    }


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Unusable: bytes by file name, and part of the reason."""
    jpeg = encoded(pixels(), quality=95)
    return {
        "empty.jpg": (b"", "empty file (0 bytes)"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated or corrupt"),
        "header_only.jpg": (jpeg[:20], "bad_image"),
        "text.jpg": (b"<html>404 not found</html>" * 20, "no image of a known format"),
        "one_pixel.gif": (_saved(Image.fromarray(pixels(0, 1, 1)), "GIF"), "too small: 1 x 1"),
        "bomb.png": (_bomb(30_000), "too large"),
        "wide.tif": (_saved(Image.fromarray(np.full((SIDE, SIDE), 70_000, np.int32)), "TIFF"), "expected 16 bits"),
        "flipped_bit.png": (_flipped_bit(), "bad header checksum"),
        "vector.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    }


BAD_CAPTIONS: dict[str, tuple[bytes | None, str]] = {
    "no_caption": (None, "no caption"),
    "empty_caption": (b"  \n ", "caption is empty"),
    "latin1": (b"a caf\xe9 by the sea", "not UTF-8 (byte 5)"),
    "long_caption": (b"cat " * 25_000, "caption of 99999 characters"),
    "longer_caption": (b"cat " * 1_000_000, "caption of 3999999 characters"),
    "unseen_caption": ("\u200b\u2060\0".encode(), "caption is empty"),
}


def _info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def write_bad_tars(folder: Folder) -> tuple[str, dict[str, tuple[str, str]]]:
    """Three tars: one of every kind of sample, one that is cut short, and one that is overwritten from some byte on.

    Returns their pattern, and what each key's row must say: (status, part of the reason).
    """
    expected: dict[str, tuple[str, str]] = {}
    members: list[tuple[tarfile.TarInfo | str, bytes]] = []

    def add(key: str, image: tuple[str, bytes], caption: bytes | None, status: str = "ok", reason: str = "") -> None:
        members.append((f"{key}.{image[0]}", image[1]))
        if caption is not None:
            members.append((f"{key}.txt", caption))
        expected[f"kinds/{key}"] = (status, reason)

    for name, (data, _) in good_images().items():
        stem, extension = name.split(".")
        add(f"{stem}_{extension}", (extension, data), f"a cat and {stem}".encode())
    for name, (data, reason) in bad_images().items():
        stem, extension = name.split(".")
        add(stem, (extension, data), b"a dog", "bad_image", "" if reason == "bad_image" else reason)
    jpeg = ("jpg", encoded(pixels(2)))
    for key, (caption, reason) in BAD_CAPTIONS.items():
        add(key, jpeg, caption, "bad_caption", reason)
    add("twice", jpeg, b"the first of two")
    add("between", jpeg, b"a bus")
    members += [("twice.jpg", jpeg[1]), ("twice.txt", b"the second of two")]
    add("/etc/absolute", jpeg, b"x", "bad_unsafe_member", "absolute file name")
    add("../outside", jpeg, b"x", "bad_unsafe_member", "leaves its folder")
    members += [(_info("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), ("link.txt", b"a link")]
    expected["kinds/link"] = ("bad_unsafe_member", "symbolic link")
    members += [(_info("hard.jpg", tarfile.LNKTYPE, "plain_jpg.jpg"), b""), ("hard.txt", b"a link")]
    expected["kinds/hard"] = ("bad_unsafe_member", "hard link")
    members += [(_info("pipe.jpg", tarfile.FIFOTYPE), b""), ("pipe.txt", b"a pipe")]
    expected["kinds/pipe"] = ("bad_unsafe_member", "no plain file")
    members.append(("lonely.txt", b"a caption without an image"))
    expected["kinds/lonely"] = ("bad_image", "no image among the members txt")
    folder.write_bytes("kinds.tar", tar_bytes(members))
    whole = tar_bytes([("a.jpg", jpeg[1]), ("a.txt", b"a tree"), ("b.jpg", jpeg[1])])
    folder.write_bytes("short.tar", whole[: whole.index(b"b.jpg") + 1000])
    expected |= {"short/a": ("ok", ""), "short.tar#damaged": ("bad_tar", "in the middle of 'b.jpg'")}
    folder.write_bytes("broken.tar", whole[: whole.index(b"b.jpg")] + b"no header" * 600)
    expected |= {"broken/a": ("ok", ""), "broken.tar#damaged": ("bad_tar", "broken header at byte")}
    return folder.path("{kinds,short,broken}.tar"), expected


BAD_BOXES: dict[str, tuple[list[Any] | None, str]] = {
    "zero width": ([5, 5, 0, 9], "zero area"),
    "negative height": ([5, 5, 9, -3], "zero area"),
    "outside": ([500, 5, 9, 9], "outside the 80 x 80 image"),
    "not finite": ([float("nan"), 5, 9, 9], "not finite"),
    "infinite": ([5, float("inf"), 9, 9], "not finite"),
    "three numbers": ([5, 5, 9], "not four numbers"),
    "no box": (None, "not four numbers"),
}


BAD_ANNOTATIONS: list[Any] = ["no object", {"bbox": [1, 1, 6, 6]}, {"image_id": 10**6, "bbox": [1, 1, 6, 6]}]


def write_bad_coco(folder: Folder) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """A COCO folder: every kind of image, box, caption and entry. As `write_bad_tars`, for the rows after proposals.

    COCO images are opened when their pixels are needed: what is wrong with them is found by then.
    """
    expected: dict[str, tuple[str, str]] = {}
    entries, annotations, captions = [], [], []
    pictures = folder.child("images")

    def add(name: str, size: tuple[int, int], status: str = "ok", reason: str = "", **more: Any) -> int:
        number = len(entries)
        entries.append({"id": number, "file_name": name, "width": size[0], "height": size[1], **more})
        expected[name if status != "bad_early" else f"{name}#{number}"] = (status.replace("early", "image"), reason)
        annotations.append({"image_id": number, "category_id": 1, "bbox": [1, 1, 6, 6], "iscrowd": 0, "area": 36})
        captions.append({"image_id": number, "caption": f"a {NAMES[number % len(NAMES)]} on a table"})
        return number

    for name, (data, size) in good_images().items():
        pictures.write_bytes(name, data)
        add(name, size)
    for name, (data, reason) in bad_images().items():
        pictures.write_bytes(name, data)
        add(name, (SIDE, SIDE), "bad_image", "" if reason == "bad_image" else reason)
    pictures.write_bytes("other_size.png", encoded(pixels(), "PNG"))
    add("other_size.png", (SIDE, SIDE + 1), "bad_image", "decoded to 80 x 80 pixels, the index says 80 x 81")
    add("gone.jpg", (SIDE, SIDE), "bad_image", "no file")
    add("a long name" * 30, (SIDE, SIDE), "bad_image", "File name too long")
    Path(pictures.path("loop.jpg")).symlink_to("loop.jpg")
    add("loop.jpg", (SIDE, SIDE), "bad_image", "symbolic links")
    add("says_large.jpg", (30_000, 30_000), "bad_early", "30000")
    add("says_one_pixel.jpg", (1, 1), "bad_early", "1 x 1")
    for kind, (box, reason) in BAD_BOXES.items():
        name = f"{kind.replace(' ', '_')}.png"
        pictures.write_bytes(name, encoded(pixels(), "PNG"))
        number = add(name, (SIDE, SIDE), "ok", reason)
        annotations.append({"image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 9})
    for kind, (caption, reason) in {"surrogate": ("half \ud800", "not valid Unicode"), "number": (7, "a int")}.items():
        pictures.write_bytes(f"{kind}.png", encoded(pixels(), "PNG"))
        captions.append({"image_id": add(f"{kind}.png", (SIDE, SIDE), "ok", reason), "caption": caption})
    entries.append({"id": len(entries), "file_name": "\ud800.png", "width": SIDE, "height": SIDE})
    expected[f"\\xed\\xa0\\x80.png#{len(entries) - 1}"] = ("bad_unsafe_member", "is not UTF-8")
    folder.write_bytes("captions.json", json.dumps({"images": entries, "annotations": captions}).encode())
    entries.append("no object")
    expected[f"#{len(entries) - 1}"] = ("bad_image", "expected an integer id")
    annotations += BAD_ANNOTATIONS
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    body = {"images": entries, "annotations": annotations, "categories": categories}
    folder.write_bytes("instances.json", json.dumps(body).encode("utf-8-sig"))
    files = {kind: folder.path(f"{kind}.json") for kind in ("instances", "captions")}
    return {"source": "coco", "images": pictures.url, **files}, expected
