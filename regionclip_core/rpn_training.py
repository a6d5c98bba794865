"""Building, training, saving and loading the proposal network; base categories only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from regionclip_core.artifacts import Folder
from regionclip_core.box_data import BoxBatch, box_batches, boxed_images, to_device
from regionclip_core.config import RpnConfig
from regionclip_core.images import ImageReader
from regionclip_core.proposals import ProposalNetwork
from regionclip_core.training import FitResult, Progress, fit
from regionclip_core.vocabulary import Vocabulary

_FILE = "rpn.safetensors"


class _RpnTrainer(nn.Module):
    def __init__(self, network: ProposalNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: BoxBatch) -> Mapping[str, Tensor]:
        losses: Mapping[str, Tensor] = self.network(batch.images.tensor, batch.images.sizes, batch.boxes, batch.seed)
        return losses


def build_network(settings: RpnConfig, seed: int) -> ProposalNetwork:
    """The network with seeded random weights, or with those of a file.

    Raises:
        ValueError: if the file's tensors are not this network's, with both lists' differences.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ProposalNetwork(settings)
    if settings.weights not in ("train", "random"):
        folder, _, name = settings.weights.rpartition("/")
        _load_exactly(network, load_tensors(Folder(folder or ".").read_bytes(name)), settings.weights)
    return network


def _load_exactly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unknown or shapes:
        raise ValueError(
            f"{source} does not fit this proposal network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}; "
            "check rpn.backbone, rpn.width and rpn.anchor_sizes"
        )
    network.load_state_dict(dict(state))


def train_network(
    network: ProposalNetwork,
    data: Folder,
    settings: RpnConfig,
    *,
    seed: int,
    device: str,
    checkpoints: Folder,
    progress: Progress,
) -> FitResult:
    """Train on the base boxes of `settings.split`; the network ends on the CPU in evaluation mode."""
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    images = boxed_images(data, settings.split, set(vocabulary.base_ids))
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
    )
    network.to(device).to(memory_format=torch.channels_last).train()
    result = fit(
        _RpnTrainer(network),
        lambda step: to_device(batches(step), device),
        optim=settings.optim,
        steps=settings.steps,
        seed=seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
    )
    network.cpu().eval()
    return result


def save_network(network: ProposalNetwork, folder: Folder) -> None:
    """Write `rpn.safetensors`."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    folder.write_bytes(_FILE, save_tensors(state))


def load_network(folder: Folder, settings: RpnConfig) -> ProposalNetwork:
    """The network that `save_network` wrote, in evaluation mode."""
    network = ProposalNetwork(settings)
    _load_exactly(network, load_tensors(folder.read_bytes(_FILE)), f"{folder.url}/{_FILE}")
    return network.eval().to(memory_format=torch.channels_last)
