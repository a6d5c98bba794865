"""Pseudo labels for the proposals of a shard (paper section 3.3), or for boxes that come with their names.

R regions of one image, C concepts, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from regionclip_core.config.tree import Config, LabelsConfig
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import ragged_column, read_index
from regionclip_core.datasets.read_ahead import read_ahead
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.boxes import grid_boxes
from regionclip_core.ops.image_batch import Resized, batch_resized, by_input_size, resize_image
from regionclip_core.precision import networks
from regionclip_core.pretraining.corrections import correct, corrections_by_shard
from regionclip_core.pretraining.pseudo_labels import pseudo_labels
from regionclip_core.pretraining.regions import read_regions
from regionclip_core.storage.given_files import clip_folder
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import CROPS, LABELS, LABELS_WITH_CROPS

_IMAGES_AT_ONCE = 16  # bounds memory: crops or feature maps of about this many images
_GRID_BOXES = 1000  # per image, whatever `labels.grid_scales` asks for


class Labeller:
    """What labels a shard: the CLIP that names regions, the concepts' embeddings, the corrections and the settings."""

    def __init__(
        self,
        config: Config,
        teacher: Folder,
        labels: Folder,
        device: str,
        readers: int = 0,
        student: Folder | None = None,
    ) -> None:
        """Load the CLIP, and what the labels stage has written into its own artifact: the pool's embeddings, and the
        corrections where there are any.

        `readers`: threads that read ahead, see `read_ahead`; `student`: of the round before, in a later round.
        """
        settings = config.labels
        clip = load_clip(naming_clip(settings, teacher, student))
        clip.model.to(device, memory_format=torch.channels_last)  # up to twice as fast on a CPU
        pool, embeddings_CD = load_embeddings(labels)
        self.settings = settings
        self.by_teacher = settings.source is None or settings.source_probabilities == "teacher"
        # The first one's embeddings are labelled, the last one's are the teacher's of crops: where the teacher labels
        # in `crop`, both are the same. There is none where no CLIP looks at an image.
        self.embedders: list[CroppedRegions | PooledRegions] = []
        if self.by_teacher:
            self.embedders.append(region_embedder(settings, clip, device))
        by_teachers_crops = self.by_teacher and settings.mode == "crop" and settings.weights == "teacher"
        if settings.crop_features and not by_teachers_crops:
            of_crops = clip
            if settings.weights != "teacher":
                of_crops = load_clip(teacher)
                of_crops.model.to(device, memory_format=torch.channels_last)
            self.embedders.append(CroppedRegions(settings, of_crops))
        self.embeddings_CD = embeddings_CD.to(device)
        self.digest = pool.digest
        self.corrections = corrections_by_shard(labels)
        # CLIP's own temperature unless the settings say another: with it the scores are CLIP's probabilities.
        self.temperature = (settings.temperature if self.by_teacher else None) or 1 / clip.logit_scale
        self.readers = readers
        # Only the proposal network gives an objectness; with other boxes the score is the probability alone.
        power = settings.objectness_power
        self.power = power if power and config.proposals.method == "rpn" else 0.0

    def label_shard(self, data: Folder, folder: Folder, shard: int) -> tuple[pa.Table, Counter[str]]:
        """Return one LABELS row for each image of the shard, with CROPS if asked for, and counts by status.

        `folder`: where `read_regions` finds the regions.

        An image that can't be read has its reason and no regions. The pool's digest is in the table's metadata, so
        that a reader can refuse another pool.
        """
        images = read_index(data, shard)
        found = read_regions(folder, images, shard, self.settings)
        keys, status, reasons = [image.key for image in images], found.status, found.reasons
        regions: dict[str, list[Any]] = {"boxes": found.boxes, "objectness_logit": found.objectness_logit}
        usable = [number for number, one in enumerate(status) if one == "ok"]
        proposed = [len(own) for own in regions["boxes"]]
        if scales := self.settings.grid_scales:
            for number in usable:
                grid = grid_boxes(images[number].width, images[number].height, scales, _GRID_BOXES).numpy()
                for name, more in (("boxes", grid), ("objectness_logit", np.zeros(len(grid), np.float32))):
                    regions[name][number] = np.concatenate([regions[name][number], more])
        # Arrays, not lists: the labels of a shard as Python numbers would fill gigabytes.
        nothing = self._labels([self.embeddings_CD[:0]] * 2, [0], np.zeros(0, np.float32))
        columns: dict[str, list[npt.NDArray[Any]]]
        columns = {name: [array] * len(keys) for name, array in nothing.items()}
        shared = self.settings.images_per_canvas if self.settings.canvas == "padded" else 1
        at_once = max(1, _IMAGES_AT_ONCE // shared) * shared  # whole canvases
        with ImageReader(data) as reader:

            def read(number: int) -> list[Tensor | Resized]:
                if not self.embedders:
                    return []
                boxes, image = torch.from_numpy(regions["boxes"][number]), reader.read_tensor(images[number])
                return [embedder.prepare(image, boxes) for embedder in self.embedders]

            with closing(read_ahead(read, usable, self.readers, at_once)) as ahead:
                for _, some in groupby(ahead, key=lambda pair: pair[0] // at_once):
                    numbers: list[int] = []
                    prepared: list[Any] = []
                    for number, image in some:
                        try:
                            prepared.append(image())
                            numbers.append(number)
                        except BadImage as error:
                            status[number], reasons[number] = error.status, str(error)
                    if not numbers:
                        continue
                    boxes = [torch.from_numpy(regions["boxes"][number]) for number in numbers]
                    counts = [len(own) for own in boxes]
                    with torch.inference_mode():
                        logits = np.concatenate([regions["objectness_logit"][number] for number in numbers])
                        features = [
                            embedder.embed(own, boxes)
                            for embedder, own in zip(self.embedders, zip(*prepared, strict=True), strict=True)
                        ]
                        labels = self._labels(features, counts, logits)
                    for name, array in labels.items():
                        for number, own in zip(numbers, np.split(array, np.cumsum(counts)[:-1]), strict=True):
                            columns[name][number] = own
        for number, count in enumerate(proposed):
            if status[number] != "ok":
                continue
            row = {name: values[number] for name, values in columns.items()}
            row["kept"][count:] = False  # boxes of the grid: most are loose, and names would be learned of loose boxes
            if found.concept_id is not None and found.score is not None:
                concepts, scores = found.concept_id[number], found.score[number]
                row["concept_id"][:count], row["score"][:count] = concepts, scores
                row["kept"][:count] = scores > self.settings.threshold
                if not self.by_teacher:
                    row["top_concepts"][:count, 0], row["top_probabilities"][:count, 0] = concepts, scores
                    row["residual_mass"][:count] = 1 - scores
            correct(row, self.corrections.get(shard, {}).get(keys[number], {}).items())
        good = [one == "ok" for one in status]
        for name, values in regions.items():
            columns[name] = [own if ok else own[:0] for own, ok in zip(values, good, strict=True)]
        schema, metadata = LABELS, {"vocabulary": self.digest}
        if CROPS in columns:
            schema, metadata[CROPS] = LABELS_WITH_CROPS, str(self.embeddings_CD.shape[1])
        schema = schema.with_metadata(metadata)
        arrays = {name: ragged_column(values, schema.field(name).type) for name, values in columns.items()}
        table = pa.table({"key": keys, "status": status, "reason": reasons, **arrays}, schema=schema)
        totals = Counter(status)
        totals["regions"] = sum(map(len, columns["kept"]))
        totals["regions_kept"] = sum(int(kept.sum()) for kept in columns["kept"])
        return table, totals

    def _labels(
        self, features: Sequence[Tensor], counts: Sequence[int], logits_R: npt.NDArray[np.float32]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the fields of PseudoLabels, and CROPS where they are stored, as arrays.

        `features`: [R, D] of each embedder; `counts`: regions per image; `logits_R`: their objectness.
        """
        settings, weights = self.settings, None
        if not self.by_teacher:
            found = _unnamed(sum(counts))
            return found | ({CROPS: _stored(features[-1])} if settings.crop_features else {})
        if self.power:  # in float64, so that no label depends on its place in the batch
            weights = (torch.from_numpy(logits_R).double().sigmoid() ** self.power).float().to(features[0].device)
        labels = pseudo_labels(
            features[0],
            self.embeddings_CD,
            self.temperature,
            settings.threshold,
            settings.top_k,
            counts,
            weights=weights,
        )
        found = {name: tensor.cpu().numpy() for name, tensor in vars(labels).items()}
        return found | ({CROPS: _stored(features[-1])} if settings.crop_features else {})


def _stored(features: Tensor) -> npt.NDArray[np.float16]:
    return F.normalize(features, dim=1).half().cpu().numpy()


def _unnamed(count: int) -> dict[str, npt.NDArray[Any]]:
    """Return the fields of PseudoLabels of regions that nobody has named, with one stored concept each."""
    return {
        "concept_id": np.zeros(count, np.int64),
        "score": np.zeros(count, np.float32),
        "kept": np.zeros(count, bool),
        "top_concepts": np.zeros((count, 1), np.int64),
        "top_probabilities": np.zeros((count, 1), np.float32),
        "residual_mass": np.ones(count, np.float32),
    }


def naming_clip(settings: LabelsConfig, teacher: Folder, student: Folder | None = None) -> Folder:
    """Return the folder of the CLIP that names regions; the folders given as in `Labeller`."""
    if settings.weights == "teacher":
        return teacher
    return student if student is not None else clip_folder(settings.weights, "student")


def check_texts(clip: ClipModel, teacher: ClipModel, source: str) -> None:
    """Raise ValueError unless the model of the folder `source` embeds texts as the teacher does.

    Its text encoder must be the teacher's, bit for bit: the concepts' embeddings are the teacher's, and the student
    keeps the teacher's text encoder.
    """
    own, wanted = (
        {name: tensor for name, tensor in one.model.state_dict().items() if not name.startswith(("visual.", "logit_"))}
        for one in (clip, teacher)
    )
    if differing := [n for n in sorted(own | wanted) if n not in own or n not in wanted or not own[n].equal(wanted[n])]:
        raise ValueError(
            f"labels.weights: {source} holds the model {clip.name}, whose text encoder is not the teacher's "
            f"({teacher.name}): {len(differing)} tensors differ, such as {differing[0]}. Expected a CLIP that embeds "
            "texts as the teacher does, such as a student trained from it"
        )


class CroppedRegions:
    """labels.mode `crop`: every region is cut out, and goes through the teacher as an image of its own."""

    def __init__(self, settings: LabelsConfig, clip: ClipModel) -> None:
        self.encoder = CropEncoder(clip, settings.context, settings.batch_size)

    def prepare(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return what `embed` takes of an image uint8[3, H, W] with boxes [R, 4]: the crops."""
        return self.encoder.cut(image, boxes)

    def embed(self, prepared: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return float32[sum R, D]; boxes per image [R, 4]."""
        return self.encoder.encode(list(prepared))


class PooledRegions:
    """labels.mode `roi`: regions are pooled from the features of the whole image.

    Only images of one input size share a batch, so that no label depends on another image's size; unless `canvas` is
    `padded`, as in the official code.
    """

    def __init__(self, settings: LabelsConfig, clip: ClipModel, device: str) -> None:
        self.settings, self.clip, self.device = settings, clip, device
        self.encoder = region_encoder(clip).to(device).eval()

    def prepare(self, image: Tensor, boxes: Tensor) -> Resized:
        """Return what `embed` takes of an image uint8[3, H, W]: the image at the size of the network's input."""
        return resize_image(image, self.settings.image_size, self.settings.max_size, self.settings.resize)

    def embed(self, prepared: Sequence[Resized], boxes: Sequence[Tensor]) -> Tensor:
        """Return float32[sum R, D]; boxes per image [R, 4] in original pixels."""

        def embed_some(numbers: list[int]) -> Sequence[Tensor]:
            batch = batch_resized([prepared[n] for n in numbers], self.clip.mean, self.clip.std, self.device)
            scaled = [batch.to_input(i, boxes[n]).to(self.device) for i, n in enumerate(numbers)]
            with networks(self.device):
                features: Tensor = self.encoder(batch.tensor, scaled, batch.sizes)
            return torch.split(features.float(), [len(boxes[n]) for n in numbers])

        if self.settings.canvas == "image":
            return torch.cat(by_input_size(prepared, embed_some))
        every, shared = list(range(len(prepared))), self.settings.images_per_canvas
        canvases = (every[n : n + shared] for n in every[::shared])
        return torch.cat([features for numbers in canvases for features in embed_some(numbers)])


def region_embedder(settings: LabelsConfig, clip: ClipModel, device: str) -> CroppedRegions | PooledRegions:
    """Return how the teacher embeds regions, by `labels.mode`. `prepare` may run ahead, in a thread."""
    return CroppedRegions(settings, clip) if settings.mode == "crop" else PooledRegions(settings, clip, device)
