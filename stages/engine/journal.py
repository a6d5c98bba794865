"""What a run leaves in its workspace for people and programs that watch: `run.log` and `events.jsonl`.

`run.log` has what was printed (or would be, without -q), with times; `events.jsonl` has one JSON object per line, with
`time` (UTC, ISO 8601), `run` (an id) and `event`; docs/watching.md lists the events and their fields. Each run adds to
both. They are no part of any artifact, nothing reads them, and that they can't be written never stops a run.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from regionclip_core.storage.records import Folder

LOG = "run.log"
EVENTS = "events.jsonl"
LONGEST_LINE = 2**20
"""Bytes at the end of a file in which a torn line is looked for."""
REMOTE_EVERY = 60.0
"""Seconds between two puts to an object store, where nothing can be appended: each one is the whole file."""


class Journal:
    """The two files of one run. On a local path a line is there at once; lines may come from several threads."""

    def __init__(self, workspace: Folder, complain: Callable[[str], None]) -> None:
        """complain: shows the user, once, why a file can't be written."""
        self.run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._workspace = workspace
        self._complain: Callable[[str], None] | None = complain
        self._lock = threading.RLock()  # a complaint is a line too
        self._waiting = {LOG: b"", EVENTS: b""}
        """What is not written yet."""
        self._put = time.monotonic()
        if workspace.is_local:
            for name in self._waiting:
                with suppress(OSError):
                    _cut_torn_line(workspace.path(name))

    def line(self, text: str) -> None:
        """Add a line to `run.log`, or several."""
        self._add(LOG, f"{_now()}  {text}")

    def event(self, event: str, **fields: Any) -> None:
        """Add an event. The fields are plain JSON values."""
        self._add(EVENTS, json.dumps({"time": _now(), "run": self.run, "event": event, **fields}))

    def close(self) -> None:
        """Write what waits."""
        self._write()

    def _add(self, name: str, text: str) -> None:
        with self._lock:
            self._waiting[name] += text.encode(errors="backslashreplace") + b"\n"
            if self._workspace.is_local or time.monotonic() - self._put >= REMOTE_EVERY:
                self._write()

    def _write(self) -> None:
        with self._lock:
            self._put = time.monotonic()
            for name, data in self._waiting.items():
                if data:
                    try:
                        self._waiting[name] = data[self._append(name, data) :]
                    except OSError as error:
                        complain, self._complain = self._complain, None
                        if complain is not None:
                            complain(
                                f"{self._workspace.path(name)} is not written: {error}. The run goes on without it"
                            )

    def _append(self, name: str, data: bytes) -> int:
        """Return how many bytes were written."""
        if self._workspace.is_local:
            with open(self._workspace.path(name), "ab", buffering=0) as file:
                return file.write(data)
        earlier = self._workspace.read_bytes(name) if self._workspace.exists(name) else b""
        self._workspace.write_bytes(name, earlier + data)
        return len(data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cut_torn_line(path: str) -> None:
    """Remove what a run that was killed left after the last end of a line."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - LONGEST_LINE)
        file.seek(start)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)
