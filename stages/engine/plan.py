"""What a run would do, and why. Reads listings and manifests only; writes nothing but the digest cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from regionclip_core.config.checks import check_config, check_stages
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.tree import Config
from regionclip_core.storage.fingerprints import SHORT, InputDigests, fingerprint, is_mark
from regionclip_core.storage.folder import REQUESTS
from regionclip_core.storage.records import (
    PROGRESS,
    Failure,
    Folder,
    Manifest,
    ShardListing,
    list_shards,
    read_failure,
    read_manifest,
    read_plan,
    read_shard_records,
)

from .. import declarations
from ..base import JobStage
from .steps import step_name, steps

T = TypeVar("T")

ACTIONS = {"done": "skip", "partial": "resume", "failed": "retry", "blocked": "wait"}
_PLACES = (".images", ".instances", ".captions", ".categories", ".weights", ".init", ".prompts", ".embeddings")
"""Settings whose values are places even where they look like words."""
_OF_THE_USER = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
LOOKS_INTO = {True: 1000, False: 64}
"""Records that are opened one by one to add up what a stage has so far, in a local and in a remote workspace."""


@dataclass(frozen=True)
class Totals:
    """What a result, or a part of one, adds up to."""

    rows: int
    bytes: int
    seconds: float
    """Wall time of the run that finished it; for a part, the sum over its shards."""
    missing: int = 0
    """Finished shards that are not counted, since their records are not rolled up yet."""


@dataclass(frozen=True)
class PlanLine:
    """The state of one stage, what a run would do with it, and why."""

    stage: str
    state: str
    """done | partial | stale | failed | blocked | missing"""
    reason: str
    fingerprint: str | None = None
    """None while an upstream stage is unfinished: its content, and so the fingerprint, is not known yet."""
    path: str | None = None
    done: int = 0
    total: int | None = None
    """Shards (or steps of a job); None where that is not known."""
    listing: ShardListing | None = None
    """The shards of a stage that has begun and is not done; a run that goes on with it doesn't list them again."""
    manifest: Manifest | None = None
    so_far: Totals | None = None
    """What the finished shards add up to, where the stage is not done; `Planner.lines` adds it."""
    previous: Manifest | None = None
    """Manifest of the stage's latest result, where the current one has not begun."""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    raw_inputs: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    """URL of each upstream artifact."""
    wrong: tuple[str, ...] = ()
    """What is wrong with its settings and outside inputs, which only the user can change: a run is refused."""
    round: int = 1
    last: bool = True
    """As in Step."""

    @property
    def name(self) -> str:
        """What the stage of this round is called."""
        return step_name(self.stage, self.round, self.last)

    @property
    def action(self) -> str:
        """skip | resume | retry | wait | run"""
        return ACTIONS.get(self.state, "run")

    @property
    def totals(self) -> Totals | None:
        """Totals of the result if the stage is done, else of its finished shards, else of the latest result."""
        whole = self.manifest or (self.previous if self.so_far is None else None)
        if whole is None:
            return self.so_far
        return Totals(whole.rows, whole.bytes, whole.provenance.get("seconds", 0))


