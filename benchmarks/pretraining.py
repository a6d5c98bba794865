"""A pretraining step from artifacts against one with proposals, teacher and text encoder inside, as the official one.

Both are forward and backward of one image, with its caption, from the same weights; the optimiser is in neither. The
concepts' embeddings are given in both: the official code reads them from a file, too. All regions are kept in both,
though the official step computes those of low probability as well, which no pair holds.
"""

from __future__ import annotations

import torch
from made_inputs import Scale, make_boxes, make_clip, make_config, make_embeddings, make_image
from measuring import Compared, compare
from plain_reference import PlainEncoder, cosines, pretraining_losses
from torch import Tensor, nn

from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import ImageBatch
from regionclip_core.pretraining.pseudo_labels import pseudo_labels
from regionclip_core.pretraining.student import RegionBatch, RegionPretrainer
from regionclip_core.proposals.network import build_network

CAPTION = ["a man on a wave on top of a surfboard"]


def gradient(visual: nn.Module) -> Tensor:
    """Return the gradient of the first trained convolution, and clear all."""
    weight = visual.get_parameter("layer2.0.conv1.weight")
    found, _ = weight.grad.clone(), visual.zero_grad(set_to_none=True)
    return found


def compare_pretraining(scale: Scale) -> list[Compared]:
    """Return one row; what is compared is a gradient of the first stage that is trained.

    All probabilities of the pool are stored, so that both have the same losses. The teacher's last layer is another, or
    nothing would be left to learn.
    """
    clip, image, count = make_clip(scale.toy), make_image(scale), scale.regions[0]
    config = make_config(scale)
    size = (scale.height, scale.width)
    boxes, whole = make_boxes(count, *size), image.new_tensor([[0, 0, scale.width, scale.height]])
    concepts = make_embeddings(scale.concepts)
    teacher, student = PlainEncoder(clip.model.visual), PlainEncoder(clip.model.visual)
    teacher.visual.attnpool.c_proj.weight.data.copy_(make_embeddings(*teacher.visual.attnpool.c_proj.weight.shape))
    network = build_network(config.rpn, 0).eval()

    def plain() -> Tensor:
        with torch.no_grad():
            network.propose(image, [size], pre_nms=1000, post_nms=300, nms=0.5)  # untrained: its boxes are not used
            teacher_RC = cosines(teacher(image, [boxes]), concepts).softmax(dim=1)
            texts = clip.model.encode_text(clip.tokenizer(CAPTION))
        res4 = student.features(image)
        regions, images = student.embed(res4, [boxes]), student.embed(res4, [whole])
        losses = pretraining_losses(teacher_RC, regions, concepts, images, texts)
        sum(losses).backward()
        return gradient(student.visual)

    with torch.no_grad():
        labels = pseudo_labels(teacher(image, [boxes]), concepts, 0.01, 0.0, top_k=scale.concepts)
    batch = RegionBatch(
        images=ImageBatch(image.contiguous(memory_format=torch.channels_last), [size], [size]),
        boxes=[boxes],
        concept_id_R=labels.concept_id,
        top_concepts_RK=labels.top_concepts,
        top_probabilities_RK=labels.top_probabilities,
        residual_mass_R=labels.residual_mass,
        captions=CAPTION,
        score_R=labels.score,
    )
    encoder = region_encoder(clip).to(memory_format=torch.channels_last)
    encoder.freeze(config.pretrain.freeze_at)
    trainer = RegionPretrainer(encoder.train(), clip, concepts, 0.01, config.pretrain)

    def ours() -> Tensor:
        losses = trainer(batch)
        sum(losses.values()).backward()
        return gradient(encoder)

    return [compare(f"pretraining step, {count} regions", plain, ours, scale.rounds)[0]]
