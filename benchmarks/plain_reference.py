"""The official code's way to compute, plainly put together from open_clip's and torchvision's modules.

What it computes is in docs/official.md. Nothing is saved that the official code does not save: memory in NCHW, norms by
themselves, RoIAlign before all of stage 4, every token a query of the attention pool, soft-NMS pair by pair in Python.

Shapes: R regions (all images together), C concepts, D embedding, K categories, P pairs of box and category.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, roi_align

from regionclip_core.detection.inference import BOX_WEIGHTS
from regionclip_core.ops.boxes import clip, decode

TEMPERATURE = 0.01


class PlainEncoder(nn.Module):
    """A CLIP ResNet on regions; batch norms are frozen."""

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = copy.deepcopy(visual).eval().requires_grad_(True)
        for module in self.visual.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        for part in (self.visual.conv1, self.visual.conv2, self.visual.conv3, self.visual.layer1):
            part.requires_grad_(False)  # FREEZE_AT 2

    def features(self, images: Tensor) -> Tensor:
        """Return `res4` of images [B, 3, H, W]."""
        visual = self.visual
        return visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))

    def embed(self, res4: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return the embeddings [R, D] of boxes in input pixels."""
        side = self.visual.image_size // 16
        aligned = roi_align(res4, list(boxes), side, spatial_scale=1 / 16, sampling_ratio=0, aligned=True)
        return self.visual.attnpool(self.visual.layer4(aligned))

    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return the embeddings [R, D]."""
        return self.embed(self.features(images), boxes)


def cosines(features: Tensor, embeddings: Tensor) -> Tensor:
    """Return [R, C] cosines over the temperature."""
    return F.normalize(features, dim=1) @ F.normalize(embeddings, dim=1).T / TEMPERATURE


def pretraining_losses(
    teacher_RC: Tensor, student: Tensor, concepts: Tensor, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return contrast, distillation and image-text loss, as the official pretraining writes them, of kept regions.

    `teacher_RC`: the teacher's probabilities; `student` [R, D]; `concepts` [C, D]; `images` and `texts` [B, D].
    """
    concept = teacher_RC.argmax(dim=1)
    distill = F.kl_div(cosines(student, concepts).softmax(dim=1).log(), teacher_RC, reduction="batchmean")
    # One column per region: the embedding of its concept.
    scores = cosines(student, concepts[concept]).exp()
    same = concept[:, None] == concept[None, :]
    contrast = -((scores * same).sum(dim=1) / scores.sum(dim=1)).log().mean()
    logits, target = cosines(images, texts), torch.arange(len(images))
    return contrast, distill, (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def detect(
    logits: Tensor, deltas: Tensor, proposals: Tensor, size: tuple[int, int], threshold: float, soft: bool
) -> Tensor:
    """Return the scores of one image's 100 best detections, falling.

    Args:
        logits: [R, K + 1], background last.
        deltas: [R, 4].
        size: (height, width).
        threshold: pairs of box and category need a score above.
        soft: the gaussian soft-NMS instead of the hard one.
    """
    boxes = clip(decode(proposals, deltas, BOX_WEIGHTS), size)
    scores = logits.softmax(dim=1)[:, :-1]
    return suppress(boxes, scores, threshold, soft)


def suppress(boxes: Tensor, scores: Tensor, threshold: float, soft: bool) -> Tensor:
    """Return the 100 best scores after NMS per category of boxes [R, 4] with scores [R, K]."""
    row, label = (scores > threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[row], scores[row, label]
    found = soft_nms(boxes, scores, label) if soft else scores[batched_nms(boxes, scores, label, 0.5)]
    return found[:100]


def soft_nms(boxes: Tensor, scores: Tensor, labels: Tensor, sigma: float = 0.5, prune: float = 0.001) -> Tensor:
    """Return all picked scores of P pairs, falling: pick the best, lower its neighbours, until every pair is gone."""
    boxes = boxes + (labels * (boxes.max() + 1))[:, None].to(boxes.dtype)  # categories don't overlap
    picked = []
    while len(scores):
        best = int(scores.argmax())
        picked.append(scores[best].clone())
        overlap = box_iou(boxes[best : best + 1], boxes)[0]
        scores = scores * torch.exp(-(overlap**2) / sigma)
        scores[best] = 0.0
        alive = scores > prune
        boxes, scores = boxes[alive], scores[alive]
    return torch.stack(picked)
