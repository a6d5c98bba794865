"""Runs the pipeline: plans, hands the work to a backend, commits what comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import HALF_REMOVED
from regionclip_core.storage.locations import absolute
from regionclip_core.storage.records import (
    FAILURE,
    MANIFEST,
    PROGRESS,
    RECORDS,
    Failure,
    FileRecord,
    Folder,
    Manifest,
    ShardListing,
    ShardRecord,
    content_digest,
    list_shards,
    read_records,
    read_shard_records,
    remove_shard_records,
    shard_failure_name,
    size,
    write_failure,
    write_manifest,
    write_plan,
    write_records,
)
from regionclip_core.training.error_budget import PARTLY, ErrorBudget, ErrorRateExceeded, first_reasons, is_bad

from .. import declarations
from ..base import JobStage, ShardStage
from .advice import advice
from .backend import Backend, LocalBackend
from .history import HISTORY
from .lock import hold
from .look_ahead import look_ahead, refuse, unusable_splits
from .plan import PlanLine, Planner
from .progress import Reporter, reporter
from .provenance import provenance
from .work import StageOutcome, StageTask, failure

ROLL_UP_AFTER = 1000
"""How many new records, at least, make a running stage roll up all of them: a resume opens the others one by one."""


_OF_THE_INPUT = {"ValueError", "ErrorRateExceeded", "FileNotFoundError", "IsADirectoryError", "NotADirectoryError"}
_FIX = "fix the problem and run again"


class StageFailed(Exception):
    """A stage did not finish. The message is for the user; failure records hold the tracebacks."""


@dataclass
class RunResult:
    """What a run did with each stage: skipped | done | failed | blocked."""

    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when nothing failed and nothing was blocked."""
        return not {"failed", "blocked"} & set(self.outcomes.values())


