"""Proposal networks from elsewhere: official names there and back, torchvision's network beside torchvision's code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import GOLDEN
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from regionclip_core.config.tree import ProposalsConfig, RpnConfig
from regionclip_core.ops.image_batch import pixel_batch
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn import Proposals, select_proposals
from regionclip_core.proposals.rpn_folder import (
    find_rpn_folder,
    load_weights,
    official_section,
    open_network,
    read_rpn_weights,
    read_section,
    rpn_section,
    write_rpn_folder,
)
from regionclip_core.proposals.rpn_weights import backbone_of, from_official, from_torchvision, read_layout, to_official
from regionclip_core.storage.records import Folder

KEYS = json.loads((GOLDEN / "official_rpn_keys.json").read_text())
PRE_NMS, POST_NMS, NMS = 200, 60, 0.7


def official(backbone: str, offline: bool = True) -> dict[str, Tensor]:
    """A checkpoint's proposal branch; every entry a tensor of its own."""
    names = {name if offline else name.replace("offline_", ""): shape for name, shape in KEYS[backbone].items()}
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


# ---------------------------------------------------------------- official


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("backbone", KEYS)
def test_official_names_come_back_with_the_same_tensors(backbone: str, offline: bool) -> None:
    before = official(backbone, offline)
    ours = from_official(before)
    assert ours.keys() == ProposalNetwork(RpnConfig(backbone=backbone)).state_dict().keys()
    assert backbone_of(ours) == backbone
    after = to_official(ours, offline)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_networks_that_the_official_code_has_not_have_no_official_names() -> None:
    for backbone in ("small", "torchvision_fpn"):
        with pytest.raises(ValueError, match=rf"no proposal network like rpn\.backbone {backbone}"):
            to_official(ProposalNetwork(RpnConfig(backbone=backbone)).state_dict(), offline=True)


def test_read_layout_tells_whose_names_they_are_and_what_is_left() -> None:
    inside = official("resnet50_fpn") | {"backbone.conv1.weight": 0, "roi_heads.box_predictor.bbox_pred.bias": 0}
    found = read_layout(inside, "f")
    assert (found.backbone, found.layout) == ("resnet50_fpn", "official")
    assert found.left_over == ("backbone.conv1.weight", "roi_heads.box_predictor.bbox_pred.bias")
    bare = read_layout(official("resnet50_fpn_lsj", offline=False) | {"roi_heads.mask_head.x": 0}, "f")
    assert (bare.backbone, bare.left_over) == ("resnet50_fpn_lsj", ("roi_heads.mask_head.x",))
    again = read_layout(found.state, "f")
    assert (again.backbone, again.layout, again.left_over) == ("resnet50_fpn", "regionclip", ())
    with pytest.raises(ValueError, match=r"^a\.pth: no proposal branch: expected entries under proposal_generator"):
        read_layout({"visual.conv1.weight": torch.zeros(1)}, "a.pth")


# ---------------------------------------------------------------- torchvision


def scattered(model: FasterRCNN) -> FasterRCNN:
    """Weights with which proposals differ clearly: far apart in score and in size, norms that are no identity."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)
    head = model.eval().rpn.head
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 96, generator=generator)
        hidden = torch.cat([head.conv(x).flatten(2) for x in model.backbone(image).values()], dim=2)
        for layer, std in ((head.cls_logits, 2.0), (head.bbox_pred, 0.3)):
            layer.weight.normal_(generator=generator)
            outputs = layer.weight[:, :, 0, 0] @ hidden[0]
            layer.weight.mul_(std / outputs.std())
            layer.bias.copy_(-outputs.quantile(0.98, dim=1) * std / outputs.std() if std > 1 else layer.bias)
    return model


def settings(model: FasterRCNN) -> FasterRCNN:
    model.rpn._pre_nms_top_n["testing"], model.rpn._post_nms_top_n["testing"] = PRE_NMS, POST_NMS
    assert model.rpn.nms_thresh == NMS
    return model


def published() -> FasterRCNN:
    """Built as torchvision builds it for COCO_V1: frozen norms, whose epsilon it overwrites with 0."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    model = FasterRCNN(backbone, num_classes=91, min_size=70, max_size=1333)
    overwrite_eps(model, 0.0)
    return model


def untrained() -> FasterRCNN:
    """With batch norms, whose epsilon is torch's."""
    return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=70, max_size=1333)


