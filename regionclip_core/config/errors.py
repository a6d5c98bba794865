"""What is wrong in a configuration, one line per mistake: its place, what was expected, what came, the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from regionclip_core.config.nearest import nearest, nearest_hint
from regionclip_core.config.section import Section
from regionclip_core.config.tree import Config, Split

# Where pydantic's own words are about Python.
_EXPECTED = {
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}


def explain(error: ValidationError) -> list[str]:
    """Return one line for each mistake that pydantic found in a nested dict."""
    lines: dict[str, str] = {}
    for one in error.errors(include_url=False):
        kind, value, place, context = one["type"], one["input"], one["loc"], one.get("ctx", {})
        # pydantic puts the source of a split between the split's name and its keys.
        keys = [*place[:3], *place[4:]] if place[:2] == ("data", "splits") else [*place]
        where, shown = _dotted(keys), repr(value)
        came = f"(came: {shown if len(shown) <= 100 else shown[:97] + '...'})"
        if kind == "extra_forbidden":
            lines[where] = f"unknown key {came}{_nearest_key(place, keys)}"
        elif kind == "missing" and isinstance(keys[-1], int):  # of a list that is too short, the last one is kept
            lines[_dotted(keys[:-1])] = f"expected {keys[-1] + 1} values {came}"
        elif kind == "missing":
            lines[where] = "missing; it has no default"
        elif kind == "value_error":  # our own validators say what came
            lines[where] = str(context["error"])
        elif kind == "union_tag_invalid":
            tag, known = context["tag"], context["expected_tags"]
            lines[f"{where}.source"] = f"expected {known} (came: {tag!r}){_nearest_word(tag, known)}"
        elif kind == "union_tag_not_found":
            tags = ", ".join(place[3] for place in _places(Split, ("data", "splits", "*")) if place[-1] == "source")
            meant = nearest("source", map(str, value))
            hint = f"; nearest to it here: {meant[0]}" if meant else ""
            lines[f"{where}.source"] = f"missing, one of {tags} {came}{hint}"
        elif kind == "too_short" and any(entry.startswith(f"{where}.") for entry in lines):
            pass  # pydantic counts the good entries only, and the line of the bad one is there already
        else:
            expected = _EXPECTED.get(kind, "").format(**context) or one["msg"].removeprefix("Input should be ")
            hint = ""
            if kind == "literal_error":
                hint = _nearest_word(value, context["expected"])
            elif kind == "tuple_type" and isinstance(value, (str, int, float)):
                hint = f"; write [{value}]"
            elif kind == "int_type" and isinstance(value, float) and value.is_integer():
                hint = f"; write {int(value)}"
            elif kind in ("int_type", "float_type") and isinstance(value, str) and re.fullmatch(r"[-+\d.eE]+", value):
                hint = "; write it without quotes"
            elif kind == "string_type" and isinstance(value, (bool, int, float)):
                hint = "; put it in quotes if it is meant as text"
            elif isinstance(value, list) and keys[-1] == "urls":
                hint = "; write several patterns as one, with braces: {a/*.tar,b/*.tar}"
            lines[where] = f"expected {expected} {came}{hint}"
    return [f"{where}: {text}" for where, text in lines.items()]


def _dotted(keys: Sequence[int | str]) -> str:
    return ".".join(map(str, keys))


def _nearest_word(word: Any, known: str) -> str:
    """Return the hint for a wrong word; `known` is pydantic's list of the right ones: 'a', 'b' or 'c'."""
    return nearest_hint(str(word), re.findall(r"'([^']*)'", known), cutoff=0.5)


def _nearest_key(place: Sequence[int | str], keys: Sequence[int | str]) -> str:
    """Return the valid key that is nearest to an unknown one: written with dots, beside it, or elsewhere.

    `place` is where pydantic found the key, `keys` the same without the source of a split.
    """
    wrong, section = str(keys[-1]), list(place[:-1])
    if section[:2] == ["data", "splits"]:
        section[2] = "*"
    known = list(_places(Config))
    beside = [key for *above, key in known if above == section]
    spelt = re.sub(r"\W+", ".", _dotted(keys)).strip(".")  # of labels:threshold and data.splits[train]
    if not wrong.isidentifier() and (spelt in map(_dotted, known) or spelt.startswith("data.splits.")):
        return f"; nearest valid key: {spelt}"
    if near := nearest(wrong, beside):
        return f"; nearest valid key: {_dotted([*keys[:-1], *near])}"
    if same := [_dotted(one) for one in known if one[-1] == wrong and "*" not in one]:
        return f"; nearest valid key: {' or '.join(same[:3])}"
    return f"; valid keys in {_dotted(keys[:-1]) or 'the top level'}: {', '.join(beside)}"


def _places(annotation: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every setting as pydantic names it, with `*` for the name of a split."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        source = annotation.model_fields.get("source")
        of_a_split = get_args(source.annotation) if source else ()  # one word; other sections have such a key as well
        above = (*above, *of_a_split) if len(of_a_split) == 1 else above
        for name, field in annotation.model_fields.items():
            yield (*above, name)
            yield from _places(field.annotation, (*above, name, "*") if name == "splits" else (*above, name))
    for inner in get_args(annotation):  # of Optional, unions, Annotated and dicts
        yield from _places(inner, above)
