"""Runs of the command line as processes that can be killed, and what descends from them. Linux only (/proc)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HUNG_AFTER = 300.0
"""Seconds after which a run counts as hung."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a run: one thread, and the repository can be imported."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


class Run(Protocol):
    """A run that was started."""

    pid: int
    log: Path

    def status(self) -> int | None:
        """Exit status, None while it runs; negative for the signal that ended it."""


def wait(run: Run, until: Callable[[], bool] = lambda: False, limit: float = HUNG_AFTER) -> int | None:
    """The run's exit status, or None when `until` came true first. Raises TimeoutError, and kills it, when it hangs."""
    deadline = time.monotonic() + limit
    while (status := run.status()) is None:
        if until():
            return None
        if time.monotonic() > deadline:
            kill(run.pid)
            raise TimeoutError(f"a run did not end within {limit:g} s\n{tail(run.log)}")
        time.sleep(0.003)
    return status


def kill(pid: int) -> None:
    """SIGKILL one process that this harness started, or that descends from one; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a run's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


class Forked:
    """A run that the starter forked."""

    def __init__(self, starter: Starter, pid: int, log: Path) -> None:
        self._starter, self.pid, self.log = starter, pid, log
        self._status: int | None = None

    def status(self) -> int | None:
        if self._status is None:
            self._status = self._starter.ask({"poll": self.pid})["status"]
        return self._status


class Starter:
    """A process of `fault_starter.py`. Use as a context manager."""

    def __enter__(self) -> Starter:
        command = [sys.executable, str(HERE / "fault_starter.py")]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, cwd=ROOT, env=environment(), **pipes)
        self._answer()
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        budget: int | None = None,
    ) -> Forked:
        """Start `regionclip <arguments>`; `budget` bytes can be written until its disk is full."""
        request = {"start": list(arguments), "log": str(log), "environment": environment, "budget": budget}
        return Forked(self, self.ask(request)["pid"], log)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"fault_starter.py ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


class Started:
    """A run with an interpreter of its own: for Ray, which does not go with fork."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "stages.cli", *arguments]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def status(self) -> int | None:
        return self._process.poll()


# ---------------------------------------------------------------- descendants


def descendants(pid: int) -> dict[int, str]:
    """Command line by pid of every process that descends from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for one in [child for child, its in parents.items() if its == parent and child not in found]:
            with contextlib.suppress(OSError):
                found[one] = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                todo.append(one)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