class Planner:
    """Compares a workspace with one config."""

    def __init__(self, config: Config, workspace: Folder | None = None) -> None:
        """workspace: another one than the config's."""
        self.config = config
        self.workspace = workspace or Folder(config.workspace)
        self.digests = InputDigests(self.workspace)
        self.steps = steps(config)
        self._begun: set[str] | None = None

    def closure(self, targets: Sequence[str] | None, force: bool = False) -> list[str]:
        """Return the steps that the targets (without any: all stages that are `by_default`) are and need, in order.

        force: for a run that throws the targets' results away, which has to name them.

        Raises ValueError for an unknown stage, and for one that the teacher's architecture can't take part in.
        """
        if force and not targets:
            raise ValueError("--force needs the stages to do over, e.g. `run labels --force`")
        wanted = set(targets or (name for name, step in self.steps.items() if step.stage.by_default(self.config)))
        if unknown := sorted(wanted - self.steps.keys()):
            near = nearest_hint(unknown[0], list(self.steps))
            raise ValueError(f"no stage {', '.join(map(repr, unknown))}; stages: {', '.join(self.steps)}{near}")
        for name in reversed(self.steps):
            if name in wanted:
                wanted.update(self.steps[name].needs.values())
        check_stages(self.config, self.stages(wanted))
        return [name for name in self.steps if name in wanted]

    def stages(self, names: Iterable[str]) -> set[str]:
        """Return the names of the stages of these steps."""
        return {self.steps[name].stage.name for name in names}

    def lines(self) -> list[PlanLine]:
        """Return one line per step, in pipeline order; unfinished ones with what their finished shards add up to."""
        lines = list(self._lines(self.line).values())
        for at, line in enumerate(lines):
            if line.state != "done" and (lacking := check_config(self.config, (line.stage,))):
                lines[at] = replace(line, state="missing", reason=f"not in the config: {'; '.join(lacking)}")
            if line.listing is not None and line.listing.done:
                folder = Folder(str(line.path))
                # The next run reports damaged records; those that are gone were removed by a run just now.
                records = read_shard_records(folder, line.listing.done, damaged=[], at_most=LOOKS_INTO[folder.is_local])
                rows, seconds = sum(r.rows for r in records), sum(r.seconds for r in records)
                size = sum(f.bytes for r in records for f in r.files)
                so_far = Totals(rows, size, seconds, len(line.listing.done) - len(records))
                lines[at] = replace(line, so_far=so_far)
        return lines

    def finished(self) -> dict[str, PlanLine]:
        """Return the lines of the stages that are done, by name. Reads their manifests, and lists nothing."""
        return {name: line for name, line in self.current().items() if line.state == "done"}

    def current(self) -> dict[str, PlanLine]:
        """Return all lines as far as manifests and inputs alone tell: done, blocked, failed, or else missing."""
        return self._lines(self._current)

    def _lines(self, look: Callable[[str, dict[str, PlanLine]], PlanLine]) -> dict[str, PlanLine]:
        known: dict[str, PlanLine] = {}
        for name in self.steps:
            try:
                known[name] = look(name, known)
            except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
                known[name] = self.bare(name, "failed", f"can't be read: {error}")
        with suppress(OSError):  # a workspace that may only be read can still be looked at
            self.digests.save()
        return known

    def line(self, name: str, known: Mapping[str, PlanLine]) -> PlanLine:
        """Return the state of one step and the reason for it, given the lines of the steps before it."""
        line = self._current(name, known)
        if line.state in ("done", "blocked"):
            return line
        if line.fingerprint is not None:
            return self._unfinished(line)
        waits_for = [known[need] for need in self.steps[name].needs.values() if not known[need].manifest]
        previous = self._latest(name)
        if blocking := [need.name for need in waits_for if need.state in ("failed", "blocked")]:
            return replace(line, state="blocked", reason=f"waits for {', '.join(blocking)}", previous=previous)
        after = "after " + ", ".join(need.name for need in waits_for)
        if previous is None:
            return replace(line, reason=after)
        return replace(line, state="stale", reason="; ".join([*_changes(previous, line), after]), previous=previous)

    def bare(self, name: str, state: str, reason: str) -> PlanLine:
        """Return the line of a step of which nothing else is known."""
        step = self.steps[name]
        return PlanLine(step.stage.name, state, reason, round=step.round, last=step.last)

    def _current(self, name: str, known: Mapping[str, PlanLine]) -> PlanLine:
        """Return the line of a stage by its inputs and manifest alone; one that is "missing" has no reason yet."""
        step = self.steps[name]
        stage, needs = step.stage, step.needs
        problems: dict[str, bool] = {}
        """By text, whether it stays until the user changes something."""

        def looked(look: Callable[[], T], otherwise: T) -> T:
            try:  # what a stage says about itself may look at inputs, which may be gone, odd or away
                return look()
            except (OSError, ValueError) as error:
                problems[_with_key(self.config, error)] = isinstance(error, (ValueError, *_OF_THE_USER))
                return otherwise

        settings = looked(partial(stage.settings, step.config), {})
        paths = looked(partial(stage.raw_inputs, step.config), [])
        raw = {path: looked(partial(self.digests.digest, path), "") for path in paths}
        if problems:
            wrong = tuple(text for text, stays in problems.items() if stays)
            return replace(self.bare(name, "blocked", "; ".join(problems)), settings=settings, wrong=wrong)
        line = replace(self.bare(name, "missing", ""), settings=settings)
        upstream = {need: manifest for need, of in needs.items() if (manifest := known[of].manifest) is not None}
        if len(upstream) < len(needs):
            return line
        inputs = {need: manifest.content_digest for need, manifest in upstream.items()}
        mark = fingerprint(stage.name, stage.version, settings, inputs, raw)
        folder = self.workspace.child(stage.name).child(mark[:SHORT])
        read = {need: str(known[of].path) for need, of in needs.items()}
        line = replace(line, fingerprint=mark, path=folder.url, inputs=inputs, raw_inputs=raw, upstream=read)
        try:
            manifest = read_manifest(folder)
        except ValueError as error:
            return replace(line, state="failed", reason=str(error))
        if manifest is None:
            return line
        shards = manifest.shards
        return replace(line, state="done", reason="up to date", done=shards, total=shards, manifest=manifest)

    def _unfinished(self, line: PlanLine) -> PlanLine:
        """Say how far a stage is that could run now, why it failed, or what has changed since its latest result."""
        folder, damage, plan = Folder(str(line.path)), line.reason, None
        error = _failure(folder)
        try:
            plan = read_plan(folder)
        except ValueError as problem:
            damage = damage or str(problem)
        is_job = isinstance(declarations.STAGES[line.stage], JobStage)
        listing = list_shards(folder, plan) if plan is not None and not is_job else None
        done, total = len(listing.done) if listing else 0, plan.total if plan else None
        if plan is not None and is_job:
            # Not there yet, removed by a job that ends just now, or damaged.
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                progress = folder.read_json(PROGRESS)
                done, total = int(progress["done"]), int(progress["total"])
        so_far = f"{done}/{total if total is not None else '?'} done"
        line = replace(line, done=done, total=total, listing=listing)
        if damage:
            return replace(line, state="failed", reason=damage)
        failed = listing.failed if listing is not None else ()
        error = error or (_failure(folder, failed[0]) if failed else None)
        if error is not None:
            many = f"{len(failed)} shards failed, first" if len(failed) > 1 else "failed"
            return replace(line, state="failed", reason=f"{many}: {error.error} ({so_far})")
        if plan is not None:
            return replace(line, state="partial", reason=so_far)
        previous = self._latest(line.name)
        if previous is None:
            return replace(line, reason="never run")
        changes = [
            *_changes(previous, line),
            *_input_changes(previous.inputs, line.inputs, ""),
            *_input_changes(previous.raw_inputs, line.raw_inputs, "file "),
        ]
        return replace(line, state="stale", reason="; ".join(changes) or "its result was removed", previous=previous)

    def _latest(self, name: str) -> Manifest | None:
        """Return the most recently finished artifact of the stage and the round; stages that never ran cost one listing
        together."""
        if self._begun is None:
            self._begun = set(self.workspace.folders())
        step = self.steps[name]
        begun = step.stage.name in self._begun
        return latest_manifest(self.workspace.child(step.stage.name), step.round) if begun else None


