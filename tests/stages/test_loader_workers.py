"""How many processes read for a training: the config's number, else none without a GPU and one per CPU beside it."""

from __future__ import annotations

from typing import Any

import pytest

from regionclip_core.config.tree import Config
from stages.base import JobWork, StageContext
from stages.engine import work


class Asks(JobWork):
    def run(self, ctx: StageContext) -> dict[str, Any]:
        return {"workers": ctx.loader_workers}


WORK = Asks()


@pytest.mark.parametrize(
    ("wanted", "device", "processes", "expected"),
    [(None, "cpu", 1, 0), (None, "cuda", 1, 8), (None, "cuda", 2, 6), (3, "cuda", 2, 3), (3, "cpu", 1, 3)],
)
def test_how_many_read(
    tmp_path, monkeypatch: pytest.MonkeyPatch, wanted: int | None, device: str, processes: int, expected: int
) -> None:
    monkeypatch.setattr(work, "available_cpus", lambda: 12)
    monkeypatch.setattr(work, "resolve_device", lambda _: device)
    monkeypatch.setattr(work, "set_threads", lambda _: None)
    config = Config(execution={"loader_workers": wanted})
    task = work.StageTask("teacher", f"{__name__}:WORK", config, str(tmp_path), {}, uses_gpu=True)
    assert work.job(task, 0, processes, processes).summary == {"workers": expected}
