"""docs/mistakes.py: what it types is answered in a few lines, never by a traceback; MISTAKES.md has all of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_has_every_mistake() -> None:
    mistakes = runpy.run_path(str(DOCS / "mistakes.py"))["MISTAKES"]
    page = (DOCS / "MISTAKES.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## \d+\. (.*)$", page, re.M)
    assert [title.lower() for title, _ in mistakes] == [title.lower() for title in titles]
    assert len(mistakes) >= 60 and "Traceback" not in page and "[status 0]" not in page


@pytest.mark.slow
def test_each_is_answered() -> None:
    for title, _, status, text, _ in runpy.run_path(str(DOCS / "mistakes.py"))["answers"]([]):
        assert status in (1, 2), (title, text)
        assert "Traceback" not in text and 1 <= len(text.splitlines()) <= 20, (title, text)
