"""Load a run's configuration: YAML files or presets, merged, and dotted overrides.

Relative paths in a configuration are relative to the current working directory, not to the file; only the file that
`extends:` names is looked for beside the one that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regionclip_core.config.checks import check_config
from regionclip_core.config.encodings import decode_text
from regionclip_core.config.errors import explain
from regionclip_core.config.nearest import nearest
from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.config.yaml_text import DEEPEST, parse_yaml, with_comments, yaml_text

DEFAULT_FILE = "pipeline.yaml"
PRESETS = (Path(__file__).resolve().parents[2] / "regionclip_stages").resolve() / "presets"  # in a clone, of stages/
COMMAND_LINE = "the command line"
"""Origin of what an override sets."""
Place = tuple[str, ...]
"""A key, with the sections that it is in."""


def preset_names() -> list[str]:
    """Names that load_config takes instead of a path."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


@dataclass(frozen=True)
class Loaded:
    """A configuration and the files that it is from."""

    config: Config
    files: tuple[str, ...]
    """In the order in which they were merged: each wins over those before it."""
    origins: Mapping[Place, str]
    """The file that each key is from, or COMMAND_LINE; keys that nothing sets are not here."""

    @property
    def later_origins(self) -> dict[Place, str]:
        """The origins of the keys that are from a file after the first."""
        return {place: name for place, name in self.origins.items() if name in self.files[1:]}


