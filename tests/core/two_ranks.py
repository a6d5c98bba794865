"""What test_distributed runs in processes of their own: the same computations, on one rank or on two.

Everything is float64, so that only a wrong sum can make a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_artifacts import tiny_clip, tiny_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regionclip_core.artifacts import Folder
from regionclip_core.clip_training import ClipBatch, ClipTrainer
from regionclip_core.config import OptimConfig
from regionclip_core.distributed import gather_rows
from regionclip_core.image_batch import ImageBatch
from regionclip_core.losses import image_text_contrastive
from regionclip_core.pretraining import RegionBatch, RegionPretrainer, make_student
from regionclip_core.training import fit

BATCH = 6
CAPTIONS = ["a cat", "two dogs", "a bus", "the red cup", "a tree", "no caption"]
Result = dict[str, Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Towers(nn.Module):
    """Two linear towers and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(5, 4).double(), nn.Linear(3, 4).double()
        self.log_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        for n, parameter in enumerate([*self.image.parameters(), *self.text.parameters()]):
            parameter.data = random(*parameter.shape, seed=n)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        image, text = self.image(batch[0]), self.text(batch[1])
        return {"loss": image_text_contrastive(image, text, torch.exp(-self.log_scale), gather=gather_rows)}


def towers_batch(rows: slice, step: int = 0) -> tuple[Tensor, Tensor]:
    return random(BATCH, 5, seed=10 + step)[rows], random(BATCH, 3, seed=20 + step)[rows]


def clip_case(rows: slice) -> tuple[nn.Module, ClipBatch]:
    """CLIP with fixed batch statistics: in training those are of each rank's own images."""
    clip = tiny_clip()
    clip.model.double()
    return ClipTrainer(clip).eval(), ClipBatch(random(BATCH, 3, 32, 32)[rows], CAPTIONS[rows])


def pretrain_case(rows: slice) -> tuple[nn.Module, RegionBatch]:
    """Two regions an image, so that the mean over regions is the mean of the ranks' means.

    The region-concept contrast is left out: its columns are the regions of one rank, as in the official code.
    """
    settings = tiny_config(pretrain={"contrastive_weight": 0.0}).pretrain
    clip = tiny_clip()
    clip.model.double()
    trainer = RegionPretrainer(make_student(clip, settings), clip, random(5, 16, seed=1), 0.1, settings).double()
    count = len(range(*rows.indices(BATCH)))
    images = ImageBatch(random(BATCH, 3, 64, 64)[rows], [(64, 64)] * count, [1.0] * count, [(64, 64)] * count)
    corners = random(BATCH, 2, 4, seed=2).abs().clamp(max=1.0) * 20
    boxes = [torch.cat([b[:, :2], b[:, 2:] + 30], 1) for b in corners[rows]]
    generator = torch.Generator().manual_seed(0)
    top = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(2 * BATCH)]).view(BATCH, 2, 3)
    batch = RegionBatch(
        images=images,
        boxes=boxes,
        concept_id_R=top[rows, :, 0].flatten(),
        top_concepts_RK=top[rows].flatten(0, 1),
        top_probabilities_RK=torch.tensor([0.6, 0.2, 0.1], dtype=torch.float64).expand(2 * count, 3),
        residual_mass_R=torch.full((2 * count,), 0.1, dtype=torch.float64),
        captions=CAPTIONS[rows],
    )
    return trainer.train(), batch


def loss_and_gradients(model: nn.Module, batch: Any, parallel: bool) -> Result:
    wrapped = DistributedDataParallel(model) if parallel else model  # its hooks live as long as it does
    losses = wrapped(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": {name: float(value.detach()) for name, value in losses.items()}, "gradients": gradients}


def shared_gradient(rows: slice) -> Result:
    """Two gathered tensors whose gradients autograd hands over as one tensor."""
    a, b = random(BATCH, 4, seed=5)[rows].requires_grad_(), random(BATCH, 4, seed=6)[rows].requires_grad_()
    weights = random(BATCH, 4, seed=7)
    ((gather_rows(a) + gather_rows(b)) * weights).sum().backward()
    return {"a": a.grad, "b": b.grad}


def trained(rows: slice, checkpoints: Path, rank: int, world_size: int) -> Result:
    model = Towers()
    result = fit(
        model,
        lambda step: towers_batch(rows, step),
        optim=OptimConfig(lr=0.05, clip_norm=0.5),
        steps=5,
        seed=0,
        checkpoints=Folder(str(checkpoints)),
        checkpoint_every=2,
        progress=lambda *_: None,
        rank=rank,
        world_size=world_size,
    )
    return {"weights": copy.deepcopy(model.state_dict()), "history": result.history, "from": result.resumed_from}


def compute(folder: Path, rank: int, world_size: int) -> dict[str, Result]:
    """Every case, on this rank's part of the global batch."""
    share = BATCH // world_size
    rows, parallel = slice(rank * share, (rank + 1) * share), world_size > 1
    return {
        "towers": loss_and_gradients(Towers(), towers_batch(rows), parallel),
        "clip": loss_and_gradients(*clip_case(rows), parallel),
        "pretrain": loss_and_gradients(*pretrain_case(rows), parallel),
        "shared": shared_gradient(rows),
        "fit": trained(rows, folder / f"checkpoints-{world_size}", rank, world_size),
    }


def main(rank: int, folder: str) -> None:
    """One of two processes: results go to `rank<r>.pt`."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        torch.save(compute(Path(folder), rank, 2), f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()
