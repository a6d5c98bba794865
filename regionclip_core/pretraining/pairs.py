"""Region-text pairs as WebDataset tars: their form, how a shard is written, and how training reads them.

A sample is two members, `00007-000012.jpg`, the image's unchanged bytes, and `00007-000012.json`:

    {"key", "image_id", "width", "height", "captions", "vocabulary",
     "boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass"}

Names are running numbers, since WebDataset ends a key at the first dot and the real keys may hold dots and slashes.
`vocabulary` is the digest of the concept pool that the ids point into. `pairs.json` beside the tars says how many
samples each shard has.

R regions of one image, K stored teacher probabilities per region, H and W of the image, N samples per epoch. Boxes are
xyxy pixels in the original image.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from operator import attrgetter
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from regionclip_core.config.tree import PairsConfig
from regionclip_core.datasets.images import EXTENSIONS, BadImage, ImageReader, decode_image, read_header, to_tensor
from regionclip_core.datasets.index import VOCABULARY_DIGEST, read_index, require_same_images
from regionclip_core.ops.boxes import shortest
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tars import TarWriter
from regionclip_core.training.sampling import first_readable
from regionclip_core.training.unreadable_images import UnreadableImages

PAIRS_META = "pairs.json"
REGION_FIELDS = ("boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass")
_FLOATS = frozenset({"boxes", "score", "top_probabilities", "residual_mass"})
_ROWS_AT_ONCE = 256  # bounds the memory that label rows take as Python objects


def pairs_name(shard: int) -> str:
    """Return the file name of a shard's tar."""
    return f"pairs-{shard:05d}.tar"


# ---------------------------------------------------------------- writing


