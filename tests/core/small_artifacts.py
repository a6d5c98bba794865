"""Small inputs for the tests of the core: data with every kind of box, tiny models, and naive box arithmetic.

The hand-made pictures are dark noise in which an object is a rectangle of its category's colour, so that a test can
read off the pixels where a box is and what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align

from regionclip_core.config.tree import ClipArchitecture, Config, TeacherConfig
from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.index import IndexRow, images_name, index_name, read_index, split_shards, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, create_clip
from regionclip_core.storage.records import Folder, ShardRecord
from regionclip_core.storage.tables import PROPOSALS
from regionclip_core.storage.tars import TarWriter
from stages.base import ShardWork, Stage, StageContext, load_work

VOCABULARY = Vocabulary(("cat", "dog", "bus", "cup"), base=("bus", "cat"))
BASE_IDS, NOVEL_IDS = (0, 2), (1, 3)
UNKNOWN = -1
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [160, 160, 160]], np.uint8)
"""By label; the last one, grey, belongs to objects outside the vocabulary."""
ARCHITECTURE = {
    "embed_dim": 16, "image_size": 32, "vision_width": 8, "text_width": 16, "text_heads": 2, "context_length": 16,
}  # fmt: skip
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """One image: integer boxes, so that they are also exact in pixels."""

    height: int
    width: int
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    labels: tuple[int, ...] = ()
    crowd: tuple[int, ...] = ()
    """Which of the boxes are crowds."""
    captions: tuple[str, ...] = ("a cat and a dog",)
    status: str = "ok"

    def pixels(self) -> np.ndarray:
        """uint8[H, W, 3]; later boxes cover earlier ones."""
        pixels = np.random.default_rng([self.height, self.width]).integers(0, 40, (self.height, self.width, 3))
        for (x0, y0, x1, y1), label in zip(self.boxes, self.labels, strict=True):
            pixels[y0:y1, x0:x1] = COLOURS[label]
        return pixels.astype(np.uint8)


# Objects of base, novel and unknown categories, crowds, an image of novel objects only, one without any, an unusable
# one; pictures in portrait and in landscape format.
TRAIN: list[list[Picture]] = [
    [
        Picture(48, 64, ((4, 6, 20, 30), (30, 10, 60, 26)), (0, 1)),
        Picture(64, 48, ((2, 40, 22, 60),), (2,)),
        Picture(48, 64, ((10, 10, 40, 40),), (3,)),
        Picture(48, 64, ((0, 0, 64, 20), (8, 24, 28, 44)), (0, 2), crowd=(0,)),
    ],
    [
        Picture(48, 64),
        Picture(48, 64, ((5, 5, 25, 25), (30, 5, 50, 25), (30, 28, 62, 46)), (2, UNKNOWN, 0)),
        Picture(48, 64, ((5, 5, 25, 25),), (0,), status="bad_image"),
        Picture(50, 70, ((40, 20, 66, 48), (2, 2, 18, 14)), (2, 3)),
    ],
]


def write_data(url: Path | str, splits: Mapping[str, list[list[Picture]]]) -> Folder:
    """A data artifact as the data stage leaves it; shard numbers run over the splits."""
    data = Folder(str(url))
    shard, number = 0, count()
    plan: dict[str, dict[str, Any]] = {}
    for split, shards in splits.items():
        plan[split] = {"shards": list(range(shard, shard + len(shards))), "images": sum(map(len, shards))}
        for pictures in shards:
            with data.write(images_name(shard)) as file, TarWriter(file) as tar:
                rows = [_row(picture, split, next(number), tar, images_name(shard)) for picture in pictures]
            with data.write(index_name(shard)) as file:
                write_index(file, rows, VOCABULARY.digest)
            shard += 1
    data.write_json("splits.json", plan)
    data.write_json("categories.json", VOCABULARY.to_json())
    return data


def _row(picture: Picture, split: str, number: int, tar: TarWriter, url: str) -> IndexRow:
    image = encode_png(picture.pixels())
    boxes = np.array(picture.boxes, np.float32).reshape(-1, 4)
    return IndexRow(
        key=f"{split}/{number:04d}",
        image_id=number,
        url=url,
        offset=tar.add(f"{number:04d}.png", image),
        size=len(image),
        width=picture.width,
        height=picture.height,
        captions=picture.captions,
        boxes=boxes,
        box_labels=np.array(picture.labels, np.int32),
        box_crowd=np.array([i in picture.crowd for i in range(len(boxes))], bool),
        box_area=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32),
        status=picture.status,
        reason=None if picture.status == "ok" else "made to fail",
    )


def rows_of(data: Folder, *splits: str) -> list[IndexRow]:
    """Every row of the splits, bad ones too, in order."""
    return [row for shard in split_shards(data, splits) for row in read_index(data, shard)]


def tear(data: Folder, row: IndexRow) -> None:
    """Overwrite a stored image's pixel data with zeros, as a disk that lost it would; its header stays."""
    header = 41  # bytes of a PNG up to the content of its first IDAT chunk
    with (Path(data.url) / row.url).open("r+b") as file:
        file.seek(row.offset + header)
        file.write(bytes(row.size - header))


