"""Anchors, head, selection and losses of the RPN: official outputs, torchvision's losses, naive loops."""

import json

import numpy as np
import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from torch.nn import functional as F

from regionclip_core.config.tree import RpnConfig
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.image_batch import ImageBatch, pixel_batch
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn import AnchorLayout, RegionProposalNetwork, RpnSampling, select_proposals
from regionclip_core.proposals.rpn_weights import from_official
from regionclip_core.training.boxed_images import BoxBatch

GOLDEN = np.load(GOLDEN_FOLDER / "rpn.npz")
BACKBONES = {"c4": "resnet50_c4", "fpn": "resnet50_fpn", "fpn_lsj": "resnet50_fpn_lsj"}
LEVELS = {"c4": ["res4"], "fpn": ["p2", "p3", "p4", "p5", "p6"], "fpn_lsj": ["p2", "p3", "p4", "p5", "p6"]}
VARIANTS = [
    ("c4", "nms0.7", 6000, 1000, 0.7),
    ("c4", "nms0.9", 6000, 1000, 0.9),
    ("c4", "nms0.5", 6000, 1000, 0.5),
    ("c4", "nms0.5_pre400_post50", 400, 50, 0.5),
    ("fpn", "nms0.7", 1000, 1000, 0.7),
    ("fpn", "nms0.9_post300", 1000, 300, 0.9),
    ("fpn_lsj", "nms0.9", 200, 1000, 0.9),
]


def golden(name):
    return torch.from_numpy(GOLDEN[name])


@pytest.fixture(scope="module")
def networks():
    """The RPN of each official configuration, with the narrow head that the golden files hold."""
    made = {}
    for name, backbone in BACKBONES.items():
        full = ProposalNetwork(RpnConfig(backbone=backbone)).rpn
        channels = golden(f"{name}/feat/{LEVELS[name][0]}").shape[1]
        rpn = RegionProposalNetwork(channels, full.layout, head_depth=len(full.head.convs))
        prefix = f"{name}/w/"
        weights = {k.removeprefix(prefix): golden(k) for k in GOLDEN.files if k.startswith(prefix)}
        renamed = from_official({f"proposal_generator.{k}": v for k, v in weights.items()})
        rpn.load_state_dict({k.removeprefix("rpn."): v for k, v in renamed.items()})
        made[name] = rpn.eval()
    return made


def features(name):
    return [golden(f"{name}/feat/{level}") for level in LEVELS[name]]


@pytest.mark.parametrize("name", BACKBONES)
def test_anchors_and_head_outputs(networks, name):
    with torch.no_grad():
        anchors, logits, deltas = networks[name](features(name))
    for level in range(len(LEVELS[name])):
        torch.testing.assert_close(anchors[level], golden(f"{name}/anchors{level}"), atol=1e-4, rtol=0)
        expected = golden(f"{name}/raw_logits{level}").permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(logits[level], expected, atol=1e-5, rtol=1e-5)
        raw = golden(f"{name}/raw_deltas{level}")
        expected = raw.view(2, -1, 4, *raw.shape[2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 4)
        torch.testing.assert_close(deltas[level], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "variant", "pre_nms", "post_nms", "nms"), VARIANTS)
def test_selected_proposals(networks, name, variant, pre_nms, post_nms, nms):
    sizes = [tuple(size) for size in golden(f"{name}/image_sizes").tolist()]
    with torch.no_grad():
        found = networks[name].propose(features(name), sizes, pre_nms, post_nms, nms)
    for image, proposals in enumerate(found):
        boxes = golden(f"{name}/{variant}/boxes{image}")
        assert proposals.boxes.shape == boxes.shape
        torch.testing.assert_close(proposals.boxes, boxes, atol=2e-3, rtol=0)
        logits = golden(f"{name}/{variant}/objectness_logits{image}")
        torch.testing.assert_close(proposals.logits, logits, atol=1e-4, rtol=0)


def test_selection_drops_non_finite_and_empty_boxes():
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [200, 200, 210, 210], [40, 40, 50, 50]])
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 1, 0] = float("nan")
    found = select_proposals([anchors], [torch.tensor([[1.0, 4, 3, 2]])], [deltas], [(100, 100)], 10, 10, 0.7)[0]
    assert found.boxes.tolist() == [[40, 40, 50, 50], [0, 0, 10, 10]]
    assert found.logits.tolist() == [2, 1]


@pytest.mark.parametrize("name", BACKBONES.values())
def test_official_names_cover_the_network(name):
    shapes = json.loads((GOLDEN_FOLDER / "official_rpn_keys.json").read_text())[name]
    official = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    own = {key: value.shape for key, value in ProposalNetwork(RpnConfig(backbone=name)).state_dict().items()}
    assert {key: value.shape for key, value in from_official(official).items()} == own
    bare = {key.replace("offline_", ""): value for key, value in official.items()}
    assert from_official(bare).keys() == own.keys()


