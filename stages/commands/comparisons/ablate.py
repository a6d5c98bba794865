"""Variants of one recipe, each with several seeds, in one workspace: what they share is in it once.

The fingerprints do that by themselves, and a finished cell is one whose `evaluate` is up to date, so that a second call
resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.errors import explain
from regionclip_core.config.loading import dump_config, load_config
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.section import CountOrZero, Listed, Section
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.report.ablation import (
    Ablation,
    Cell,
    build_ablation_page,
    format_ablation,
    format_ablation_markdown,
    measured,
)
from regionclip_core.storage.records import Folder, canonical_json

from ...engine.look_ahead import look_ahead, refuse
from ...engine.plan import PlanLine, Planner
from ...engine.progress import Reporter, reporter
from ...engine.runner import Pipeline
from ..finished import folder_of
from ..gc import ABLATION
from ..show import table

TARGET = "evaluate"
OWN = ("seed", "workspace")
"""Settings that the ablation itself gives."""


class AblationFile(Section):
    """What an ablation's YAML file holds."""

    config: str | None = None
    """YAML file or preset name that all variants start from; pipeline.yaml without it."""
    seeds: Annotated[Listed[tuple[CountOrZero, ...]], Field(min_length=1)]
    workspace: str | None = None
    """Instead of the config's."""
    settings: dict[str, Any] = Field({}, alias="set")
    """For all variants: dotted keys or nested sections."""
    variants: Annotated[dict[str, dict[str, Any] | None], Field(min_length=1)]
    """Settings by name; they win over `set`. The first is the baseline."""


@dataclass(frozen=True)
class Table:
    """An ablation with a config for each cell."""

    shown: Ablation
    configs: Mapping[tuple[str, int], Config]
    """By variant and seed, seed by seed."""

    @cached_property
    def texts(self) -> dict[tuple[str, int], str]:
        """The configs as YAML."""
        return {cell: dump_config(config) for cell, config in self.configs.items()}

    @property
    def workspace(self) -> Folder:
        """The one workspace of all cells."""
        return Folder(next(iter(self.configs.values())).workspace)


