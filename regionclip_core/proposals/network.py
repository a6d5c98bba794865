"""The proposal network: a backbone with a region proposal network; how it is built and trained.

Legend: B images. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import RpnConfig
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.precision import networks
from regionclip_core.proposals.backbones import TorchvisionFpn, make_backbone
from regionclip_core.proposals.rpn import AnchorLayout, Proposals, RegionProposalNetwork, RpnSampling
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatch, BoxBatches, boxed_images
from regionclip_core.training.fit import FitResult, Progress, fit
from regionclip_core.training.unreadable_images import UnreadableImages

# Small images hold few objects, and in open-vocabulary training some of them (the novel ones) are unlabelled:
# fewer sampled anchors mean fewer chances that an unlabelled object is called background.
SMALL_SAMPLING = RpnSampling(foreground_iou=0.6, background_iou=0.3, anchors_per_image=32, positive_fraction=0.5)


class ProposalNetwork(nn.Module):
    """A backbone and a class-agnostic RPN head.

    `mean` and `std` normalise the RGB input (pixels in 0..1); all boxes are in pixels of the network's input.
    """

    def __init__(self, config: RpnConfig) -> None:
        super().__init__()
        self.backbone = make_backbone(config)
        self.mean, self.std = self.backbone.mean, self.backbone.std
        torchvision = isinstance(self.backbone, TorchvisionFpn)
        self.rpn = RegionProposalNetwork(
            self.backbone.channels,
            AnchorLayout(self.backbone.strides, self.backbone.anchor_sizes, torchvision=torchvision),
            head_depth=2 if config.backbone == "resnet50_fpn_lsj" else 1,
            sampling=SMALL_SAMPLING if config.backbone == "small" else None,
        )

    def forward(self, batch: BoxBatch) -> Mapping[str, Tensor]:
        """Return the training losses of a batch, `loss_objectness` and `loss_rpn_box`, to be summed."""
        generator = torch.Generator().manual_seed(batch.seeds[0])  # draws the sampled anchors of all images
        return self.rpn.losses(self.backbone(batch.images.tensor), batch.boxes, generator)

    @torch.no_grad()
    def propose(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], pre_nms: int, post_nms: int, nms: float
    ) -> list[Proposals]:
        """Return per image at most `post_nms` proposals in input pixels, best first (call eval() before).

        `images`: [B, 3, H, W], normalised and padded; `sizes`: the unpadded sizes.
        """
        with networks(images.device):
            return self.rpn.propose(self.backbone(images), sizes, pre_nms, post_nms, nms)


def build_network(settings: RpnConfig, seed: int) -> ProposalNetwork:
    """Return the network with seeded random weights; `rpn_folder.load_weights` loads a file's weights into it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProposalNetwork(settings)


def train_network(
    network: ProposalNetwork,
    data: Folder,
    settings: RpnConfig,
    *,
    seed: int,
    device: str,
    checkpoints: Folder,
    progress: Progress,
    max_error_rate: float = 1.0,
    loader_workers: int = 0,
) -> tuple[FitResult, UnreadableImages]:
    """Train on the base boxes of `settings.split`; afterwards the network is on the CPU in evaluation mode.

    Raises:
        ErrorRateExceeded: if more than this share of the images can't be read.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    images = boxed_images(data, settings.split, set(vocabulary.base_ids))
    unreadable = UnreadableImages(len(images), max_error_rate)
    batches = BoxBatches(
        images=images,
        reader=ImageReader(data),
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        max_size=settings.max_size,
        flip=0.5,
        mean=network.mean,
        std=network.std,
        seed=seed,
        unreadable=unreadable,
    )
    network.to(device).to(memory_format=torch.channels_last).train()
    result = fit(
        network,
        batches,
        optim=settings.optim,
        steps=settings.steps,
        seed=seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        batch_size=settings.batch_size,
        loader_workers=loader_workers,
        unreadable=unreadable,
    )
    network.cpu().eval()
    return result, unreadable
