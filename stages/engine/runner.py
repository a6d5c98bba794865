"""Runs the pipeline: plans, hands the work to a backend, commits what comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import HALF_REMOVED
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
    read_shard_records,
    remove_shard_records,
    shard_failure_name,
    write_failure,
    write_manifest,
    write_plan,
    write_records,
)
from regionclip_core.training.error_budget import ErrorBudget, ErrorRateExceeded, is_bad
from stages import base
from stages.base import JobStage, ShardStage, Stage
from stages.engine.backend import Backend, LocalBackend
from stages.engine.lock import hold
from stages.engine.plan import PlanLine, Planner
from stages.engine.progress import Reporter, reporter
from stages.engine.provenance import provenance
from stages.engine.work import StageOutcome, StageTask, context, failure

ROLL_UP_AFTER = 1000
"""Records that are at least left to be opened one by one before a running stage rolls all of them up."""

MODEL_MODULES = ("torch", "torchvision", "open_clip")
"""What stages with a model import; idle workers do it ahead of time."""


class StageFailed(Exception):
    """A stage did not finish. The message is for the user; failure records hold the tracebacks."""


@dataclass
class RunResult:
    """What a run did with each stage: skipped | done | failed | blocked."""

    outcomes: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True when nothing failed and nothing was blocked."""
        return not {"failed", "blocked"} & set(self.outcomes.values())


class Pipeline:
    """A config and its workspace."""

    def __init__(self, config: Config, reporter: Reporter | None = None) -> None:
        self.config = config
        self.workspace = Folder(config.workspace)
        self._report = reporter

    def plan(self) -> list[PlanLine]:
        """Where every stage stands and what a run would do, in pipeline order. Needs no lock."""
        return Planner(self.config, self.workspace).lines()

    def finished(self) -> dict[str, PlanLine]:
        """The lines of the stages that are done, by name; cheaper than a plan, as nothing is listed."""
        return Planner(self.config, self.workspace).finished()

    def closure(self, targets: Sequence[str] | None, force: bool = False) -> list[str]:
        """The targets (None: every stage) and all they need, in order. Raises ValueError for an unknown one.

        force: of a run that throws the targets' results away, which has to name them.
        """
        if force and not targets:
            raise ValueError("--force needs the stages to do over, e.g. `run labels --force`")
        return Planner(self.config, self.workspace).closure(targets)

    def run(self, targets: Sequence[str] | None = None, force: bool = False) -> RunResult:
        """Bring the targets (None: every stage) and all they need up to date.

        force: throw the targets' own results away first. A stage that fails blocks what needs it; the others go on.
        A missing input blocks its stage. Raises WorkspaceLocked, and ValueError for an unknown stage.
        """
        names = self.closure(targets, force)
        planner = Planner(self.config, self.workspace)
        report = self._report or reporter()
        start = time.perf_counter()
        if planner.finished().keys() >= set(names) and not force:
            report.say(f"nothing to do: {', '.join(names)} up to date in {self.workspace.url}")
            return RunResult(dict.fromkeys(names, "skipped"), {}, time.perf_counter() - start)
        with hold(self.workspace) as left:
            if left is not None:
                report.say(f"took over the lock of a process that is gone ({left})")
            result = _Run(self.config, self.workspace, report).run(names, set(targets or ()) if force else set())
        result.seconds = time.perf_counter() - start
        return result


