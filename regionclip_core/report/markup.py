"""HTML by small functions: text is escaped where it enters, and the same arguments give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["details", "escape", "facts", "figure", "grid", "section", "table"]


def section(anchor: str, title: str, *parts: str) -> str:
    """A section with a heading; empty parts are left out."""
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n{inner}\n</section>'


def details(summary: str, inner: str) -> str:
    """A block that is folded at first."""
    return f"<details><summary>{escape(summary)}</summary>\n{inner}\n</details>"


def grid(items: Iterable[str], kind: str) -> str:
    """Items side by side; `kind` is the CSS class that sets their width."""
    return f'<div class="grid {kind}">\n' + "\n".join(items) + "\n</div>"


def figure(picture: str, caption: str) -> str:
    """A picture (markup) over its caption (markup)."""
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table of plain texts; the first `texts` columns are left-aligned, the others are numbers."""
    kinds = ["text" if i < texts else "number" for i in range(len(heads))]
    head = "".join(f'<th class="{kind}">{escape(cell)}</th>' for cell, kind in zip(heads, kinds, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{k}">{escape(c)}</td>' for c, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def facts(values: Mapping[str, Any], skip: Iterable[str] = ()) -> str:
    """A stage's summary as a row of names and values; nested mappings become dotted names, None is a dash."""
    items = [(name, value) for name, value in _flat(values) if name.split(".")[0] not in set(skip)]
    if not items:
        return ""
    cells = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_text(value))}</dd></div>" for name, value in items
    )
    return f'<dl class="facts">{cells}</dl>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return str(value)