def _failure(folder: Folder, shard: int | None = None) -> Failure | None:
    """Return the failure record of a stage or a shard; None without one, also where a rerun has just removed it."""
    try:
        return read_failure(folder, shard)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Failure("", shard, str(error), "", "", "")


def latest_manifest(stage_folder: Folder, number: int) -> Manifest | None:
    """Return the most recently finished artifact of a stage in round `number`, whatever its settings; damaged ones
    count as none."""

    def read(folder: Folder) -> Manifest | None:
        with suppress(ValueError):
            return read_manifest(folder)
        return None

    folders = [stage_folder.child(name) for name in stage_folder.folders() if is_mark(name)]
    with ThreadPoolExecutor(max_workers=1 if stage_folder.is_local else REQUESTS) as threads:
        found = [manifest for manifest in threads.map(read, folders) if manifest is not None]
        finished = [manifest for manifest in found if manifest.provenance.get("round", 1) == number]
    return max(finished, key=lambda m: str(m.provenance.get("finished", "")), default=None)


# ---------------------------------------------------------------- reasons


def _with_key(config: Config, error: OSError | ValueError) -> str:
    """Return the error, led by the key of the config whose path it names, if it doesn't name a key itself."""
    file = error.filename if isinstance(error, OSError) else None
    text = f"{error.strerror}: {file}" if isinstance(error, OSError) and file and error.errno else str(error)
    named = text.removeprefix("input '")
    leaves = list(_leaves(config.model_dump(mode="json")))
    if any(text.startswith(f"{key}:") for key, _ in leaves):
        return text
    several = [(key, one) for key, value in leaves for one in (value if key.endswith(".embeddings") else [value])]
    for key, value in several:
        # Of a pattern, the part before its first sign; a path may be named as it is from the root.
        begins = re.split(r"[{*?\[]", value)[0].removeprefix("./") if isinstance(value, str) else ""
        is_place = "/" in begins or "." in begins or (key.endswith(_PLACES) and begins and named.startswith(begins))
        if key == "workspace" or not is_place:
            continue
        if begins in text or (file and f"/{begins}".rstrip("/").endswith(str(file).rstrip("/"))):
            return f"{key}: {text}"
    return text


def _changes(previous: Manifest, line: PlanLine) -> list[str]:
    """Return what is new in a stage since an earlier result: its version, its settings."""
    version = declarations.STAGES[line.stage].version
    newer = [f"{line.name} version {previous.version} -> {version}"] if version != previous.version else []
    return newer + setting_changes(previous.settings, line.settings)


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return "labels.threshold 0.1 -> 0.2" for every leaf that differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    shown = [(path, before.get(path, "(none)"), after.get(path, "(none)")) for path in sorted(before | after)]
    return [f"{path} {_short(was)} -> {_short(now)}" for path, was, now in shown if was != now]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(node) if isinstance(node, tuple) else node


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _input_changes(old: Mapping[str, str], new: Mapping[str, str], kind: str) -> list[str]:
    changes = [f"{kind}{name} changed" for name in sorted(old.keys() & new.keys()) if old[name] != new[name]]
    changes += [f"now reads {kind}{name}" for name in sorted(new.keys() - old.keys())]
    return changes + [f"no longer reads {kind}{name}" for name in sorted(old.keys() - new.keys())]
