"""What test_distributed runs in processes of their own: the same computations, on one rank or on two.

Losses and gradients are float64, so that only a wrong sum can make a difference. Images have several sizes and
numbers of regions: a mean of the ranks' means, or a rank's own padding, would show.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from mask_samples import coded as coded_mask
from mask_samples import triangle
from small_artifacts import TRAIN, Picture, run_stage, tiny_clip, tiny_config, write_data
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regionclip_core.config.tree import Config, OptimConfig
from regionclip_core.detection.finetuning import DetectorTrainer, build_detector
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.ops.image_batch import ImageBatch
from regionclip_core.ops.masks import ImageMasks
from regionclip_core.pretraining.captioned_images import ClipBatch
from regionclip_core.pretraining.losses import image_text_contrastive
from regionclip_core.pretraining.region_batches import CropTargets, RegionBatch
from regionclip_core.pretraining.student import RegionPretrainer, make_student
from regionclip_core.pretraining.teacher import ClipTrainer
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatch
from regionclip_core.training.distributed import common_canvas, gather_rows
from regionclip_core.training.fit import fit
from stages.base import JobStage, StageContext
from stages.declarations import STAGES

BATCH = 6
CAPTIONS = ["a cat", "two dogs", "a bus", "the red cup", "a tree", "no caption"]
SIZES = [(64, 64), (64, 96), (64, 64), (96, 64), (64, 128), (64, 64)]
"""(h, w): neither half of the batch has the canvas of the whole."""
REGIONS = [2, 0, 3, 1, 2, 1]
TRAININGS = ("teacher", "pretrain", "finetune")
Result = dict[str, Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Rows(NamedTuple):
    """What the two towers take: images [B, 5] and texts [B, 3]."""

    images: Tensor
    texts: Tensor

    def to(self, device: torch.device | str) -> Rows:
        return Rows(self.images.to(device), self.texts.to(device))


class Towers(nn.Module):
    """Two linear towers and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(5, 4).double(), nn.Linear(3, 4).double()
        self.log_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        for n, parameter in enumerate([*self.image.parameters(), *self.text.parameters()]):
            parameter.data = random(*parameter.shape, seed=n)

    def forward(self, batch: Rows) -> Mapping[str, Tensor]:
        image, text = self.image(batch.images), self.text(batch.texts)
        return {"loss": image_text_contrastive(image, text, torch.exp(-self.log_scale), gather=gather_rows)}


def towers_batch(rows: slice, step: int = 0) -> Rows:
    return Rows(random(BATCH, 5, seed=10 + step)[rows], random(BATCH, 3, seed=20 + step)[rows])


# ---------------------------------------------------------------- one step of each training


def clip_case(rows: slice) -> tuple[nn.Module, ClipBatch]:
    """CLIP in training mode: its batch norms take the statistics of the batch."""
    clip = tiny_clip()
    clip.model.double()
    return ClipTrainer(clip).train(), ClipBatch(random(BATCH, 3, 32, 32)[rows], CAPTIONS[rows])


def images(rows: slice) -> ImageBatch:
    """The images of these rows, padded to the largest of them."""
    sizes = SIZES[rows]
    tensor = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.float64)
    for canvas, number, (h, w) in zip(tensor, range(*rows.indices(BATCH)), sizes, strict=True):
        canvas[:, :h, :w] = random(3, h, w, seed=number)
    return ImageBatch(tensor, sizes, sizes)


def boxes(number: int, count: int, seed: int = 0) -> Tensor:
    """[count, 4] boxes inside image `number`, some of them at its lower right corner, where padding begins."""
    height, width = SIZES[number]
    corners = random(count, 4, seed=100 * seed + number).abs().clamp(max=2.0) * 14
    return torch.stack([corners[:, 0], corners[:, 1], width - corners[:, 2], height - corners[:, 3]], 1)


