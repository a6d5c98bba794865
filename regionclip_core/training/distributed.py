"""What several processes (ranks) need so that their training computes the same as a training in one process.

With one process, every function here returns its input. The rule behind all of them: DistributedDataParallel averages
gradients over ranks, so the mean over ranks of the ranks' losses has to be the loss of the global batch.

B images of one rank, D embedding, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from regionclip_core.ops.image_batch import ImageBatch


def rank_count() -> int:
    """Return the number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks of a tensor that has one shape on all of them, without gradient."""
    if rank_count() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def all_ranks(values: Tensor) -> Tensor:
    """Return every rank's tensor of one shape, joined along the first dimension in rank order, without gradient."""
    if rank_count() == 1:
        return values.detach()
    parts = [torch.empty_like(values) for _ in range(rank_count())]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


def mean_over_ranks(total: Tensor, count: Tensor | float) -> Tensor:
    """Return this rank's part of the mean over the items of all ranks; a scalar, 0 if there are none.

    `total` is the sum over this rank's items, `count` their number (or the sum of their weights). The mean of the
    result over ranks is the sum of all totals divided by the sum of all counts.
    """
    counted = sum_ranks(torch.as_tensor(count, dtype=total.dtype, device=total.device)) / rank_count()
    return torch.where(counted > 0, total / counted.clamp(min=torch.finfo(total.dtype).tiny), total * 0.0)


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Return the rows of every rank, float[world * B, D], with gradients; B must be the same on every rank.

    Every rank must then evaluate the same loss of all rows.
    """
    ranks = rank_count()
    if ranks == 1:
        return rows_BD
    # A rank's backward reaches its own rows only, and DistributedDataParallel then divides by the number of ranks: so
    # their gradient is multiplied by that number here. What is added to their value is exactly 0.
    own = rows_BD.detach() + ranks * (rows_BD - rows_BD.detach())
    parts = list(torch.split(all_ranks(rows_BD), len(rows_BD)))
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def common_canvas(images: ImageBatch) -> ImageBatch:
    """Return the batch padded to the largest canvas of all ranks.

    Convolutions turn padding into features that an image's border sees, so what is computed for an image depends on
    the canvas. One process pads to the largest image of the global batch, and so must each of several.
    """
    if rank_count() == 1:
        return images
    height, width = images.tensor.shape[-2:]
    largest = torch.tensor([height, width], device=images.tensor.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    bottom, right = int(largest[0]) - height, int(largest[1]) - width
    return replace(images, tensor=F.pad(images.tensor, (0, right, 0, bottom))) if bottom or right else images


class _OneUnused(nn.Module):
    """A model with one more parameter, which no loss uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.unused = nn.Parameter(torch.zeros(1, device=next(model.parameters()).device))

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def data_parallel(model: nn.Module) -> nn.Module:
    """Return `model` with gradients averaged over ranks, in the same order of summation at every step.

    DistributedDataParallel regroups the gradients into other buckets after its first step. With three or more ranks
    the place in a bucket decides in which order ranks are summed, so the step after a resume differed in its last
    bits (3e-8). With `find_unused_parameters` the buckets stay as they are. If it finds none, it prints a long warning
    that can't be silenced; `_OneUnused` gives it one to find.
    """
    return nn.parallel.DistributedDataParallel(_OneUnused(model), find_unused_parameters=True)


class _SumRanks(torch.autograd.Function):
    """Element-wise sum over ranks; its backward is the same sum of gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_ranks(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_ranks(gradient)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are those of the global batch; in evaluation it is a plain BatchNorm2d.

    torch's own SyncBatchNorm does the same on GPUs and refuses CPU tensors. B, H, W must be the same on every rank.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        if not self.training or rank_count() == 1:
            return super().forward(input)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        count = input.numel() / input.shape[1] * rank_count()
        mean: Tensor = _SumRanks.apply(input.sum((0, 2, 3))) / count
        centred = input - mean[:, None, None]
        variance: Tensor = _SumRanks.apply(centred.square().sum((0, 2, 3))) / count
        self.running_mean.lerp_(mean.detach(), self.momentum)
        # As torch does, the running variance is the unbiased one, and what normalises is not.
        self.running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return centred * scale[:, None, None] + self.bias[:, None, None]


def use_global_batch_norms(model: nn.Module) -> None:
    """Let the batch norms inside `model` share their statistics over ranks; parameters and buffers stay the same."""
    if rank_count() == 1:
        return
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.BatchNorm2d:
                shared = GlobalBatchNorm2d(
                    norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
                )
                shared._parameters, shared._buffers = norm._parameters, norm._buffers
                setattr(module, name, shared.train(norm.training))