def load_ablation(
    path: str, seeds: Sequence[int] = (), workspace: str | None = None, backend: str | None = None
) -> Table:
    """Read an ablation's file and every config that it describes.

    seeds: more seeds than the file's.

    Raises FileNotFoundError; ValueError with all that is wrong in the file, the variants by their names.
    """
    raw = parse_yaml(decode_text(Path(path).read_bytes(), path), path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a mapping with `seeds` and `variants`, got {type(raw).__name__}")
    known = [field.alias or name for name, field in AblationFile.model_fields.items()]
    if unknown := [key for key in raw if key not in known]:
        keys = "; ".join(f"unknown key {key!r}{nearest_hint(str(key), known)}" for key in unknown)
        raise ValueError(f"{path}: {keys}; keys of an ablation: {', '.join(known)}")
    try:
        file = AblationFile.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n  ".join([f"{path}:", *explain(error)])) from error
    shared = dict(_dotted(file.settings))
    variants = {name: list(_dotted(settings or {})) for name, settings in file.variants.items()}
    all_seeds = list(dict.fromkeys([*file.seeds, *seeds]))
    common = {"workspace": workspace or file.workspace, "execution.backend": backend}
    given = {key: value for key, value in common.items() if value is not None}
    for name, settings in {"set": shared, **{f"variants.{name}": dict(own) for name, own in variants.items()}}.items():
        if taken := [key for key in OWN if key in settings]:
            raise ValueError(
                f"{path}: {name}: {taken[0]} is a key of the ablation itself; expected other settings here"
            )
    configs: dict[tuple[str, int], Config] = {}
    wrong: dict[str, dict[str, None]] = {}
    """Variants by what is wrong in them."""
    for seed in all_seeds:
        for name, settings in variants.items():
            own = dict(settings)
            others = [(key, value) for key, value in shared.items() if key not in own]
            overrides = _overrides([*others, *settings, *given.items(), ("seed", seed)])
            try:
                configs[name, seed] = load_config(file.config, overrides)
            except ValueError as error:
                wrong.setdefault(str(error), {})[name] = None
    refuse(f"{path}: variant {', '.join(map(repr, names))}: {error}" for error, names in wrong.items())
    shown = Ablation(
        Path(path).stem, file.config or "pipeline.yaml", all_seeds, shared, {n: dict(s) for n, s in variants.items()}
    )
    shown.cells = [Cell(name, seed) for name, seed in configs]
    return Table(shown, configs)


def _dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _overrides(settings: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"{key}={canonical_json(value).decode()}" for key, value in settings]


def choose(ablation: Table, seeds: Sequence[int], only: Sequence[str]) -> list[Cell]:
    """Return the cells to bring up to date, seed by seed. Raises ValueError for an unknown variant."""
    variants = ablation.shown.variants
    for name in only:
        if name not in variants:
            raise ValueError(f"no variant {name!r}; variants: {', '.join(variants)}{nearest_hint(name, variants)}")
    return [
        cell
        for cell in ablation.shown.cells
        if (not seeds or cell.seed in seeds) and (not only or cell.variant in only)
    ]


def check(ablation: Table, cells: Sequence[Cell]) -> None:
    """Look ahead for every cell. Raises ValueError with what is known to stop one of them, by variant."""
    found = []
    for cell in cells:
        planner = Planner(ablation.configs[cell.variant, cell.seed])
        try:
            look_ahead(planner.config, planner.closure([TARGET]), planner.current())
        except ValueError as error:
            found.append(f"variant {cell.variant!r}: {error}")
    refuse(found)


def plan_of(ablation: Table, cells: Sequence[Cell]) -> str:
    """Return per cell what would run, and what an earlier cell has run by then."""
    rows = [("seed", "variant", "to run", "shared with earlier cells")]
    planned: set[Any] = set()
    for cell in cells:
        planner = Planner(ablation.configs[cell.variant, cell.seed])
        lines, keys, to_run, shared = planner.current(), {}, [], []
        for name in planner.closure([TARGET]):
            step, line = planner.steps[name], lines[name]
            # A fingerprint as far as one can be told before the upstream has run.
            files = (canonical_json(line.settings), *step.stage.raw_inputs(step.config))
            keys[name] = (step.stage.name, *files, *(keys[need] for need in step.needs.values()))
            if line.state != "done":
                (shared if keys[name] in planned else to_run).append(name)
        planned.update(keys.values())
        rows.append((str(cell.seed), cell.variant, ", ".join(to_run) or "nothing", ", ".join(shared)))
    return table(rows)


def run_ablation(
    ablation: Table,
    cells: Sequence[Cell],
    say: Callable[[str], None] = print,
    report: Callable[[], Reporter] = reporter,
) -> None:
    """Bring the cells up to date, seed by seed, and write the tables after each.

    A cell that fails is noted with its reason, the others go on. `report` makes what shows one run.

    Raises ValueError for what is known to stop a cell, before the first one starts; WorkspaceLocked.
    """
    check(ablation, cells)
    for cell in ablation.shown.cells:
        _read(ablation, cell)
    write_tables(ablation)  # from now on `gc` knows the configs
    for at, cell in enumerate(cells, 1):
        title = f"[{at}/{len(cells)}] {cell.variant}, seed {cell.seed}"
        if cell.state == "done":
            say(f"{title}: finished before")
            continue
        say(f"{title}: starts")
        start, shown = time.perf_counter(), report()
        try:
            result = Pipeline(ablation.configs[cell.variant, cell.seed], shown).run([TARGET])
            failed = [
                f"{stage}: {text}" for stage, text in result.messages.items() if not text.startswith("waits for ")
            ]
            reason = "; ".join(" ".join(text.split()) for text in failed)
        except ValueError as error:  # what only the data shows
            reason = " ".join(str(error).split())
            shown.complain(f"error: {reason}")
        _read(ablation, cell)
        if cell.state != "done":
            cell.state, cell.reason = "failed", reason
        write_tables(ablation)
        say(f"{title}: {cell.state} in {time.perf_counter() - start:.0f} s")  # the run has said why


def _read(ablation: Table, cell: Cell) -> None:
    """Put what the artifacts hold into the cell: its numbers if it is finished, or why it failed."""
    lines = _needed(ablation, cell.variant, cell.seed)
    if TARGET not in lines:
        every = Planner(ablation.configs[cell.variant, cell.seed]).lines()
        if failed := [f"{line.name}: {' '.join(line.reason.split())}" for line in every if line.state == "failed"]:
            cell.state, cell.reason = "failed", "; ".join(failed)
        return
    shared = {line.path for line in _needed(ablation, ablation.shown.baseline, cell.seed).values()}
    seconds = {name: float(line.manifest.provenance["seconds"]) for name, line in lines.items() if line.manifest}
    is_baseline = cell.variant == ablation.shown.baseline
    own = None if is_baseline else sum(seconds[name] for name, line in lines.items() if line.path not in shared)
    labels = lines["labels"].manifest if "labels" in lines else None
    metrics = folder_of(lines[TARGET]).read_json("metrics.json")
    cell.values = measured(metrics, labels.summary if labels else {}, {"all": sum(seconds.values()), "own": own})
    cell.state, cell.reason = "done", ""


def _needed(ablation: Table, variant: str, seed: int) -> dict[str, PlanLine]:
    """Return the lines of what a cell needs, as far as it is done."""
    planner = Planner(ablation.configs[variant, seed])
    finished = planner.finished()
    return {name: finished[name] for name in planner.closure([TARGET]) if name in finished}


def write_tables(ablation: Table) -> None:
    """Write `<name>.txt`, `.md`, `.html`, and `<name>.ablation.json` with all cells, their configs and all rows."""
    shown, out = ablation.shown, ablation.workspace
    out.write_bytes(f"{shown.name}.txt", format_ablation(shown).encode())
    out.write_bytes(f"{shown.name}.md", format_ablation_markdown(shown).encode())
    out.write_bytes(f"{shown.name}.html", build_ablation_page(shown).encode())
    cells = [asdict(cell) | {"config": ablation.texts[cell.variant, cell.seed]} for cell in shown.cells]
    rows = [
        {"measure": row.measure.title, "variant": row.variant, "difference": row.is_difference}
        | {"groups": {group: asdict(estimate) for group, estimate in row.estimates.items()}}
        for row in shown.rows()
    ]
    about = {"config": shown.config, "seeds": shown.seeds, "set": shown.settings, "variants": shown.variants}
    out.write_json(f"{shown.name}{ABLATION}", {**about, "cells": cells, "rows": rows}, indent=1)
