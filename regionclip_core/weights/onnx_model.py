"""A detector's region encoder and head as one ONNX graph, for programs without PyTorch.

The graph has what a network without our fast paths computes (no folded norms, no Winograd, RoIAlign as one operator),
which is the same up to rounding. It has no proposal network, no mask head and no text encoder: boxes and the embeddings
of names are inputs.

Shapes: B images of (H, W) pixels, R regions, K names, D embedding.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
import torchvision.ops
from jinja2 import Template
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from regionclip_core.detection.inference import BOX_WEIGHTS
from regionclip_core.detection.model_folder import CARD
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.models.resnet_encoder import ResNetEncoder
from regionclip_core.models.vit_encoder import VitEncoder
from regionclip_core.ops import boxes as box_ops
from regionclip_core.storage.folder import Folder

GRAPH, DESCRIPTION, EMBEDDINGS = "regions.onnx", "description.json", "embeddings.safetensors"
INPUTS, OUTPUTS = ("pixels", "boxes", "names"), ("features", "scores", "refined")
TEMPLATE = Path(__file__).with_name("onnx_card.md")


class RegionGraph(nn.Module):
    """A detector in plain operators; what the inputs and outputs are is in onnx_card.md."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: RegionModel) -> None:
        super().__init__()
        self.detector = model.detector
        self.register_buffer("mean", torch.tensor(model.preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(model.preprocess.std).view(3, 1, 1))

    def forward(self, pixels: Tensor, boxes: Tensor, names: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features [R, D], scores [R, K + 1] and refined boxes [R, 4].

        Args:
            pixels: uint8[B, 3, H, W]; boxes: [R, 5], number of the image and xyxy; names: [K, D].
        """
        encoder = self.detector.encoder
        images = (pixels.float() / 255 - self.mean) / self.std
        maps = _resnet_maps(encoder, images) if isinstance(encoder, ResNetEncoder) else _patches(encoder, images)
        aligned = torchvision.ops.roi_align(
            maps, boxes, encoder.roi_size, 1 / encoder.stride, encoder.sampling_ratio, aligned=True
        )
        embeddings = encoder.pool(encoder.layer4(aligned) if isinstance(encoder, ResNetEncoder) else aligned)
        features = F.normalize(embeddings, dim=1)
        scores = self.detector.classify(embeddings, names).softmax(dim=1)
        refined = box_ops.decode(boxes[:, 1:], self.detector.box_regressor(embeddings), BOX_WEIGHTS)
        return features, scores, refined


def _resnet_maps(encoder: ResNetEncoder, images: Tensor) -> Tensor:
    """Return the stage-3 map; one module after the other, as open_clip runs them."""
    x = images
    for conv, norm in ((encoder.conv1, encoder.bn1), (encoder.conv2, encoder.bn2), (encoder.conv3, encoder.bn3)):
        x = torch.relu(norm(conv(x)))
    return cast(Tensor, encoder.layer3(encoder.layer2(encoder.layer1(encoder.avgpool(x)))))


def _patches(encoder: nn.Module, images: Tensor) -> Tensor:
    """Return the map of a ViT of any kind, of images filled up to whole patches."""
    vit = cast(VitEncoder, encoder)  # or one of the others, which have the same method
    height, width = images.shape[2:]
    return vit.patches(F.pad(images, (0, -width % vit.stride, 0, -height % vit.stride)))


def export_onnx(folder: Folder, model: RegionModel) -> None:
    """Write the graph, a description for programs, the embeddings of the model's names, and a card with an example.

    Any size of image, and any number of images, regions and names, fits the graph.
    """
    sizes = {"pixels": {0: "images", 2: "height", 3: "width"}, "boxes": {0: "regions"}, "names": {0: "classes"}}
    side, width = 2 * model.detector.encoder.stride, model.detector.encoder.embed_dim
    # No number of the example may be 0, 1 or one of another axis: it would become a constant of the graph.
    example = (
        torch.zeros(2, 3, 2 * side, 3 * side, dtype=torch.uint8),
        torch.tensor([[0, 0, 0, side, side], [1, 0, 0, side, side], [1, 4, 4, side, side]], dtype=torch.float32),
        torch.eye(5, width),
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that this graph doesn't have
    program = torch.onnx.export(
        RegionGraph(model).eval(), example, dynamo=True, verbose=False, dynamic_shapes=sizes,
        input_names=list(INPUTS), output_names=list(OUTPUTS),
    )  # fmt: skip
    assert program is not None
    program.save(folder.path(GRAPH))
    to, names = model.preprocess, list(model.vocabulary.names)
    description = {
        "names": names,
        "image_size": to.image_size,
        "max_size": to.max_size,
        "embedding": width,
        "clip_name": model.clip_name,
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
    }
    folder.write_bytes(EMBEDDINGS, save_tensors({"embeddings": model.embed(names).contiguous()}))
    card = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True).render(description, **globals())
    folder.write_bytes(CARD, card.encode())
    folder.write_json(DESCRIPTION, description, indent=1)
