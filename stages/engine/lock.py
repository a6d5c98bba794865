"""One run a workspace at a time: a lock file that says who holds it."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from regionclip_core.storage.local_files import full_disk_named, scratch
from regionclip_core.storage.locations import remote
from regionclip_core.storage.records import Folder, canonical_json

_log = logging.getLogger(__name__)

NAME = "lock.json"


@dataclass(frozen=True)
class Holder:
    """Who runs on a workspace."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601."""
    command: str
    start: int | None
    """Start of the process in kernel ticks, which tells it from a later one with the same pid; Linux only."""
    token: str = ""
    """Random; tells a lock from any other, also of the same process."""
    namespace: str = ""
    """The kernel's name of the processes that `pid` counts among: containers may share a host's name; Linux only."""

    def is_dead(self) -> bool:
        """True when the process surely is gone; one of another host or container is never surely gone."""
        if self.host != socket.gethostname() or (self.namespace and self.namespace != _pid_namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        if _is_ended(self.pid):
            return True
        return self.start is not None and _process_start(self.pid) not in (None, self.start)

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}: {self.command}"


class WorkspaceLocked(RuntimeError):
    """Another run holds the workspace."""


def _process_start(pid: int) -> int | None:
    try:
        return int(_process_fields(pid)[19])
    except (OSError, ValueError, IndexError):
        return None


def _is_ended(pid: int) -> bool:
    """Whether a process has ended and is only waited for by its parent (a zombie), all its threads included."""
    try:
        return _process_fields(pid)[0] in ("Z", "X") and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (OSError, IndexError):
        return False


def _process_fields(pid: int) -> list[str]:
    """The kernel's line on a process from the third field on; the second, the name in parentheses, may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def read_holder(workspace: Folder) -> Holder | None:
    """Who holds the workspace, or None. ValueError for a lock that this version can't read."""
    try:
        found = workspace.read_json(NAME)
    except FileNotFoundError:
        return None
    try:
        return _checked(Holder(**found))
    except TypeError as error:
        raise ValueError(
            f"{workspace.path(NAME)}: expected a lock as this version writes it, but {error}; if no run of another "
            "version holds the workspace, delete the file"
        ) from error


def _checked(holder: Holder) -> Holder:
    """The holder. TypeError for a field that no lock has; an operating system's pid fits 31 bits."""
    texts = holder.host, holder.since, holder.command, holder.token, holder.namespace
    if type(holder.pid) is not int or not 0 < holder.pid < 1 << 31:
        raise TypeError(f"its pid is {str(holder.pid)[:40]!r}")
    if not all(isinstance(text, str) for text in texts) or type(holder.start) not in (int, type(None)):
        raise TypeError("a text or its start is of another type")
    return holder


class WorkspaceLock:
    """Context manager that holds the workspace. Raises WorkspaceLocked, with who holds it and how to go on."""

    def __init__(self, workspace: Folder) -> None:
        self.workspace = workspace
        self.taken_over: Holder | None = None
        """The dead process whose lock was taken over, if there was one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:500]
        pid = os.getpid()
        token, namespace = uuid.uuid4().hex, _pid_namespace()
        self._me = Holder(socket.gethostname(), pid, now, command, _process_start(pid), token, namespace)

    def __enter__(self) -> WorkspaceLock:
        for _ in range(3):  # a lock that vanishes between two looks is tried again
            if self._create():
                return self
            holder = read_holder(self.workspace)
            if holder is None:
                continue
            if holder == self._me:  # ours after all: the answer to a remote put was lost, and the put tried again
                return self
            if not holder.is_dead():
                raise WorkspaceLocked(self._advice(holder))
            if self._discard(holder):
                self.taken_over = holder
        raise WorkspaceLocked(f"{self.workspace.path(NAME)} is taken and released all the time; try again")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if read_holder(self.workspace) == self._me:
                self.workspace.remove(NAME)
        except (OSError, ValueError) as problem:  # it must not take the place of what ended the run
            _log.warning(
                "%s was not removed: %s. A later run on this host takes it over; for one elsewhere, delete it",
                self.workspace.path(NAME),
                str(problem).rstrip("."),
            )

    def _advice(self, holder: Holder) -> str:
        path = self.workspace.path(NAME)
        there = f"kill {holder.pid}" if holder.host == socket.gethostname() else f"look on {holder.host}"
        return (
            f"workspace {self.workspace.url} is held by {holder}\n"
            f"Wait for it, stop it ({there}), or run with another --workspace. "
            f"If that process is surely gone, delete {path} and run again."
        )

    def _create(self) -> bool:
        """Create the lock file with its content in one step; False when it is there already."""
        data = canonical_json(asdict(self._me), indent=1)
        if not self.workspace.is_local:
            return self._create_remote(data)
        os.makedirs(self.workspace.url, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=".tmp-lock-", dir=self.workspace.url)
        try:
            with full_disk_named(self.workspace.path(NAME)), os.fdopen(fd, "wb") as f:
                f.write(data)
            os.link(temporary, self.workspace.path(NAME))  # unlike rename, link fails when the target is there
            return True
        except FileExistsError:
            return False
        except OSError:
            if os.path.lexists(self.workspace.path(NAME)):  # who holds it says more than what this one met
                return False
            raise
        finally:
            os.unlink(temporary)

    def _create_remote(self, data: bytes) -> bool:
        with remote(self.workspace.path(NAME)) as (fs, path):
            fs.invalidate_cache()
            if fs.exists(path):
                return False
            try:
                fs.pipe_file(path, data, mode="create")  # a conditional put, where the store knows it
            except OSError:
                fs.invalidate_cache()
                if fs.exists(path):  # somebody was faster; stores say so by several errors
                    return False
                raise
            except (TypeError, NotImplementedError):
                fs.pipe_file(path, data)
        return read_holder(self.workspace) == self._me

    def _discard(self, dead: Holder) -> bool:
        """Remove a dead process's lock, unless another run was faster.

        Only runs of its own host take a lock for dead, and one at a time looks and removes: between the two no lock
        of a living run can have come to its place.
        """
        with _one_at_a_time(self.workspace.url):
            if read_holder(self.workspace) != dead:
                return False
            self.workspace.remove(NAME)
            return True


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Among the processes of this user on this machine; the kernel lets the next one in when one is killed."""
    import fcntl

    name = hashlib.sha256(os.path.realpath(url).encode() if "://" not in url else url.encode()).hexdigest()[:24]
    with (scratch("locks") / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
