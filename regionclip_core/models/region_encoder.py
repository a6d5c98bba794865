"""Region embeddings from one pass over an image: what every image tower offers (paper section 3.1).

Shapes: B images, (H, W) the padded canvas, R regions, D embedding, k bins per side, N = k*k. Boxes are xyxy in *input*
pixels here; a size is (height, width) in input pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regionclip_core.ops.roi_align import roi_align

Sizes = Sequence[tuple[int, int]]
Part = list[nn.Module | nn.Parameter]
ALIGNED_AT_ONCE = 256  # regions whose aligned maps are in memory at once where no gradient needs them


class RegionEncoder(nn.Module, ABC):
    """A CLIP image tower in parts: a map of the whole image, RoIAlign, one embedding per region.

    Its modules keep the tower's own names, so its state dict is that of `clip.model.visual`. All parameters but those
    of `never_trained` start trainable; see `freeze`.
    """

    embed_dim: int
    """D."""
    feature_dim: int
    """Channels of the map that `regions` gives."""
    stride: int
    """Input pixels per cell of the map that `features` gives."""
    roi_size: int
    """Bins per side of a RoI-aligned map."""
    bins: int
    """k, bins per side of what `regions` gives and `pool` pools."""
    sampling_ratio: int = 0
    """RoIAlign's samples per bin and axis; 0 is adaptive, as in the official code."""
    value_blocks: int = 0
    """Last blocks whose values are the features; only where there is a value path, see `VitEncoder`."""

    recompute_activations: bool = False
    """Whether `part` keeps no activations."""
    images_at_once: int | None = None
    """How many images' activations `by_images` keeps; None: all."""

    def part(self, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return `run(*inputs)`, a part of the network that changes nothing in its inputs.

        With `recompute_activations` it runs again for its gradient, instead of keeping what it computed meanwhile.
        """
        if not self.recompute_activations:
            return run(*inputs)
        return checkpoint(run, *inputs, use_reentrant=False)

    def by_images(
        self, run: Callable[..., Tensor], images: Tensor, boxes: Sequence[Tensor], sizes: Sizes | None
    ) -> Tensor:
        """Return `run(images, boxes, sizes)`, rows by region, computed for `images_at_once` images after the others.

        What a part of the images computed is not kept, but computed again for its gradient. So losses over the whole
        batch, such as contrasts, take the memory of a part, which gradients summed over smaller batches couldn't give.
        """
        count = self.images_at_once or len(images)
        if count >= len(images):
            return run(images, boxes, sizes)
        parts = [slice(start, start + count) for start in range(0, len(images), count)]
        inputs = [(images[part], boxes[part], sizes and sizes[part]) for part in parts]
        return torch.cat([checkpoint(run, *some, use_reentrant=False) for some in inputs])

    @abstractmethod
    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return the map [B, C, ~H/stride, ~W/stride] of normalised images [B, 3, H, W].

        `sizes`: each image without its padding; None: no image is padded. A ViT needs them: its attention would see
        the padding, and an image's features would depend on what else is in the batch.
        """

    def regions(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Cut regions out of the map: [R, feature_dim, k, k], image by image in the order of the boxes.

        `boxes`: per image [R_i, 4] float32, input pixels; they are not clipped, and may have no area.
        """
        return torch.cat(list(self.region_maps(features, _rois(features, boxes))))

    def embed(self, features: Tensor, boxes: Sequence[Tensor], shares_RN: Tensor | None = None) -> Tensor:
        """Return `pool(regions(features, boxes), shares_RN)`, [R, D], without the maps of all regions at once."""
        found: list[Tensor] = []
        first = 0
        for maps in self.region_maps(features, _rois(features, boxes)):
            found.append(self.pool(maps, None if shares_RN is None else shares_RN[first : first + len(maps)]))
            first += len(maps)
        return torch.cat(found)

    def region_maps(self, features: Tensor, rois: Tensor) -> Iterator[Tensor]:
        """Yield `regions` in parts of any length, at least one; by default what RoIAlign gives.

        `rois`: float32[R, 5], number of the image and box.
        """
        yield from (self.align(features, some) for some in torch.split(rois, ALIGNED_AT_ONCE))

    def align(self, features: Tensor, rois: Tensor, mean_of: int = 1) -> Tensor:
        """RoIAlign regions [R, 5] to [R, C, k', k'], k' = roi_size / mean_of bins per side."""
        return roi_align(features, rois, self.roi_size, 1.0 / self.stride, self.sampling_ratio, mean_of)

    @abstractmethod
    def pool(self, region_maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
        """Pool what `regions` gave to embeddings [R, D], not normalised.

        `shares_RN`: how much each bin takes part, float with rows of sum 1 (see `mask_shares`); None: all alike. Means
        are weighted by them, and attention weights are multiplied with them.
        """

    def forward(self, images: Tensor, boxes: Sequence[Tensor], sizes: Sizes | None = None) -> Tensor:
        """Return the embeddings [R, D], not normalised, of the boxes of images [B, 3, H, W]."""
        return self.by_images(lambda i, b, s: self.embed(self.features(i, s), b), images, boxes, sizes)

    @abstractmethod
    def parts(self) -> list[Part]:
        """List the five parts that `freeze` counts, first to last; what comes after them is never frozen."""

    def never_trained(self) -> Iterable[nn.Parameter]:
        """List parameters that `freeze` always freezes."""
        return ()

    def freeze(self, freeze_at: int) -> None:
        """Freeze the first `freeze_at` (0 to 5) of the five `parts`, and let all others train.

        ResNets: the stem, then the four stages. ViTs: patch embedding and positions, then four quarters of the
        blocks. What pools (attention pool; last norm and projection) always trains.
        """
        self.requires_grad_(True)
        for part in self.parts()[:freeze_at]:
            for item in part:
                item.requires_grad_(False)
        for parameter in self.never_trained():
            parameter.requires_grad_(False)


def mask_shares(cover: Tensor) -> Tensor:
    """Return shares [R, N] from the part of each bin that a region's mask covers, float[R, k, k], 0 to 1.

    A mask that covers none of its bins counts as one that covers all.
    """
    cover_RN = cover.flatten(1)
    total_R1 = cover_RN.sum(1, keepdim=True)
    return torch.where(total_R1 > 0, cover_RN, 1.0) / torch.where(total_R1 > 0, total_R1, cover_RN.shape[1])


def mean_bins(region_maps: Tensor, shares_RN: Tensor | None) -> Tensor:
    """Return the mean [R, C] over the bins of [R, C, k, k], by `shares_RN` where they are given."""
    if shares_RN is None:
        return region_maps.mean((2, 3))
    return torch.einsum("rcn,rn->rc", region_maps.flatten(2), shares_RN.to(region_maps.dtype))


def attention_bias(shares_RN: Tensor) -> Tensor:
    """Return what added to attention logits multiplies the weights by N * shares: 0 for equal shares, -inf for 0."""
    return (shares_RN * shares_RN.shape[1]).log()


def _rois(features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Return [R, 5], each box after the number of its image."""
    assert len(boxes) == len(features)
    return torch.cat([F.pad(b.to(torch.float32), (1, 0), value=number) for number, b in enumerate(boxes)])
