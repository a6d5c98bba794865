"""Files on this machine that stand for remote ones while a process writes or reads them, and what killed ones left."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regionclip_core.storage.locations import is_remote, remote

TEMPORARY = ".tmp-"
"""Beginning of the names of files that are not finished."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether nothing more could be written: a full disk, a quota, a file as large as it may be."""
    return error.errno in _FULL


@contextmanager
def full_disk_named(path: str) -> Iterator[None]:
    """What is raised in the block because nothing more can be written says that it was at `path`."""
    try:
        yield
    except OSError as error:
        if is_full(error) and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from error
        raise


def scratch(purpose: str) -> Path:
    """Return this user's folder on this machine for one purpose. Raises PermissionError if it is somebody else's."""
    folder = Path(tempfile.gettempdir()) / f"regionclip-{purpose}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()  # its name can be guessed, and another user may have put a link there
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "not a folder of this user; remove it, or set TMPDIR", str(folder))
    return folder


def scratch_file(purpose: str) -> tuple[int, str]:
    """A new open file of this process in the `scratch` folder, as `tempfile.mkstemp` gives it."""
    return tempfile.mkstemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=scratch(purpose))


def remove_of_the_dead(purpose: str) -> None:
    """Remove the files of `scratch_file` whose processes are gone; their names begin with a pid."""
    for path in scratch(purpose).glob(f"{TEMPORARY}*"):
        pid = path.name.removeprefix(TEMPORARY).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):
            continue


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """The file at a path or URL as a local one: itself, or a copy that is gone when the block is left.

    Raises FileNotFoundError when a URL leads to no file. A ValueError of the block that names the copy comes out with
    the URL in its place.
    """
    if not is_remote(url):
        yield Path(url.removeprefix("file://"))
        return
    remove_of_the_dead("downloads")
    fd, copy = scratch_file("downloads")
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
