"""What the losses need of other ranks. With one process everything here is the identity.

B images of one rank, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, in rank order; its backward adds up what every rank asks of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.batch = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # A copy: autograd may hand the same tensor to several nodes, and all_reduce writes in place.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.batch
        return gradient[start : start + ctx.batch]


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Rows of every rank, float[world * B, D], with gradients; every rank must bring the same B.

    Every rank then evaluates the same global loss. The backward sums over ranks and DistributedDataParallel
    averages, which nets out to the gradient of that one global loss (as in the official code's gather).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows_BD
    return _GatherRows.apply(rows_BD)  # type: ignore[no-any-return]
