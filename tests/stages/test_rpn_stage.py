"""The rpn stage with weights from elsewhere: what counts for the fingerprint, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import small_config

from regionclip_core.config.tree import RpnConfig
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import open_network, rpn_section, write_rpn_folder
from regionclip_core.proposals.rpn_weights import to_official
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES
from stages.rpn import WORK


def run(tmp_path: Path, weights: Path | str, **rpn: object) -> tuple[dict[str, object], Folder]:
    config = small_config(tmp_path / "ws", proposals={"method": "rpn"}, rpn={"weights": str(weights), **rpn})
    assert STAGES["rpn"].needs(config) == ()
    out = Folder(str(tmp_path / "out"))
    return WORK.run(StageContext(config, out, {})), out


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, ProposalNetwork]:
    """A network of another seed as an RPN folder inside a pretrained folder."""
    torch.manual_seed(5)
    config = RpnConfig(width=4, image_size=64, anchor_sizes=(8, 16))
    network = ProposalNetwork(config)
    write_rpn_folder(Folder(str(tmp_path / "pretrained" / "rpn")), network.state_dict(), rpn_section(config))
    return tmp_path / "pretrained", network


def test_weights_of_a_folder_are_taken_and_its_files_count(tmp_path: Path, small: tuple[Path, ProposalNetwork]) -> None:
    folder, network = small
    files = [f"{folder}/rpn/rpn.json", f"{folder}/rpn/rpn.safetensors"]
    for place in (folder, folder / "rpn"):
        config = small_config(tmp_path / "ws", proposals={"method": "rpn"}, rpn={"weights": str(place)})
        assert STAGES["rpn"].raw_inputs(config) == files
        summary, out = run(tmp_path, place)
        assert summary["names"] == "regionclip" and summary["left_over"] == {}
        loaded, settings, _ = open_network(out.url)
        assert settings.image_size == 64
        state = network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    for config in (
        small_config(tmp_path / "ws", proposals={"method": "grid"}, rpn={"weights": str(folder)}),
        small_config(tmp_path / "ws", proposals={"method": "rpn"}, rpn={"weights": "random"}),
    ):
        assert STAGES["rpn"].raw_inputs(config) == []


def test_an_official_file_is_read_as_it_is(tmp_path: Path, small: tuple[Path, ProposalNetwork]) -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(RpnConfig(backbone="resnet50_c4"))
    state = to_official(network.state_dict(), offline=False) | {"roi_heads.box_head.fc1.bias": torch.zeros(3)}
    file = tmp_path / "rpn.pth"
    torch.save({"model": state, "iteration": 7}, file)
    with pytest.raises(ValueError, match=r"holds a resnet50_c4 network .* set rpn\.backbone: resnet50_c4"):
        run(tmp_path, file)
    assert not Path(tmp_path / "out").exists()
    summary, out = run(tmp_path, file, backbone="resnet50_c4")
    assert (summary["names"], summary["matched"], summary["left_over"]) == ("official", 221, {"roi_heads": 1})
    written = json.loads((tmp_path / "out" / "rpn.json").read_text())
    assert written["backbone"] == "resnet50_c4" and written["format"] == 1
    loaded = open_network(out.url)[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    direct, _, proposals = open_network(str(file))
    assert torch.equal(direct.rpn.head.objectness.weight, network.rpn.head.objectness.weight)
    assert (proposals.pre_nms, proposals.max_regions) == (6000, 1000)
    config = small_config(tmp_path / "ws", proposals={"method": "rpn"}, rpn={"weights": str(file)})
    assert STAGES["rpn"].raw_inputs(config) == [str(file)]
