"""Reading a run's configuration: a YAML file or a preset, dotted overrides, and errors that name the place.

Relative paths in a configuration are relative to the current working directory, not to the file.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from regionclip_core.config import Config

DEFAULT_FILE = "pipeline.yaml"
PRESETS = Path(__file__).resolve().parent.parent / "stages" / "presets"


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
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(dict(e), raw) for e in error.errors(include_url=False)]
        raise ValueError("\n".join([f"{source}: {len(lines)} wrong"] + [f"  {line}" for line in lines])) from error


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, defaults included; `load_config` reads it back to an equal one."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))


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
    near = difflib.get_close_matches(path, preset_names(), n=1)
    hint = f"; did you mean the preset {near[0]!r}?" if near else f"; presets: {', '.join(preset_names()) or 'none'}"
    raise FileNotFoundError(f"no config file {path!r} (looked from {os.getcwd()}){hint}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader), file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: expected a mapping of sections at the top, got {type(raw).__name__}")
    return raw


def _refuse_repeated_keys(node: Any, file: Path) -> None:
    """YAML's own silent last-one-wins hides mistakes."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, file)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ValueError(f"{file}, line {key.start_mark.line + 1}: key {name!r} given twice")
            seen.add(name)
            _refuse_repeated_keys(value, file)


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"override {override!r}: expected a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from error
    node = raw
    for depth, key in enumerate(keys[:-1]):
        inner = node.setdefault(key, {})
        if inner is None:  # "section:" with nothing under it
            inner = node[key] = {}
        if not isinstance(inner, dict):
            here = ".".join(keys[: depth + 1])
            raise ValueError(f"override {override!r}: {here} is {inner!r}, which has no key {keys[depth + 1]!r}")
        node = inner
    node[keys[-1]] = value


# ---------------------------------------------------------------- explaining errors


def _explain(error: dict[str, Any], raw: dict[str, Any]) -> str:
    """One line: path, what is wrong, what came, what it might have been."""
    keys = _real_keys(error["loc"], raw)
    path = ".".join(str(k) for k in keys) or "config"
    came = f" (came: {_shown(error['input'])})"
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{came}{_suggestion(keys, raw)}"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    if error["type"] == "value_error":  # our own validators say the path and the value themselves
        return str(error["ctx"]["error"]) if not keys else f"{path}: {error['ctx']['error']}"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"{path}: `source` must be one of world, tars, coco, lvis, folder{came}"
    message = error["msg"].removeprefix("Input should be ")
    return f"{path}: expected {message}{came}" if message != error["msg"] else f"{path}: {error['msg']}{came}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _real_keys(loc: tuple[int | str, ...], raw: Any) -> list[int | str]:
    """pydantic's location without the tags it adds for the members of a union."""
    keys: list[int | str] = []
    for part in loc:
        if isinstance(raw, Mapping) and part not in raw and raw.get("source") == part:
            continue
        keys.append(part)
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, Sequence) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
    return keys


def _suggestion(keys: Sequence[int | str], raw: Mapping[str, Any]) -> str:
    wrong = str(keys[-1])
    parent = ".".join(str(k) for k in keys[:-1])
    siblings = list(_fields_at(Config, keys[:-1], raw))
    prefix = f"{parent}." if parent else ""
    near = difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.6)
    if near:
        return f"; nearest valid key: {prefix}{near[0]}"
    everywhere = [p for p in _all_paths(Config, "") if p.rsplit(".", 1)[-1] == wrong]
    if everywhere:
        return f"; nearest valid key: {' or '.join(everywhere[:3])}"
    return f"; valid keys in {parent or 'the top level'}: {', '.join(siblings)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section classes an annotation allows, through Optional, Union and Annotated."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _models(a)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _fields_at(model: type[BaseModel], keys: Sequence[int | str], raw: Any) -> list[str]:
    """Valid keys of the section at `keys`."""
    annotation: Any = model
    for key in keys:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            found = [m.model_fields[str(key)].annotation for m in _models(annotation) if str(key) in m.model_fields]
            annotation = found[0] if found else None
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    models = _models(annotation)
    source = raw.get("source") if isinstance(raw, Mapping) else None
    chosen = [m for m in models if source is not None and source in get_args(_annotation(m, "source"))]
    return [name for m in (chosen or models)[:1] for name in m.model_fields]


def _annotation(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].annotation if name in model.model_fields else None


def _all_paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation)[:1]:
            yield from _all_paths(inner, f"{prefix}{name}.")