def write_pairs(
    file: BinaryIO, data: Folder, labels: Folder, shard: int, settings: PairsConfig
) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Write one shard's samples as a WebDataset tar; return the number of images by outcome, and UNREADABLE rows.

    Outcomes: `ok` (written), `few_regions` (fewer kept regions than settings.min_regions), `no_caption` (a pair needs
    one: the image-text loss would contrast an empty text), `not_labelled` (their row in the labels says why),
    `bad_image`.

    Raises:
        ValueError: if the labels are not of the images of the index: the two artifacts are not of one run.
    """
    images = read_index(data, shard)
    keys = [label["key"] for label in _label_rows(labels, shard, ["key"])]
    require_same_images(keys, [row.key for row in images], f"the labels of shard {shard}")
    counts: Counter[str] = Counter(ok=0)
    unreadable: list[dict[str, str]] = []
    digest = labels_digest(labels, shard)
    with TarWriter(file) as tar, ImageReader(data) as reader:
        for row, label in zip(images, _label_rows(labels, shard), strict=True):
            if label["status"] != "ok":
                counts["not_labelled"] += 1
                continue
            if not row.captions:
                counts["no_caption"] += 1
                continue
            regions = best_regions(label, settings.max_regions)
            if len(regions["boxes"]) < settings.min_regions:
                counts["few_regions"] += 1
                continue
            try:
                image = reader.read_bytes(row)
                extension = read_header(image).extension
            except BadImage as error:
                counts[error.status] += 1
                unreadable.append({"key": row.key, "status": error.status, "reason": str(error)})
                continue
            body = {
                "key": row.key,
                "image_id": row.image_id,
                "width": row.width,
                "height": row.height,
                "captions": list(row.captions),
                "vocabulary": digest,
                **regions,
            }
            name = f"{shard:05d}-{counts['ok']:06d}"
            tar.add(f"{name}.{extension}", image)
            tar.add(f"{name}.json", encode_body(body))
            counts["ok"] += 1
    return dict(counts), unreadable


def best_regions(label: dict[str, Any], max_regions: int) -> dict[str, list[Any]]:
    """Return the kept regions of one LABELS row by column, highest score first, at most `max_regions`."""
    kept = np.flatnonzero(np.asarray(label["kept"], bool))
    scores = np.asarray(label["score"], np.float32)[kept]
    chosen = kept[np.argsort(-scores, kind="stable")[:max_regions]]
    return {name: [label[name][i] for i in chosen] for name in REGION_FIELDS}


def encode_body(body: dict[str, Any]) -> bytes:
    """Return a sample's JSON member. Floats have as few digits as give the same float32 when they are read."""
    short = {name: shortest(value).tolist() if name in _FLOATS else value for name, value in body.items()}
    return json.dumps(short, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def labels_digest(labels: Folder, shard: int) -> str:
    """Return the digest of the concept pool that a shard's labels point into.

    Raises:
        ValueError: if the file does not have one.
    """
    name = f"labels-{shard:05d}.parquet"
    with labels.open_table(name) as file:
        metadata = pq.read_schema(file).metadata or {}
    if VOCABULARY_DIGEST not in metadata:
        raise ValueError(f"{labels.url}/{name} has no vocabulary digest; do it over: `regionclip run labels --force`")
    return str(metadata[VOCABULARY_DIGEST].decode())


def stored_probabilities(labels: Folder, shards: list[int]) -> int:
    """Return K, the length of `top_concepts` in these labels; 0 if no region was labelled at all."""
    rows = (row for shard in shards for row in _label_rows(labels, shard, ["top_concepts"]))
    return next((len(row["top_concepts"][0]) for row in rows if row["top_concepts"]), 0)


def _label_rows(labels: Folder, shard: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    with labels.open_table(f"labels-{shard:05d}.parquet") as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()


def write_meta(folder: Folder, shards: Sequence[tuple[int, int]], top_k: int, vocabulary: str) -> None:
    """Write pairs.json.

    Args:
        shards: (shard number, samples in its tar).
        top_k: K.
        vocabulary: digest of the concept pool.
    """
    counts = [{"shard": shard, "samples": samples} for shard, samples in sorted(shards)]
    body = {"shards": counts, "samples": sum(n for _, n in shards), "top_k": top_k, "vocabulary": vocabulary}
    folder.write_json(PAIRS_META, body)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class RegionSample:
    """One image with its pseudo-labelled regions, highest score first."""

    key: str
    image_bytes: bytes
    captions: tuple[str, ...]
    boxes: Tensor  # float32[R, 4]
    concept_id: Tensor  # int64[R]
    score: Tensor  # float32[R]
    top_concepts: Tensor  # int64[R, K]
    top_probabilities: Tensor  # float32[R, K]
    residual_mass: Tensor  # float32[R]

    @cached_property
    def image(self) -> Tensor:
        """uint8[3, H, W], decoded when first asked for; BadImage if the bytes can't be."""
        return to_tensor(decode_image(self.image_bytes))


class RegionPairs:
    """Shuffled samples of a pairs artifact, in an order that depends on (seed, epoch) alone.

    Shards come in a new order each epoch, and their samples go through a shuffle buffer. The order is the same for any
    number of ranks: rank r of w takes the samples whose position in the endless stream is r modulo w, so one process
    and two see the same global batches. Reaching a later position decodes no image and reads no shard that ends
    before it.
    """

    def __init__(
        self, pairs: Folder, seed: int, vocabulary: str | None = None, *, buffer: int = 1000, max_error_rate: float = 1
    ) -> None:
        """Read what the finished artifact `pairs` holds.

        Args:
            vocabulary: digest of the concept pool that the caller has embeddings of; None skips the check.
            buffer: samples in the shuffle buffer, encoded (memory: that many image files).
            max_error_rate: share of the images that may be unreadable.

        Raises:
            ValueError: if the pairs are of another pool, or there are none.
        """
        meta = pairs.read_json(PAIRS_META)
        if vocabulary is not None:
            _require_pool(pairs.url, meta["vocabulary"], vocabulary)
        self._samples = {entry["shard"]: entry["samples"] for entry in meta["shards"] if entry["samples"]}
        if not self._samples:
            raise ValueError(f"{pairs.url} has no region-text pairs; lower labels.threshold or pairs.min_regions")
        self._pairs, self._seed, self._buffer = pairs, seed, buffer
        self._vocabulary, self._top_k = meta["vocabulary"], meta["top_k"]
        self.unreadable = UnreadableImages(len(self), max_error_rate)

    def __len__(self) -> int:
        """N, samples per epoch on all ranks together."""
        return sum(self._samples.values())

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[RegionSample]:
        """Yield the samples of one epoch at positions >= skip."""
        return map(self._decoded, self._members(epoch, skip))

    def batches_at(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Callable[[int], list[RegionSample]]:
        """Return a function from the step to this rank's share of its batch, images decoded.

        Steps that rise by one are cheap; for any other step the stream is opened again at its position. Ranks take
        every `world_size`-th sample of the whole stream, not of each epoch, so a batch may span two epochs.

        Args:
            batch_size: images per step, all ranks together.

        Raises:
            ValueError: if batch_size is not a multiple of world_size.
        """
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
        expected = -1
        stream: Iterator[dict[str, Any]] = iter(())
        upcoming: list[dict[str, Any]] = []  # the batch, and samples after it that replaced unreadable images

        def at(step: int) -> list[RegionSample]:
            nonlocal expected, stream, upcoming
            if step != expected:
                stream, upcoming = self._endless(step * batch_size), []
            expected = step + 1

            def sample_at(place: int) -> RegionSample:
                upcoming.extend(islice(stream, max(0, place + 1 - len(upcoming))))
                return self._decoded(upcoming[place])

            places = range(rank, batch_size, world_size)
            batch = [first_readable(sample_at, place, attrgetter("image"), self.unreadable)[0] for place in places]
            upcoming.extend(islice(stream, max(0, batch_size - len(upcoming))))  # other ranks' last samples
            del upcoming[:batch_size]
            return batch

        return at

    def _decoded(self, members: dict[str, Any]) -> RegionSample:
        """Return a sample from its members by extension; ValueError if one is missing, or the pool is another."""
        extension = next((name for name in members if name in EXTENSIONS), None)
        if extension is None or "json" not in members:
            raise ValueError(f"sample {members['__key__']}: expected .json and an image, found {sorted(members)}")
        body = json.loads(members["json"])
        _require_pool(f"sample {members['__key__']}", body["vocabulary"], self._vocabulary)
        # K isn't visible in a sample without regions.
        shapes = {"boxes": (4,), "top_concepts": (self._top_k,), "top_probabilities": (self._top_k,)}
        columns: dict[str, Any] = {}
        for name in REGION_FIELDS:
            values = torch.tensor(body[name], dtype=torch.float32 if name in _FLOATS else torch.int64)
            columns[name] = values.reshape(len(body["boxes"]), *shapes.get(name, ()))
        return RegionSample(body["key"], members[extension], tuple(body["captions"]), **columns)

    def _endless(self, position: int) -> Iterator[dict[str, Any]]:
        """Yield undecoded samples of endless epochs from a position on."""
        first, skip = divmod(position, len(self))
        for epoch in count(first):
            yield from self._members(epoch, skip if epoch == first else 0)

    def _members(self, epoch: int, skip: int) -> Iterator[dict[str, Any]]:
        """Yield undecoded samples of one epoch at positions >= skip."""
        order = sorted(self._samples)
        random.Random(f"{self._seed} {epoch} shards").shuffle(order)
        needed = set(order)
        if skip:
            # The buffer's choices depend on how many samples pass, not on their content: shuffling placeholders with a
            # shard's number shows which shards the samples from `skip` on come from.
            bare = self._shuffled(epoch, self._read(order, set()))
            needed = {members["shard"] for members in islice(bare, skip, None)}
        return islice(self._shuffled(epoch, self._read(order, needed)), skip, None)

    def _shuffled(self, epoch: int, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        rng = random.Random(f"{self._seed} {epoch} buffer")
        shuffled: Iterator[dict[str, Any]] = shuffle(self._buffer, initial=self._buffer, rng=rng)(samples)
        return shuffled

    def _read(self, order: list[int], needed: set[int]) -> Iterator[dict[str, Any]]:
        """Yield undecoded samples shard by shard; for shards not in `needed`, as many placeholders."""
        for shard in order:
            if shard not in needed:
                yield from ({"shard": shard} for _ in range(self._samples[shard]))
                continue
            found = 0
            with self._pairs.open(pairs_name(shard)) as stream:
                for members in group_by_keys(tar_file_expander([{"url": pairs_name(shard), "stream": stream}])):
                    yield members
                    found += 1
            if found != self._samples[shard]:
                raise ValueError(
                    f"{self._pairs.url}/{pairs_name(shard)} has {found} samples, expected {self._samples[shard]}; do "
                    "it over: `regionclip run pairs --force`"
                )


def _require_pool(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{what} was made with the concept pool {found[:12]}, expected {expected[:12]}: concept ids would not mean "
            "the same. Do it over: `regionclip run pairs --force`"
        )
