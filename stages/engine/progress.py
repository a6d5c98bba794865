"""Showing what happens: bars on a terminal, sparse lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Reporter:
    """Prints lines; progress of a stage as one line every few seconds."""

    EVERY = 10.0
    """Seconds between two progress lines of one stage."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._shown = ""

    def say(self, text: str) -> None:
        """Print one line."""
        print(text, flush=True)

    def complain(self, text: str) -> None:
        """Print one line about what went wrong, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def start(self, stage: str) -> None:
        """Note that a stage begins."""
        self._last, self._shown = time.monotonic(), ""

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that a stage has done so much of the total."""
        now, text = time.monotonic(), f"{stage:<10} {done}/{total}" + (f"  {note}" if note else "")
        if now - self._last >= self.EVERY and text != self._shown:
            self._last, self._shown = now, text
            self.say(text)

    def stop(self) -> None:
        """Note that the stage ended, well or badly."""


class BarReporter(Reporter):
    """Shows one bar for the running stage."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None

    def start(self, stage: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # slow

        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), transient=True)
        self._task = self._bar.add_task(stage, total=None, note="")
        self._bar.start()

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            super().say(text)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
