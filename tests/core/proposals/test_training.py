"""The proposal network's life: seeded, trained on base boxes alone, saved, loaded, refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_artifacts import BASE_IDS, COLOURS, TRAIN, Picture, tiny_config, write_data

from regionclip_core.config.tree import RpnConfig
from regionclip_core.proposals.network import ProposalNetwork, build_network, train_network
from regionclip_core.proposals.rpn_folder import load_network, load_weights, rpn_section, write_rpn_folder
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import FitResult

IMAGE = torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))


def settings(**values: Any) -> RpnConfig:
    return tiny_config(rpn=values).rpn


def weights(network: ProposalNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: ProposalNetwork, other: ProposalNetwork) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read(**values: Any) -> ProposalNetwork:
    """A network of another seed with the weights of the file."""
    network = build_network(settings(**values), seed=99)
    load_weights(network, settings(**values))
    return network


def trained(data: Folder, checkpoints: Path, **values: Any) -> tuple[ProposalNetwork, FitResult]:
    config = settings(**values)
    network = build_network(config, seed=1)
    result, _ = train_network(
        network, data, config, seed=1, device="cpu", checkpoints=Folder(str(checkpoints)), progress=lambda *_: None
    )
    return network, result


def test_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, again, other = (build_network(settings(), seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, again)
    assert not same(one, other)


def test_a_saved_network_proposes_the_same(tmp_path: Path) -> None:
    network = build_network(settings(), 0).eval()
    write_rpn_folder(Folder(str(tmp_path)), network.state_dict(), rpn_section(settings()))
    loaded = load_network(Folder(str(tmp_path)), settings())
    assert same(network, loaded)
    assert not loaded.training
    expected = network.propose(IMAGE, [(60, 80)], 100, 20, 0.7)[0]
    found = loaded.propose(IMAGE, [(60, 80)], 100, 20, 0.7)[0]
    assert len(found.boxes) > 5
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_weights_from_a_file(tmp_path: Path) -> None:
    network = build_network(settings(), 0)
    write_rpn_folder(Folder(str(tmp_path)), network.state_dict(), rpn_section(settings()))
    path = str(tmp_path / "rpn.safetensors")
    assert same(read(weights=path), network)
    assert same(read(weights=str(tmp_path)), network)
    with pytest.raises(ValueError, match=r"architecture: [1-9]\d* of another shape: .* Check .*rpn\.w"):
        read(weights=path, width=6)
    with pytest.raises(ValueError, match="of another shape"):
        load_network(Folder(str(tmp_path)), settings(anchor_sizes=[8, 16, 24]))
    state = weights(network)
    name = next(iter(state))
    state["surplus"] = state.pop(name)
    save_file(state, path)
    with pytest.raises(ValueError, match=rf"1 missing: {name}; 1 unknown: surplus"):
        read(weights=path)


def only_base(picture: Picture) -> Picture:
    """The picture with the same pixels, but no box that training must not see."""
    pairs = zip(picture.boxes, picture.labels, strict=True)
    kept = [(b, n) for i, (b, n) in enumerate(pairs) if n in BASE_IDS and i not in picture.crowd]
    drawn = picture.pixels()

    class Same(Picture):
        def pixels(self) -> Any:
            return drawn

    boxes, labels = tuple(b for b, _ in kept), tuple(n for _, n in kept)
    return Same(picture.height, picture.width, boxes, labels, status=picture.status)


def test_training_learns_nothing_from_novel_boxes_and_crowds(tmp_path: Path) -> None:
    """Bit for bit the network that the same pictures give where those boxes were never annotated."""
    everything = write_data(tmp_path / "all", {"train": TRAIN})
    base = write_data(tmp_path / "base", {"train": [[only_base(p) for p in shard] for shard in TRAIN]})
    moved = [[replace(p, boxes=tuple((x, y + 1, z, w) for x, y, z, w in p.boxes)) for p in s] for s in TRAIN]
    other = write_data(tmp_path / "moved", {"train": moved})
    network, result = trained(everything, tmp_path / "c0")
    assert result.steps == 4
    assert not network.training
    assert same(network, trained(base, tmp_path / "c1")[0])
    assert not same(network, trained(other, tmp_path / "c2")[0])


def test_training_finds_the_objects(tmp_path: Path) -> None:
    """One picture, one object: the loss falls, and the best proposal is on it."""
    picture = Picture(64, 64, ((20, 12, 44, 36),), (0,))
    assert (picture.pixels()[20, 30] == COLOURS[0]).all()
    data = write_data(tmp_path / "data", {"train": [[picture]]})
    config = {"steps": 40, "batch_size": 2, "anchor_sizes": [16, 24], "optim": {"lr": 0.01}}
    network, result = trained(data, tmp_path / "c", **config)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    pixels = torch.from_numpy(picture.pixels()).permute(2, 0, 1).float() / 255
    shape = (3, 1, 1)
    batch = ((pixels - torch.tensor(network.mean).view(shape)) / torch.tensor(network.std).view(shape))[None]
    best = network.propose(batch, [(64, 64)], 100, 1, 0.7)[0].boxes[0]
    torch.testing.assert_close(best, torch.tensor([20.0, 12, 44, 36]), atol=4.0, rtol=0)
