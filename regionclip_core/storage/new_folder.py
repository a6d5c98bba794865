"""A new local folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regionclip_core.storage.folder import Folder
from regionclip_core.storage.local_files import TEMPORARY


def free_target(out: str) -> Path:
    """The path `out`, which must not exist or be an empty folder; ValueError otherwise."""
    if "://" in out:
        raise ValueError(f"--out {out}: expected a local folder; copy it to its URL afterwards")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--out {out} is there already and not empty; give a new folder, or delete that one first")
    return target


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Folder]:
    """A temporary folder on the target's file system that becomes `target` if the block ends well, else goes."""
    nearest = target.absolute().parent
    while not nearest.exists():
        nearest = nearest.parent
    temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}new-", dir=nearest))
    temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    try:
        yield Folder(str(temporary))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)  # over an empty folder too
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