class _Run:
    """One run under the workspace's lock."""

    def __init__(self, config: Config, workspace: Folder, report: Reporter) -> None:
        self.config = config
        self.planner = Planner(config, workspace)
        self.report = report
        self._backend: Backend | None = None
        self._warm: tuple[str, ...] = ()

    def run(self, names: list[str], forced: set[str]) -> RunResult:
        result = RunResult()
        known: dict[str, PlanLine] = {}
        if any(isinstance(base.STAGES[name], ShardStage) and base.STAGES[name].uses_gpu for name in names):
            self._warm = MODEL_MODULES
        try:
            for name in names:
                known[name] = self._stage(name, known, name in forced, result)
        finally:
            self.report.stop()
            if self._backend is not None:
                self._backend.close()
            self._attempt("the digests of the inputs", self.planner.digests.save)
        return result

    def _stage(self, name: str, known: dict[str, PlanLine], forced: bool, result: RunResult) -> PlanLine:
        """Do one stage, if there is something to do; notes the outcome and returns where the stage stands now."""
        try:
            line = self.planner.line(name, known)
            if forced and line.path is not None:
                Folder(line.path).remove_all()
                line = self.planner.line(name, known)
        except OSError as error:  # a store that is away
            return self._note(PlanLine(name, "failed", _text(error)), result)
        if line.state == "done":
            result.outcomes[name] = "skipped"
            self.report.say(f"{name:<10} skip    {line.reason}")
            return line
        if line.fingerprint is None:
            return self._note(replace(line, state="blocked"), result)
        backend = self.backend  # one that doesn't start ends the run, not one stage after the other
        self.report.say(f"{name:<10} {line.action:<7} {line.reason}")
        self.report.start(name)
        start = time.perf_counter()
        try:
            manifest = self._execute(line, backend)
        except StageFailed as error:
            self.report.stop()
            return self._note(replace(line, state="failed", reason=str(error)), result)
        self.report.stop()
        result.outcomes[name] = "done"
        seconds = time.perf_counter() - start
        told = sorted(one for one in manifest.counts.items() if one[0].startswith(("bad_", "lost_")))
        bad = "".join(f", {n} {status}" for status, n in told)
        self.report.say(f"{name:<10} done    {seconds:.1f} s, {manifest.rows} rows, {manifest.bytes} bytes{bad}")
        return replace(line, state="done", manifest=manifest)

    def _note(self, line: PlanLine, result: RunResult) -> PlanLine:
        """Note a stage that failed or is blocked."""
        result.outcomes[line.stage], result.messages[line.stage] = line.state, line.reason
        shown = "FAILED " if line.state == "failed" else line.state
        self.report.say(f"{line.stage:<10} {shown} {line.reason}")
        return line

    def _attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write what a run can do without: if that fails, it is said, and takes no other error's place."""
        try:
            write()
        except OSError as error:
            self.report.say(f"{what} could not be written: {_text(error)}")

    def _execute(self, line: PlanLine, backend: Backend) -> Manifest:
        """Do a stage and commit it. Raises StageFailed, also for what this process can't read or write."""
        stage, out = base.STAGES[line.stage], Folder(str(line.path))
        task = StageTask(
            stage=line.stage,
            target=base.STAGES.targets[line.stage],
            config=self.config,
            out=out.url,
            inputs=line.upstream,
            uses_gpu=stage.uses_gpu,
            distributed=isinstance(stage, JobStage) and stage.distributed,
        )
        try:
            return self._commit(line, stage, task, out, backend)
        except OSError as error:  # a full disk, a store that is away
            raise self._failed(out, failure(line.stage, None, error)) from error

    def _commit(self, line: PlanLine, stage: Stage, task: StageTask, out: Folder, backend: Backend) -> Manifest:
        started, clock = datetime.now(UTC), time.perf_counter()
        out.remove_temporary()
        out.remove(FAILURE)
        out.remove(HALF_REMOVED)
        out.remove(MANIFEST)  # a damaged one, else the stage were done
        if isinstance(stage, ShardStage):
            records, outcome = self._shards(stage, task, out, backend, line.listing)
        else:
            records, outcome = [], self._job(task, out, backend)
        files = [f for record in records for f in record.files] + outcome.files
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
            provenance=provenance(started, round(time.perf_counter() - clock, 3)),
        )
        if changed := self.planner.digests.changed_since(line.raw_inputs):
            self.report.say(
                f"{line.stage:<10} {', '.join(changed)} changed while the stage ran: what it read counts as the old "
                "content. Run again for the new; with the old restored, do it over with --force"
            )
            manifest.provenance["changed_inputs"] = changed
        out.remove_temporary()  # of workers that died, and whose work others did
        write_records(out, records, outcome.files)
        write_manifest(out, manifest)
        return manifest

    def _job(self, task: StageTask, out: Folder, backend: Backend) -> StageOutcome:
        write_plan(out, None)

        def watch() -> None:
            try:
                progress = out.read_json(PROGRESS)
                shown = progress["done"], progress["total"], progress["note"]
            # Not there yet, damaged, or a store that is away for a moment: the job goes on.
            except (OSError, ValueError, KeyError, TypeError):
                return
            self.report.update(task.stage, *shown)

        outcome = self._checked(out, backend.job(task, watch))
        out.remove(PROGRESS)
        return outcome

    def _shards(
        self, stage: ShardStage, task: StageTask, out: Folder, backend: Backend, listing: ShardListing | None
    ) -> tuple[list[ShardRecord], StageOutcome]:
        """Do the open shards and merge; `listing` is the plan's look at the folder, if it had to look."""
        try:
            shards = stage.shards(context(task, threads=1))
        except Exception as error:
            raise self._failed(out, failure(task.stage, None, error)) from error
        listing = listing or list_shards(out)
        write_plan(out, shards)
        records = self._at_hand(out, set(listing.done).intersection(shards))
        prepared: list[FileRecord] = []
        if type(stage).prepare is not ShardStage.prepare:
            prepared = self._checked(out, backend.prepare(task)).files
        budget = self._budget(task.stage, out, records, len(shards))
        try:
            todo = [s for s in shards if s not in records]
            if todo:  # else the old roll-up would speak for a shard whose record was deleted, and redone
                _renew_roll_up(out, records)
            failed = self._do_shards(task, out, backend, todo, records, budget, set(listing.failed))
            budget.check(final=True)
        except BaseException as error:  # also an interrupt: the next run then opens one file, not one a shard
            self._attempt("the roll-up of the records", lambda: _roll_up(out, records))
            if isinstance(error, ErrorRateExceeded):
                raise self._failed(out, failure(task.stage, None, error)) from error
            raise
        if failed:
            self._attempt("the roll-up of the records", lambda: _roll_up(out, records))
            first = failed[0]
            where = out.path(shard_failure_name(first.shard or 0))
            raise StageFailed(
                f"{len(failed)} of {len(shards)} shards failed; the others are kept. First, shard {first.shard}: "
                f"{first.error}\n           traceback in {where}; run again to retry"
            )
        _roll_up(out, records)  # what the merge reads
        merged = self._checked(out, backend.merge(task))
        return [records[s] for s in sorted(records)], StageOutcome(prepared + merged.files, merged.summary)

    def _at_hand(self, out: Folder, finished: set[int]) -> dict[int, ShardRecord]:
        """Records of the finished shards; a shard whose record can't be read loses it, and is done anew."""
        damaged: list[int] = []
        records = {r.shard: r for r in read_shard_records(out, finished, damaged)}
        if damaged:
            self.report.say(f"{len(damaged)} records in {out.url} can't be read: their shards are done anew")
            remove_shard_records(out, damaged)
        return records

    def _budget(self, stage: str, out: Folder, records: dict[int, ShardRecord], total: int) -> ErrorBudget:
        """What the records at hand leave of the error budget.

        Where they leave nothing, an earlier run stopped for it. Shards with bad samples then lose their records, and
        are done anew: most inputs are no part of the fingerprint, so that mended ones would never be looked at again.
        """
        budget = self._counted(records)
        try:
            budget.check(final=len(records) == total)
            return budget
        except ErrorRateExceeded as error:
            bad = [s for s, r in records.items() if any(n for status, n in r.counts.items() if is_bad(status))]
            self.report.say(f"{stage:<10} redo    {len(bad)} shards with bad samples, which may be mended now: {error}")
        for shard in bad:
            del records[shard]
        _renew_roll_up(out, records)
        remove_shard_records(out, bad)
        return self._counted(records)

    def _counted(self, records: dict[int, ShardRecord]) -> ErrorBudget:
        budget = ErrorBudget(self.config.execution.max_error_rate)
        for record in records.values():
            budget.add(record.counts)
        return budget

    def _do_shards(
        self,
        task: StageTask,
        out: Folder,
        backend: Backend,
        todo: list[int],
        records: dict[int, ShardRecord],
        budget: ErrorBudget,
        failed_before: set[int],
    ) -> list[Failure]:
        """Do the open shards; fills `records`, returns the shards that failed. Raises on a failed set-up."""
        failed: list[Failure] = []
        total = len(records) + len(todo)
        rolled = len(records)
        if not todo:
            return failed
        with closing(backend.shards(task, todo)) as results:
            for result in results:
                if isinstance(result, Failure):
                    if result.shard is None:
                        raise self._failed(out, result)
                    self._keep_failure(out, result)
                    failed.append(result)
                else:
                    if result.shard in failed_before:
                        out.remove(shard_failure_name(result.shard))
                    records[result.shard] = result
                    budget.add(result.counts)
                    budget.check()
                    # A share of all: rolling up then costs the same a shard, however many there are.
                    if len(records) - rolled >= max(ROLL_UP_AFTER, rolled // 8):
                        rolled = len(records)
                        _roll_up(out, records)
                note = f"{len(failed)} failed" if failed else ""
                self.report.update(task.stage, len(records) + len(failed), total, note)
        return failed

    def _keep_failure(self, out: Folder, reason: Failure) -> None:
        """Write a shard's failure record; where that can't be, neither can the other shards' files: the stage ends."""
        try:
            write_failure(out, reason)
        except OSError as error:
            raise StageFailed(
                f"shard {reason.shard}: {reason.error}\n           its traceback could not be written: {_text(error)}; "
                "mend that and run again"
            ) from error

    def _checked(self, out: Folder, outcome: StageOutcome | Failure) -> StageOutcome:
        if isinstance(outcome, Failure):
            raise self._failed(out, outcome)
        return outcome

    def _failed(self, out: Folder, reason: Failure) -> StageFailed:
        try:
            write_failure(out, reason)
            kept = f"traceback in {out.path(FAILURE)}; run again to retry"
        except OSError as error:
            kept = f"the traceback could not be written: {_text(error)}; mend that and run again"
        return StageFailed(f"{reason.error}\n           {kept}")

    @property
    def backend(self) -> Backend:
        """The backend, started when the first stage needs it."""
        if self._backend is None:
            if self.config.execution.backend == "local":
                self._backend = LocalBackend()
            else:
                from stages.engine.ray_backend import RayBackend

                self._backend = ray_backend = RayBackend(self.config.execution, self._warm, self.report.say)
                self.report.say(ray_backend.describe())
        return self._backend


def _roll_up(out: Folder, records: dict[int, ShardRecord]) -> None:
    write_records(out, [records[s] for s in sorted(records)])


def _renew_roll_up(out: Folder, records: dict[int, ShardRecord]) -> None:
    """Make the roll-up speak for these shards only."""
    if records:
        _roll_up(out, records)
    else:
        out.remove(RECORDS)


def _text(error: OSError) -> str:
    """In one line, with its type where the message alone would say little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConnectionError) or error.errno is not None else f"{type(error).__name__}: {text}"
