"""One run per workspace at a time: a lock of the operating system, and lock.json, which says who holds it.

A local workspace has a lock file, `.lock`. The operating system releases it when the process that holds it ends,
however it ends, in a container too. If lock.json is there but `.lock` is free, its run is gone and the next one takes
over. Some network file systems don't show a lock to other machines: a lock.json from another machine is left alone.

An object store has no locks: there the conditional put of lock.json keeps others out. The lock file is in the
temporary folder of this machine, beside a copy of what was last put from here: if the store still has the same, its
run was on this machine.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regionclip_core.storage.local_files import scratch
from regionclip_core.storage.locations import remote
from regionclip_core.storage.records import Folder, canonical_json

_log = logging.getLogger(__name__)

NAME = "lock.json"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class WorkspaceLocked(RuntimeError):
    """Another run holds the workspace."""


@dataclass(frozen=True)
class Holder:
    """Who runs on a workspace."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    command: str
    machine: str = ""
    """Boot id of the kernel, where there is one: containers of one machine share it, whatever their host names are."""
    token: str = ""
    """Random, so that no two locks are equal."""

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}: {self.command}"


def read_holder(workspace: Folder) -> Holder | None:
    """Return who holds the workspace, or None. Raises ValueError for a lock that this version can't read."""
    try:
        return Holder(**workspace.read_json(NAME))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise ValueError(
            f"{workspace.path(NAME)}: expected a lock as this version writes it, but {error}; if no run of another "
            "version holds the workspace, delete the file"
        ) from error


@contextmanager
def hold(workspace: Folder) -> Iterator[Holder | None]:
    """Hold the workspace during the block; yields the run whose lock was taken over since it is gone, if any.

    Raises WorkspaceLocked, which says who holds the workspace and how to go on.
    """
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:500]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    me = Holder(socket.gethostname(), os.getpid(), now, command, _machine(), os.urandom(16).hex())
    lock = _lock_file(workspace, wait=0.2)  # `status` may have it for a moment
    if lock is None:
        raise _locked(workspace, read_holder(workspace))
    try:
        left = read_holder(workspace)
        if left is not None and not _is_from_here(workspace, left):
            raise _locked(workspace, left, f" If that run is surely gone, delete {workspace.path(NAME)}.")
        if workspace.is_local:
            workspace.write_json(NAME, asdict(me), indent=1)
        else:
            _put(workspace, me, over=left)
        try:
            yield left
        finally:
            try:
                if read_holder(workspace) == me:
                    workspace.remove(NAME)
            except (OSError, ValueError) as problem:  # it must not hide what ended the run
                _log.warning(
                    "%s was not removed: %s. A later run on this machine takes it over; for one elsewhere, delete it",
                    workspace.path(NAME),
                    str(problem).rstrip("."),
                )
    finally:
        lock.release()


def is_left_behind(workspace: Folder, holder: Holder) -> bool:
    """Whether the run that wrote lock.json is surely gone."""
    with suppress(OSError):  # a workspace that may only be read
        if (lock := _lock_file(workspace, wait=0)) is not None:
            lock.release()
            return _is_from_here(workspace, holder)
    return False


def _machine() -> str:
    with suppress(OSError):  # Linux only
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _copy(workspace: Folder) -> Path:
    """Where this machine keeps what it last put into a remote workspace's lock.json."""
    return scratch("locks") / f"{hashlib.sha256(workspace.url.encode()).hexdigest()[:24]}.json"


def _lock_file(workspace: Folder, wait: float) -> Any:
    """Take the lock of the operating system, a filelock.BaseFileLock; None if another process has it for `wait` s."""
    from filelock import FileLock, SoftFileLock, Timeout  # which `status` can do without

    path = workspace.path(".lock") if workspace.is_local else str(_copy(workspace).with_suffix(".lock"))
    for kind in (FileLock, SoftFileLock):
        lock = kind(path, thread_local=False)
        try:
            lock.acquire(timeout=wait)
            return lock
        except Timeout:
            return None
        except (OSError, NotImplementedError) as error:  # some versions of filelock raise the latter for ENOSYS
            if kind is SoftFileLock or getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
                raise
            # Then the existence of a file is the lock. If its run was killed on this machine, filelock removes it.
            _log.warning("%s: the file system has no locks (%s); the file %s.soft takes their place", path, error, path)
            path += ".soft"
    raise AssertionError


def _is_from_here(workspace: Folder, holder: Holder) -> bool:
    """Whether the lock file would show that the run which wrote lock.json goes on."""
    if workspace.is_local:
        return holder.host == socket.gethostname() or holder.machine == _machine() != ""
    copy = _copy(workspace)
    return copy.exists() and copy.read_bytes() == canonical_json(asdict(holder))


def _put(workspace: Folder, me: Holder, over: Holder | None) -> None:
    """Put lock.json into an object store, unless another machine is faster; `over` is the one that was left behind."""
    data, copy = canonical_json(asdict(me)), _copy(workspace)
    # In this order a run that is killed in between leaves no lock that later runs on this machine don't know.
    if over is not None:
        workspace.remove(NAME)
    Folder(str(copy.parent)).write_bytes(copy.name, data)
    with remote(workspace.path(NAME)) as (fs, path):
        try:
            fs.pipe_file(path, data, mode="create")  # a conditional put, where the store knows it
        except (TypeError, NotImplementedError):
            fs.pipe_file(path, data)
        except OSError:  # by which stores also say that somebody was faster
            if read_holder(workspace) is None:
                raise
    # Ours too where the answer to the put was lost and the put tried again.
    if (holder := read_holder(workspace)) != me:
        raise _locked(workspace, holder)


def _locked(workspace: Folder, holder: Holder | None, more: str = "") -> WorkspaceLocked:
    stop = f"kill {holder.pid}" if holder and holder.host == socket.gethostname() else "look on its host"
    return WorkspaceLocked(
        f"workspace {workspace.url} is held by {holder or 'a run that is just starting or ending'}\n"
        f"Wait for it, stop it ({stop}), or run with another --workspace.{more}"
    )