def test_official_names_that_are_missing_or_unknown_are_refused():
    with pytest.raises(ValueError, match="no proposal branch"):
        from_official({"backbone.stem.conv1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"res2\.0\.conv9x"):
        from_official({"backbone.res2.0.conv9x.weight": 0, "proposal_generator.rpn_head.conv.bias": 0})


@pytest.mark.parametrize("name", ["resnet50_c4", "resnet50_fpn"])
def test_resnet_gets_what_the_official_branch_gets(name):
    network = ProposalNetwork(RpnConfig(backbone=name)).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    batch = pixel_batch([image], 70, 1333, network.mean, network.std).to("cpu")
    seen = []
    network.backbone.resnet.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        maps = network.backbone(batch.tensor)
    bgr_mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    expected = image.flip(0).float() - bgr_mean
    torch.testing.assert_close(seen[0][0, :, :70, :90], expected, atol=1e-3, rtol=0)
    if name == "resnet50_fpn":
        assert seen[0].shape[-2:] == (96, 96)
        assert not seen[0][0, :, 70:].any()
        assert [tuple(m.shape[-2:]) for m in maps] == [(24, 24), (12, 12), (6, 6), (3, 3), (2, 2)]
    else:
        assert [tuple(m.shape) for m in maps] == [(1, 1024, 5, 6)]
    first = network.backbone.resnet.layer2[0]
    assert (first.conv1.stride, first.conv2.stride) == ((2, 2), (1, 1))


def test_pyramid_is_the_sum_of_laterals_and_upsampled_coarser_maps():
    backbone = ProposalNetwork(RpnConfig(backbone="resnet50_fpn")).backbone.eval()
    bottom_up = {}
    for stage in range(1, 5):
        getattr(backbone.resnet, f"layer{stage}").register_forward_hook(
            lambda _, args, out, stage=stage: bottom_up.__setitem__(stage, out)
        )
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96) * 60)
        inner, expected = None, []
        for stage in (4, 3, 2, 1):
            lateral = backbone.fpn.inner_blocks[stage - 1](bottom_up[stage])
            if inner is not None:
                lateral = lateral + inner.repeat_interleave(2, -1).repeat_interleave(2, -2)
            inner = lateral
            expected.insert(0, backbone.fpn.layer_blocks[stage - 1](inner))
        expected.append(expected[-1][..., ::2, ::2])
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def naive_losses(rpn, maps, truth):
    """Every foreground and background anchor of the layout, one at a time; no sampling."""
    anchors, logits, deltas = (torch.cat(x, dim=min(x[0].ndim - 2, 1)) for x in rpn(maps))
    objectness, box, count = torch.zeros(()), torch.zeros(()), 0
    for image, image_truth in enumerate(truth):
        overlap = box_ops.iou(image_truth, anchors)
        for n, anchor in enumerate(anchors):
            best = overlap[:, n].max() if len(image_truth) else torch.tensor(0.0)
            is_best = len(image_truth) and (overlap[:, n] == overlap.max(dim=1).values).any() and best > 0
            if best >= 0.7 or is_best:
                row = overlap[:, n].argmax()
                wanted = box_ops.encode(anchor[None], image_truth[row][None], (1.0, 1.0, 1.0, 1.0))[0]
                box = box + (deltas[image, n] - wanted).abs().sum()
                objectness = objectness - F.logsigmoid(logits[image, n])
            elif best < 0.3:
                objectness = objectness - F.logsigmoid(-logits[image, n])
            else:
                continue
            count += 1
    return objectness / count, box / count


def test_losses_match_a_naive_loop_when_everything_is_sampled():
    torch.manual_seed(0)
    layout = AnchorLayout((8,), ((12.0, 20.0),))
    # Enough draws for all anchors, and no cap on the foreground.
    rpn = RegionProposalNetwork(4, layout, sampling=RpnSampling(anchors_per_image=10_000, positive_fraction=1.0))
    maps = [torch.randn(2, 4, 5, 6)]
    truth = [torch.tensor([[3.0, 4, 20, 17], [20, 10, 33, 30]]), torch.zeros(0, 4)]
    losses = rpn.losses(maps, truth)
    objectness, box = naive_losses(rpn, maps, truth)
    torch.testing.assert_close(losses["loss_objectness"], objectness)
    torch.testing.assert_close(losses["loss_rpn_box"], box)


def test_losses_repeat_by_seed_and_reach_every_parameter():
    torch.manual_seed(0)
    network = ProposalNetwork(RpnConfig(width=8)).train()
    images = torch.randn(2, 3, 64, 64)
    boxes, none = [torch.tensor([[10.0, 10, 30, 28]]), torch.zeros(0, 4)], [torch.zeros(0)] * 2

    def losses(seed):
        return network(BoxBatch(ImageBatch(images, [(64, 64)] * 2, [(64, 64)] * 2), boxes, none, none, [seed] * 2))

    first, again, other = losses(1), losses(1), losses(2)
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in again.items()}
    assert first["loss_objectness"].item() != other["loss_objectness"].item()
    torch.stack(list(first.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
