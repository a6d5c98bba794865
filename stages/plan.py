"""What a run would do, and why. Reads listings and manifests only; writes nothing but the digest cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from regionclip_core.architectures import check_stages
from regionclip_core.artifacts import (
    FAILURE,
    PLAN,
    PROGRESS,
    Folder,
    Manifest,
    done_shards,
    failed_shards,
    read_failure,
    read_manifest,
)
from regionclip_core.config import Config
from regionclip_core.fingerprints import SHORT, InputDigests, fingerprint
from stages import base
from stages.base import JobStage

ACTIONS = {"done": "skip", "partial": "resume", "failed": "retry"}


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
    manifest: Manifest | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    raw_inputs: dict[str, str] = field(default_factory=dict)
    upstream: dict[str, str] = field(default_factory=dict)
    """URL of each upstream artifact."""

    @property
    def action(self) -> str:
        """skip | resume | retry | run"""
        return ACTIONS.get(self.state, "run")


class Planner:
    """Looks at the workspace through the eyes of one config."""

    def __init__(self, config: Config, workspace: Folder) -> None:
        self.config = config
        self.workspace = workspace
        self.digests = InputDigests(workspace)

    def lines(self) -> list[PlanLine]:
        """One line a stage, in pipeline order."""
        known: dict[str, PlanLine] = {}
        for name in base.STAGES:
            known[name] = self.line(name, known)
        with suppress(OSError):  # a workspace that may only be read can still be looked at
            self.digests.save()
        return list(known.values())

    def closure(self, targets: Sequence[str] | None) -> list[str]:
        """The targets (without any: all that are `by_default`) and everything they need, in pipeline order.

        Raises ValueError for an unknown stage, and for one that the teacher's architecture can't go through.
        """
        names = list(base.STAGES)
        wanted = set(targets or (name for name in names if base.STAGES[name].by_default(self.config)))
        if unknown := sorted(wanted - set(names)):
            raise ValueError(f"no stage {', '.join(map(repr, unknown))}; stages: {', '.join(names)}")
        for name in reversed(names):
            if name in wanted:
                wanted.update(base.STAGES[name].needs(self.config))
        check_stages(self.config, wanted)
        return [name for name in names if name in wanted]

    def line(self, name: str, known: Mapping[str, PlanLine]) -> PlanLine:
        """Where one stage stands, given the lines of the stages before it."""
        stage = base.STAGES[name]
        needs = stage.needs(self.config)
        for need in needs:
            assert need in known, f"stage {name} needs {need}, which does not come before it"
        settings = stage.settings(self.config)
        open_needs = [known[need] for need in needs if known[need].manifest is None]
        if open_needs:
            return self._waiting(name, settings, open_needs)
        raw = {}
        for path in stage.raw_inputs(self.config):
            try:
                raw[path] = self.digests.digest(path)
            except FileNotFoundError as error:
                return PlanLine(name, "blocked", str(error), settings=settings)
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
        manifest = read_manifest(folder)
        if manifest is not None:
            return PlanLine(
                name, "done", "up to date", done=manifest.shards, total=manifest.shards, manifest=manifest, **where
            )
        return self._unfinished(name, folder, where)

    def _waiting(self, name: str, settings: dict[str, Any], open_needs: list[PlanLine]) -> PlanLine:
        after = "after " + ", ".join(line.stage for line in open_needs)
        previous = latest_manifest(self.workspace.child(name))
        if blocking := [line.stage for line in open_needs if line.state in ("failed", "blocked")]:
            return PlanLine(name, "blocked", f"waits for {', '.join(blocking)}", settings=settings)
        if previous is None:
            return PlanLine(name, "missing", after, settings=settings)
        changes = [*setting_changes(previous.settings, settings), *self._version_change(name, previous)]
        return PlanLine(name, "stale", "; ".join([*changes, after]), settings=settings)

    def _unfinished(self, name: str, folder: Folder, where: dict[str, Any]) -> PlanLine:
        names = folder.names()
        done, failed = len(done_shards(names)), failed_shards(names)
        total = _planned(folder, names)
        if isinstance(base.STAGES[name], JobStage) and PROGRESS in names:
            with suppress(FileNotFoundError, ValueError):  # a job that ends just now removes it
                progress = folder.read_json(PROGRESS)
                done, total = progress["done"], progress["total"]
        so_far = f"{done}/{total if total is not None else '?'} done"
        if FAILURE in names or failed:
            error = read_failure(folder, None if FAILURE in names else failed[0]).error
            many = f"{len(failed)} shards failed, first" if len(failed) > 1 else "failed"
            return PlanLine(name, "failed", f"{many}: {error} ({so_far})", done=done, total=total, **where)
        if PLAN in names:
            return PlanLine(name, "partial", so_far, done=done, total=total, **where)
        previous = latest_manifest(self.workspace.child(name))
        if previous is None:
            return PlanLine(name, "missing", "never run", **where)
        changes = [
            *self._version_change(name, previous),
            *setting_changes(previous.settings, where["settings"]),
            *_input_changes(previous.inputs, where["inputs"], ""),
            *_input_changes(previous.raw_inputs, where["raw_inputs"], "file "),
        ]
        return PlanLine(name, "stale", "; ".join(changes) or "its result was removed", **where)

    def _version_change(self, name: str, previous: Manifest) -> list[str]:
        version = base.STAGES[name].version
        return [] if version == previous.version else [f"{name} version {previous.version} -> {version}"]


def _manifest(line: PlanLine) -> Manifest:
    assert line.manifest is not None
    return line.manifest


def _planned(folder: Folder, names: list[str]) -> int | None:
    if PLAN not in names:
        return None
    total = folder.read_json(PLAN)["total"]
    return None if total is None else int(total)


def latest_manifest(stage_folder: Folder) -> Manifest | None:
    """The most recently finished artifact of a stage, whatever its settings."""
    found = [read_manifest(stage_folder.child(name)) for name in stage_folder.folders()]
    finished = [m for m in found if m is not None]
    return max(finished, key=lambda m: str(m.provenance.get("finished", "")), default=None)


# ---------------------------------------------------------------- reasons


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
