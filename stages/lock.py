"""One run a workspace at a time: a lock file that says who holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from regionclip_core.artifacts import Folder, canonical_json
from regionclip_core.locations import remote

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
        return self.start is not None and _process_start(self.pid) not in (None, self.start)

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}: {self.command}"


class WorkspaceLocked(RuntimeError):
    """Another run holds the workspace."""


def _process_start(pid: int) -> int | None:
    try:
        # Field 22; the second field, the name in parentheses, may itself hold spaces.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


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
        return Holder(**found)
    except TypeError as error:
        raise ValueError(
            f"{workspace.path(NAME)}: expected a lock as this version writes it, but {error}; if no run of another "
            "version holds the workspace, delete the file"
        ) from error


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
        if read_holder(self.workspace) == self._me:
            self.workspace.remove(NAME)

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
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            os.link(temporary, self.workspace.path(NAME))  # unlike rename, link fails when the target is there
            return True
        except FileExistsError:
            return False
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
        """Move a dead process's lock away, unless another run was faster."""
        if not self.workspace.is_local:
            if read_holder(self.workspace) != dead:  # looked at again, since a remote removal can't be conditional
                return False
            self.workspace.remove(NAME)
            return True
        path, aside = self.workspace.path(NAME), self.workspace.path(f".tmp-lock-dead-{os.getpid()}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        moved = Holder(**json.loads(Path(aside).read_text()))
        if moved != dead:  # somebody took over in between: give it back
            with suppress(FileExistsError):
                os.link(aside, path)
        os.unlink(aside)
        return moved == dead
