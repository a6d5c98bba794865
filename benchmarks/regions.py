"""Region encoding against the official code's way: from `res4`, and with the backbone."""

from __future__ import annotations

import torch
from made_inputs import Scale, make_boxes, make_clip, make_image
from measuring import Compared, compare
from plain_reference import PlainEncoder

from regionclip_core.models.towers import region_encoder


@torch.inference_mode()
def compare_regions(scale: Scale) -> list[Compared]:
    """Return a row per number of boxes from `res4`, and one with the backbone for the first of them."""
    clip, image, found = make_clip(scale.toy), make_image(scale), []
    plain = PlainEncoder(clip.model.visual)
    ours = region_encoder(clip).to(memory_format=torch.channels_last).eval()
    res4 = plain.features(image)
    image_last, res4_last = (x.contiguous(memory_format=torch.channels_last) for x in (image, res4))
    ours(image_last, [make_boxes(2, scale.height, scale.width)])  # what is made once is made
    for count in scale.regions:
        boxes = [make_boxes(count, scale.height, scale.width)]
        row, *_ = compare(
            f"region encoding from res4, {count} boxes",
            lambda boxes=boxes: plain.embed(res4, boxes),
            lambda boxes=boxes: ours.embed(res4_last, boxes),
            scale.rounds,
        )
        found.append(row)
    boxes = [make_boxes(scale.regions[0], scale.height, scale.width)]
    row, *_ = compare(
        f"backbone and {scale.regions[0]} boxes",
        lambda: plain(image, boxes),
        lambda: ours(image_last, boxes),
        scale.rounds,
    )
    return [*found, row]
