"""Region-text pairs as WebDataset tars: their form, how a shard is written, and how training reads them.

A sample is two members, `00007-000012.jpg`, the image's unchanged bytes, and `00007-000012.json`:

    {"key", "image_id", "width", "height", "captions", "vocabulary",
     "boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass"}

Where the labels have embeddings of crops, a third member, `00007-000012.crops.npy`, has those of the regions in `boxes`
and then of those in `other_boxes`, float16[R + O, D]; the JSON then also has "other_boxes" and "other_score", regions
that are not kept and of which only the crop distillation knows.

Names are running numbers, since WebDataset ends a key at the first dot and the real keys may hold dots and slashes.
`vocabulary` is the digest of the concept pool that the ids point into. `pairs.json` beside the tars says how many
samples each shard has. `pairs-00007.idx` says where they are in the tar (`storage.tars.tar_index`), so that each can be
read by itself.

R regions of one image, O others that aren't kept, K stored teacher probabilities per region, D embedding, H and W of
the image, N samples per epoch. Boxes are xyxy pixels in the original image.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from webdataset.filters import shuffle

from regionclip_core.config.tree import PairsConfig
from regionclip_core.datasets.images import BadImage, ImageReader, decode_image, read_header, to_tensor
from regionclip_core.datasets.index import VOCABULARY_DIGEST, read_index, require_same_images
from regionclip_core.ops.boxes import shortest
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import CROPS
from regionclip_core.storage.tars import TarWriter, read_tar_index, tar_index
from regionclip_core.training.sampling import EpochOrder, first_readable
from regionclip_core.training.unreadable_images import UnreadableImages

PAIRS_META = "pairs.json"
REGION_FIELDS = ("boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass")
OTHER_FIELDS = {"other_boxes": "boxes", "other_score": "score"}
"""Of regions that are not kept, by the columns of LABELS that they come from."""
CROPS_MEMBER = "crops.npy"
_FLOATS = frozenset({"boxes", "score", "top_probabilities", "residual_mass", *OTHER_FIELDS})
_INDICES = 256  # indices of shards kept in memory; a shuffle buffer of 1,000 samples spans a few shards
_ROWS_AT_ONCE = 256  # bounds the memory that label rows take as Python objects


def pairs_name(shard: int) -> str:
    """Return the file name of a shard's tar."""
    return f"pairs-{shard:05d}.tar"


def index_name(shard: int) -> str:
    """Return the file name of the index of a shard's tar."""
    return f"pairs-{shard:05d}.idx"


# ---------------------------------------------------------------- writing


def write_pairs(
    out: Folder, data: Folder, labels: Folder, shard: int, settings: PairsConfig
) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Write one shard's samples as a WebDataset tar with its index; return images by outcome, and UNREADABLE rows.

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
    places: list[list[tuple[str, int, int]]] = []
    with out.write(pairs_name(shard)) as file, TarWriter(file) as tar, ImageReader(data) as reader:
        for row, label in zip(images, _label_rows(labels, shard), strict=True):
            if label["status"] != "ok":
                counts["not_labelled"] += 1
                continue
            if not row.captions:
                counts["no_caption"] += 1
                continue
            best = best_regions(label, settings.max_regions)
            if len(best) < settings.min_regions:
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
                **{name: [label[name][i] for i in best] for name in REGION_FIELDS},
            }
            crops = []
            if CROPS in label:
                others = best_regions(label, settings.other_regions, kept=False)
                body |= {name: [label[column][i] for i in others] for name, column in OTHER_FIELDS.items()}
                crops = [(CROPS_MEMBER, _npy(label[CROPS][[*best, *others]]))]
            name = f"{shard:05d}-{counts['ok']:06d}"
            members = ((extension, image), ("json", encode_body(body)), *crops)
            places.append([(f"{name}.{kind}", tar.add(f"{name}.{kind}", part), len(part)) for kind, part in members])
            counts["ok"] += 1
    out.write_bytes(index_name(shard), tar_index(places))
    return dict(counts), unreadable


def best_regions(label: dict[str, Any], max_regions: int, kept: bool = True) -> list[int]:
    """Return which regions of one LABELS row are kept (or aren't), highest score first, at most `max_regions`."""
    found = np.flatnonzero(np.asarray(label["kept"], bool) == kept)
    scores = np.asarray(label["score"], np.float32)[found]
    return found[np.argsort(-scores, kind="stable")[:max_regions]].tolist()  # type: ignore[no-any-return]


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


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


def crop_dimensions(labels: Folder, shard: int) -> int:
    """Return D, if a shard's labels have embeddings of crops; else 0."""
    with labels.open_table(f"labels-{shard:05d}.parquet") as file:
        return int((pq.read_schema(file).metadata or {}).get(CROPS.encode(), 0))


