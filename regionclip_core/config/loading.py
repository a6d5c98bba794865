"""Reading a run's configuration: a YAML file or a preset, dotted overrides, and errors that name the place.

Relative paths in a configuration are relative to the current working directory, not to the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from regionclip_core.config.checks import check_config
from regionclip_core.config.errors import explain
from regionclip_core.config.nearest import nearest
from regionclip_core.config.tree import Config

DEFAULT_FILE = "pipeline.yaml"
PRESETS = Path(__file__).resolve().parents[2] / "stages" / "presets"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but for 1e-3, which it takes for text."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def preset_names() -> list[str]:
    """Names that load_config takes instead of a path."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load_config(path: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration.

    path: a YAML file, the name of a preset, or None for pipeline.yaml in the working directory.
    overrides: "a.b=c", applied in order; c is parsed as YAML, so `a.b=null`, `a.b=[x, y]` and `a.b=1.5` work.

    Raises FileNotFoundError when there is no such file, ValueError when something in it is wrong; the message holds
    the full path of each wrong key, the value that came and the nearest valid key.
    """
    file = _find(path)
    raw = _read_yaml(file)
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw, str(file) if not overrides else f"{file} with overrides")


def parse_config(raw: dict[str, Any], source: str = "config") -> Config:
    """Check a nested dict. Raises ValueError as `load_config` does."""
    try:
        config = Config.model_validate(raw)
        lines = check_config(config)
    except ValidationError as error:
        lines = explain(error, raw)
    if lines:
        raise ValueError("\n".join([f"{source}: {len(lines)} wrong"] + [f"  {line}" for line in lines]))
    return config


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back to an equal one."""
    return str(
        yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    )


# ---------------------------------------------------------------- reading


def _find(path: str | None) -> Path:
    if path is None:
        if Path(DEFAULT_FILE).is_file():
            return Path(DEFAULT_FILE)
        raise FileNotFoundError(
            f"no {DEFAULT_FILE} in {os.getcwd()}; give --config FILE or a preset: {', '.join(preset_names()) or 'none'}"
        )
    if Path(path).is_file():
        return Path(path)
    if "/" not in path and (PRESETS / f"{path}.yaml").is_file():
        return PRESETS / f"{path}.yaml"
    near = nearest(path, preset_names())
    hint = f"; did you mean the preset {near[0]!r}?" if near else f"; presets: {', '.join(preset_names()) or 'none'}"
    raise FileNotFoundError(f"no config file {path!r} (looked from {os.getcwd()}){hint}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    raw = _parse(text, str(file))
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected a mapping of sections at the top, got {type(raw).__name__}")
    return raw


def _parse(text: str, where: str) -> Any:
    """A YAML document; ValueError that begins with `where`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problem = next(_problems(node, (), set()), None) if node is not None else None
        if problem is None:
            return loader.construct_document(node) if node is not None else None
    except RecursionError as error:
        raise ValueError(f"{where}: not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date without a day, a number of 5,000 digits
        raise ValueError(f"{where}: not valid YAML: {error}") from error
    raise ValueError(f"{where}, {problem}")


def _problems(node: yaml.Node, above: tuple[yaml.Node, ...], seen: set[yaml.Node]) -> Iterator[str]:
    """Keys that stand twice, of which YAML silently takes the last, and aliases that hold themselves."""
    if node in above:
        yield f"line {node.start_mark.line + 1}: an alias of what it stands in, which has no end"
    if node in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(node)
    keys = set()
    for item in node.value:
        if isinstance(node, yaml.MappingNode):
            key, item = item
            if str(key.value) in keys:
                yield f"line {key.start_mark.line + 1}: key {str(key.value)!r} given twice"
            keys.add(str(key.value))
        yield from _problems(item, (*above, node), seen)


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {override!r}: expected a.b=value")
    value = _parse(text, f"override {override if len(override) <= 100 else override[:97] + '...'!r}")
    node = raw
    for depth, key in enumerate(keys[:-1]):
        inner = node.get(key)
        inner = {} if inner is None else inner  # "section:" with nothing under it
        if not isinstance(inner, dict):
            here = ".".join(keys[: depth + 1])
            raise ValueError(f"override {override!r}: {here} is {inner!r}, which has no key {keys[depth + 1]!r}")
        node[key] = dict(inner)  # a copy: an alias in the file makes two sections one object
        node = node[key]
    node[keys[-1]] = value
