"""Files on this machine that a process uses while it writes or reads remote ones, and what killed processes left."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regionclip_core.storage.locations import is_remote, remote

TEMPORARY = ".tmp-"
"""Beginning of the names of files that are not finished."""


def is_full(error: OSError) -> bool:
    """Return whether nothing more could be written: a full disk, a quota, a file as large as it may be."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_named(path: str) -> Iterator[None]:
    """Add `path` to an error that is raised in the block because nothing more can be written."""
    try:
        yield
    except OSError as error:
        if is_full(error) and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from error
        raise


def scratch(purpose: str, inside: str = "") -> Path:
    """Return this user's private folder on this machine for one purpose, in TMPDIR or the folder `inside`.

    Raises PermissionError if it is a link, another user's, or open to others: its name can be guessed.
    """
    folder = Path(inside or tempfile.gettempdir()) / f"regionclip-{purpose}-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "not a private folder of this user; remove it, or set TMPDIR", str(folder))
    return folder


def remove_of_the_dead(purpose: str) -> None:
    """Remove the files of `scratch` that belong to processes that are gone."""
    for path in scratch(purpose).glob(f"{TEMPORARY}*"):
        try:
            os.kill(int(path.name.removeprefix(TEMPORARY).split("-")[0]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):
            continue


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield the file at a path or URL as a local one: itself, or a copy that is removed after the block.

    Raises FileNotFoundError when a URL leads to no file. In a ValueError of the block, the path of the copy is replaced
    by the URL.
    """
    if not is_remote(url):
        yield Path(url.removeprefix("file://"))
        return
    remove_of_the_dead("downloads")
    fd, copy = tempfile.mkstemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=scratch("downloads"))
    os.close(fd)
    try:
        with remote(url) as (filesystem, path), full_disk_named(copy):
            if not filesystem.isfile(path):
                raise FileNotFoundError(f"no file at {url}")
            filesystem.get_file(path, copy)
        yield Path(copy)
    except ValueError as error:
        raise ValueError(str(error).replace(copy, url)) from error
    finally:
        os.unlink(copy)
