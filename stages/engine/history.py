"""The rows of a running training, in `history.jsonl` of the artifact's folder, for people and programs that watch.

A row is what `fit` adds to its history every few steps: `step`, `lr`, `loss` and each named loss, means over these
steps. Here it also has `samples_per_second`, `time` (seconds since 1970) and, where a stage has several trainings,
`training`. The file is no part of the artifact: the rows without times and rates, which are the same in equal runs,
become its `history.json` at the end of the stage, and then this file is removed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from regionclip_core.storage.records import Folder

_log = logging.getLogger(__name__)
Row = Mapping[str, Any]

HISTORY = "history.jsonl"
REMOTE_EVERY = 60.0
"""Seconds between two puts to an object store, where nothing can be appended: each one is the whole file."""


class Curves(Protocol):
    """A program that draws the rows, one training after the other."""

    def start(self, training: str, rows: list[Row]) -> None:
        """Begin a training, or begin it again: `rows` are all that there are, and replace what was there before."""

    def add(self, row: Row) -> None:
        """Add a row to the training that was started last."""

    def close(self) -> None:
        """Write what is left."""


class History:
    """Takes the rows of one job's trainings. What can't be written is a `problem` and no error: the job goes on."""

    def __init__(self, folder: Folder, curves: Curves | None = None) -> None:
        self._folder = folder
        self._curves = curves
        self._rows: list[Row] | None = None
        """All rows of the file; None until the first one comes and the file is read."""
        self._steps: dict[str, int] = {}
        """The last step of each training."""
        self._started: str | None = None
        """The training that `curves` has now."""
        self._file: BinaryIO | None = None
        self._put = 0.0
        self.problem = ""
        """The latest reason why something was not written."""

    def add(self, row: Row, last: bool = False) -> None:
        """Add a row; it replaces all rows of its training from its step on, which a run before left that was killed
        after its last checkpoint. `last`: it is the job's last one."""
        row = {**row, "time": round(time.time(), 3)}
        training, step, again = row.get("training", ""), row["step"], False
        try:
            if self._rows is None:
                self._rows = self._earlier()
                self._steps = {one.get("training", ""): one["step"] for one in self._rows}
            again = self._steps.get(training, 0) >= step
            if again:
                self._rows = [one for one in self._rows if one.get("training", "") != training or one["step"] < step]
            self._rows.append(row)
            self._steps[training] = step
            self._write(row, again, last)
        except OSError as error:
            self._file = None  # the next row writes the whole file again, whatever is in it now
            self._note(f"{self._folder.path(HISTORY)} could not be written: {error}")
        if self._curves is not None and self._rows is not None:
            try:
                if again or training != self._started:
                    self._curves.start(training, [one for one in self._rows if one.get("training", "") == training])
                    self._started = training
                else:
                    self._curves.add(row)
            except Exception as error:  # of another program's library: any
                self._curves = None
                self._note(f"no more curves of this stage: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Close what is open; after the last row, or when the job has failed."""
        if self._file is not None:
            self._file.close()
        if self._curves is not None:
            try:
                self._curves.close()
            except Exception as error:
                self._note(f"the curves of this stage may lack their end: {type(error).__name__}: {error}")

    def _note(self, problem: str) -> None:
        self.problem = problem
        _log.warning("%s", problem)

    def _earlier(self) -> list[Row]:
        """Return the rows of an earlier run that was interrupted, without what is torn."""
        try:
            lines = self._folder.read_bytes(HISTORY).splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
        return found

    def _write(self, row: Row, again: bool, last: bool) -> None:
        """Append the row; write the whole file where it is the first row of this process, or replaces others."""
        assert self._rows is not None
        if self._folder.is_local and self._file is not None and not again:
            self._file.write(_line(row))
            return
        now = time.monotonic()
        if self._folder.is_local or last or now - self._put >= REMOTE_EVERY:
            self._put = now
            self._folder.write_bytes(HISTORY, b"".join(map(_line, self._rows)))
        if self._folder.is_local:
            # One that is open already goes on with the file that has just been replaced.
            self._file = open(self._folder.path(HISTORY), "ab", buffering=0)  # noqa: SIM115 (until `close`)


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
