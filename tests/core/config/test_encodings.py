"""The encodings of given text files: what editors on Windows write is read, all else is named."""

from __future__ import annotations

import codecs
import gzip
import io

import pytest

from regionclip_core.config.encodings import as_utf_8, decode_text

TEXT = "café\r\n猫 😀\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_the_usual_encodings_are_read_without_their_mark(mark: bytes, encoding: str) -> None:
    for text in (TEXT, "", "a"):
        data = mark + text.encode(encoding)
        assert decode_text(data, "x.txt") == text
        assert as_utf_8(io.BytesIO(data), "x.txt").read().decode("utf-8-sig") == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-8") + "né".encode("latin-1"), r"^x\.txt, line 3: byte 0xe9 is not UTF-8; save"),
        (codecs.BOM_UTF8 + b"a\r\nb\xff", r"^x\.txt, line 2: byte 0xff is not UTF-8; save"),
        (TEXT.encode("utf-16") + b"\x3d\xd8", r"^x\.txt, line 3: byte 0x3d is not UTF-16; save"),
        ("car".encode("utf-16-le"), r"^x\.txt is .*UTF-16 without a byte-order mark"),
        ("car".encode("utf-16-be"), r"^x\.txt is .*UTF-16 without a byte-order mark"),
        ("car".encode("utf-32"), r"^x\.txt is .*no text at all"),
        (gzip.compress(b"car", mtime=0), r"^x\.txt is compressed.*unpack it"),
        (b"PK\x03\x04rest", r"^x\.txt is .*a spreadsheet"),
    ],
)
def test_others_are_named_with_the_place_and_what_to_do(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(data, "x.txt")
    if ", line" not in message or "UTF-16" in message:
        with pytest.raises(ValueError, match=message):
            as_utf_8(io.BytesIO(data), "x.txt")
