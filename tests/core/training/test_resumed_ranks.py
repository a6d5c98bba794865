"""A training of three processes goes on bit-equal: from three summands on, their order shows in the last bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import three_ranks
import torch


@pytest.mark.slow
def test_three_ranks_go_on_bit_equal(tmp_path: Path) -> None:
    spawn = torch.multiprocessing.get_context("spawn")
    others = [spawn.Process(target=three_ranks.main, args=(rank, str(tmp_path))) for rank in (1, 2)]
    for other in others:
        other.start()
    try:
        three_ranks.main(0, str(tmp_path))
    finally:
        for other in others:
            other.join(60)
            other.kill()
    found = torch.load(tmp_path / "states.pt", weights_only=True)
    assert found["from"] == 4
    assert found["histories"][0] == found["histories"][1]
    start = three_ranks.Layers().state_dict()
    for name, expected in found["unbroken"].items():
        assert torch.equal(found["resumed"][name], expected), name
        assert not torch.allclose(expected, start[name], atol=1e-3), name