def write_proposals(folder: Folder, data: Folder, split: str, boxes: Mapping[str, Tensor], logits: Tensor) -> None:
    """PROPOSALS tables of a split; an image that is not in `boxes` gets the status bad_image."""
    for shard in split_shards(data, (split,)):
        rows = []
        for row in read_index(data, shard):
            found = boxes.get(row.key)
            rows.append(
                {
                    "key": row.key,
                    "status": "bad_image" if found is None else "ok",
                    "reason": "not in the test" if found is None else None,
                    "boxes": [] if found is None else found.tolist(),
                    "objectness_logit": [] if found is None else logits[: len(found)].tolist(),
                }
            )
        with folder.write(f"proposals-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=PROPOSALS), file)


def tiny_config(**sections: Mapping[str, Any]) -> Config:
    """A configuration in which everything is as small as it can be; `sections` replace single settings."""
    tree: dict[str, Any] = {
        "seed": 3,
        "data": {
            "shard_size": 4,
            "splits": {
                "train": {"source": "world", "images": 7, "image_size": 80},
                "val": {"source": "world", "images": 5, "image_size": 80},
            },
        },
        "concepts": {"splits": ["train", "val"], "min_count": 1, "parser": "rules"},
        "teacher": {"weights": "random", "architecture": ARCHITECTURE, "prompts": "single"},
        "rpn": {"width": 4, "image_size": 64, "anchor_sizes": [8, 16], "steps": 4, "batch_size": 2},
        "proposals": {"splits": ["train", "val"], "method": "given", "max_regions": 10},
        "labels": {"splits": ["train"], "image_size": 64, "threshold": 0.0, "max_regions": 4, "top_k": 3},
        "pretrain": {"steps": 2, "batch_size": 4, "regions_per_image": 3, "image_size": 64},
        "finetune": {"steps": 2, "batch_size": 4, "regions_per_image": 8, "image_size": 64},
        "evaluate": {"image_size": 64, "batch_size": 3},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    if tree["finetune"].get("mask_head") and "data" not in sections:  # which only a split with masks may train
        tree["data"]["splits"]["train"] = {"source": "coco", "images": "-", "instances": "-", "masks": True}
    return Config(**tree)


def tiny_clip(seed: int = 0, image_size: int = 32) -> ClipModel:
    """A CLIP of a few thousand visual weights, with statistics and biases that are not all the same."""
    architecture = ClipArchitecture(**{**ARCHITECTURE, "image_size": image_size})
    clip = create_clip(TeacherConfig(weights="random", architecture=architecture), seed)
    generator = torch.Generator().manual_seed(seed)
    for module in clip.model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # the last one of a block starts at 0: nothing would pass
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.normal_(std=0.1, generator=generator)
    return clip


def run_stage(stage: Stage, ctx: StageContext) -> dict[str, Any]:
    """Run a stage from beginning to end in this process; returns its summary."""
    work = load_work(stage.work)
    if not isinstance(work, ShardWork):
        return work.run(ctx)
    shards = work.shards(ctx)
    work.prepare(ctx)
    state = work.setup(ctx)
    records = []
    for shard in shards:
        result = work.process(ctx, state, shard)
        records.append(ShardRecord(shard, result.rows, result.counts, [], 0.0))
    return work.merge(ctx, records)


def naive_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes, in plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / total if total > 0 else 0.0


def painted_box(image: Tensor | np.ndarray, colour: Sequence[int], tolerance: float = 60.0) -> Box:
    """Tight xyxy box of the pixels of one colour in an image [H, W, 3] with values in 0..255."""
    distance = np.abs(np.asarray(image, np.float64) - np.asarray(colour, np.float64)).max(axis=2)
    ys, xs = np.nonzero(distance < tolerance)
    assert len(ys), f"nothing is painted {colour}"
    return float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1


def unnormalised(tensor: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """float[3, H, W] in normalised units -> float64[H, W, 3] in 0..255."""
    pixels = tensor.double().permute(1, 2, 0).numpy()
    return (pixels * np.array(std) + np.array(mean)) * 255


def pillow_crop(pixels: np.ndarray, box: Sequence[float], context: float, clip: ClipModel) -> Tensor:
    """The square around a box as Pillow cuts and resizes it, normalised: float32[3, S, S]."""
    x0, y0, x1, y1 = (float(v) for v in box)
    side = max(1, int(np.floor(context * max(x1 - x0, y1 - y0) + 0.5)))
    left, top = int(np.floor((x0 + x1 - side) / 2 + 0.5)), int(np.floor((y0 + y1 - side) / 2 + 0.5))
    canvas = Image.new("RGB", (side, side), tuple(round(255 * v) for v in clip.mean))
    canvas.paste(Image.fromarray(pixels), (-left, -top))
    resized = np.asarray(canvas.resize((clip.image_size, clip.image_size), Image.Resampling.BILINEAR))
    normalised = (resized.astype(np.float32) / 255 - np.array(clip.mean, np.float32)) / np.array(clip.std, np.float32)
    return torch.from_numpy(normalised.transpose(2, 0, 1).copy())


def network_input(pixels: np.ndarray, shape: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8[H, W, 3] resized to `shape` and normalised: float32[1, 3, h, w]."""
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    if tuple(image.shape[2:]) != shape:
        image = torch.nn.functional.interpolate(image, shape, mode="bilinear", antialias=True)
    return (image.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def region_feature(visual: torch.nn.Module, canvas: Tensor, box: Sequence[float]) -> Tensor:
    """One region of one image [1, 3, h, w] by itself, with open_clip's own modules: float32[D]; box in its pixels."""
    x = visual.layer3(visual.layer2(visual.layer1(visual.stem(canvas))))
    scaled = [torch.tensor([list(box)], dtype=x.dtype)]
    side = visual.image_size // 16
    region = roi_align(x, scaled, output_size=side, spatial_scale=1 / 16, sampling_ratio=0, aligned=True)
    return visual.attnpool(visual.layer4(region))[0]  # type: ignore[no-any-return]
