"""Teacher pseudo labels for one shard of proposals (paper section 3.3).

R regions of one image, C concepts, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from regionclip_core.config.tree import Config, LabelsConfig
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, read_index
from regionclip_core.models.clip import load_clip
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.pretraining.pseudo_labels import pseudo_labels
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS

_IMAGES_AT_ONCE = 16  # bounds memory: crops or feature maps of this many images
EmbedRegions = Callable[[list[Tensor], list[Tensor]], Tensor]
"""(images uint8[3, H, W], boxes float32[R, 4] in original pixels) -> float32[sum R, D]"""


@dataclass
class Labeller:
    """Teacher, concept embeddings and settings, ready to label any shard."""

    embed: EmbedRegions
    embeddings_CD: Tensor
    digest: str
    temperature: float
    settings: LabelsConfig

    @classmethod
    def load(cls, config: Config, teacher: Folder, labels: Folder, device: str) -> Labeller:
        """Read the teacher's artifact and the embeddings that the labels stage prepared."""
        clip = load_clip(teacher)
        clip.model.to(device, memory_format=torch.channels_last)  # up to twice as fast on a CPU
        pool, embeddings_CD = load_embeddings(labels)
        return cls(
            embed=region_embedder(config.labels, clip, device),
            embeddings_CD=embeddings_CD.to(device),
            digest=pool.digest,
            temperature=config.labels.temperature or 1 / clip.logit_scale,
            settings=config.labels,
        )

    def label_shard(self, data: Folder, proposals: Folder, shard: int) -> tuple[pa.Table, Counter[str]]:
        """One LABELS row for each proposals row of the shard, and counts by status.

        The pool's digest travels in the table's metadata, so that a reader can refuse another pool.
        """
        reader = ImageReader(data)
        images = {row.key: row for row in read_index(data, shard)}
        with proposals.open_table(f"proposals-{shard:05d}.parquet") as file:
            rows = pq.read_table(file).to_pylist()
        labelled = []
        for start in range(0, len(rows), _IMAGES_AT_ONCE):
            labelled += self._label_images(rows[start : start + _IMAGES_AT_ONCE], images, reader)
        table = pa.Table.from_pylist(labelled, schema=LABELS.with_metadata({"vocabulary": self.digest}))
        counts = Counter(row["status"] for row in labelled)
        counts["regions"] = sum(len(row["kept"]) for row in labelled)
        counts["regions_kept"] = sum(sum(row["kept"]) for row in labelled)
        return table, counts

    def _label_images(
        self, rows: list[dict[str, Any]], images: dict[str, IndexRow], reader: ImageReader
    ) -> list[dict[str, Any]]:
        results = [_empty(row) for row in rows]
        pixels, boxes, where = [], [], []
        for number, row in enumerate(rows):
            if row["status"] != "ok":
                continue
            try:
                image = reader.read(images[row["key"]])
            except BadImage as error:
                results[number] |= {"status": error.status, "reason": str(error)}
                continue
            pixels.append(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))
            boxes.append(torch.tensor(row["boxes"][: self.settings.max_regions]).reshape(-1, 4))
            where.append(number)
        if not pixels:
            return results
        with torch.inference_mode():
            features_RD = self.embed(pixels, boxes)
        for number, box, features in zip(where, boxes, torch.split(features_RD, [len(b) for b in boxes]), strict=True):
            results[number] |= self._label_regions(rows[number], box, features)
        return results

    def _label_regions(self, row: dict[str, Any], boxes: Tensor, features_RD: Tensor) -> dict[str, Any]:
        labels = pseudo_labels(
            features_RD, self.embeddings_CD, self.temperature, self.settings.threshold, self.settings.top_k
        )
        return {
            "boxes": boxes.tolist(),
            "objectness_logit": row["objectness_logit"][: len(boxes)],
            "concept_id": labels.concept_id.tolist(),
            "score": labels.score.tolist(),
            "kept": labels.kept.tolist(),
            "top_concepts": labels.top_concepts.tolist(),
            "top_probabilities": labels.top_probabilities.tolist(),
            "residual_mass": labels.residual_mass.tolist(),
        }


def _empty(row: dict[str, Any]) -> dict[str, Any]:
    lists: dict[str, Any] = {field.name: [] for field in LABELS if pa.types.is_list(field.type)}
    return {"key": row["key"], "status": row["status"], "reason": row["reason"], **lists}


def region_embedder(settings: LabelsConfig, clip: Any, device: str) -> EmbedRegions:
    """The teacher's view of regions: features pooled from the whole image (`roi`), or each region alone (`crop`).

    With `roi` only images of one input size share a batch, so that no label depends on another image's size.
    """
    if settings.mode == "crop":
        from regionclip_core.models.crops import CropEncoder

        return CropEncoder(clip, settings.context, settings.batch_size)

    from regionclip_core.models.towers import region_encoder
    from regionclip_core.ops.image_batch import batch_images, by_input_size

    encoder = region_encoder(clip).to(device).eval()

    size, limit, resize = settings.image_size, settings.max_size, settings.resize

    def embed(images: list[Tensor], boxes: list[Tensor]) -> Tensor:
        def embed_some(numbers: list[int]) -> Sequence[Tensor]:
            batch = batch_images([images[n] for n in numbers], size, limit, clip.mean, clip.std, resize)
            scaled = [batch.to_input(i, boxes[n]).to(device) for i, n in enumerate(numbers)]
            features: Tensor = encoder(batch.tensor.to(device), scaled, batch.sizes)
            return torch.split(features, [len(boxes[n]) for n in numbers])

        return torch.cat(by_input_size(images, size, limit, embed_some, resize))

    return embed
