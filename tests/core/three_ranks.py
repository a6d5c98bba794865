"""What test_resumed_ranks runs in processes of its own: one training unbroken, one killed and gone on with.

Imports little, since every process starts an interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import FitResult, fit, step_seed

RANKS, STEPS, DIE_AT = 3, 8, 5


class Points(NamedTuple):
    """x [B, 32] and what to make of them, y [B]."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Points:
        return Points(self.x.to(device), self.y.to(device))


class Layers(nn.Module):
    """Parameters of several sizes, so that it shows when gradients change places in their buckets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))

    def forward(self, batch: Points) -> Mapping[str, Tensor]:
        return {"loss": (self.net(batch.x)[:, 0] - batch.y).square().mean()}


class Killed(Exception):
    pass


def train(folder: Path, rank: int, die_at: int = STEPS) -> tuple[Layers, FitResult]:
    """A training on this rank's own batches."""

    def at(step: int) -> Points:
        if step == die_at:
            raise Killed
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step_seed(7, step, rank)))
        return Points(x, x.sum(1))

    model = Layers().train()
    result = fit(
        model,
        at,
        optim=OptimConfig(lr=0.01, clip_norm=1.0),
        steps=STEPS,
        seed=1,
        checkpoints=Folder(str(folder)),
        checkpoint_every=2,
        progress=lambda *_: None,
        rank=rank,
        world_size=RANKS,
    )
    return model, result


def main(rank: int, folder: str) -> None:
    """One of three processes; the first writes what came out to `states.pt`."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    try:
        unbroken, expected = train(Path(folder) / "unbroken", rank)
        try:
            train(Path(folder) / "killed", rank, DIE_AT)
        except Killed:
            dist.barrier()  # rank 0 has written its checkpoint
        resumed, result = train(Path(folder) / "killed", rank)
        if rank == 0:
            outcome = {
                "unbroken": unbroken.state_dict(),
                "resumed": resumed.state_dict(),
                "from": result.resumed_from,
                "histories": [expected.history, result.history],
            }
            torch.save(outcome, f"{folder}/states.pt")
    finally:
        dist.destroy_process_group()
