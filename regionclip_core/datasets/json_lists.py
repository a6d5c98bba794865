"""Annotation files of any size: the entries of their lists one at a time, in bounded memory, with where they stand.

The file is one JSON object whose large values are lists, as COCO's and LVIS's files are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from regionclip_core.storage.locations import open_location

LARGEST_ENTRY = 1 << 26
"""Bytes of one entry of a list, and of one value that is no list, at most: what bounds the memory."""
_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_BOM = "\xef\xbb\xbf"  # UTF-8's byte-order mark, a character a byte
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|["\[\]{}]', re.DOTALL)  # a quote alone: of a text that does not end
_OPENED_BY = {"]": ord("["), "}": ord("{")}
_DECODER = json.JSONDecoder()
# Python converts no integer of more than 4,300 digits (that takes long): such a one becomes infinity.
_WIDE_DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 1000 else float(digits))


class Entry(NamedTuple):
    """One entry of a list, or the beginning of a list (value None, no bytes)."""

    key: str
    value: Any
    offset: int
    """Of the entry's first byte in the file."""
    bytes: int


def decode_entry(data: bytes) -> Any:
    """One value from its bytes. What Python can't hold costs that much of the value, not the file.

    An undecodable byte becomes a lone surrogate, an integer of thousands of digits infinity, and a value nested deeper
    than Python's stack None.

    Raises:
        ValueError: not JSON.
    """
    text = data.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        value, stop = _raw_decode(text, _after_space(text, 0))
    if _after_space(text, stop) < len(text):
        raise ValueError(f"something follows the value at character {stop}")
    return value


def list_entries(url: str) -> Iterator[Entry]:
    """All entries of all lists of the object, in the order of the file; each list starts with an Entry of no bytes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one JSON object, or a value of more than LARGEST_ENTRY bytes.
    """
    with open_location(url) as file:
        yield from _Scanner(file, url).entries()


def _raw_decode(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, as of `decode_entry`, and where it ends. ValueError when it is not JSON."""
    for decoder in (_DECODER, _WIDE_DECODER):
        try:
            return decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            break
        except ValueError:  # too many digits
            continue
    return None, _end_of_nested(text, at)


def _end_of_nested(text: str, at: int) -> int:
    """Where the list or object ends that begins at `at`: its brackets are counted, nothing else is looked at."""
    opened = bytearray()
    for token in _TOKEN.finditer(text, at):
        kind = token[0]
        if kind == '"':
            break
        if kind in ("[", "{"):
            opened.append(ord(kind))
        elif kind in _OPENED_BY:
            if opened.pop() != _OPENED_BY[kind]:
                raise json.JSONDecodeError("brackets do not match", text, token.start())
            if not opened:
                return token.end()
    raise json.JSONDecodeError("a bracket is not closed", text, at)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


class _Scanner:
    """Reads ahead in a window of text in which a character is a byte: offsets are exact, JSON's syntax is ASCII."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._file, self._url = file, url
        self._text, self._at = "", 0
        self._start = 0
        """Offset in the file of the window's first byte."""
        self._ended = False

    def entries(self) -> Iterator[Entry]:
        if self._next() == _BOM[0]:
            for character in _BOM:
                self._expect(character)
        self._expect("{")
        if self._next() == "}":
            self._at += 1
        else:
            yield from self._members()
        if self._next():
            raise self._error("something follows the object")

    def _members(self) -> Iterator[Entry]:
        while True:
            if self._next() != '"':
                raise self._error("expected a name in quotes")
            key = self._value()[0]
            self._expect(":")
            if self._next() == "[":
                self._at += 1
                yield Entry(key, None, self._start + self._at, 0)
                yield from self._list(key)
            else:
                self._value()
            if self._next() != ",":
                self._expect("}")
                return
            self._at += 1

    def _list(self, key: str) -> Iterator[Entry]:
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield Entry(key, *self._value())
            if self._next() != ",":
                self._expect("]")
                return
            self._at += 1

    def _value(self) -> tuple[Any, int, int]:
        """The next value with its offset and bytes."""
        self._next()
        while True:
            try:
                value, stop = _raw_decode(self._text, self._at)
                if len(self._text) - stop > 2 or self._ended:  # else a number may go on, as 1 does in 1e+5
                    break
            except json.JSONDecodeError as error:
                if self._ended or len(self._text) - self._at > LARGEST_ENTRY:
                    raise self._error(error.msg, error.pos) from error
            self._more()
        text, offset = self._text[self._at : stop], self._start + self._at
        self._at = stop
        if not text.isascii():
            value = decode_entry(text.encode("latin-1"))
        return value, offset, len(text)

    def _next(self) -> str:
        """The next character that is no space, not taken yet; empty at the end."""
        while True:
            self._at = _after_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise self._error(f"expected {character!r}")
        self._at += 1

    def _more(self) -> None:
        """Let go of what was read, and at least double what is left."""
        left = len(self._text) - self._at
        chunk = self._file.read(max(_CHUNK, left))
        self._ended = not chunk
        self._start += self._at
        self._text, self._at = self._text[self._at :] + chunk.decode("latin-1"), 0

    def _error(self, what: str, at: int | None = None) -> ValueError:
        offset = self._start + (self._at if at is None else at)
        limit = f" (or a value of more than {LARGEST_ENTRY >> 20} MiB)" if not self._ended and at is not None else ""
        return ValueError(f"{self._url}: not valid JSON: {what} at byte {offset}{limit}; fetch the file again")
