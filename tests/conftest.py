"""For all tests: torch has one thread, here and in the processes that tests start.

Tensors are so small that threads only wait for each other: the preset tiny takes four times the CPU time on two.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from regionclip_core.threads import set_threads

set_threads(1)  # before torch is imported


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Stages that a test runs in this process may have set another number."""
    yield
    set_threads(1)