def _label_rows(labels: Folder, shard: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield rows as Python objects, but embeddings of crops as arrays, float16[R, D]."""
    with labels.open_table(f"labels-{shard:05d}.parquet") as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=columns):
            if CROPS not in batch.schema.names:
                yield from batch.to_pylist()
                continue
            width = int(batch.schema.metadata[CROPS.encode()])
            for row, own in zip(batch.drop_columns([CROPS]).to_pylist(), batch[CROPS], strict=True):
                yield {**row, CROPS: own.values.flatten().to_numpy().reshape(-1, width)}


def write_meta(folder: Folder, shards: Sequence[tuple[int, int]], top_k: int, vocabulary: str, crops: int = 0) -> None:
    """Write pairs.json.

    Args:
        shards: (shard number, samples in its tar).
        top_k: K.
        vocabulary: digest of the concept pool.
        crops: D, if the samples have embeddings of crops; else 0.
    """
    counts = [{"shard": shard, "samples": samples} for shard, samples in sorted(shards)]
    body = {"shards": counts, "samples": sum(n for _, n in shards), "top_k": top_k, "vocabulary": vocabulary}
    folder.write_json(PAIRS_META, {**body, "crops": crops} if crops else body)


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
    other_boxes: Tensor  # float32[O, 4]
    other_score: Tensor  # float32[O]
    crops: Tensor | None  # float16[R + O, D], where they were asked for

    @cached_property
    def image(self) -> Tensor:
        """uint8[3, H, W], decoded when first asked for; BadImage if the bytes can't be."""
        return to_tensor(decode_image(self.image_bytes))


class _Place(NamedTuple):
    """Where a sample is: its tar, and the first byte and the number of bytes of each member."""

    tar: str
    image: int
    image_size: int
    body: int
    body_size: int
    crops: int = 0
    crops_size: int = 0


class _PairsOrder(EpochOrder):
    """Shards come in a new order each epoch, and their samples go through a shuffle buffer, as webdataset does it.

    Neither looks at a sample's content, so the order is that of their numbers.
    """

    def __init__(self, sizes: Sequence[int], seed: int, buffer: int) -> None:
        super().__init__(sum(sizes), seed)
        self._sizes, self._buffer = sizes, buffer

    def shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        ends = np.cumsum(self._sizes).tolist()
        shards = [range(end - size, end) for size, end in zip(self._sizes, ends, strict=True)]
        random.Random(f"{self.seed} {epoch} shards").shuffle(shards)
        rng = random.Random(f"{self.seed} {epoch} buffer")
        numbers = shuffle(self._buffer, initial=self._buffer, rng=rng)(chain.from_iterable(shards))
        return np.fromiter(numbers, np.int64, self.count)


class RegionPairs:
    """Shuffled samples of a pairs artifact, endless, in an order that depends on (seed, epoch) alone.

    A sample is read by itself, in one piece, wherever it is in its tar: processes that read different positions read
    nothing twice but the small indices. The order is the same for any number of ranks: rank r of w takes the samples
    whose position is r modulo w, so one process and two see the same global batches.
    """

    def __init__(
        self,
        pairs: Folder,
        seed: int,
        vocabulary: str | None = None,
        *,
        buffer: int = 1000,
        max_error_rate: float = 1,
        crops: bool = False,
    ) -> None:
        """Read what the finished artifact `pairs` holds.

        Args:
            vocabulary: digest of the concept pool that the caller has embeddings of; None skips the check.
            buffer: samples in the shuffle buffer.
            max_error_rate: share of the images that may be unreadable.
            crops: read the embeddings of crops too.

        Raises:
            ValueError: if the pairs are of another pool, there are none, or they have no crops and should.
        """
        meta = pairs.read_json(PAIRS_META)
        if vocabulary is not None:
            _require_pool(pairs.url, meta["vocabulary"], vocabulary)
        samples = sorted((entry["shard"], entry["samples"]) for entry in meta["shards"] if entry["samples"])
        if not samples:
            raise ValueError(f"{pairs.url} has no region-text pairs; lower labels.threshold or pairs.min_regions")
        if crops and not meta.get("crops"):
            raise ValueError(
                f"{pairs.url} has no embeddings of crops, which pretrain.crop_weight needs; set labels.crop_features: "
                "true and run labels and pairs again"
            )
        self._shards, sizes = zip(*samples, strict=True)
        self._starts = np.cumsum([0, *sizes])
        self._order = _PairsOrder(sizes, seed, buffer)
        self._pairs, self._vocabulary, self._top_k = pairs, meta["vocabulary"], meta["top_k"]
        self._crops: int = meta["crops"] if crops else 0
        self._indices: dict[int, npt.NDArray[np.int64]] = {}
        self.unreadable = UnreadableImages(len(self), max_error_rate)

    def __len__(self) -> int:
        """N, samples per epoch on all ranks together."""
        return self._order.count

    def __getitem__(self, position: int) -> RegionSample:
        """Return the sample at a position in the endless stream.

        Raises:
            ValueError: if it is of another concept pool than `pairs.json` says, or not where its index has it.
        """
        return self._decoded(self._read(self._place(position)))

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[RegionSample]:
        """Return this rank's share of the batch of a step, images decoded.

        Ranks take every `world_size`-th sample of the whole stream, not of each epoch, so a batch may span two epochs.

        Args:
            batch_size: images per step, all ranks together.

        Raises:
            ValueError: if batch_size is not a multiple of world_size.
            ErrorRateExceeded: if too many images can't be read.
        """
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
        positions = range(step * batch_size + rank, (step + 1) * batch_size, world_size)
        places = [self._place(position) for position in positions]
        ready = dict(zip(positions, self._pairs.at_once(self._read, places), strict=True))

        def sample_at(position: int) -> RegionSample:
            # One that replaces an unreadable one is not ready; one may replace several.
            return self._decoded(ready[position]) if position in ready else self[position]

        return [first_readable(sample_at, place, attrgetter("image"), self.unreadable)[0] for place in positions]

    def _place(self, position: int) -> _Place:
        """Return where the sample at a position is."""
        number = self._order[position]
        row = int(np.searchsorted(self._starts, number, "right")) - 1
        shard, samples = self._shards[row], int(self._starts[row + 1] - self._starts[row])
        index = self._indices.get(shard)
        if index is None:
            rows = read_tar_index(self._pairs.read_bytes(index_name(shard), small=True))
            index = np.array(rows, np.int64).reshape(len(rows), -1)
            if len(index) != samples:
                raise ValueError(
                    f"{self._pairs.path(pairs_name(shard))} has {len(index)} samples, expected {samples}; do "
                    "it over: `regionclip run pairs --force`"
                )
            while len(self._indices) >= _INDICES:
                del self._indices[next(iter(self._indices))]
            self._indices[shard] = index
        return _Place(pairs_name(shard), *index[number - int(self._starts[row])].tolist())

    def _read(self, place: _Place) -> tuple[_Place, bytes]:
        """Return the bytes of the members that are asked for, and the headers between them."""
        end = place.crops + place.crops_size if self._crops else place.body + place.body_size
        return place, self._pairs.read_range(place.tar, place.image, end)

    def _decoded(self, found: tuple[_Place, bytes]) -> RegionSample:
        """Return a sample from its bytes; ValueError if they are none, or the pool is another."""
        place, data = found
        where = f"{self._pairs.path(place.tar)}, byte {place.body}"
        try:
            body = json.loads(data[place.body - place.image :][: place.body_size])
            crops = self._decoded_crops(place, data, len(body["boxes"]) + len(body.get("other_boxes", ())))
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{where}: not the sample that the index beside it has; do it over: `regionclip run pairs --force`"
            ) from error
        _require_pool(where, body["vocabulary"], self._vocabulary)
        # K isn't visible in a sample without regions.
        shapes = {"boxes": (4,), "top_concepts": (self._top_k,), "top_probabilities": (self._top_k,)}
        columns: dict[str, Any] = {}
        for name in REGION_FIELDS:
            values = torch.tensor(body[name], dtype=torch.float32 if name in _FLOATS else torch.int64)
            columns[name] = values.reshape(len(body["boxes"]), *shapes.get(name, ()))
        columns["other_boxes"] = torch.tensor(body.get("other_boxes", []), dtype=torch.float32).reshape(-1, 4)
        columns["other_score"] = torch.tensor(body.get("other_score", []), dtype=torch.float32)
        return RegionSample(body["key"], data[: place.image_size], tuple(body["captions"]), **columns, crops=crops)

    def _decoded_crops(self, place: _Place, data: bytes, regions: int) -> Tensor | None:
        """Return float16[regions, D]; None if no crops are asked for. ValueError if they are of another number."""
        if not self._crops:
            return None
        array = np.load(io.BytesIO(data[place.crops - place.image :]), allow_pickle=False)
        return torch.from_numpy(array.reshape(regions, self._crops))


def _require_pool(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{what} was made with the concept pool {found[:12]}, expected {expected[:12]}: concept ids would not mean "
            "the same. Do it over: `regionclip run pairs --force`"
        )