def load_config(path: str | Sequence[str] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load and check a configuration; `load_files` says what is taken, and what is raised."""
    return load_files(path, overrides).config


def load_files(path: str | Sequence[str] | None = None, overrides: Sequence[str] = ()) -> Loaded:
    """Load, merge and check a configuration.

    path: a YAML file, the name of a preset, several of these, or None for pipeline.yaml in the working directory. A
        later file says only what is different from those before it, and one with `extends:` what is different from the
        preset or the file beside it that it names: sections and mappings are merged key by key, anything else, lists
        too, replaces what was there. A split with another source replaces the whole split.
    overrides: "a.b=c", applied in order, each key once; c is parsed as YAML, so `a.b=null`, `a.b=[x, y]` and `a.b=1.5`
        work.

    Raises FileNotFoundError when there is no such file, ValueError when something in it is wrong; the message holds
    the full path of each wrong key, the value that came, the nearest valid key, and of several files the one that has
    it.
    """
    paths: list[str | None] = [path] if isinstance(path, str) else [*path] if path else [None]
    layers = [layer for one in paths for layer in _layers(_find(one))]
    raw: dict[str, Any] = {}
    origins: dict[Place, str] = {}
    for name, tree in layers:
        raw = _merged(raw, tree, name, origins)
    files = tuple(dict.fromkeys(name for name, _ in layers))
    given: dict[str, Any] = {}
    for override in overrides:
        dotted, separator, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not separator or not all(keys):
            raise ValueError(f"override {override!r}: expected a.b=value; write {dotted}=VALUE")
        value = parse_yaml(text, f"override {override if len(override) <= 100 else override[:97] + '...'!r}")
        if given.setdefault(".".join(keys), value) != value:
            both = f"{given['.'.join(keys)]!r} and {value!r}"
            raise ValueError(f"{'.'.join(keys)} is given twice, as {both} (--set or its own option): give it once")
        node = raw
        for depth, key in enumerate(keys[:-1]):
            inner = {} if node.get(key) is None else node[key]  # None: "section:" with nothing under it
            if not isinstance(inner, dict):
                here = ".".join(keys[: depth + 1])
                raise ValueError(f"override {override!r}: {here} is {inner!r}, which has no key {keys[depth + 1]!r}")
            node[key] = dict(inner)  # a copy: an alias in the file makes two sections one object
            node = node[key]
        node[keys[-1]] = value
        _note(origins, (*keys,), value, COMMAND_LINE)
    source = ", then ".join(files)
    config = parse_config(raw, f"{source} with overrides" if overrides else source, origins if len(files) > 1 else {})
    return Loaded(config, files, origins)


def parse_config(raw: dict[str, Any], source: str = "config", origins: Mapping[Place, str] | None = None) -> Config:
    """Check a nested dict. Raises ValueError as `load_files` does; with `origins` it says where a wrong key is from."""
    try:
        config = Config.model_validate(raw)
        lines = check_config(config)
    except ValidationError as error:
        lines = explain(error)
    if lines:
        named = {".".join(map(str, place)): name for place, name in (origins or {}).items()}
        for number, line in enumerate(lines):
            where = f"{line.split(':')[0]}."  # of an entry in a list, the list is named
            found = next((name for key, name in named.items() if where.startswith(f"{key}.")), None)
            lines[number] = f"{line} (from {found})" if found else line
        raise ValueError("\n".join([f"{source}: {len(lines)} wrong"] + [f"  {line}" for line in lines]))
    return config


def dump_config(config: Config, origins: Mapping[Place, str] | None = None) -> str:
    """Return the whole configuration as YAML, defaults included; `load_config` reads it back to an equal one.

    Sections that the config doesn't have, and that can't do without settings, are left out. Where `origins` has a key,
    a comment says where it is from.
    """
    incomplete = {line.split(".")[0] for line in check_config(config, STAGE_NAMES)}
    text = yaml_text(config.model_dump(mode="json", exclude=incomplete))
    return with_comments(text, origins) if origins else text


def _layers(file: Path, extended_by: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, content) of a file and of what it extends, which comes first."""
    raw = parse_yaml(decode_text(file.read_bytes(), str(file)), str(file))
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected a mapping of sections at the top, got {type(raw).__name__}")
    shown = f"preset {file.stem}" if file.parent == PRESETS else str(file)
    if "extends" not in raw:
        return [(shown, raw)]
    name, chain = raw.pop("extends"), (*extended_by, file.resolve())
    if not isinstance(name, str):
        raise ValueError(f"{file}: extends: expected the name of a preset or a file (came: {name!r})")
    beside = file.parent / name
    base = beside if beside.is_file() else _find(name, f"{file}: extends: ")
    if base.resolve() in chain:
        raise ValueError(f"{file}: extends: {name} is extended by itself: {' <- '.join(map(str, chain))}")
    return [*_layers(base, chain), (shown, raw)]


def _merged(
    base: Mapping[str, Any], changes: Mapping[str, Any], name: str, origins: dict[Place, str], above: Place = ()
) -> dict[str, Any]:
    """Return `base` with `changes`, which are of the file `name`; notes in `origins` what is from there."""
    merged = dict(base)
    for key, value in changes.items():
        inner, place = merged.get(key), (*above, key)
        if isinstance(inner, dict) and isinstance(value, dict) and not _has_another_source(place, inner, value):
            merged[key] = _merged(inner, value, name, origins, place)
        else:
            merged[key] = value
            _note(origins, place, value, name)
    return merged


def _has_another_source(place: Place, split: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Return whether changes are of a split, and of another source than it: each source has keys of its own."""
    return (
        place[:-1] == ("data", "splits")
        and "source" in split
        and changes.get("source", split["source"]) != split["source"]
    )


def _note(origins: dict[Place, str], place: Place, value: Any, name: str) -> None:
    """Note that a value, which replaces what was there, is from `name`."""
    for other in [one for one in origins if one[: len(place)] == place]:
        del origins[other]
    if isinstance(value, dict) and len(place) < DEEPEST:  # an alias in the file may hold itself
        for key, inner in value.items():
            _note(origins, (*place, key), inner, name)
    else:
        origins[place] = name


def _find(path: str | None, why: str = "") -> Path:
    presets = ", ".join(preset_names()) or "none"
    if path is None:
        if Path(DEFAULT_FILE).is_file():
            return Path(DEFAULT_FILE)
        raise FileNotFoundError(f"no {DEFAULT_FILE} in {os.getcwd()}; give --config FILE or a preset: {presets}")
    if Path(path).is_file():
        return Path(path)
    if "/" not in path and (PRESETS / f"{path}.yaml").is_file():
        return PRESETS / f"{path}.yaml"
    if Path(path).is_dir():
        files = sorted(file.name for ending in ("*.yaml", "*.yml") for file in Path(path).glob(ending))
        there = f"it has {', '.join(files[:5])}" if files else "and it has none"
        raise FileNotFoundError(f"{why}{path!r} is a folder; expected a YAML file, {there}; or a preset: {presets}")
    near = nearest(path, preset_names())
    hint = f"did you mean the preset {near[0]!r}?" if near else f"presets: {presets}"
    raise FileNotFoundError(f"{why}no config file {path!r} (looked from {os.getcwd()}); {hint}")