def theirs(model: FasterRCNN, image: Tensor) -> tuple[Tensor, Tensor]:
    """torchvision's proposals and objectness of a uint8 image, by its own transform, backbone and RPN."""
    images, _ = model.transform([image.float() / 255])
    features = model.backbone(images.tensors)
    scores = []
    keep = model.rpn.filter_proposals

    def listening(*arguments: Any) -> Any:
        scores.append(keep(*arguments)[1][0])
        return keep(*arguments)

    model.rpn.filter_proposals = listening
    boxes, _ = model.rpn(images, features)
    return boxes[0], scores[0]


def ours(state: dict[str, Tensor], image: Tensor) -> Proposals:
    network = ProposalNetwork(RpnConfig(backbone="torchvision_fpn")).eval()
    network.load_state_dict(from_torchvision(state))
    batch = pixel_batch([image], 70, 1333, network.mean, network.std).to("cpu")
    return network.propose(batch.tensor, batch.sizes, PRE_NMS, POST_NMS, NMS)[0]


@pytest.mark.parametrize("build", [published, untrained])
def test_torchvisions_network_proposes_the_same_boxes(build: Callable[[], FasterRCNN]) -> None:
    """On an image whose padded sides are 3 x 32 and 5 x 32: the coarsest map, of odd size, has other strides."""
    torch.manual_seed(0)
    model = settings(scattered(build()))
    image = torch.randint(0, 256, (3, 70, 130), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores = theirs(model, image)
    found = ours(model.state_dict(), image)
    assert len(boxes) == POST_NMS
    assert float(scores.std()) > 0.02
    torch.testing.assert_close(found.boxes, boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.logits.sigmoid(), scores, atol=1e-5, rtol=0)


def test_anchors_are_torchvisions_on_every_level() -> None:
    model = untrained()
    network = ProposalNetwork(RpnConfig(backbone="torchvision_fpn")).rpn
    for height, width in ((96, 160), (800, 1216), (32, 64)):
        images = type("Images", (), {"tensors": torch.empty(1, 3, height, width), "image_sizes": [(height, width)]})
        shapes = [(height // s, width // s) for s in (4, 8, 16, 32)]
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
        expected = model.rpn.anchor_generator(images, [torch.empty(1, 1, *shape) for shape in shapes])[0]
        assert torch.equal(torch.cat(network.layout.anchors(shapes)), expected)


def test_selection_drops_boxes_that_torchvision_calls_small() -> None:
    """A box of half a thousandth of a pixel: the official network keeps it, torchvision doesn't."""
    anchors = [torch.tensor([[10.0, 10, 20, 20], [30, 30, 30.0005, 40]])]
    logits, deltas = [torch.tensor([[1.0, 2]])], [torch.zeros(1, 2, 4)]
    kept = [select_proposals(anchors, logits, deltas, [(50, 50)], 9, 9, 0.7, side)[0] for side in (0.0, 1e-3)]
    assert [proposals.logits.tolist() for proposals in kept] == [[2.0, 1.0], [1.0]]
    assert ProposalNetwork(RpnConfig(backbone="torchvision_fpn")).rpn.min_side == 1e-3
    assert ProposalNetwork(RpnConfig(backbone="resnet50_fpn")).rpn.min_side == 0


def test_older_torchvision_names_are_read_and_the_heads_are_left_over() -> None:
    """Published files name the convolutions of pyramid and head without an index; torchvision renames as it loads."""
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=70)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    old = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if name.startswith(("backbone.fpn", "rpn.head.conv")) else name: tensor
        for name, tensor in state.items()
    }  # fmt: skip
    assert "backbone.fpn.inner_blocks.3.weight" in old and "rpn.head.conv.weight" in old
    model.load_state_dict(old, strict=True)  # torchvision's own reader knows them too
    one, other = read_layout(state, "new"), read_layout(old, "old")
    assert (
        one.state.keys() == other.state.keys() == ProposalNetwork(RpnConfig(backbone=one.backbone)).state_dict().keys()
    )
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert other.left_over == tuple(sorted(name for name in old if name.startswith("roi_heads.")))
    assert other.layout == "torchvision"
    assert torch.equal(one.state["backbone.body.bn1.running_var"], state["backbone.body.bn1.running_var"])


def test_trained_batch_norms_keep_their_epsilon() -> None:
    variance = torch.tensor([1e-6, 1.0])
    state = {"backbone.body.bn1.running_var": variance, "rpn.head.cls_logits.bias": torch.zeros(3)}
    frozen = from_torchvision(state)["backbone.body.bn1.running_var"]
    assert frozen is variance
    counted = from_torchvision(state | {"backbone.body.bn1.num_batches_tracked": torch.tensor(7)})
    assert torch.equal(counted["backbone.body.bn1.running_var"].rsqrt(), (variance + 1e-5).rsqrt())
    assert "backbone.body.bn1.num_batches_tracked" not in counted


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone.fpn.inner_blocks.0.1.running_mean", "rpn.head.cls_logits.bias"], "not of a version 2"),
        (["rpn.head.conv.1.0.weight", "rpn.head.cls_logits.bias"], "not of a version 2"),
        (["backbone.body.0.0.weight", "rpn.head.cls_logits.bias"], "of another backbone"),
        (["rpn.head.conv.0.0.bias", "backbone.body.conv1.weight"], "no proposal network of torchvision"),
    ],
)
def test_other_torchvision_networks_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_layout({name: torch.zeros(1) for name in names}, "file")


