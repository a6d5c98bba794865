"""Region-text samples as WebDataset tars: their form, and the loader that training reads them with.

A sample is two members, `00007-000012.jpg`, the image's bytes as they came, and `00007-000012.json`:

    {"key", "image_id", "width", "height", "captions", "vocabulary",
     "boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass"}

Names are running numbers, since WebDataset ends a key at the first dot and the real keys may hold dots and slashes.
`vocabulary` is the digest of the concept pool that the ids point into. `pairs.json` beside the tars says how many
samples each shard has.

R regions of one image, K stored teacher probabilities a region, H and W of the image, N samples an epoch. Boxes are
xyxy pixels in the original image.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from regionclip_core.datasets.images import EXTENSIONS, BadImage, decode_image, to_tensor
from regionclip_core.storage.records import Folder

if TYPE_CHECKING:
    from torch import Tensor

    from regionclip_core.training.image_tally import ImageTally

PAIRS_META = "pairs.json"
REGION_FIELDS = ("boxes", "concept_id", "score", "top_concepts", "top_probabilities", "residual_mass")
_FLOATS = frozenset({"boxes", "score", "top_probabilities", "residual_mass"})


def pairs_name(shard: int) -> str:
    """File name of a shard's tar."""
    return f"pairs-{shard:05d}.tar"


def sample_name(shard: int, number: int) -> str:
    """Name of a sample's members in the tar, without their extension."""
    return f"{shard:05d}-{number:06d}"


