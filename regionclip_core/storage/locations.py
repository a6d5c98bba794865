"""Paths and fsspec URLs of raw inputs: make absolute, open, list with sizes."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

_GLOB = frozenset("*?[")


def is_absolute(url: str) -> bool:
    """Whether the url stands on its own: an absolute path or a URL with a protocol."""
    return "://" in url or os.path.isabs(url)


def is_remote(url: str) -> bool:
    """Whether the url names something that is not a file or folder of this machine."""
    return "://" in url and not url.startswith("file://")


def absolute(url: str) -> str:
    """Local paths as absolute paths, URLs as they are."""
    if "://" in url:
        return url
    return os.path.abspath(os.path.expanduser(url))


def join(folder: str, name: str) -> str:
    """A file's URL in a folder."""
    return f"{folder.rstrip('/')}/{name}"


@contextmanager
def remote(url: str) -> Iterator[tuple[Any, str]]:
    """The file system behind a URL, and the path in it.

    What a client library raises of its own in the block (no connection, no credentials) becomes a ConnectionError.
    """
    import fsspec

    try:
        yield fsspec.core.url_to_fs(url)
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from error


def open_location(url: str, block_size: int | None = None) -> BinaryIO:
    """Open a path or URL for reading in binary, seekable; `block_size` bytes are fetched at a time from remote ones.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if "://" not in url:
        return open(url, "rb")
    with remote(url) as (filesystem, path):
        return cast(BinaryIO, filesystem.open(path, "rb", block_size=block_size))


def exists(url: str) -> bool:
    """Whether there is a file."""
    if "://" not in url:
        return os.path.isfile(url)
    with remote(url) as (filesystem, path):
        return bool(filesystem.isfile(path))


def read_location(url: str) -> bytes:
    """Content of a file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if "://" in url:
        with remote(url) as (filesystem, path):
            return bytes(filesystem.cat_file(path))
    with open_location(url) as file:
        return file.read()


def list_files(pattern: str) -> list[tuple[str, int]]:
    """(absolute url, bytes) of the files that a pattern with `{a..b}` braces and `*` globs names.

    Brace order is kept, glob matches are sorted, a file named twice is taken once. Each folder is listed once, so that
    40,000 files cost a few requests.

    Raises:
        FileNotFoundError: a named file is not there, or nothing matches.
    """
    import braceexpand

    found: dict[str, int] = {}
    listings: dict[str, dict[str, int]] = {}
    for one in braceexpand.braceexpand(absolute(pattern)):
        with remote(one) as (filesystem, path):
            for url, size in _matches(one, filesystem, path, listings):
                found.setdefault(url, size)
    if not found:
        raise FileNotFoundError(f"nothing matches {pattern!r}")
    return list(found.items())


def _matches(pattern: str, filesystem: Any, path: str, listings: dict[str, dict[str, int]]) -> list[tuple[str, int]]:
    if _GLOB & set(path):
        details = filesystem.glob(path, detail=True)
        files = [(name, info) for name, info in sorted(details.items()) if info["type"] == "file"]
        return [(_url(filesystem, pattern, name), _size(info)) for name, info in files]
    if pattern.startswith(("http://", "https://")):  # web servers seldom list
        return [(pattern, _size(filesystem.info(path)))]
    parent = posixpath.dirname(path)
    if parent not in listings:
        listings[parent] = {info["name"]: _size(info) for info in filesystem.ls(parent, detail=True)}
    if path not in listings[parent]:
        raise FileNotFoundError(f"no file {pattern!r}")
    return [(pattern, listings[parent][path])]


def _url(filesystem: Any, pattern: str, name: str) -> str:
    return str(filesystem.unstrip_protocol(name)) if "://" in pattern else name


def _size(info: dict[str, Any]) -> int:
    size = info.get("size")
    return -1 if size is None else int(size)


def stamp(url: str) -> str:
    """Changes when the file does: size and modification time, or size and ETag of a remote one.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if "://" not in url:
        status = os.stat(url)
        return f"{status.st_size} {status.st_mtime_ns}"
    with remote(url) as (filesystem, path):
        info = filesystem.info(path)
    return f"{info.get('size')} {info.get('ETag') or info.get('etag') or info.get('mtime')}"


def unsafe_name(name: str) -> str | None:
    """Why a file name from a data set must not be used as a path; None if it may."""
    if not name or "\0" in name:
        return f"file name {name!r} is empty or holds a NUL"
    if name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
        return f"absolute file name {printable(name)!r}"
    if "://" in name:
        return f"file name {printable(name)!r} is a URL"
    if ".." in name.replace("\\", "/").split("/"):
        return f"file name {printable(name)!r} leaves its folder"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return f"file name {printable(name)!r} is not UTF-8"
    return None


def printable(name: str) -> str:
    """The name with undecodable bytes written as \\xNN, so that it can be stored as UTF-8."""
    if not _escaped(name):
        return name
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, from an escape in JSON
        data = name.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


def _escaped(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
