"""The encodings of text files that people give: UTF-8 with or without a byte-order mark, and UTF-16 with one."""

from __future__ import annotations

import io
from typing import BinaryIO


def decode_text(data: bytes, where: str) -> str:
    """Return the text of a file without its byte-order mark. ValueError, which begins with `where`, if it is none."""
    encoding = _encoding(data[:4], where)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, "ignore").count("\n") + 1
        what = f"byte 0x{error.object[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}"
        raise ValueError(f"{where}, line {line}: {what}; save the file as UTF-8") from error


def as_utf_8(file: BinaryIO, where: str) -> BinaryIO:
    """Return a large file to be read as UTF-8 with or without a mark. One of UTF-16 is decoded whole, in memory."""
    encoding = _encoding(file.read(4), where)
    file.seek(0)
    return io.BytesIO(decode_text(file.read(), where).encode()) if encoding == "utf-16" else file


def _encoding(start: bytes, where: str) -> str:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and start[2:] != b"\0\0":
        return "utf-16"
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\xff\xd8\xff", b"\x89PNG")) or b"\0" in start:
        what = "is compressed, an image, a spreadsheet, UTF-16 without a byte-order mark, or no text at all"
        raise ValueError(f"{where} {what}; unpack it, or save it as UTF-8 text")
    return "utf-8-sig"
