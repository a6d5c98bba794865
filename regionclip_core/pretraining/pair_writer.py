"""Joins images with their pseudo labels to region-text samples, one shard at a time.

R regions of one image, K stored teacher probabilities a region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from regionclip_core.config.tree import PairsConfig
from regionclip_core.datasets.images import BadImage, ImageReader, read_header
from regionclip_core.datasets.index import VOCABULARY_DIGEST, IndexRow, read_index
from regionclip_core.pretraining.pair_reader import REGION_FIELDS, encode_body, sample_name
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tars import TarWriter

_ROWS_AT_ONCE = 256  # bounds the memory that label rows take as Python objects


def write_pairs(file: BinaryIO, data: Folder, labels: Folder, shard: int, settings: PairsConfig) -> dict[str, int]:
    """Write one shard's samples as a WebDataset tar; returns images by what became of them.

    Image bytes are copied as they are. Counts: `ok` (written), `few_regions` (fewer kept regions than
    settings.min_regions), `no_caption` (a pair needs one: the image-text loss would contrast an empty text),
    `not_labelled` (their row in the labels says why), `bad_image`.

    Raises:
        ValueError: a label's key is not in the index: the two artifacts are not of one run.
    """
    images = {row.key: row for row in read_index(data, shard)}
    counts: Counter[str] = Counter(ok=0)
    digest = labels_digest(labels, shard)
    with TarWriter(file) as tar, ImageReader(data) as reader:
        for label in _label_rows(labels, shard):
            if label["key"] not in images:
                raise ValueError(f"labels of shard {shard} have {label['key']!r}, which the data index does not")
            if label["status"] != "ok":
                counts["not_labelled"] += 1
                continue
            if not images[label["key"]].captions:
                counts["no_caption"] += 1
                continue
            regions = best_regions(label, settings.max_regions)
            if len(regions["boxes"]) < settings.min_regions:
                counts["few_regions"] += 1
                continue
            counts[_write(tar, sample_name(shard, counts["ok"]), images[label["key"]], regions, digest, reader)] += 1
    return dict(counts)


def _write(
    tar: TarWriter, name: str, row: IndexRow, regions: dict[str, list[Any]], digest: str, reader: ImageReader
) -> str:
    """Add one sample; returns what to count it as."""
    try:
        image = reader.read_bytes(row)
        extension = read_header(image).extension
    except BadImage as error:
        return error.status
    body = {
        "key": row.key,
        "image_id": row.image_id,
        "width": row.width,
        "height": row.height,
        "captions": list(row.captions),
        "vocabulary": digest,
        **regions,
    }
    tar.add(f"{name}.{extension}", image)
    tar.add(f"{name}.json", encode_body(body))
    return "ok"


def best_regions(label: dict[str, Any], max_regions: int) -> dict[str, list[Any]]:
    """The kept regions of one LABELS row, highest score first, at most `max_regions`; columns by name."""
    kept = np.flatnonzero(np.asarray(label["kept"], bool))
    scores = np.asarray(label["score"], np.float32)[kept]
    chosen = kept[np.argsort(-scores, kind="stable")[:max_regions]]
    return {name: [label[name][i] for i in chosen] for name in REGION_FIELDS}


def labels_digest(labels: Folder, shard: int) -> str:
    """Digest of the concept pool that a shard's labels point into.

    Raises:
        ValueError: the file does not carry one.
    """
    import pyarrow.parquet as pq

    with labels.open_table(_labels_name(shard)) as file:
        metadata = pq.read_schema(file).metadata or {}
    if VOCABULARY_DIGEST not in metadata:
        raise ValueError(f"{labels.url}/{_labels_name(shard)} has no vocabulary digest; run the labels stage again")
    return str(metadata[VOCABULARY_DIGEST].decode())


def stored_probabilities(labels: Folder, shards: list[int]) -> int:
    """K, the length of `top_concepts` in these labels; 0 if no region was labelled at all."""
    for shard in shards:
        for row in _label_rows(labels, shard, ["top_concepts"]):
            if row["top_concepts"]:
                return len(row["top_concepts"][0])
    return 0


def _label_rows(labels: Folder, shard: int, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with labels.open_table(_labels_name(shard)) as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()


def _labels_name(shard: int) -> str:
    return f"labels-{shard:05d}.parquet"
