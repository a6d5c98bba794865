"""Pseudo labels for the proposals of a shard, and how good they are where boxes are annotated (paper section 3.3).

R regions of one image, C concepts, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.ops import box_iou

from regionclip_core.config.tree import Config, LabelsConfig
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import read_index, require_same_images, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import batch_images, by_input_size
from regionclip_core.precision import networks
from regionclip_core.pretraining.pseudo_labels import pseudo_labels
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS, PROPOSALS, read_proposal_table
from regionclip_core.training.boxed_images import labelled_boxes

_IMAGES_AT_ONCE = 16  # bounds memory: crops or feature maps of about this many images
EmbedRegions = Callable[[list[Tensor], list[Tensor]], Tensor]
"""(images uint8[3, H, W], boxes float32[R, 4] in original pixels) -> float32[sum R, D]"""


class Labeller:
    """What labels a shard: the teacher, the concepts' embeddings and the settings."""

    def __init__(self, config: Config, teacher: Folder, labels: Folder, device: str) -> None:
        """Load the teacher, and the pool's embeddings that the labels stage has written into its own artifact."""
        clip = load_clip(teacher)
        clip.model.to(device, memory_format=torch.channels_last)  # up to twice as fast on a CPU
        pool, embeddings_CD = load_embeddings(labels)
        self.settings = config.labels
        self.embed = region_embedder(config.labels, clip, device)
        self.embeddings_CD = embeddings_CD.to(device)
        self.digest = pool.digest
        # CLIP's own temperature unless the settings say another: with it the scores are CLIP's probabilities.
        self.temperature = config.labels.temperature or 1 / clip.logit_scale

    def label_shard(self, data: Folder, proposals: Folder, shard: int) -> tuple[pa.Table, Counter[str]]:
        """Return one LABELS row for each proposals row of the shard, and counts by status.

        An image that can't be read has its reason and no regions. The pool's digest is in the table's metadata, so
        that a reader can refuse another pool.
        """
        images = read_index(data, shard)
        rows = read_proposal_table(proposals, shard, PROPOSALS.names).to_pylist()
        require_same_images([row["key"] for row in rows], [i.key for i in images], f"the proposals of shard {shard}")
        lists = [field.name for field in LABELS if pa.types.is_list(field.type)]
        labelled: list[dict[str, Any]] = [
            {"key": row["key"], "status": row["status"], "reason": row["reason"], **{name: [] for name in lists}}
            for row in rows
        ]
        with ImageReader(data) as reader:
            shared = self.settings.images_per_canvas if self.settings.canvas == "padded" else 1
            at_once = max(1, _IMAGES_AT_ONCE // shared) * shared  # whole canvases
            for start in range(0, len(rows), at_once):
                pixels, boxes, numbers = [], [], []
                for number, row in enumerate(rows[start : start + at_once], start):
                    if row["status"] != "ok":
                        continue
                    try:
                        pixels.append(reader.read_tensor(images[number]))
                    except BadImage as error:
                        labelled[number] |= {"status": error.status, "reason": str(error)}
                        continue
                    boxes.append(torch.tensor(row["boxes"][: self.settings.max_regions]).reshape(-1, 4))
                    numbers.append(number)
                if not numbers:
                    continue
                with torch.inference_mode():
                    features_RD = self.embed(pixels, boxes)
                by_image = torch.split(features_RD, [len(b) for b in boxes])
                for number, box, features in zip(numbers, boxes, by_image, strict=True):
                    labels = pseudo_labels(
                        features, self.embeddings_CD, self.temperature, self.settings.threshold, self.settings.top_k
                    )
                    labelled[number] |= {
                        "boxes": box.tolist(),
                        "objectness_logit": rows[number]["objectness_logit"][: len(box)],
                        **{name: tensor.tolist() for name, tensor in vars(labels).items()},
                    }
        table = pa.Table.from_pylist(labelled, schema=LABELS.with_metadata({"vocabulary": self.digest}))
        counts = Counter(row["status"] for row in labelled)
        counts["regions"] = sum(len(row["kept"]) for row in labelled)
        counts["regions_kept"] = sum(sum(row["kept"]) for row in labelled)
        return table, counts


def region_embedder(settings: LabelsConfig, clip: ClipModel, device: str) -> EmbedRegions:
    """Return how the teacher embeds regions: `roi` pools them from the whole image's features, `crop` cuts them out.

    With `roi` only images of one input size share a batch, so that no label depends on another image's size; unless
    `canvas` is `padded`, as in the official code.
    """
    if settings.mode == "crop":
        return CropEncoder(clip, settings.context, settings.batch_size)
    encoder = region_encoder(clip).to(device).eval()
    size, limit, resize = settings.image_size, settings.max_size, settings.resize

    def embed(images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        def embed_some(numbers: list[int]) -> Sequence[Tensor]:
            batch = batch_images([images[n] for n in numbers], size, limit, clip.mean, clip.std, resize)
            scaled = [batch.to_input(i, boxes[n]).to(device) for i, n in enumerate(numbers)]
            with networks(device):
                features: Tensor = encoder(batch.tensor.to(device), scaled, batch.sizes)
            return torch.split(features.float(), [len(boxes[n]) for n in numbers])

        if settings.canvas == "image":
            return torch.cat(by_input_size(images, size, limit, embed_some, resize))
        every = list(range(len(images)))
        canvases = (every[n : n + settings.images_per_canvas] for n in every[:: settings.images_per_canvas])
        return torch.cat([features for numbers in canvases for features in embed_some(numbers)])

    return embed


def label_quality(data: Folder, labels: Folder, splits: Iterable[str]) -> dict[str, Any]:
    """Measure the share of regions kept, and how many kept regions on an object carry that object's name.

    A region is on the object that it overlaps best, if by IoU >= 0.5. The second share is counted separately for base
    and novel objects, and only for objects whose name is in the pool. For the summary; no stage reads it.
    """
    categories = Vocabulary.from_json(data.read_json("categories.json"))
    base = set(categories.base)
    pool, _ = load_embeddings(labels)
    counts: Counter[str] = Counter()
    for shard in split_shards(data, list(splits)):
        images = {row.key: row for row in read_index(data, shard, categories.digest)}
        with labels.open(f"labels-{shard:05d}.parquet") as file:
            rows = pq.read_table(file, columns=["key", "boxes", "concept_id", "kept"]).to_pylist()
        for row in rows:
            counts["regions"] += len(row["kept"])
            counts["kept"] += sum(row["kept"])
            boxes, truth = labelled_boxes(images[row["key"]], range(len(categories)))
            if not len(boxes) or not row["boxes"]:
                continue
            overlap, best = box_iou(torch.tensor(row["boxes"]), boxes).max(dim=1)
            for region in range(len(row["kept"])):
                name = categories.names[int(truth[best[region]])]
                if row["kept"][region] and overlap[region] >= 0.5 and name in pool.names:
                    group = "base" if name in base else "novel"
                    counts[f"{group}_on_object"] += 1
                    counts[f"{group}_right"] += pool.names[row["concept_id"][region]] == name
    summary: dict[str, Any] = {
        "regions": counts["regions"],
        "kept": counts["kept"],
        "kept_share": counts["kept"] / max(1, counts["regions"]),
    }
    for group in ("base", "novel"):
        if counts[f"{group}_on_object"]:
            summary[f"{group}_accuracy"] = counts[f"{group}_right"] / counts[f"{group}_on_object"]
    return summary
