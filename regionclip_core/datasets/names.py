"""Names as people write them: in one line with commas, one per line, or as a JSON or YAML list."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.storage.locations import printable

# Bullets, opening quotes and numbers before a name; brackets, separators and control characters in it; a key.
_NO_NAME = re.compile(r"""^[-*•("'`“‘„«]|^\d+[.):]\s|[][{};,|，、；\x00-\x1f\x7f]|:(?=\s|$)""")


def names_in(text: str, where: str) -> tuple[str, ...]:
    """Return the names in a text: a JSON or YAML list, one line with commas or semicolons, or one name per line (blank
    lines and lines that start with # are skipped). ValueError, which begins with `where`, for what is no name.
    """
    if text.lstrip().startswith(("[", "{")):
        return checked_names(parse_yaml(text, where), where)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    names = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if len(names) == 1:
        [(number, line)] = names
        names = [(number, name.strip()) for name in line.split("," if "," in line else ";") if name.strip()]
    for number, name in names:
        if odd := _NO_NAME.search(name):
            raise ValueError(
                f"{where}, line {number}: {name[:100]!r} does not look like one name (because of {odd.group()!r}). "
                'Write one per line, or all in one line with commas, without quotes; odd names in a JSON list: ["a, b"]'
            )
    return checked_names([name for _, name in names], where)


def checked_names(names: Any, where: str) -> tuple[str, ...]:
    """Return the names in a list as they are. ValueError, which begins with `where`, if it is no list of names."""
    if not isinstance(names, list):
        raise ValueError(f"{where}: expected a list of names, such as [cat, dog], found {str(names)[:100]!r}")
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not name.strip() or printable(name) != name:
            raise ValueError(f"{where}: entry {number} is {name!r}; expected a text that is not blank, in quotes")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{where} names {repeated[:5]} more than once; each name makes one class")
    return tuple(names)
