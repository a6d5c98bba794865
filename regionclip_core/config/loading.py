"""Load a run's configuration: a YAML file or a preset, and dotted overrides.

Relative paths in a configuration are relative to the current working directory, not to the file; only the file that
`extends:` names is looked for beside the one that names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regionclip_core.config.checks import check_config
from regionclip_core.config.encodings import decode_text
from regionclip_core.config.errors import explain
from regionclip_core.config.nearest import nearest
from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.config.yaml_text import parse_yaml, yaml_text

DEFAULT_FILE = "pipeline.yaml"
PRESETS = Path(__file__).resolve().parents[2] / "stages" / "presets"


def preset_names() -> list[str]:
    """Names that load_config takes instead of a path."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load_config(path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Load and check a configuration.

    path: a YAML file, the name of a preset, or None for pipeline.yaml in the working directory. Where it has
        `extends:`, the name of a preset or a file beside it, it says only what is different there: its sections are
        merged key by key, anything else, lists too, replaces what was there.
    overrides: "a.b=c", applied in order, each key once; c is parsed as YAML, so `a.b=null`, `a.b=[x, y]` and `a.b=1.5`
        work.

    Raises FileNotFoundError when there is no such file, ValueError when something in it is wrong; the message holds
    the full path of each wrong key, the value that came and the nearest valid key.
    """
    file = _find(path)
    raw = _read(file)
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
    return parse_config(raw, str(file) if not overrides else f"{file} with overrides")


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Check a nested dict. Raises ValueError as `load_config` does."""
    try:
        config = Config.model_validate(raw)
        lines = check_config(config)
    except ValidationError as error:
        lines = explain(error)
    if lines:
        raise ValueError("\n".join([f"{source}: {len(lines)} wrong"] + [f"  {line}" for line in lines]))
    return config


def dump_config(config: Config) -> str:
    """Return the whole configuration as YAML, defaults included; `load_config` reads it back to an equal one.

    Sections that the config doesn't have, and that can't do without settings, are left out.
    """
    incomplete = {line.split(".")[0] for line in check_config(config, STAGE_NAMES)}
    return yaml_text(config.model_dump(mode="json", exclude=incomplete))


def _read(file: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return what a file holds, merged into what it extends."""
    raw = parse_yaml(decode_text(file.read_bytes(), str(file)), str(file))
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected a mapping of sections at the top, got {type(raw).__name__}")
    if "extends" not in raw:
        return raw
    name, chain = raw.pop("extends"), (*extended_by, file.resolve())
    if not isinstance(name, str):
        raise ValueError(f"{file}: extends: expected the name of a preset or a file (came: {name!r})")
    beside = file.parent / name
    base = beside if beside.is_file() else _find(name, f"{file}: extends: ")
    if base.resolve() in chain:
        raise ValueError(f"{file}: extends: {name} is extended by itself: {' <- '.join(map(str, chain))}")
    return _merged(_read(base, chain), raw)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


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
    near = nearest(path, preset_names())
    hint = f"did you mean the preset {near[0]!r}?" if near else f"presets: {presets}"
    raise FileNotFoundError(f"{why}no config file {path!r} (looked from {os.getcwd()}); {hint}")
