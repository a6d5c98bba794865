"""YAML 1.2 as every YAML file of the project is read and written: `no` and 2026-11-28 are text, 1e-3 is a number."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

DEEPEST = 50
"""Levels of nesting that are read; beyond them Python's own recursion would end in the middle of a file."""


class _Constructor(SafeConstructor):
    """Leaves dates as text: YAML 1.2 has none, but ruamel.yaml reads them all the same."""

    def text(self, node: Any) -> str:
        """Return a text; JSON's two escapes of an emoji, which YAML reads as two characters, become one."""
        return str(self.construct_yaml_str(node)).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


_Constructor.add_constructor("tag:yaml.org,2002:str", _Constructor.text)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.text)


def parse_yaml(text: str, where: str) -> Any:
    """Return the one document in `text`; None for an empty one.

    Raises ValueError, which begins with `where` and the line, also for a key that is given twice.
    """
    yaml = YAML(typ="safe", pure=True)  # the C parser knows YAML 1.1 only
    yaml.Constructor, yaml.max_depth = _Constructor, DEEPEST
    try:
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        what += "; indent with spaces" if "'\\t'" in what else ""
        raise ValueError(f"{where}, line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {what}") from error
    except YAMLError as error:  # a character that no YAML file may have
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def yaml_text(value: Any, width: int = 120, short_lists_in_a_line: bool = False) -> str:
    """Return nested dicts and lists as YAML, keys in their order; `parse_yaml` reads it back to an equal value."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None if short_lists_in_a_line else False
    yaml.width, yaml.sort_base_mapping_type_on_output = width, False
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def with_comments(text: str, comments: Mapping[tuple[str, ...], str]) -> str:
    """Return what `yaml_text` made of a nested dict with comments at some of its keys, named with those above them.

    Values stay as they are: what is written over several lines has its comment on a line of its own before it.
    """
    lines = text.splitlines()

    def walk(node: MappingNode, above: tuple[str, ...]) -> None:
        for key, value in node.value:
            place, line = (*above, key.value), key.start_mark.line
            if isinstance(value, MappingNode) and not value.flow_style:
                walk(value, place)
            elif place in comments and isinstance(value, ScalarNode) and value.end_mark.line > line:
                lines[line] = f"{' ' * key.start_mark.column}# {comments[place]}\n{lines[line]}"
            elif place in comments:
                lines[line] += f"  # {comments[place]}"

    walk(YAML(typ="safe", pure=True).compose(text), ())
    return "\n".join(lines) + "\n"
