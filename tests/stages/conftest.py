"""The toy pipeline, for all tests of the frame."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))  # small inputs that both kinds of tests share
sys.path.insert(0, str(Path(__file__).parent))

import toy_stages
from toy_runs import Toy

from stages import declarations


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(declarations, "STAGES", toy_stages.STAGES)
    return Toy(tmp_path)