def encode_body(body: dict[str, Any]) -> bytes:
    """A sample's JSON member. Floats are float32 at their shortest: they are read back to the bit."""
    short = {name: _shortest(value) if name in _FLOATS else value for name, value in body.items()}
    return json.dumps(short, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _shortest(values: Any) -> Any:
    """Nested lists of float32 values with as few digits as tell them apart."""
    return np.asarray(values, np.float32).astype("U32").astype(np.float64).tolist()


@dataclass(frozen=True, eq=False)
class RegionSample:
    """One image with its pseudo-labelled regions, highest score first."""

    key: str
    image_id: int
    image_bytes: bytes
    width: int
    height: int
    captions: tuple[str, ...]
    boxes: Tensor
    """float32 [R, 4]"""
    concept_id: Tensor
    """int64 [R]"""
    score: Tensor
    """float32 [R]"""
    top_concepts: Tensor
    """int64 [R, K]"""
    top_probabilities: Tensor
    """float32 [R, K]"""
    residual_mass: Tensor
    """float32 [R]"""

    @cached_property
    def image(self) -> Tensor:
        """uint8 [3, H, W], decoded when first asked for.

        Raises:
            BadImage: the bytes can't be decoded.
        """
        return to_tensor(decode_image(self.image_bytes))


def decode_sample(members: dict[str, Any], top_k: int, vocabulary: str) -> RegionSample:
    """A RegionSample from the members of one sample by extension.

    Args:
        members: `json` and one image, as bytes.
        top_k: K, which a sample without regions doesn't tell.
        vocabulary: digest of the concept pool that the sample has to be of.

    Raises:
        ValueError: a member is missing, or the sample is of another pool.
    """
    import torch

    extension = next((name for name in members if name in EXTENSIONS), None)
    if extension is None or "json" not in members:
        raise ValueError(f"sample {members.get('__key__')}: expected .json and an image, found {sorted(members)}")
    body = json.loads(members["json"])
    if body["vocabulary"] != vocabulary:
        raise ValueError(_mismatch(f"sample {members.get('__key__')}", body["vocabulary"], vocabulary))
    count = len(body["boxes"])

    def column(name: str, *shape: int) -> Tensor:
        kind = torch.float32 if name in _FLOATS else torch.int64
        return torch.tensor(body[name], dtype=kind).reshape(count, *shape)

    return RegionSample(
        key=body["key"],
        image_id=body["image_id"],
        image_bytes=members[extension],
        width=body["width"],
        height=body["height"],
        captions=tuple(body["captions"]),
        boxes=column("boxes", 4),
        concept_id=column("concept_id"),
        score=column("score"),
        top_concepts=column("top_concepts", top_k),
        top_probabilities=column("top_probabilities", top_k),
        residual_mass=column("residual_mass"),
    )


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


class RegionPairs:
    """Shuffled samples of a pairs artifact, in an order that depends on (seed, epoch) alone.

    Shards come in a new order each epoch and run through a shuffle buffer. The order is the same for any number of
    ranks: rank r of w gets the samples whose position in the endless stream is r modulo w, so that one worker and two
    see the same global batches. Any position can be reached without decoding, and shards that lie wholly before it are
    not read.

    Args:
        pairs: finished pairs artifact.
        seed: of the order.
        vocabulary: digest of the concept pool that the caller has embeddings of; None skips the check.
        buffer: samples in the shuffle buffer, encoded (memory: that many image files).
        shards: use these shards only; None uses all.

    Raises:
        ValueError: the pairs are of another pool, or there are none.
    """

    def __init__(
        self,
        pairs: Folder,
        seed: int,
        vocabulary: str | None = None,
        buffer: int = 1000,
        shards: Iterable[int] | None = None,
    ) -> None:
        meta = pairs.read_json(PAIRS_META)
        if vocabulary is not None and meta["vocabulary"] != vocabulary:
            raise ValueError(_mismatch(pairs.url, meta["vocabulary"], vocabulary))
        wanted = None if shards is None else set(shards)
        self._samples: dict[int, int] = {
            entry["shard"]: entry["samples"]
            for entry in meta["shards"]
            if entry["samples"] and (wanted is None or entry["shard"] in wanted)
        }
        if not self._samples:
            raise ValueError(f"{pairs.url} has no region-text pairs; lower labels.threshold or pairs.min_regions")
        shard_starts = accumulate((self._samples[shard] for shard in sorted(self._samples)), initial=0)
        self._starts = dict(zip(sorted(self._samples), shard_starts, strict=False))
        """Samples before each shard's, in the order of the shards."""
        self._pairs, self._seed, self._buffer = pairs, seed, buffer
        self._vocabulary, self._top_k = meta["vocabulary"], meta["top_k"]

    def __len__(self) -> int:
        """N, samples an epoch, all ranks together."""
        return sum(self._samples.values())

    def epoch(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[RegionSample]:
        """The samples of one epoch at positions >= skip that are `rank` modulo `world_size`."""
        for position, members in enumerate(self._members(epoch, skip), skip):
            if position % world_size == rank:
                yield self._decoded(members)

    def stream(
        self, position: int = 0, rank: int = 0, world_size: int = 1, tally: ImageTally | None = None
    ) -> Iterator[RegionSample]:
        """Endless epochs from a global position on (samples of all ranks before it), striding over ranks.

        Ranks stride over the whole stream, not over each epoch, so that a batch may straddle two epochs.

        Args:
            tally: counts what is read. The images are decoded then, and for a bad one comes the next sample of the
                stream that can be read, the same whichever rank asks.

        Raises:
            BadImage: with `tally`, of the first, if a hundred in a row are bad, or all.
        """
        members = self._endless(position)
        ahead: deque[dict[str, Any]] = deque()
        for place in count(position):
            first = ahead.popleft() if ahead else next(members)
            if place % world_size != rank:
                continue
            if tally is None:
                yield self._decoded(first)
            else:
                yield self._first_readable(first, ahead, members, tally)

    def tally(self, max_error_rate: float) -> ImageTally:
        """Counts the samples that a training reads, by their place in the tars, one after another."""
        from regionclip_core.training.image_tally import ImageTally

        return ImageTally(len(self), max_error_rate, key_of=self._name)

    def batches_at(
        self, batch_size: int, rank: int = 0, world_size: int = 1, tally: ImageTally | None = None
    ) -> Callable[[int], list[RegionSample]]:
        """A function from the step to this rank's share of its batch.

        Cheap when steps rise by one; any other step opens the stream anew at its place.

        Args:
            batch_size: images a step, all ranks together.
            tally: see `stream`.

        Raises:
            ValueError: batch_size is no multiple of world_size.
        """
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
        expected = -1
        stream: Iterator[RegionSample] = iter(())

        def at(step: int) -> list[RegionSample]:
            nonlocal expected, stream
            if step != expected:
                stream = self.stream(step * batch_size, rank, world_size, tally)
            expected = step + 1
            return list(islice(stream, batch_size // world_size))

        return at

    def _decoded(self, members: dict[str, Any]) -> RegionSample:
        return decode_sample(members, self._top_k, self._vocabulary)

    def _members(self, epoch: int, skip: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of one epoch at positions >= skip."""
        samples = self._read(self._order(epoch), self._read_from(epoch, skip))
        return islice(self._shuffled(epoch, samples), skip, None)

    def _endless(self, position: int) -> Iterator[dict[str, Any]]:
        """Undecoded samples of endless epochs from a global position on."""
        first, skip = divmod(position, len(self))
        for epoch in count(first):
            yield from self._members(epoch, skip if epoch == first else 0)

    def _first_readable(
        self, first: dict[str, Any], ahead: deque[dict[str, Any]], members: Iterator[dict[str, Any]], tally: ImageTally
    ) -> RegionSample:
        """A sample, or the next one with a readable image; `ahead` takes what is read beyond the first of them."""
        from regionclip_core.training.sampling import MOST_BAD_IN_A_ROW, none_readable, skip

        error: BadImage | None = None
        # An epoch's last samples may come again as the first of the next: two epochs are sure to hold every one.
        most = min(MOST_BAD_IN_A_ROW, 2 * len(self))
        for offset in range(most):
            if offset > len(ahead):
                ahead.append(next(members))
            candidate = ahead[offset - 1] if offset else first
            sample, place = self._decoded(candidate), self._place(candidate)
            try:
                _ = sample.image  # kept by the sample
            except BadImage as bad:
                skip(place, bad, tally)
                error = error or bad
                continue
            tally.good(place)
            return sample
        assert error is not None
        raise none_readable(error, most) from error

    def _place(self, members: dict[str, Any]) -> int:
        """A sample's place in the tars, from the name that `sample_name` gave it."""
        shard, number = members["__key__"].split("-")
        return self._starts[int(shard)] + int(number)

    def _name(self, place: int) -> str:
        """The inverse of `_place`: the name of the sample's members."""
        shard = max(shard for shard, start in self._starts.items() if start <= place)
        return sample_name(shard, place - self._starts[shard])

    def _order(self, epoch: int) -> list[int]:
        shards = sorted(self._samples)
        random.Random(f"{self._seed} {epoch} shards").shuffle(shards)
        return shards

    def _shuffled(self, epoch: int, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """WebDataset's shuffle buffer. Its choices depend on how many samples pass, not on what they hold."""
        from webdataset.filters import shuffle

        rng = random.Random(f"{self._seed} {epoch} buffer")
        shuffled: Iterator[dict[str, Any]] = shuffle(self._buffer, initial=self._buffer, rng=rng)(samples)
        return shuffled

    def _read_from(self, epoch: int, skip: int) -> set[int]:
        """Shards that any sample at a position >= skip comes from: found by shuffling bare shard numbers."""
        if skip == 0:
            return set(self._samples)
        bare = self._read(self._order(epoch), set())
        return {members["shard"] for members in islice(self._shuffled(epoch, bare), skip, None)}

    def _read(self, order: list[int], read: set[int]) -> Iterator[dict[str, Any]]:
        """Undecoded samples shard by shard; for shards not in `read`, as many placeholders."""
        for shard in order:
            if shard not in read:
                yield from ({"shard": shard} for _ in range(self._samples[shard]))
                continue
            count = 0
            for members in self._read_shard(shard):
                yield members
                count += 1
            if count != self._samples[shard]:
                found = f"{count} samples, expected {self._samples[shard]}"
                raise ValueError(f"{self._pairs.url}/{pairs_name(shard)} has {found}; run the pairs stage again")

    def _read_shard(self, shard: int) -> Iterator[dict[str, Any]]:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        with self._pairs.open(pairs_name(shard)) as stream:
            yield from group_by_keys(tar_file_expander([{"url": pairs_name(shard), "stream": stream}]))


def _mismatch(what: str, found: str, expected: str) -> str:
    return (
        f"{what} was made with the concept pool {found[:12]}, expected {expected[:12]}: concept ids would not mean the "
        "same. Run the pairs stage again"
    )
