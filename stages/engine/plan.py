"""What a run would do, and why. Reads listings and manifests only; writes nothing but the digest cache."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from regionclip_core.config.checks import check_stages
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
from stages import base
from stages.base import JobStage

ACTIONS = {"done": "skip", "partial": "resume", "failed": "retry", "blocked": "wait"}


LOOKS_INTO = {True: 1000, False: 64}
"""Records that are opened one by one to add up what a stage has so far, in a local and in a remote workspace."""


@dataclass(frozen=True)
class Totals:
    """What a result, or a part of one, adds up to."""

    rows: int
    bytes: int
    seconds: float
    """Wall time of the run that finished it; of a part: of its shards, one after the other."""
    missing: int = 0
    """Finished shards that are not counted in, since nobody has rolled up their records yet."""


@dataclass(frozen=True)
class PlanLine:
    """Where one stage stands, what a run would do with it, and why."""

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
    """Of a shard stage that has begun and is not done; a run that goes on with it needs no other look."""
    manifest: Manifest | None = None
    so_far: Totals | None = None
    """Of the finished shards, where the stage is not done; `Planner.lines` adds it."""
    previous: Manifest | None = None
    """Of the stage's latest result, where the current one is not begun."""
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    raw_inputs: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    """URL of each upstream artifact."""

    @property
    def action(self) -> str:
        """skip | resume | retry | wait | run"""
        return ACTIONS.get(self.state, "run")

    @property
    def totals(self) -> Totals | None:
        """Of the result if the stage is done, else of what is there of it, else of the latest result."""
        whole = self.manifest or (self.previous if self.so_far is None else None)
        if whole is None:
            return self.so_far
        return Totals(whole.rows, whole.bytes, whole.provenance.get("seconds", 0))


class Planner:
    """Looks at the workspace through the eyes of one config."""

    def __init__(self, config: Config, workspace: Folder) -> None:
        self.config = config
        self.workspace = workspace
        self.digests = InputDigests(workspace)
        self._begun: set[str] | None = None

    def lines(self) -> list[PlanLine]:
        """One line a stage, in pipeline order."""
        return [self._with_totals(line) for line in self._lines(look=True).values()]

    def finished(self) -> dict[str, PlanLine]:
        """The lines of the stages that are done, by name. Reads their manifests, and lists nothing."""
        return {name: line for name, line in self._lines(look=False).items() if line.state == "done"}

    def _lines(self, look: bool) -> dict[str, PlanLine]:
        known: dict[str, PlanLine] = {}
        for name in base.STAGES:
            try:
                known[name] = self.line(name, known, look)
            except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
                known[name] = PlanLine(name, "failed", f"can't be read: {error}")
        with suppress(OSError):  # a workspace that may only be read can still be looked at
            self.digests.save()
        return known

    def _with_totals(self, line: PlanLine) -> PlanLine:
        """The line with what its finished shards add up to, by their roll-up and few looks beyond it."""
        if line.listing is None or not line.listing.done:
            return line
        folder = Folder(str(line.path))
        # A damaged one is the next run's to find; one that is gone was just removed by a run.
        records = read_shard_records(folder, line.listing.done, damaged=[], at_most=LOOKS_INTO[folder.is_local])
        rows, seconds = sum(r.rows for r in records), sum(r.seconds for r in records)
        size = sum(f.bytes for r in records for f in r.files)
        return replace(line, so_far=Totals(rows, size, seconds, len(line.listing.done) - len(records)))

    def closure(self, targets: Sequence[str] | None) -> list[str]:
        """The targets (without any: all that are `by_default`) and everything they need, in pipeline order.

        Raises ValueError for an unknown stage, and for one that the teacher's architecture can't go through.
        """
        names = list(base.STAGES)
        wanted = set(targets or (name for name in names if base.STAGES[name].by_default(self.config)))
        if unknown := sorted(wanted - set(names)):
            near = "".join(nearest_hint(name, names) for name in unknown[:1])
            raise ValueError(f"no stage {', '.join(map(repr, unknown))}; stages: {', '.join(names)}{near}")
        for name in reversed(names):
            if name in wanted:
                wanted.update(base.STAGES[name].needs(self.config))
        check_stages(self.config, wanted)
        return [name for name in names if name in wanted]

    def line(self, name: str, known: Mapping[str, PlanLine], look: bool = True) -> PlanLine:
        """Where one stage stands, given the lines of the stages before it.

        look: False doesn't look into a stage that is not done: it counts as missing, without a reason.
        """
        stage = base.STAGES[name]
        needs = stage.needs(self.config)
        for need in needs:
            assert need in known, f"stage {name} needs {need}, which does not come before it"
        settings: dict[str, Any] = {}
        try:  # what a stage says of itself may look at inputs, which may be gone or away
            settings = stage.settings(self.config)
            open_needs = [known[need] for need in needs if known[need].manifest is None]
            if open_needs:
                return self._waiting(name, settings, open_needs) if look else PlanLine(name, "missing", "")
            raw = {path: self.digests.digest(path) for path in stage.raw_inputs(self.config)}
        except OSError as error:
            return PlanLine(name, "blocked", _with_key(self.config, error), settings=settings)
        inputs = {need: _manifest(known[need]).content_digest for need in needs}
        mark = fingerprint(name, stage.version, settings, inputs, raw)
        folder = self.workspace.child(name).child(mark[:SHORT])
        where: dict[str, Any] = {
            "fingerprint": mark,
            "path": folder.url,
            "settings": settings,
            "inputs": inputs,
            "raw_inputs": raw,
            "upstream": {need: str(known[need].path) for need in needs},
        }
        try:
            manifest = read_manifest(folder)
        except ValueError as error:
            damage = str(error)
            return self._unfinished(name, folder, where, damage) if look else PlanLine(name, "failed", damage, **where)
        if manifest is not None:
            return PlanLine(
                name, "done", "up to date", done=manifest.shards, total=manifest.shards, manifest=manifest, **where
            )
        return self._unfinished(name, folder, where) if look else PlanLine(name, "missing", "", **where)

    def _waiting(self, name: str, settings: dict[str, Any], open_needs: list[PlanLine]) -> PlanLine:
        after = "after " + ", ".join(line.stage for line in open_needs)
        previous = self._latest(name)
        if blocking := [line.stage for line in open_needs if line.state in ("failed", "blocked")]:
            return PlanLine(name, "blocked", f"waits for {', '.join(blocking)}", settings=settings, previous=previous)
        if previous is None:
            return PlanLine(name, "missing", after, settings=settings)
        changes = [*setting_changes(previous.settings, settings), *self._version_change(name, previous)]
        return PlanLine(name, "stale", "; ".join([*changes, after]), settings=settings, previous=previous)

    def _unfinished(self, name: str, folder: Folder, where: dict[str, Any], unreadable: str = "") -> PlanLine:
        error, plan = _failure(folder), None
        try:
            plan = read_plan(folder)
        except ValueError as damage:
            unreadable = unreadable or str(damage)
        is_job = isinstance(base.STAGES[name], JobStage)
        listing = list_shards(folder, plan) if plan is not None and not is_job else None
        done, total = len(listing.done) if listing else 0, plan.total if plan else None
        if plan is not None and is_job:
            # Not there yet, removed by a job that ends just now, or damaged.
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                progress = folder.read_json(PROGRESS)
                done, total = int(progress["done"]), int(progress["total"])
        so_far = f"{done}/{total if total is not None else '?'} done"
        where |= {"done": done, "total": total, "listing": listing}
        if unreadable:
            return PlanLine(name, "failed", unreadable, **where)
        failed = listing.failed if listing is not None else ()
        error = error or (_failure(folder, failed[0]) if failed else None)
        if error is not None:
            many = f"{len(failed)} shards failed, first" if len(failed) > 1 else "failed"
            return PlanLine(name, "failed", f"{many}: {error.error} ({so_far})", **where)
        if plan is not None:
            return PlanLine(name, "partial", so_far, **where)
        previous = self._latest(name)
        if previous is None:
            return PlanLine(name, "missing", "never run", **where)
        changes = [
            *self._version_change(name, previous),
            *setting_changes(previous.settings, where["settings"]),
            *_input_changes(previous.inputs, where["inputs"], ""),
            *_input_changes(previous.raw_inputs, where["raw_inputs"], "file "),
        ]
        return PlanLine(name, "stale", "; ".join(changes) or "its result was removed", previous=previous, **where)

    def _latest(self, name: str) -> Manifest | None:
        """The stage's most recently finished artifact; stages that never ran cost one listing together."""
        if self._begun is None:
            self._begun = set(self.workspace.folders())
        return latest_manifest(self.workspace.child(name)) if name in self._begun else None

    def _version_change(self, name: str, previous: Manifest) -> list[str]:
        version = base.STAGES[name].version
        return [] if version == previous.version else [f"{name} version {previous.version} -> {version}"]


