"""Showing what happens: a bar on a terminal, few lines elsewhere; all of it also in the run's journal."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from regionclip_core.storage.records import Failure, Folder, ShardRecord

from .journal import Journal


def reporter(verbosity: int = 0) -> Reporter:
    """Return what shows a run: -1 only warnings and what went wrong, 0 stages and their progress, 1 each shard too."""
    return BarReporter(verbosity) if sys.stdout.isatty() and verbosity >= 0 else Reporter(verbosity)


class Reporter:
    """Prints lines; progress of a stage now and then, since a file shows every line for ever."""

    SOONEST = 20.0
    """Seconds, at least, between two progress lines of a stage; with -v there is no other rule."""
    STEP = 0.1
    """Share of the stage after which the next line comes."""
    LATEST = 600.0
    """Seconds after which a line comes in any case."""
    EVENT_EVERY = 10.0
    """Seconds between two `progress` events."""

    def __init__(self, verbosity: int = 0) -> None:
        self.journal: Journal | None = None
        """Where what is said goes too, while a run holds the workspace."""
        self._verbosity = verbosity
        Reporter.start(self, "")

    # ---------------------------------------------------------------- lines

    def say(self, text: str) -> None:
        """Print one line; a quiet run has it in the log only."""
        if self._verbosity >= 0:
            self._print(text)
        self._log(text)

    def detail(self, text: str) -> None:
        """Print one line if more than usual is wanted."""
        if self._verbosity > 0:
            self.say(text)

    def warn(self, text: str) -> None:
        """Print one line about what may be wrong, and goes on."""
        self._print(text)
        self._log(text)
        self.event("warning", text=text)

    def complain(self, text: str) -> None:
        """Print one line about what went wrong, on standard error."""
        print(text, file=sys.stderr, flush=True)
        self._log(text)

    def event(self, event: str, **fields: Any) -> None:
        """Add an event to the journal."""
        if self.journal is not None:
            self.journal.event(event, **fields)

    def _print(self, text: str) -> None:
        print(text, flush=True)

    def _log(self, text: str) -> None:
        if self.journal is not None:
            self.journal.line(text)

    # ---------------------------------------------------------------- the journal

    @contextmanager
    def recorded(self, workspace: Folder, stages: Sequence[str], outcomes: Mapping[str, str]) -> Iterator[None]:
        """Keep a journal of the run in the block; the workspace must be held.

        What the library logs as a warning in this process is shown and recorded too.

        Args:
            stages: that are to run.
            outcomes: what became of each stage, filled by the run.
        """
        journal = self.journal = Journal(workspace, self.complain)
        command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:500]
        who = {"host": socket.gethostname(), "pid": os.getpid()}
        self._log(f"run {journal.run} begins: {command}")
        self.event("run_started", command=command, stages=list(stages), **who)
        logged, start = _Warnings(self), time.perf_counter()
        loggers = [logging.getLogger(name) for name in ("regionclip_core", str(__package__).partition(".")[0])]
        for logger in loggers:
            logger.addHandler(logged)
        state, why = "interrupted", {}
        try:
            yield
            state = "failed" if {"failed", "blocked"} & set(outcomes.values()) else "done"
        except Exception as error:
            state, why = "failed", {"error": str(error)}
            self._log(f"error: {error}")
            raise
        finally:
            for logger in loggers:
                logger.removeHandler(logged)
            seconds = round(time.perf_counter() - start, 3)
            self._log(f"run {journal.run} {state}, {seconds:.1f} s")
            self.event("run_ended", state=state, seconds=seconds, outcomes=dict(outcomes), **why)
            journal.close()
            self.journal = None

    def shard_done(self, stage: str, record: ShardRecord) -> None:
        """Say that a shard is done, to those who want to know."""
        self.detail(f"{stage:<10} shard   {record.shard} done, {record.seconds:.1f} s, {record.rows} rows")
        numbers = {"seconds": record.seconds, "rows": record.rows, "counts": record.counts}
        self.event("shard_done", stage=stage, shard=record.shard, split=record.split, **numbers)

    def shard_failed(self, stage: str, reason: Failure) -> None:
        """Say that a shard failed, to those who want to know before the end of the stage."""
        self.detail(f"{stage:<10} shard   {reason.shard} failed: {reason.error}")
        self.event("shard_failed", stage=stage, shard=reason.shard, error=reason.error)

    # ---------------------------------------------------------------- progress

    def start(self, stage: str) -> None:
        """Note that a stage begins."""
        self._pace: Pace | None = None
        self._done = self._shown = 0
        self._said = self._told = time.monotonic()

    def update(self, stage: str, done: int, total: int, note: str = "", images: int | None = None) -> None:
        """Show that a stage has done so much of the total, and how fast.

        images: those done since the stage started, where `done` counts shards.
        """
        if self._pace is None:
            self._pace, self._shown = Pace(done), done
        elif done == self._done:
            return
        self._done = done
        self._pace.look(done, total, images)
        self._show(stage, done, total, "  ".join(part for part in (str(self._pace), note) if part))
        now = time.monotonic()
        if now - self._told >= self.EVENT_EVERY:
            self._told = now
            self.event("progress", stage=stage, done=done, total=total, note=note, **self._pace.in_numbers())

    def _show(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        waited, more = now - self._said, (done - self._shown) / max(1, total)
        due = waited >= self.SOONEST and more >= self.STEP
        if due or waited >= (self.SOONEST if self._verbosity > 0 else self.LATEST):
            self._said, self._shown = now, done
            self.say(f"{stage:<10} {done}/{total}  {text}".rstrip())

    def stop(self) -> None:
        """Note that the stage ended, well or badly."""


class _Warnings(logging.Handler):
    """Shows warnings of the library as those of the run."""

    def __init__(self, report: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._report.warn(record.getMessage())


class Pace:
    """How fast a stage is, from the first look at it on: what an earlier run has done took no time."""

    def __init__(self, done: int) -> None:
        self._first, self._since = done, time.monotonic()
        self._unit = ""
        self._rate = self._left = 0.0

    def look(self, done: int, total: int, images: int | None = None) -> None:
        """Measure; `images` since the first look, where `done` counts something else."""
        seconds = time.monotonic() - self._since
        if done > self._first and seconds > 0:
            self._left = (total - done) * seconds / (done - self._first)
            self._rate = (done - self._first if images is None else images) / seconds
            self._unit = "" if images is None else " images"

    def __str__(self) -> str:
        return f"{self._rate:.3g}{self._unit}/s, {duration(self._left)} left" if self._rate else ""

    def in_numbers(self) -> dict[str, float]:
        """Return the rate and the remaining seconds for a program; nothing before there are any."""
        return {"per_second": round(self._rate, 3), "seconds_left": round(self._left, 1)} if self._rate else {}


def duration(seconds: float) -> str:
    """Return "42 s", "12 min" or "3.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


class BarReporter(Reporter):
    """Shows one bar for the running stage."""

    def __init__(self, verbosity: int = 0) -> None:
        self._bar: Any = None
        super().__init__(verbosity)

    def start(self, stage: str) -> None:
        """Show the stage's bar, empty at first."""
        super().start(stage)
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # slow
        from rich.table import Column

        self._bar = Progress(
            TextColumn("{task.description:<10}", table_column=Column(width=10)),
            BarColumn(bar_width=20, table_column=Column(width=20)),
            TimeElapsedColumn(table_column=Column(width=7)),
            # The only one that is cut on a narrow terminal.
            TextColumn(
                "{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task(stage, total=None, text="")
        self._bar.start()

    def _show(self, stage: str, done: int, total: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, text=f"{done}/{total}  {text}".rstrip())

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            super()._print(text)

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
