"""The proposal network as a whole, and the pattern proposers."""

import torch

from regionclip_core.config.tree import RpnConfig
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.proposers import random_boxes
from regionclip_core.proposals.recall import covered


def rectangles(n, seed, side=64):
    """Grey images [n, 3, side, side] with one or two brighter rectangles, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    images, boxes = torch.zeros(n, 3, side, side) + 0.1 * torch.randn(n, 3, side, side, generator=generator), []
    for image in images:
        found = []
        for half in range(int(torch.randint(1, 3, (1,), generator=generator))):
            w, h = torch.randint(12, 27, (2,), generator=generator).tolist()
            x = int(torch.randint(0, side - w, (1,), generator=generator))
            y = int(torch.randint(0, side // 2 - h + 1, (1,), generator=generator)) + half * side // 2
            image[:, y : y + h, x : x + w] += 1.0 + torch.rand(3, 1, 1, generator=generator)
            found.append([x, y, x + w, y + h])
        boxes.append(torch.tensor(found, dtype=torch.float32))
    return images, boxes


def test_small_network_learns_to_propose():
    torch.manual_seed(0)
    network = ProposalNetwork(RpnConfig(width=8, anchor_sizes=(12, 20, 32))).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    images, boxes = rectangles(64, seed=1)
    test_images, test_boxes = rectangles(16, seed=2)

    def score():
        found = network.eval().propose(test_images, [(64, 64)] * 16, 200, 20, 0.7)
        hits = [covered(one.boxes, boxes)["recall@10"] for one, boxes in zip(found, test_boxes, strict=True)]
        return sum(hits) / sum(map(len, test_boxes))

    before = score()
    generator = torch.Generator().manual_seed(0)
    for step in range(60):
        network.train()
        rows = [(step * 16 + i) % 64 for i in range(16)]
        losses = network.rpn.losses(network.backbone(images[rows]), [boxes[i] for i in rows], generator)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert before < 0.6
    assert score() > 0.9


def test_proposals_are_sorted_clipped_to_the_unpadded_image_and_limited():
    torch.manual_seed(0)
    network = ProposalNetwork(RpnConfig(width=8)).eval()
    found = network.propose(torch.randn(2, 3, 64, 80), [(64, 80), (50, 60)], 1000, 30, 0.7)
    for (height, width), proposals in zip([(64, 80), (50, 60)], found, strict=True):
        assert len(proposals.boxes) == 30
        assert (proposals.logits.diff() <= 0).all()
        assert box_ops.clip(proposals.boxes, (height, width)).equal(proposals.boxes)
        overlap = box_ops.iou(proposals.boxes, proposals.boxes).fill_diagonal_(0)
        assert overlap.max() <= 0.7


def test_padding_moves_no_anchor_and_holds_no_proposal():
    torch.manual_seed(0)
    network = ProposalNetwork(RpnConfig(backbone="resnet50_c4")).eval()
    image = torch.randn(1, 3, 96, 96)
    alone = network.propose(image, [(96, 96)], 50, 5, 0.7)[0]
    padded = torch.zeros(1, 3, 96, 224)
    padded[..., :96] = image
    [anchors] = network.rpn.layout.anchors([(6, 14)])
    assert anchors.view(6, 14, -1, 4)[:, :6].reshape(-1, 4).equal(network.rpn.layout.anchors([(6, 6)])[0])
    with_padding = network.propose(padded, [(96, 96)], 50, 5, 0.7)[0]
    assert (with_padding.boxes <= 96).all()
    assert len(alone.boxes) == len(with_padding.boxes) == 5


def test_grid_covers_the_image_and_respects_the_limit():
    boxes = box_ops.grid_boxes(120, 80, (0.25, 0.5), max_boxes=1000)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sorted(set(sides.flatten().tolist())) == [20, 40]
    assert (sides[:, 0] == sides[:, 1]).all()
    assert box_ops.clip(boxes, (80, 120)).equal(boxes)
    for side in (20, 40):
        covered = torch.zeros(80, 120, dtype=torch.bool)
        for x1, y1, x2, y2 in boxes[sides[:, 0] == side].round().long().tolist():
            covered[y1:y2, x1:x2] = True
        assert covered.all()
    few = box_ops.grid_boxes(120, 80, (0.25, 0.5), max_boxes=7)
    assert len({tuple(b) for b in few.tolist()}) == 7


def test_random_boxes_stay_inside_and_between_the_scales():
    boxes = random_boxes(120, 80, (0.2, 0.5), 500, torch.Generator().manual_seed(0)).boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    assert box_ops.clip(boxes, (80, 120)).equal(boxes)
    assert sides.min() >= 16 - 1e-3
    assert sides.max() <= 40 + 1e-3
    again = random_boxes(120, 80, (0.2, 0.5), 500, torch.Generator().manual_seed(0)).boxes
    assert boxes.equal(again)
