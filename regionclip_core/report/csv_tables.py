"""Every table of a page as CSV: unrounded numbers, in the page as links and beside it as files."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


class CsvTables:
    """The tables of a page, by name."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def add(self, name: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add a table under a new name; None is an empty cell. Every row has as many cells as there are heads."""
        assert name not in self.files, f"table {name} for the second time"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heads)
        for row in rows:
            assert len(row) == len(heads), f"table {name}: {len(row)} cells, {len(heads)} heads"
            writer.writerow(row)
        self.files[name] = text.getvalue()

    def url(self, name: str) -> str:
        """Return a table as `data:text/csv;...`."""
        return text_url("csv", self.files[name])


def text_url(kind: str, text: str) -> str:
    """Return a text as `data:text/<kind>;charset=utf-8;base64,...`."""
    return f"data:text/{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
