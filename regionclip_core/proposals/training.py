"""Building and training the proposal network; base categories only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import RpnConfig
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.storage.records import Folder
from regionclip_core.training.box_batches import BoxBatch, box_batches
from regionclip_core.training.boxed_images import boxed_images
from regionclip_core.training.fit import FitResult, Progress, fit


class _RpnTrainer(nn.Module):
    def __init__(self, network: ProposalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: BoxBatch) -> Mapping[str, Tensor]:
        losses: Mapping[str, Tensor] = self.network(
            batch.images.tensor, batch.images.sizes, batch.boxes, batch.seeds[0]
        )
        return losses


def build_network(settings: RpnConfig, seed: int) -> ProposalNetwork:
    """The network with seeded random weights; `rpn_folder.load_weights` puts those of a file into it."""
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
) -> FitResult:
    """Train on the base boxes of `settings.split`; the network ends on the CPU in evaluation mode.

    Raises:
        ErrorRateExceeded: if more than this share of the images can't be read.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    images = boxed_images(data, settings.split, set(vocabulary.base_ids))
    tally = images.tally(max_error_rate)
    batches = box_batches(
        images,
        ImageReader(data),
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        max_size=settings.max_size,
        flip=0.5,
        mean=network.mean,
        std=network.std,
        seed=seed,
        tally=tally,
    )
    network.to(device).to(memory_format=torch.channels_last).train()
    result = fit(
        _RpnTrainer(network),
        batches,
        optim=settings.optim,
        steps=settings.steps,
        seed=seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        tally=tally,
    )
    network.cpu().eval()
    return result
