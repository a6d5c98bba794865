"""Paths and fsspec URLs of raw inputs: make absolute, open, list with sizes; file names from data sets.

Also which errors of opening a file are about this one file, and which about the store that holds it. The first kind
costs a data set one sample. The second (no connection, wrong credentials, a full disk, too many open files) would cost
it every sample, so that it has to stop the shard, which is then tried again.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from regionclip_core.config.nearest import nearest_hint


def is_remote(url: str) -> bool:
    """Return whether the url names something that is not a file or folder of this machine."""
    return "://" in url and not url.startswith("file://")


def absolute(url: str) -> str:
    """Return local paths as absolute paths, URLs as they are."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))


def file_in(folder: str, name: str) -> str:
    """Return the path or URL of a data set's file in a folder.

    A web address ends at `?` or `#`, and `%` begins an escape: in a name they are escaped.
    """
    if folder.startswith(("http://", "https://")):
        name = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return f"{folder}/{name}"


@contextmanager
def remote(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system behind a URL, and the path in it.

    An error of the block that is a client library's own (no connection, no credentials) becomes a ConnectionError.
    Raises ValueError for an unknown protocol, and where the client library is not installed.
    """
    import fsspec  # not needed for local files, and slow to import

    try:
        yield fsspec.core.url_to_fs(url)
    except ImportError as error:  # "Install s3fs to access S3"
        package = getattr(error.__cause__, "name", None) or "'fsspec[full]'"
        raise ValueError(f"{url}: {error}: `pip install {package}`, on every machine of the run") from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Protocol not known"):
            scheme = f"{url.partition('://')[0]}://"
            raise ValueError(
                f"{url}: {scheme} is no protocol that fsspec knows; expected a path, or a URL such as s3://BUCKET/KEY"
            ) from error
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


def nearest_file(path: str) -> str:
    """Return `; nearest: NAME` for the message that a local path is not there; empty if its folder has none like it."""
    folder, name = os.path.split(absolute(path).rstrip("/"))
    return nearest_hint(name, os.listdir(folder) if os.path.isdir(folder) else ())


def exists(url: str) -> bool:
    """Return whether there is a file."""
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

    A file that has the very name is meant itself. Brace order is kept, glob matches are sorted, a file named twice is
    taken once. Each folder is listed once, so that 40,000 files cost a few requests. Bytes are -1 where a web server
    doesn't say.

    Raises:
        FileNotFoundError: a named file is not there or is a folder, or nothing matches.
    """
    import braceexpand  # only where tars or images are listed

    if os.path.isfile(here := absolute(pattern)):
        return [(here, os.path.getsize(here))]
    found: dict[str, int | None] = {}
    listings: dict[str, dict[str, dict[str, Any]]] = {}
    for one in braceexpand.braceexpand(absolute(pattern).rstrip("/")):
        with remote(one) as (filesystem, path):
            parent = posixpath.dirname(path)
            if set("*?[") & set(path) and not filesystem.isfile(path):
                for name, info in sorted(filesystem.glob(path, detail=True).items()):
                    if info["type"] == "file":
                        url = str(filesystem.unstrip_protocol(name)) if "://" in one else name
                        found.setdefault(url, info.get("size"))
            elif one.startswith(("http://", "https://")):  # web servers seldom list
                found.setdefault(one, filesystem.info(path).get("size"))
            else:
                if parent not in listings:
                    try:
                        entries = filesystem.ls(parent, detail=True)
                    except FileNotFoundError:
                        raise FileNotFoundError(f"no folder {posixpath.dirname(one)!r}; check the path") from None
                    listings[parent] = {info["name"].rstrip("/"): info for info in entries}
                if path not in listings[parent]:
                    raise FileNotFoundError(f"no file {one!r}")
                if listings[parent][path]["type"] == "directory":
                    raise FileNotFoundError(f"{one!r} is a folder; name the files in it, for example {one}/*.tar")
                found.setdefault(one, listings[parent][path].get("size"))
    if not found:
        raise FileNotFoundError(
            f"nothing matches {pattern!r} (looked from {os.getcwd()}); check the folder and the ending"
        )
    return [(url, -1 if size is None else int(size)) for url, size in found.items()]


_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENXIO, errno.ENODEV),
    }
)
_OF_THE_FILE_TYPES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
# S3's error codes about one key: not there, not to be read, in an archive, no such name.
_OF_THE_KEY = frozenset({"404", "NoSuchKey", "AccessDenied", "InvalidObjectState", "KeyTooLongError"})
_WITHOUT_CODE = frozenset({"400", "403"})


def is_of_the_file(error: OSError, url: str) -> bool:
    """Return whether an error of opening `url` is about this file alone.

    S3's error code decides: 403 is also the answer to wrong credentials. Where the first answer had no code, a request
    for one byte gets it.
    """
    if error.errno not in _OF_THE_FILE and not isinstance(error, _OF_THE_FILE_TYPES):
        return False
    if not is_remote(url):
        return True
    code = _code(error)
    if code in _WITHOUT_CODE:
        try:
            with remote(url) as (filesystem, path):
                filesystem.cat_file(path, start=0, end=1)
        except OSError as second:
            return _code(second) in _OF_THE_KEY
        return False
    if code is not None:
        return code in _OF_THE_KEY
    return error.errno != errno.EINVAL  # what a store answers to a request that it does not understand


def _code(error: OSError) -> str | None:
    """Return the S3 error code behind an exception; None where there is none."""
    response = getattr(getattr(error, "__cause__", None), "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else None


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