class Pipeline:
    """Brings a config's workspace up to date."""

    def __init__(self, config: Config, report: Reporter | None = None) -> None:
        self.config = config
        self.workspace = Folder(config.workspace)
        self.planner = Planner(config)
        self.report = report or reporter()
        self.result = RunResult()
        self._backend: Backend | None = None
        self._problems: set[str] = set()
        """What a job could not write for those that watch, as far as it was said."""
        self._runs_models = False
        """Whether a shard stage of the run uses a model: idle workers then import torch ahead of time."""

    def run(self, targets: Sequence[str] | None = None, force: bool = False) -> RunResult:
        """Bring the targets (None: every stage) and all they need up to date.

        force: throw the targets' own results away first. A stage that fails blocks what needs it; the others go on.
        Raises WorkspaceLocked; ValueError for an unknown stage, and for all that is known to stop a stage that is to
        run, before the first one starts or, where only the data shows it, when `data` is done.
        """
        self.planner, self.result = Planner(self.config), RunResult()
        names = self.planner.closure(targets, force)
        to_run = look_ahead(self.config, names, self.planner.current(), (targets or ()) if force else ())
        if not to_run:
            self.report.say(f"nothing to do: {', '.join(names)} up to date in {self.workspace.url}")
            return RunResult(dict.fromkeys(names, "skipped"))
        with hold(self.workspace) as left, self.report.recorded(self.workspace, to_run, self.result.outcomes):
            if left is not None:
                self.report.warn(f"took over the lock of a process that is gone ({left})")
            self.planner = Planner(self.config)  # another run may have ended since the first look
            stages = [self.planner.steps[name].stage for name in names]
            self._runs_models = any(isinstance(stage, ShardStage) and stage.uses_gpu for stage in stages)
            known: dict[str, PlanLine] = {}
            try:
                for name in names:  # one after the other, each with the whole machine
                    known[name] = self._stage(name, known, force and name in (targets or ()))
                    if name == "data" and (manifest := known[name].manifest) is not None:
                        refuse(unusable_splits(self.config, self.planner.stages(to_run), manifest.summary))
            finally:
                self.report.stop()
                if self._backend is not None:
                    self._backend.close()
                    self._backend = None
                self._attempt("the digests of the inputs", self.planner.digests.save)
            self._say_what_waits()
        return self.result

    def _stage(self, name: str, known: dict[str, PlanLine], forced: bool) -> PlanLine:
        """Do one stage if there is something to do; note the outcome and return the stage's line as it is now."""
        try:
            line = self.planner.line(name, known)
            if forced and line.path is not None:
                Folder(line.path).remove_all()
                line = self.planner.line(name, known)
        except OSError as error:  # a store that is away
            return self._note(self.planner.bare(name, "failed", f"{_text(error)}{_advised(_text(error))}"))
        if line.state == "done":
            self.result.outcomes[name] = "skipped"
            self.report.say(f"{name:<10} skip    {line.reason}")
            self.report.event("stage_skipped", stage=name, reason=line.reason)
            return line
        if line.fingerprint is None:
            return self._note(replace(line, state="blocked", reason=line.reason + _advised(line.reason)))
        backend = self._started_backend()  # one that doesn't start ends the run, not one stage after the other
        self.report.say(f"{name:<10} {line.action:<7} {line.reason}")
        self.report.detail(f"{name:<10} in      {line.path}")
        self.report.event("stage_started", stage=name, action=line.action, reason=line.reason, path=line.path)
        self.report.start(name)
        start, out = time.perf_counter(), Folder(str(line.path))
        try:
            manifest = self._commit(line, out, backend)
        except (StageFailed, OSError) as error:
            # OSError: what the driver itself can't read or write, as on a full disk.
            self.report.stop()
            reason = error if isinstance(error, StageFailed) else self._failed(out, failure(name, None, error))
            return self._note(replace(line, state="failed", reason=str(reason)))
        self.report.stop()
        self.result.outcomes[name] = "done"
        seconds = time.perf_counter() - start
        lost = sorted(one for one in manifest.counts.items() if one[0].startswith(("bad_", *PARTLY)))
        bad = "".join(f", {n} {status}" for status, n in lost)
        self.report.say(f"{name:<10} done    {seconds:.1f} s, {manifest.rows} rows, {size(manifest.bytes)}{bad}")
        totals = {"rows": manifest.rows, "bytes": manifest.bytes, "counts": manifest.counts}
        self.report.event("stage_done", stage=name, seconds=round(seconds, 3), path=line.path, **totals)
        first = [f"the first: {one}" for one in [first_reasons(out, read_records(out)[0], "bad_", PARTLY)] if one]
        for note in (*first, *manifest.summary.get("notes", ())):
            self.report.warn(f"{name:<10} note    {note}")
        return replace(line, state="done", manifest=manifest)

    # ---------------------------------------------------------------- the order of commits

    def _commit(self, line: PlanLine, out: Folder, backend: Backend) -> Manifest:
        """Do a stage and commit it. Raises StageFailed; OSError for what this process can't read or write.

        Every file appears whole or not at all, so a run can be killed between any two of these steps, and the next one
        goes on from what is there:

        1. Leftovers of earlier tries go (temporary files, `failed.json`, a damaged manifest), so that `status` doesn't
           show an old failure while the stage runs.
        2. `plan.json`, before any content: it marks the folder as an artifact that has begun, which `gc` may remove.
        3. Files of `prepare`, which every shard reads. Killed before or after: a resume writes the same files again.
        4. For each shard its files, then its record `shard-00007.json`, by the worker. The record is the commit: files
           without one are written over, a shard with one is not done again. `records.json` now and then, a cache.
        5. `records.json` with every shard, since the merge reads it in place of one file per shard.
        6. Files of `merge`, or of a job, which has its own checkpoints. Killed here: the merge runs again, or the job
           goes on from its last checkpoint and then writes all its files again.
        7. `records.json` with the files of steps 3 and 6 too, before the manifest that sums it up.
        8. `manifest.json`, the commit of the stage, last. Only now do later stages, `show` and `export` see it.
        """
        stage = declarations.STAGES[line.stage]
        started, clock = datetime.now(UTC), time.perf_counter()
        task = StageTask(
            stage=line.name,
            work=stage.work,
            config=self.planner.steps[line.name].config,
            out=absolute(out.url),
            inputs={need: absolute(url) for need, url in line.upstream.items()},
            uses_gpu=stage.uses_gpu,
            distributed=isinstance(stage, JobStage) and stage.distributed,
        )
        out.remove_temporary()  # step 1
        for name in (FAILURE, HALF_REMOVED, MANIFEST):  # a manifest that is there is damaged: the stage is not done
            out.remove(name)
        records: list[ShardRecord] = []
        prepared: list[FileRecord] = []
        if isinstance(stage, ShardStage):
            records, prepared = self._shards(task, out, backend, line.listing)  # steps 2 to 5
            outcome: StageOutcome = self._checked(out, backend.call(task, "merge"))  # step 6
        else:
            write_plan(out, None)  # step 2
            watch = partial(self._show_progress, line.name, out)
            outcome = self._checked(out, backend.call(task, "job", watch))  # step 6
            watch()
            out.remove(PROGRESS)
            out.remove(HISTORY)
        stage_files = prepared + outcome.files
        files = [f for record in records for f in record.files] + stage_files
        counts: Counter[str] = Counter(outcome.counts)
        for record in records:
            counts.update(record.counts)
        manifest = Manifest(
            stage=line.stage,
            version=stage.version,
            fingerprint=str(line.fingerprint),
            settings=line.settings,
            inputs=line.inputs,
            raw_inputs=line.raw_inputs,
            summary=outcome.summary,
            shards=len(records),
            rows=sum(r.rows for r in records),
            counts=dict(counts),
            files=len(files),
            bytes=sum(f.bytes for f in files),
            content_digest=content_digest(files),
            provenance=provenance(started, round(time.perf_counter() - clock, 3), line.round),
        )
        if changed := self.planner.digests.changed_since(line.raw_inputs):
            self.report.warn(
                f"{line.name:<10} {', '.join(changed)} changed while the stage ran: what it read counts as the old "
                "content. Run again for the new; with the old restored, do it over with --force"
            )
            manifest.provenance["changed_inputs"] = changed
        out.remove_temporary()  # from workers that died, and whose work others did
        write_records(out, records, stage_files)  # step 7
        write_manifest(out, manifest)  # step 8
        return manifest

    def _shards(
        self, task: StageTask, out: Folder, backend: Backend, listing: ShardListing | None
    ) -> tuple[list[ShardRecord], list[FileRecord]]:
        """Do the shards without a record: steps 2 to 5. Returns all records in order, and the files of `prepare`.

        listing: the plan's look at the folder, if it had to look.
        """
        shards: list[int] = self._checked(out, backend.call(task, "shards"))
        listing = listing or list_shards(out)
        write_plan(out, shards)  # step 2
        records = self._at_hand(task.stage, out, set(listing.done).intersection(shards), len(shards))
        prepared: StageOutcome = self._checked(out, backend.call(task, "prepare"))  # step 3
        budget = self._budget(records)
        failed: list[Failure] = []
        rolled, images = len(records), 0
        self.report.update(task.stage, len(records), len(shards))
        try:
            todo = [shard for shard in shards if shard not in records]
            if todo:
                _roll_up(out, records)  # the one that is there may hold a shard whose record was deleted
                with closing(backend.process(task, todo)) as results:  # step 4
                    for result in results:
                        if isinstance(result, Failure):
                            if result.shard is None:  # a set-up, which would fail for every shard
                                raise self._failed(out, result)
                            self._keep_failure(out, result)
                            failed.append(result)
                            self.report.shard_failed(task.stage, result)
                        else:
                            if result.shard in listing.failed:
                                out.remove(shard_failure_name(result.shard))
                            records[result.shard] = result
                            self.report.shard_done(task.stage, result)
                            images += sum(n for s, n in result.counts.items() if s == "ok" or is_bad(s))
                            budget.add(result.counts, result.split)
                            budget.check()
                            # A share of all: rolling up then costs the same per shard, however many there are.
                            if len(records) - rolled >= max(ROLL_UP_AFTER, rolled // 8):
                                rolled = len(records)
                                _roll_up(out, records)
                        note = f"{len(failed)} failed" if failed else ""
                        self.report.update(task.stage, len(records) + len(failed), len(shards), note, images)
            budget.check(final=True)
            if failed:
                where = out.path(shard_failure_name(failed[0].shard or 0))
                raise StageFailed(
                    f"{len(failed)} of {len(shards)} shards failed; the others are kept. First, shard "
                    f"{failed[0].shard}: {failed[0].error}\n           traceback in {where}{_retry(failed[0])}"
                )
        except BaseException as error:  # an interrupt too: the next run then opens one file, not one per shard
            self._attempt("the roll-up of the records", lambda: _roll_up(out, records))
            if isinstance(error, ErrorRateExceeded):
                of_split = [record for record in records.values() if record.split == error.split]
                if first := first_reasons(out, of_split, "bad_"):
                    error.args = (f"{error}. The first: {first}",)
                raise self._failed(out, failure(task.stage, None, error)) from error
            raise
        _roll_up(out, records)  # step 5
        return [records[shard] for shard in sorted(records)], prepared.files

    def _at_hand(self, stage: str, out: Folder, finished: set[int], total: int) -> dict[int, ShardRecord]:
        """Return the records of earlier runs; remove the records of shards that have to be done again.

        These are the shards whose record can't be read. Where the bad samples at hand are too many, which stopped an
        earlier run, they are also the shards with bad samples: most inputs have no part in the fingerprint, so samples
        that were repaired since would otherwise never be looked at again.
        """
        damaged: list[int] = []
        records = {r.shard: r for r in read_shard_records(out, finished, damaged)}
        if damaged:
            self.report.warn(f"{len(damaged)} records in {out.url} can't be read: their shards are done again")
            remove_shard_records(out, damaged)
        try:
            self._budget(records).check(final=len(records) == total)
        except ErrorRateExceeded as error:
            bad = [s for s, r in records.items() if any(n for status, n in r.counts.items() if is_bad(status))]
            self.report.warn(
                f"{stage:<10} redo    {len(bad)} shards with bad samples, which may be repaired now: {error}"
            )
            records = {shard: record for shard, record in records.items() if shard not in bad}
            _roll_up(out, records)  # before the records: a kill in between must not leave the shards in the roll-up
            remove_shard_records(out, bad)
        return records

    def _budget(self, records: dict[int, ShardRecord]) -> ErrorBudget:
        """Return what these records leave of the error budget."""
        budget = ErrorBudget(self.config.execution.max_error_rate)
        for record in records.values():
            budget.add(record.counts, record.split)
        return budget

    def _show_progress(self, stage: str, out: Folder) -> None:
        """Show how far a running job is."""
        try:
            progress = out.read_json(PROGRESS)
            shown = progress["done"], progress["total"], progress["note"]
            problem = progress.get("problem")
        # Not there yet, damaged, or a store that is away for a moment: the job goes on.
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.report.update(stage, *shown)
        if problem and problem not in self._problems:
            self._problems.add(problem)
            self.report.warn(f"{stage:<10} note    {problem}")

    # ---------------------------------------------------------------- what goes wrong

    def _checked(self, out: Folder, outcome: Any) -> Any:
        """Return what a worker returned. Raises StageFailed for a Failure."""
        if isinstance(outcome, Failure):
            raise self._failed(out, outcome)
        return outcome

    def _failed(self, out: Folder, reason: Failure) -> StageFailed:
        """Write why a stage failed; returns the exception to raise."""
        try:
            write_failure(out, reason)
            kept = f"traceback in {out.path(FAILURE)}{_retry(reason)}"
        except OSError as error:
            kept = f"the traceback could not be written: {_text(error)}{_advised(_text(error), _FIX)}"
        return StageFailed(f"{reason.error}\n           {kept}")

    def _keep_failure(self, out: Folder, reason: Failure) -> None:
        """Write why a shard failed; where there is no room for it, the other shards find none: the stage ends."""
        try:
            write_failure(out, reason)
        except OSError as error:
            raise StageFailed(
                f"shard {reason.shard}: {reason.error}\n           its traceback could not be written: {_text(error)}"
                f"{_advised(_text(error), _FIX)}"
            ) from error

    def _note(self, line: PlanLine) -> PlanLine:
        """Note a stage that failed or is blocked."""
        self.result.outcomes[line.name], self.result.messages[line.name] = line.state, line.reason
        shown = "FAILED " if line.state == "failed" else line.state
        self.report.event(f"stage_{line.state}", stage=line.name, reason=line.reason)
        if not line.reason.startswith("waits for "):
            self.report.complain(f"{line.name:<10} {shown} {line.reason}")
        return line

    def _say_what_waits(self) -> None:
        """Say in one line which stages could not run because they need one that failed or is blocked itself."""
        begin, said = "waits for ", self.result.messages
        waiting = {name: text.removeprefix(begin).split(", ") for name, text in said.items() if text.startswith(begin)}
        if waiting:
            stopped = ", ".join(dict.fromkeys(n for needs in waiting.values() for n in needs if n not in waiting))
            self.report.complain(f"{'blocked':<10} {len(waiting)} waiting for {stopped}: {', '.join(waiting)}")

    def _attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write what a run can do without: if that fails, say so, and let an error that is under way go on."""
        try:
            write()
        except OSError as error:
            self.report.warn(f"{what} could not be written: {_text(error)}")

    def _started_backend(self) -> Backend:
        """Return the backend, started when the first stage needs it."""
        if self._backend is None and self.config.execution.backend == "ray":
            from .ray_backend import RayBackend  # Ray takes a second; --backend local needs none

            self._backend = ray_backend = RayBackend(self.config.execution, self._runs_models, self.report.warn)
            self.report.say(ray_backend.describe())
        self._backend = self._backend or LocalBackend()
        return self._backend


def _roll_up(out: Folder, records: dict[int, ShardRecord]) -> None:
    """Make `records.json` hold these shards and no other."""
    if records:
        write_records(out, [records[shard] for shard in sorted(records)])
    else:
        out.remove(RECORDS)


def _retry(reason: Failure) -> str:
    """Return the advice to try again, unless the input or a setting is wrong: the message says what to change."""
    return _advised(reason.error, "" if reason.error.split(":")[0] in _OF_THE_INPUT else "run again to retry")


def _advised(error: str, otherwise: str = "") -> str:
    """Return what to do about an error, `otherwise` where nothing special is known, for the end of a message."""
    return f"; {said}" if (said := advice(error) or otherwise) else ""


def _text(error: OSError) -> str:
    """Return the error in one line, with its type where the message alone would say little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConnectionError) or error.errno is not None else f"{type(error).__name__}: {text}"
