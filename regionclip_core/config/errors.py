"""What is wrong in a configuration, one line a mistake: path, what was expected, what came, what it might have been."""

from __future__ import annotations

import re
import reprlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from regionclip_core.config.nearest import nearest, nearest_hint
from regionclip_core.config.tree import Config, Split

# In the place of pydantic's words, which are about Python.
_EXPECTED = {
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "finite_number": "a finite number",
}
_SHOWN = 100
"""Characters of a value in a message."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _SHOWN


def explain(error: ValidationError, raw: Mapping[str, Any]) -> list[str]:
    """One line for each mistake in `raw`, the nested dict that did not pass."""
    lines, corrected = [], raw
    errors: list[dict[str, Any]] = [dict(one) for one in error.errors(include_url=False)]
    for one, following in zip(errors, [*errors[1:], None], strict=True):
        path = _path(one["loc"], raw)
        if one["type"] == "union_tag_invalid" and (near := nearest(str(one["ctx"]["tag"]), _sources())):
            corrected = _with(corrected, [*path, "source"], near[0])
        if one["type"] == "missing" and isinstance(path[-1], int) and following and following["type"] == "missing":
            continue  # a list that is too short: the last of its missing places tells how long it should be
        if one["type"] == "too_short" and len(one["input"]) >= one["ctx"]["min_length"]:
            continue  # pydantic counts the good entries only, and says what is wrong with the others
        lines += _explain(one, path, raw).splitlines()
    if corrected is raw:
        return lines
    # The keys of a split are looked at only where its `source` is known. Read as the nearest one, they are, too.
    sources = [line for line in lines if _is_source(line)]
    try:
        Config.model_validate(corrected)
    except ValidationError as again:
        return [*sources, *(line for line in explain(again, corrected) if line not in sources)]
    return sources


def _is_source(line: str) -> bool:
    return line.partition(":")[0].endswith(".source")


def _explain(error: dict[str, Any], path: list[int | str], raw: Mapping[str, Any]) -> str:
    kind, value = error["type"], error["input"]
    where, came = _dotted(path) or "config", f" (came: {_shown(value)})"
    if kind == "extra_forbidden":
        return f"{where}: unknown key{came}{_suggestion(path, raw)}"
    if kind == "missing" and isinstance(path[-1], int):
        return f"{_dotted(path[:-1])}: expected {path[-1] + 1} values{came}"
    if kind == "missing":
        return f"{where}: missing; it has no default"
    if kind == "value_error":  # our own validators say the value themselves, and those of the whole the path
        return f"{where}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    if kind == "union_tag_invalid":
        tag, known = value["source"], _sources()
        return f"{where}.source: expected {', '.join(known)} (came: {_shown(tag)}){nearest_hint(str(tag), known)}"
    if kind == "union_tag_not_found":
        meant = nearest("source", map(str, value))
        hint = f"; nearest to `source` here: {meant[0]}" if meant else ""
        return f"{where}: `source` is missing, one of {', '.join(_sources())}{came}{hint}"
    return f"{where}: {_expected(error)}{came}{_value_hint(kind, value, error)}"


def _expected(error: dict[str, Any]) -> str:
    if error["type"] in _EXPECTED:
        return f"expected {_EXPECTED[error['type']]}"
    if error["type"] in ("too_short", "too_long"):
        if error["type"] == "too_short":
            return f"expected at least {error['ctx']['min_length']} of them"
        return f"expected {error['ctx']['max_length']} of them"
    message = str(error["msg"])
    return re.sub(r"^Input should be ", "expected ", message)


def _value_hint(kind: str, value: Any, error: dict[str, Any]) -> str:
    """What might have been meant by a value of the wrong kind."""
    if kind == "literal_error":
        return nearest_hint(str(value), re.findall(r"'([^']*)'", str(error["ctx"]["expected"])), cutoff=0.5)
    if kind == "tuple_type" and isinstance(value, (str, int, float)):
        return f"; write [{value}]"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if (
        kind in ("int_type", "float_type")
        and isinstance(value, str)
        and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)
    ):
        return f"; write {value}, without quotes"
    if kind == "string_type" and value is not None and not isinstance(value, (dict, list)):
        return "; put it in quotes if it is meant as text"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, tuple):  # as YAML has them
        value = list(value)
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else _short.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


# ---------------------------------------------------------------- places


def _dotted(path: Sequence[int | str]) -> str:
    return ".".join(str(key) for key in path)


def _path(location: tuple[int | str, ...], raw: Any) -> list[int | str]:
    """pydantic's location without the tags it adds for the members of a union."""
    keys: list[int | str] = []
    for part in location:
        if isinstance(raw, Mapping) and part not in raw and raw.get("source") == part:
            continue
        keys.append(part)
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, Sequence) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
    return keys


def _with(raw: Any, path: Sequence[int | str], value: Any) -> Any:
    """A copy of nested dicts in which one value is another."""
    return value if not path else {**raw, path[0]: _with(raw.get(path[0]), path[1:], value)}


def _suggestion(path: Sequence[int | str], raw: Mapping[str, Any]) -> str:
    """The valid key that is nearest to an unknown one: beside it, elsewhere, or with dots for other signs."""
    wrong, parent = str(path[-1]), _dotted(path[:-1])
    siblings = list(_fields_at(path[:-1], raw))
    everywhere = list(_all_paths(Config, ""))
    spelt = ".".join(re.findall(r"[^\s.:/\[\]]+", _dotted(path)))  # labels:threshold, data.splits[train]
    if spelt != _dotted(path) and (spelt in everywhere or _fields_at(spelt.split("."), raw)):
        return f"; nearest valid key: {spelt}"
    if near := nearest(wrong, siblings):
        return f"; nearest valid key: {parent}.{near[0]}" if parent else f"; nearest valid key: {near[0]}"
    same = [known for known in everywhere if known.rsplit(".", 1)[-1] == wrong]
    if same:
        return f"; nearest valid key: {' or '.join(same[:3])}"
    return f"; valid keys in {parent or 'the top level'}: {', '.join(siblings)}"


# ---------------------------------------------------------------- what the sections declare


def _sources() -> list[str]:
    """The kinds of splits."""
    return [str(get_args(_annotation(model, "source"))[0]) for model in _models(Split)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section classes an annotation allows, through Optional, Union and Annotated."""
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _models(a)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _fields_at(path: Sequence[int | str], raw: Any) -> list[str]:
    """Valid keys of the section at a path; none where there is no section."""
    annotation: Any = Config
    for key in path:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            annotation = next((a for m in _models(annotation) if (a := _annotation(m, str(key))) is not None), None)
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