def pretrain_case(rows: slice, **pretrain: Any) -> tuple[nn.Module, RegionBatch]:
    """With `crop_weight`, image n has as many other regions as image 5 - n has kept ones."""
    settings = tiny_config(labels={"crop_features": True}, pretrain=pretrain).pretrain
    clip = tiny_clip()
    clip.model.double()
    trainer = RegionPretrainer(make_student(clip, settings), clip, random(5, 16, seed=1), 0.1, settings).double()
    start, stop = ([0, *torch.tensor(REGIONS).cumsum(0).tolist()][n] for n in rows.indices(BATCH)[:2])
    generator = torch.Generator().manual_seed(0)
    top = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(sum(REGIONS))])[start:stop]
    batch = RegionBatch(
        images=images(rows),
        boxes=[boxes(number, REGIONS[number]) for number in range(*rows.indices(BATCH))],
        concept_id_R=top[:, 0],
        top_concepts_RK=top,
        top_probabilities_RK=torch.tensor([0.6, 0.2, 0.1], dtype=torch.float64).expand(len(top), 3),
        residual_mass_R=torch.full((len(top),), 0.1, dtype=torch.float64),
        captions=CAPTIONS[rows],
        score_R=random(sum(REGIONS), seed=2).abs()[start:stop],
    )
    if settings.crop_weight:
        numbers, others = range(*rows.indices(BATCH)), REGIONS[::-1]
        before, upto = (sum(others[: n or 0]) for n in (rows.start, rows.stop))
        embeddings = [random(sum(REGIONS), 16, seed=3)[start:stop], random(sum(others), 16, seed=4)[before:upto]]
        crops = CropTargets(
            other_boxes=[boxes(number, others[number], seed=2) for number in numbers],
            other_score_O=random(sum(others), seed=5).abs()[before:upto],
            embeddings=torch.cat(embeddings),
        )
        batch = replace(batch, crops=crops)
    return trainer.train(), batch


