"""Paths and fsspec URLs of raw inputs: make absolute, open, list with sizes; file names from data sets."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast


def is_absolute(url: str) -> bool:
    """Whether the url needs no folder in front: an absolute path or a URL with a protocol."""
    return "://" in url or os.path.isabs(url)


def is_remote(url: str) -> bool:
    """Whether the url names something that is not a file or folder of this machine."""
    return "://" in url and not url.startswith("file://")


def absolute(url: str) -> str:
    """Return local paths as absolute paths, URLs as they are."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def join(folder: str, name: str) -> str:
    """Return a file's URL in a folder."""
    return f"{folder.rstrip('/')}/{name}"


@contextmanager
def remote(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system behind a URL, and the path in it.

    An error of the block that is a client library's own (no connection, no credentials) becomes a ConnectionError.
    Raises ValueError where the client library is not installed.
    """
    import fsspec  # not needed for local files, and slow to import

    try:
        yield fsspec.core.url_to_fs(url)
    except ImportError as error:  # "Install s3fs to access S3"
        raise ValueError(f"{url}: {error}") from error
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from error


def open_location(url: str, block_size: int | None = None) -> BinaryIO:
    """Open a path or URL for reading in binary, seekable; remote files are fetched `block_size` bytes at a time.

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
    """Return the content of a file.

    Raises:
        FileNotFoundError: nothing is there.
    """
    with open_location(url) as file:
        return file.read()


def list_files(pattern: str) -> list[tuple[str, int]]:
    """Return (absolute url, bytes) of the files that a pattern with `{a..b}` braces and `*` globs names.

    Brace order is kept, glob matches are sorted, a file named twice is taken once. Each folder is listed once, so that
    40,000 files cost a few requests. Bytes are -1 where a web server doesn't say.

    Raises:
        FileNotFoundError: a named file is not there, or nothing matches.
    """
    import braceexpand  # only where tars or images are listed

    found: dict[str, int | None] = {}
    listings: dict[str, dict[str, int | None]] = {}
    for one in braceexpand.braceexpand(absolute(pattern)):
        with remote(one) as (filesystem, path):
            parent = posixpath.dirname(path)
            if set("*?[") & set(path):
                for name, info in sorted(filesystem.glob(path, detail=True).items()):
                    if info["type"] == "file":
                        url = str(filesystem.unstrip_protocol(name)) if "://" in one else name
                        found.setdefault(url, info.get("size"))
            elif one.startswith(("http://", "https://")):  # web servers seldom list
                found.setdefault(one, filesystem.info(path).get("size"))
            else:
                if parent not in listings:
                    entries = filesystem.ls(parent, detail=True)
                    listings[parent] = {info["name"]: info.get("size") for info in entries}
                if path not in listings[parent]:
                    raise FileNotFoundError(f"no file {one!r}")
                found.setdefault(one, listings[parent][path])
    if not found:
        raise FileNotFoundError(f"nothing matches {pattern!r}")
    return [(url, -1 if size is None else int(size)) for url, size in found.items()]


def stamp(url: str) -> str:
    """Return what changes when the file does: size and modification time, or size and ETag of a remote one.

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
    """Return why a file name from a data set must not be used as a path; None if it may."""
    if not name or "\0" in name:
        return f"file name {name!r} is empty or holds a NUL"
    if name.startswith(("/", "\\")) or name[1:3] in (":\\", ":/"):
        return f"absolute file name {printable(name)!r}"
    if "://" in name:
        return f"file name {printable(name)!r} is a URL"
    if ".." in name.replace("\\", "/").split("/"):
        return f"file name {printable(name)!r} leaves its folder"
    if printable(name) != name:
        return f"file name {printable(name)!r} is not UTF-8"
    return None


def printable(name: str) -> str:
    """Return the name with undecodable bytes written as \\xNN, so that it can be stored as UTF-8."""
    try:
        data = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, from an escape in JSON
        data = name.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")
