"""Runs the pipeline: plans, hands the work to a backend, commits what comes back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from regionclip_core.artifacts import (
    FAILURE,
    PLAN,
    PROGRESS,
    Failure,
    FileRecord,
    Folder,
    Manifest,
    ShardRecord,
    content_digest,
    done_shards,
    read_shard_records,
    shard_failure_name,
    write_failure,
    write_manifest,
    write_records,
)
from regionclip_core.config import Config
from stages import base
from stages.base import JobStage, ShardStage
from stages.local_backend import Backend, LocalBackend
from stages.lock import WorkspaceLock
from stages.plan import PlanLine, Planner
from stages.progress import Reporter, reporter
from stages.provenance import provenance
from stages.work import StageOutcome, StageTask, context, failure

ENOUGH_TO_JUDGE = 1000
"""Samples before the error rate may stop a stage halfway."""

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

    def closure(self, targets: Sequence[str] | None) -> list[str]:
        """The targets (None: every stage) and all they need, in order. Raises ValueError for an unknown one."""
        return Planner(self.config, self.workspace).closure(targets)

    def run(self, targets: Sequence[str] | None = None, force: bool = False) -> RunResult:
        """Bring the targets (None: every stage) and all they need up to date.

        force: throw the targets' own results away first. A stage that fails blocks what needs it; the others go on.
        A missing input blocks its stage. Raises WorkspaceLocked, and ValueError for an unknown stage.
        """
        if force and not targets:
            raise ValueError("--force needs the stages to do over, e.g. `run labels --force`")
        planner = Planner(self.config, self.workspace)
        names = planner.closure(targets)
        report = self._report or reporter()
        start = time.perf_counter()
        lines = {line.stage: line for line in planner.lines()}
        if not force and all(lines[name].state == "done" for name in names):
            report.say(f"nothing to do: {', '.join(names)} up to date in {self.workspace.url}")
            return RunResult(dict.fromkeys(names, "skipped"), {}, time.perf_counter() - start)
        with WorkspaceLock(self.workspace) as lock:
            if lock.taken_over:
                report.say(f"took over the lock of a process that is gone ({lock.taken_over})")
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
                line = self.planner.line(name, known)
                if name in forced and line.path is not None:
                    Folder(line.path).remove_all()
                    line = self.planner.line(name, known)
                self._stage(line, result)
                known[name] = self.planner.line(name, known) if line.state != "done" else line
        finally:
            self.report.stop()
            if self._backend is not None:
                self._backend.close()
            self.planner.digests.save()
        return result

    def _stage(self, line: PlanLine, result: RunResult) -> None:
        """Do one stage as its line says; notes the outcome."""
        if line.state == "done":
            result.outcomes[line.stage] = "skipped"
            self.report.say(f"{line.stage:<10} skip    {line.reason}")
            return
        if line.fingerprint is None:
            result.outcomes[line.stage], result.messages[line.stage] = "blocked", line.reason
            self.report.say(f"{line.stage:<10} blocked {line.reason}")
            return
        self.report.say(f"{line.stage:<10} {line.action:<7} {line.reason}")
        self.report.start(line.stage)
        start = time.perf_counter()
        try:
            manifest = self._execute(line)
        except StageFailed as error:
            self.report.stop()
            result.outcomes[line.stage], result.messages[line.stage] = "failed", str(error)
            self.report.say(f"{line.stage:<10} FAILED  {error}")
            return
        self.report.stop()
        result.outcomes[line.stage] = "done"
        seconds = time.perf_counter() - start
        told = sorted(one for one in manifest.counts.items() if one[0].startswith(("bad_", "lost_")))
        bad = "".join(f", {n} {status}" for status, n in told)
        self.report.say(f"{line.stage:<10} done    {seconds:.1f} s, {manifest.rows} rows, {manifest.bytes} bytes{bad}")

    def _execute(self, line: PlanLine) -> Manifest:
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
        started, clock = datetime.now(UTC), time.perf_counter()
        out.remove_temporary()
        out.remove(FAILURE)
        if isinstance(stage, ShardStage):
            records, outcome = self._shards(stage, task, out)
        else:
            records, outcome = [], self._job(task, out)
        files = [f for record in records for f in record.files] + outcome.files
        counts: Counter[str] = Counter()
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
        out.remove_temporary()  # of workers that died, and whose work others did
        write_records(out, records, outcome.files)
        write_manifest(out, manifest)
        return manifest

    def _job(self, task: StageTask, out: Folder) -> StageOutcome:
        out.write_json(PLAN, {"total": None}, indent=1)

        def watch() -> None:
            try:
                progress = out.read_json(PROGRESS)
            except (OSError, ValueError):  # not there yet, or a store that is away for a moment: the job goes on
                return
            self.report.update(task.stage, progress["done"], progress["total"], progress["note"])

        outcome = self._checked(out, self.backend.job(task, watch))
        out.remove(PROGRESS)
        return outcome

    def _shards(self, stage: ShardStage, task: StageTask, out: Folder) -> tuple[list[ShardRecord], StageOutcome]:
        try:
            shards = stage.shards(context(task, threads=1))
        except Exception as error:
            raise self._failed(out, failure(task.stage, None, error)) from error
        out.write_json(PLAN, {"total": len(shards)}, indent=1)
        finished = set(done_shards(out.names()))
        records = {r.shard: r for r in read_shard_records(out, finished.intersection(shards))}
        prepared: list[FileRecord] = []
        if type(stage).prepare is not ShardStage.prepare:
            prepared = self._checked(out, self.backend.prepare(task)).files
        budget = ErrorBudget(self.config.execution.max_error_rate)
        for record in records.values():
            budget.add(record.counts)
        try:
            todo = [s for s in shards if s not in finished]
            if todo and finished:  # else the old roll-up would speak for a shard whose record was deleted, and redone
                write_records(out, [records[s] for s in sorted(records)])
            failed = self._do_shards(task, out, todo, records, budget)
            budget.check(final=True)
        except ErrorRateExceeded as error:
            raise self._failed(out, failure(task.stage, None, error)) from error
        finally:  # also after an interrupt: the next run then opens one file, not one a shard
            ordered = [records[s] for s in sorted(records)]
            write_records(out, ordered)
        if failed:
            first = failed[0]
            where = out.path(shard_failure_name(first.shard or 0))
            raise StageFailed(
                f"{len(failed)} of {len(shards)} shards failed; the others are kept. First, shard {first.shard}: "
                f"{first.error}\n           traceback in {where}; run again to retry"
            )
        merged = self._checked(out, self.backend.merge(task))
        return ordered, StageOutcome(prepared + merged.files, merged.summary)

    def _do_shards(
        self, task: StageTask, out: Folder, todo: list[int], records: dict[int, ShardRecord], budget: ErrorBudget
    ) -> list[Failure]:
        """Do the open shards; fills `records`, returns the shards that failed. Raises on a failed set-up."""
        failed: list[Failure] = []
        total = len(records) + len(todo)
        failures_before = set(out.names())
        rolled = len(records)
        if not todo:
            return failed
        with closing(self.backend.shards(task, todo)) as results:
            for result in results:
                if isinstance(result, Failure):
                    if result.shard is None:
                        raise self._failed(out, result)
                    write_failure(out, result)
                    failed.append(result)
                else:
                    if (name := shard_failure_name(result.shard)) in failures_before:
                        out.remove(name)
                    records[result.shard] = result
                    budget.add(result.counts)
                    budget.check()
                    # A share of all: rolling up then costs the same a shard, however many there are.
                    if len(records) - rolled >= max(ROLL_UP_AFTER, rolled // 8):
                        rolled = len(records)
                        write_records(out, [records[s] for s in sorted(records)])
                note = f"{len(failed)} failed" if failed else ""
                self.report.update(task.stage, len(records) + len(failed), total, note)
        return failed

    def _checked(self, out: Folder, outcome: StageOutcome | Failure) -> StageOutcome:
        if isinstance(outcome, Failure):
            raise self._failed(out, outcome)
        return outcome

    def _failed(self, out: Folder, reason: Failure) -> StageFailed:
        write_failure(out, reason)
        return StageFailed(f"{reason.error}\n           traceback in {out.path(FAILURE)}; run again to retry")

    @property
    def backend(self) -> Backend:
        """The backend, started when the first stage needs it."""
        if self._backend is None:
            if self.config.execution.backend == "local":
                self._backend = LocalBackend()
            else:
                from stages.ray_backend import RayBackend

                self._backend = ray_backend = RayBackend(self.config.execution, self._warm, self.report.say)
                self.report.say(ray_backend.describe())
        return self._backend


class ErrorRateExceeded(ValueError):
    """More of a stage's samples are bad than the config allows."""


class ErrorBudget:
    """Counts samples by status: `ok` is good, `bad_...` is bad; any other count (`lost_...`) is no sample's status."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._counts: Counter[str] = Counter()

    def add(self, counts: dict[str, int]) -> None:
        """Add one shard's counts."""
        self._counts.update(counts)

    def check(self, final: bool = False) -> None:
        """Raise ErrorRateExceeded; halfway only when enough samples were seen to judge."""
        total = sum(n for status, n in self._counts.items() if status == "ok" or status.startswith("bad_"))
        bad = {status: n for status, n in self._counts.items() if status.startswith("bad_")}
        if not bad or not (final or total >= ENOUGH_TO_JUDGE):
            return
        share = sum(bad.values()) / total
        if share > self._rate:
            named = ", ".join(f"{n} {status}" for status, n in sorted(bad.items()))
            raise ErrorRateExceeded(
                f"{share:.1%} of {total} samples are bad ({named}); execution.max_error_rate is {self._rate:g}. "
                "Mend the input, or raise it (--max-error-rate)"
            )