# ---------------------------------------------------------------- folders and files


def small(**values: Any) -> tuple[RpnConfig, ProposalNetwork]:
    config = RpnConfig(width=4, image_size=64, anchor_sizes=(8, 16), **values)
    torch.manual_seed(0)
    return config, ProposalNetwork(config).eval()


def test_a_folder_has_all_that_rebuilds_and_runs_a_network(tmp_path: Path) -> None:
    config, network = small()
    run = ProposalsConfig(splits=("x",), pre_nms=77, nms=0.6, max_regions=9, min_objectness=0.25)
    write_rpn_folder(Folder(str(tmp_path / "a")), network.state_dict(), rpn_section(config, run))
    loaded, rpn, proposals = open_network(str(tmp_path / "a"))
    assert rpn_section(rpn, proposals) == rpn_section(config, run)
    assert (rpn.width, rpn.image_size, rpn.anchor_sizes) == (4, 64, (8, 16))
    assert (proposals.pre_nms, proposals.nms, proposals.max_regions, proposals.min_objectness) == (77, 0.6, 9, 0.25)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    write_rpn_folder(Folder(str(tmp_path / "b")), network.state_dict(), rpn_section(config))
    _, _, official_run = open_network(str(tmp_path / "b"))
    assert (official_run.pre_nms, official_run.nms, official_run.max_regions) == (1000, 0.7, 1000)


def test_published_networks_run_as_the_official_configurations_do() -> None:
    expected = {"backbone": "resnet50_c4", "image_size": 800, "max_size": 1333, "pre_nms": 6000, "nms": 0.7}
    found = official_section("resnet50_c4")
    assert {name: found[name] for name in expected} == expected
    assert official_section("resnet50_fpn")["pre_nms"] == 1000
    with pytest.raises(ValueError, match=r"rpn\.json: expected the settings .* got \['pre_nsm'\]"):
        read_section({"backbone": "small", "pre_nsm": 3}, "rpn.json")


def test_weights_are_read_from_folders_and_files_of_any_naming(tmp_path: Path) -> None:
    config, network = small()
    pretrained = tmp_path / "pretrained"
    write_rpn_folder(Folder(str(pretrained / "rpn")), network.state_dict(), rpn_section(config))
    assert find_rpn_folder(str(pretrained)) is not None
    assert find_rpn_folder(str(tmp_path)) is None
    for place in (pretrained, pretrained / "rpn", pretrained / "rpn" / "rpn.safetensors"):
        assert read_rpn_weights(str(place)).backbone == "small"
    save_file({"proposal_generator.rpn_head.conv.bias": torch.zeros(2)}, tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match=r"o\.safetensors: no backbone of a proposal network"):
        read_rpn_weights(str(tmp_path / "o.safetensors"))
    with pytest.raises(ValueError, match=r"no folder of a proposal network: expected rpn\.json or rpn/rpn\.json"):
        read_rpn_weights(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_rpn_weights(str(tmp_path / "nowhere.pth"))


def test_another_kind_of_network_names_the_backbone_to_set(tmp_path: Path) -> None:
    state = {"backbone.body.bn1.bias": torch.zeros(1), "rpn.head.cls_logits.bias": torch.zeros(3)}
    torch.save({"model": state}, tmp_path / "t.pth")
    config, network = small(weights=str(tmp_path / "t.pth"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"t\.pth holds a torchvision_fpn .* set rpn\.backbone: torchvision_fpn"):
        load_weights(network, config)
    right = config.model_copy(update={"backbone": "torchvision_fpn"})
    with pytest.raises(ValueError, match=r"t\.pth: the weights don't fit the .*: \d+ missing: .* Check rpn\.backbone"):
        load_weights(ProposalNetwork(right), right)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
