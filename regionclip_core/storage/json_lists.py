"""Reads the lists of a large JSON file entry by entry, in bounded memory.

The file is one JSON object whose large values are lists, as COCO's and LVIS's files are, or one list, as results. The
standard library parses each entry. ijson was tried: it reads one list per pass, refuses a whole file for the NaN that
Python's json writes, and turns an undecodable character into "?" without a word.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from regionclip_core.config.encodings import as_utf_8
from regionclip_core.storage.locations import open_location

LARGEST_VALUE = 1 << 26
"""Characters of one entry, or of one value that is not a list: how far a damaged value is read before it is refused."""
_CHUNK = 1 << 20  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def list_entries(url: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (list, JSON text, value) for each entry of each list of the object, in the order of the file.

    Every list begins with an item of empty text, so that an empty list is seen too. Bytes that are not UTF-8 become
    lone surrogates, so that they cost their entry and not the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one JSON object, or a value of more than LARGEST_VALUE characters.
    """
    with open_location(url) as file:
        window = _Window(io.TextIOWrapper(as_utf_8(file, url), "utf-8-sig", "surrogateescape", newline=""), url)
        window.take("{")
        for _ in window.members("}"):
            key = window.value()[1]
            window.take(":")
            if window.peek() != "[":
                window.value()
                continue
            window.take("[")
            yield key, "", None
            for _ in window.members("]"):
                yield key, *window.value()
        if window.peek():
            raise window.error("something follows the object")


def top_entries(url: str) -> Iterator[Any]:
    """Yield the values of a file that is one JSON list. Raises as `list_entries`."""
    with open_location(url) as file:
        text = io.TextIOWrapper(as_utf_8(file, url), "utf-8-sig", "surrogateescape", newline="")
        window = _Window(text, url, "one list of entries")
        window.take("[")
        for _ in window.members("]"):
            yield window.value()[1]
        if window.peek():
            raise window.error("something follows the list")


class _Window:
    """The part of the file that is in memory, and how far it has been read."""

    def __init__(self, file: io.TextIOWrapper, url: str, form: str = "one object with lists of entries") -> None:
        self._file, self._url, self._form = file, url, form
        self._text, self._at = "", 0
        self._start = 0  # characters of the file before the window

    def members(self, end: str) -> Iterator[None]:
        """Yield before each member of a list or object whose opening bracket has been read; `end` closes it."""
        if self.peek() != end:
            yield
            while self.peek() != end:
                self.take(",")
                yield
        self.take(end)

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Read a character that has to be the next one."""
        if self.peek() != character:
            raise self.error(f"expected {character!r}")
        self._at += 1

    def value(self) -> tuple[str, Any]:
        """Read the next value; return its text as well."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                # At the end of the window a number may go on: 1 may be the beginning of 1e+5.
                if len(self._text) - end > 2 or not self._more():
                    break
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > LARGEST_VALUE or not self._more():
                    raise self.error(error.msg.removesuffix(" at"), error.pos) from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of lists inside each other
                raise self.error(str(error)) from error
        text = self._text[self._at : end]
        self._at = end
        return text, value

    def error(self, what: str, at: int | None = None) -> ValueError:
        place = self._start + (self._at if at is None else at)
        return ValueError(
            f"{self._url}: not valid JSON: {what} at character {place}; expected {self._form}, "
            f"each of at most {LARGEST_VALUE / 1e6:.0f} MB. Fetch the file again"
        )

    def _more(self) -> bool:
        """Drop what has been read and at least double the rest; return whether the file had more."""
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        if chunk:
            self._start += self._at
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
