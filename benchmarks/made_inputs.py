"""Sizes of the benchmarks, and inputs made from nothing: a CLIP with random weights, boxes, images, artifacts.

A CLIP here has norms that do something: open_clip starts the last one of a block at 0, and nothing would pass.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bench_loader import picture
from torch import Tensor, nn

from regionclip_core.config.architectures import model_config
from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.datasets.index import IndexRow, images_name, index_name, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, build_clip, save_clip
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import PROPOSALS
from regionclip_core.storage.tars import TarWriter


@dataclass(frozen=True)
class Scale:
    """How much of everything; the defaults are the sizes of the paper."""

    toy: bool = False
    """A narrow network of the same form."""
    height: int = 800
    width: int = 1216
    rounds: int = 3
    regions: tuple[int, ...] = (100, 300)
    """The first is pretraining's."""
    proposals: int = 1000
    categories: int = 65
    concepts: int = 4764
    pairs: tuple[int, ...] = (2600, 11000)
    """Pairs of box and category that enter NMS; the first is what a detector leaves of an image's."""
    labelled: int = 3
    """Images of a shard."""
    evaluated: int = 500
    """Images, with 100 detections each."""
    region_steps: tuple[int, ...] = (10, 30, 100, 300, 1000)
    concept_steps: tuple[int, ...] = (100, 1000, 10_000)
    stages: tuple[str, ...] = STAGE_NAMES
    stage_images: int = 40
    """And ten times as many."""


TOY = Scale(
    toy=True,
    height=64,
    width=96,
    rounds=2,
    regions=(4, 6),
    proposals=20,
    categories=5,
    concepts=30,
    pairs=(40, 80),
    labelled=2,
    evaluated=4,
    region_steps=(2, 20),
    concept_steps=(10, 100),
    stages=("data",),
    stage_images=4,
)


@functools.cache
def make_clip(toy: bool) -> ClipModel:
    """Return CLIP's RN50, or a narrow one of the same form."""
    description = model_config("RN50")
    if toy:
        description["vision_cfg"] |= {"layers": [1, 1, 1, 1], "width": 16}
        description["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    clip = build_clip(description, "RN50", 0)
    generator = torch.Generator().manual_seed(0)
    for module in clip.model.visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1, generator=generator)
            module.bias.data.normal_(std=0.1, generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
    return clip


def make_image(scale: Scale) -> Tensor:
    """Return one image as the network takes it, [1, 3, H, W]."""
    return torch.randn(1, 3, scale.height, scale.width, generator=torch.Generator().manual_seed(0))


def make_boxes(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return xyxy boxes [count, 4] inside the image; half of them have sides of 10 to 26 % of the shorter side."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    halves = torch.exp(0.7 * torch.randn(count, 2, generator=generator)) * min(height, width) * 0.08
    boxes = torch.cat((centres - halves, centres + halves), dim=1)
    return boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def make_embeddings(count: int, size: int = 1024, seed: int = 1) -> Tensor:
    """Return random embeddings [count, size] of unit length."""
    embeddings = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(embeddings, dim=1)


def make_config(scale: Scale, **sections: dict[str, Any]) -> Config:
    """Return a config with the official settings of regions; `sections` add single settings."""
    side = {"image_size": min(scale.height, scale.width), "max_size": 1333}
    regions = scale.regions[0]
    sgd = {"optimizer": "sgd", "lr": 2e-6, "clip_norm": 5.0, "clip_per_tensor": True}  # of the warm-up's first step
    tree: dict[str, Any] = {
        "data": {"splits": {"train": {"source": "world", "images": 8}}},
        "concepts": {"splits": ["train"]},
        "teacher": {"model": "RN50", "weights": "random", "prompts": "single"},
        "rpn": {"backbone": "resnet50_fpn"},
        "proposals": {"splits": ["train"], "max_regions": scale.proposals},
        "labels": {"splits": ["train"], "mode": "roi", "resize": "pretraining", "max_regions": regions, **side}
        | {"threshold": 0.0, "temperature": 0.01, "top_k": 64},
        "pairs": {"max_regions": regions},
        "pretrain": {"regions_per_image": regions, "resize": "pretraining", "temperature": 0.01, **side}
        | {"optim": sgd, "freeze_at": 2},
        "finetune": {"regions_per_image": 512, "temperature": 0.01, "background": "zero", **side}
        | {"optim": sgd, "freeze_at": 2},
        "evaluate": {"split": "train"},
    }
    return Config(**{name: {**tree.get(name, {}), **sections.get(name, {})} for name in tree | sections})


# ---------------------------------------------------------------- artifacts


def write_data(data: Folder, proposals: Folder, images: int, scale: Scale) -> None:
    """Write a split `train` of one shard, 7 objects per image, and its proposals.

    Its images are JPEGs of 3/4 of the network's input in both directions, 600 x 912 pixels for 800 x 1216.
    """
    names = tuple(f"class {n}" for n in range(scale.categories))
    vocabulary, height, width = Vocabulary(names, base=names), 3 * scale.height // 4, 3 * scale.width // 4
    data.write_json("categories.json", vocabulary.to_json())
    data.write_json("splits.json", {"train": {"shards": [0], "images": images}})
    rng, rows, proposed = np.random.default_rng(0), [], []
    with data.write(images_name(0)) as file, TarWriter(file) as tar:
        for number in range(images):
            content = picture(rng, width, height, "JPEG")
            boxes = make_boxes(7 + scale.proposals, height, width, number).numpy()
            place = tar.add(f"{number:04d}.jpg", content), len(content)
            rows.append(
                IndexRow(
                    f"train/{number:04d}", number, images_name(0), *place, width, height,
                    captions=["a man on a wave on top of a surfboard"],
                    boxes=boxes[:7],
                    box_labels=rng.integers(0, scale.categories, 7).astype(np.int32),
                    box_crowd=np.zeros(7, np.bool_),
                    box_area=np.prod(boxes[:7, 2:] - boxes[:7, :2], axis=1),
                )
            )  # fmt: skip
            proposed.append(
                {
                    "key": rows[-1].key,
                    "status": "ok",
                    "reason": None,
                    "boxes": boxes[7:].tolist(),
                    "objectness_logit": np.linspace(3, -3, scale.proposals).tolist(),
                }
            )
    with data.write(index_name(0)) as file:
        write_index(file, rows, vocabulary.digest)
    with proposals.write("proposals-00000.parquet") as file:
        pq.write_table(pa.Table.from_pylist(proposed, PROPOSALS), file)


def write_label_inputs(root: Folder, images: int, scale: Scale) -> dict[str, Folder]:
    """Write what `labels` reads, its own embeddings of made-up concepts too; return the artifacts by stage."""
    folders = {name: root.child(name) for name in ("data", "proposals", "teacher", "labels")}
    write_data(folders["data"], folders["proposals"], images, scale)
    save_clip(make_clip(scale.toy), folders["teacher"])
    pool = Vocabulary(tuple(f"concept {n}" for n in range(scale.concepts)))
    save_embeddings(folders["labels"], pool, make_embeddings(scale.concepts))
    return folders