def finetune_case(rows: slice, focal_gamma: float | None, masks: bool = False) -> tuple[nn.Module, BoxBatch]:
    """Few proposals, so that images give different numbers of regions, of which one holds no object.

    With `masks`, also a mask head, and no object in the second half of the batch: one rank has no mask to learn from.
    """
    config = tiny_config(
        finetune={
            "focal_gamma": focal_gamma, "background_weight": 0.3, "regions_per_image": 5, "mask_head": masks,
        }
    )  # fmt: skip
    clip = tiny_clip()
    detector = build_detector(clip, ("cat", "dog", "bus"), config).double()
    numbers = range(*rows.indices(BATCH))
    truth = [boxes(number, REGIONS[number] if number < BATCH // 2 or not masks else 0) for number in numbers]
    coded = [
        ImageMasks([coded_mask(triangle(box, SIZES[number])) for box in t.tolist()], SIZES[number], SIZES[number])
        for number, t in zip(numbers, truth, strict=True)
    ]
    batch = BoxBatch(
        images=images(rows),
        boxes=truth,
        labels=[torch.arange(number, number + len(t)) % 3 for number, t in zip(numbers, truth, strict=True)],
        extra=[torch.cat([t + 1.5, boxes(n, n, seed=1) / 2]) for n, t in zip(numbers, truth, strict=True)],
        seeds=list(numbers),
        masks=coded if masks else None,
    )
    detector.eval()
    detector.calibrate_background(common_canvas(batch.images).tensor, batch.extra)
    return DetectorTrainer(detector.train(), config.finetune), batch


def loss_and_gradients(model: nn.Module, batch: Any, parallel: bool) -> Result:
    wrapped = DistributedDataParallel(model) if parallel else model  # its hooks live as long as it does
    losses = wrapped(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: b.clone() for name, b in model.named_buffers() if b.is_floating_point()}
    values = {name: float(value.detach()) for name, value in losses.items()}
    return {"losses": values, "gradients": gradients, "buffers": buffers}


def in_parts(model: nn.Module, batch: Any, parallel: bool) -> tuple[nn.Module, Any]:
    """Each of two ranks encodes two of its three images and then the third; one process all six at once."""
    for module in model.modules():
        if isinstance(module, RegionEncoder):
            module.images_at_once = 2 if parallel else None
    return model, batch


def shared_gradient(rows: slice) -> Result:
    """Two gathered tensors whose gradients autograd hands over as one tensor."""
    a, b = random(BATCH, 4, seed=5)[rows].requires_grad_(), random(BATCH, 4, seed=6)[rows].requires_grad_()
    weights = random(BATCH, 4, seed=7)
    ((gather_rows(a) + gather_rows(b)) * weights).sum().backward()
    return {"a": a.grad, "b": b.grad}


# ---------------------------------------------------------------- whole trainings


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


def job_config() -> Config:
    """Four steps of every training, by SGD: AdamW would make steps of their own size from rounding noise."""
    optim = {"optimizer": "sgd", "lr": 0.02, "clip_norm": 1.0}
    steps = {"steps": 4, "batch_size": 4, "optim": optim}
    return tiny_config(
        concepts={"splits": ["train"]},
        proposals={"splits": ["train", "val"]},
        teacher={"weights": "train", "training": {**steps, "splits": ["train"], "min_crop": 0.3}},
        pairs={"min_regions": 0},
        pretrain={**steps, "regions_per_image": 2},
        finetune={**steps, "regions_per_image": 4},
    )


def pictures() -> list[list[Picture]]:
    """TRAIN with captions of its own for each image."""
    return [
        [replace(p, captions=(f"a {a} and a cup", f"the {b}")) for p, (a, b) in zip(shard, words, strict=True)]
        for shard, words in zip(TRAIN, 2 * [list(pairwise(["cat", "dog", "bus", "tree", "kite"]))], strict=True)
    ]


def run_jobs(root: Path, rank: int, world_size: int) -> None:
    """The three trainings as their stages run them, into `jobs-<world_size>`.

    One process runs the stages between them too; two read what one process left, so that each training starts alike.
    """
    config, alone = job_config(), root / "jobs-1"
    if world_size == 1:
        write_data(alone / "data", {"train": pictures(), "val": pictures()[:1]})
    for name in ("concepts", "proposals", "teacher", "labels", "pairs", "pretrain", "finetune"):
        stage = STAGES[name]
        inputs = {need: Folder(str(alone / need)) for need in stage.needs(config)}
        ctx = StageContext(config, Folder(str(root / f"jobs-{world_size}" / name)), inputs)
        if isinstance(stage, JobStage):
            ctx.rank, ctx.world_size = rank, world_size
        if isinstance(stage, JobStage) or world_size == 1:
            run_stage(stage, ctx)


# ---------------------------------------------------------------- all of it


def compute(folder: Path, rank: int, world_size: int) -> dict[str, Result]:
    """Every case, on this rank's part of the global batch."""
    share = BATCH // world_size
    rows, parallel = slice(rank * share, (rank + 1) * share), world_size > 1
    run_jobs(folder, rank, world_size)
    return {
        "towers": loss_and_gradients(Towers(), towers_batch(rows), parallel),
        "clip": loss_and_gradients(*clip_case(rows), parallel),
        "pretrain": loss_and_gradients(*pretrain_case(rows), parallel),
        "pretrain_crops": loss_and_gradients(*pretrain_case(rows, crop_weight=2.0), parallel),
        "pretrain_weighted": loss_and_gradients(
            *in_parts(*pretrain_case(rows, crop_weight=2.0, weigh_by_score=True), parallel), parallel
        ),
        "pretrain_own": loss_and_gradients(*pretrain_case(rows, gather_regions=False), parallel),
        "finetune": loss_and_gradients(*finetune_case(rows, 0.5), parallel),
        "finetune_weighted": loss_and_gradients(*in_parts(*finetune_case(rows, None), parallel), parallel),
        "finetune_masks": loss_and_gradients(*finetune_case(rows, None, masks=True), parallel),
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
