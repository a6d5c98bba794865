"""Every array of every golden file is met by the pipeline's own code, as closely as docs/GOLDENS.md says."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from golden_checks import ROWS
from golden_checks.table import FOLDER, Row, error, names

DOCS = Path(__file__).parents[1] / "docs"
BY_HAND = {"captions_gold.txt"}
"""Not from the official code: marked by hand for the caption parser."""
MEASURED = [row for row in ROWS if row.measure is not None]
WRITTEN_ERROR = re.compile(r"\| (?:0|\d+e[+-]\d+|not here) \|(?= [^|]*\|$)", re.M)


def test_every_array_has_one_row() -> None:
    files = {path.name for path in FOLDER.iterdir()} - BY_HAND
    assert {row.file for row in ROWS} == files
    for file in files:
        found = Counter(name for row in ROWS if row.file == file for name in row.names())
        assert {name: found[name] for name in names(file) if found[name] != 1} == {}


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row.file} {row.arrays.split()[0]}")
def test_ours_is_within_the_tolerance(row: Row) -> None:
    if not row.can_be_measured:
        pytest.skip(f"{row.needs} is not set")
    assert row.measure is not None
    found = row.measure()
    assert found.keys() == row.names()
    assert {name: value for name, value in found.items() if not value <= row.tolerance} == {}


def test_the_functions_that_the_rows_name_exist() -> None:
    files = list((DOCS.parent / "regionclip_core").rglob("*.py"))
    for row in MEASURED:
        module, name = re.findall(r"\w+", row.ours)[:2]
        text = "".join(path.read_text() for path in files if path.stem == module)
        assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"no {module}.{name}"


def test_the_measure_of_error_sees_differences() -> None:
    import torch

    ones = torch.ones(3)
    assert error(ones * 1.5, ones * 2) == pytest.approx(0.25)
    assert error(ones, torch.zeros(3)) == 1.0
    assert error(torch.tensor([1, 2, 3]), torch.tensor([1, 0, 0])) == 2.0
    for bad in (torch.ones(2), ones * float("nan"), ones * float("inf")):
        assert error(bad, ones) == float("inf")
    assert error(ones, ones * float("nan")) == float("inf")
    assert (error("a", "b"), error([1], [1])) == (1.0, 0.0)


def goldens_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("goldens_page", DOCS / "goldens.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_checks_say() -> None:
    """All but the measured errors, which differ from machine to machine, and the version that measured them."""
    written, now = (DOCS / "GOLDENS.md").read_text(encoding="utf-8"), goldens_page().page()

    def fixed(text: str) -> str:
        return WRITTEN_ERROR.sub("| ? |", re.sub(r"torch \d+(\.\d+)+", "torch ?", text))

    assert fixed(written) == fixed(now), "run `python docs/goldens.py`"