def _manifest(line: PlanLine) -> Manifest:
    assert line.manifest is not None
    return line.manifest


def _failure(folder: Folder, shard: int | None = None) -> Failure | None:
    """The failure record of a stage or a shard; None without one, also where a rerun has removed it just now."""
    try:
        return read_failure(folder, shard)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return Failure("", shard, str(error), "", "", "")


def latest_manifest(stage_folder: Folder) -> Manifest | None:
    """The most recently finished artifact of a stage, whatever its settings; damaged ones count as none."""
    from concurrent.futures import ThreadPoolExecutor

    def read(folder: Folder) -> Manifest | None:
        with suppress(ValueError):
            return read_manifest(folder)
        return None

    folders = [stage_folder.child(name) for name in stage_folder.folders() if is_mark(name)]
    with ThreadPoolExecutor(max_workers=1 if stage_folder.is_local else REQUESTS) as threads:
        finished = [manifest for manifest in threads.map(read, folders) if manifest is not None]
    return max(finished, key=lambda m: str(m.provenance.get("finished", "")), default=None)


# ---------------------------------------------------------------- reasons


def _with_key(config: Config, error: OSError) -> str:
    """The error, led by the key of the config whose path it names, where it doesn't name a key itself."""
    text = str(error) if error.filename is None or error.errno is None else f"{error.strerror}: {error.filename}"
    for key, value in _leaves(config.model_dump(mode="json")):
        if key in text:
            return text
        # Of a pattern, the part before its first sign; a path may be named as it is from the root.
        begins = re.split(r"[{*?\[]", value)[0].removeprefix("./") if isinstance(value, str) else ""
        if key == "workspace" or not ("/" in begins or "." in begins):
            continue
        if begins in text or (error.filename and f"/{begins}".rstrip("/").endswith(str(error.filename).rstrip("/"))):
            return f"{key}: {text}"
    return text


def setting_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """ "labels.threshold 0.1 -> 0.2" for every leaf that differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    paths = sorted(before.keys() | after.keys())
    absent = "(none)"
    return [
        f"{p} {_short(before.get(p, absent))} -> {_short(after.get(p, absent))}"
        for p in paths
        if before.get(p, absent) != after.get(p, absent)
    ]


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
