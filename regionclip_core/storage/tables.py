"""Every Arrow schema of the pipeline, in one place.

Boxes are absolute xyxy pixels in the original image. One row is one image, except in the concept tables.
A row whose status is not `ok` keeps its key and says why; readers skip it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.storage.folder import Folder

BOX = pa.list_(pa.float32(), 4)
_INTS, _FLOATS, _TEXTS = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.string())


def _schema(optional: str = "", **columns: pa.DataType) -> pa.Schema:
    """A schema in which only the columns that `optional` names may be null."""
    return pa.schema([pa.field(name, kind, nullable=name in optional.split()) for name, kind in columns.items()])


INDEX = _schema(
    optional="reason neg_labels not_exhaustive_labels",
    key=pa.string(),  # unique in the split
    status=pa.string(),  # ok | bad_image | no_caption | ...
    reason=pa.string(),  # why the status is not ok
    image_id=pa.int64(),  # COCO id, or the running number in the split
    url=pa.string(),  # file that holds the bytes; relative: in the data folder
    offset=pa.int64(),  # of the image's bytes in that file
    size=pa.int64(),  # bytes
    width=pa.int32(),
    height=pa.int32(),
    captions=_TEXTS,
    boxes=pa.list_(BOX),
    box_labels=_INTS,  # row in the Vocabulary; -1: not in it
    box_crowd=pa.list_(pa.bool_()),
    box_area=_FLOATS,  # COCO's area (mask), for the size ranges of AP
    box_masks=pa.list_(pa.binary()),  # COCO's compressed run lengths; empty: none read
    neg_labels=_INTS,  # LVIS: categories known to be absent; null: all are annotated
    not_exhaustive_labels=_INTS,  # LVIS: categories of which not every object is annotated
)

CONCEPTS = _schema(
    optional="dataset_class example",
    id=pa.int32(),
    concept=pa.string(),
    head=pa.string(),
    n_words=pa.int32(),
    n_captions=pa.int64(),
    n_images=pa.int64(),
    n_mentions=pa.int64(),
    surface_forms=_TEXTS,
    source=pa.string(),  # parsed | dataset | given (concepts.file, concepts.add)
    dataset_class=pa.string(),
    example=pa.string(),
)

DROPPED_CONCEPTS = _schema(
    optional="example",
    concept=pa.string(),
    reason=pa.string(),
    n_captions=pa.int64(),
    n_images=pa.int64(),
    n_mentions=pa.int64(),
    example=pa.string(),
)

# Counts of one shard, before the merge: one row per phrase.
PHRASES = _schema(
    optional="drop_reason example",
    phrase=pa.string(),
    head=pa.string(),
    n_words=pa.int32(),
    n_captions=pa.int64(),
    n_images=pa.int64(),
    n_mentions=pa.int64(),
    surface_forms=_TEXTS,
    surface_counts=pa.list_(pa.int64()),
    drop_reason=pa.string(),
    example=pa.string(),
)

PROPOSALS = _schema(
    optional="reason",
    key=pa.string(),
    status=pa.string(),
    reason=pa.string(),
    boxes=pa.list_(BOX),
    objectness_logit=_FLOATS,  # raw logit, highest first
)

LABELS = _schema(
    optional="reason",
    key=pa.string(),
    status=pa.string(),
    reason=pa.string(),
    boxes=pa.list_(BOX),
    objectness_logit=_FLOATS,
    concept_id=_INTS,  # row in the concept pool
    score=_FLOATS,  # the teacher's probability of it, times objectness ** labels.objectness_power; or labels.source's
    kept=pa.list_(
        pa.bool_()
    ),  # score > threshold; never of boxes from labels.grid_scales; labels.corrections: score 1 or 0
    top_concepts=pa.list_(_INTS),
    top_probabilities=pa.list_(_FLOATS),
    residual_mass=_FLOATS,  # 1 - sum(top_probabilities)
)

# With `labels.crop_features`: the teacher's embedding of each region's own crop, D numbers, of unit length. D
# is in the table's metadata.
CROPS = "crops"
LABELS_WITH_CROPS = LABELS.append(pa.field(CROPS, pa.list_(pa.list_(pa.float16())), nullable=False))

POOL_NAMES = "concept_embeddings.json"
"""File of a labels artifact: the names that concept ids mean there."""

# Rows of `labels.source` that can't be used.
REJECTED = _schema(
    row=pa.int64(),  # in the file, from 1
    image=pa.string(),  # its key or id, as the row has it
    status=pa.string(),  # unknown_image | bad_box | unknown_name | ...
    reason=pa.string(),
)

# Images that `pairs` could not read, where a shard has any.
UNREADABLE = _schema(key=pa.string(), status=pa.string(), reason=pa.string())

# Beside the columns of INDEX in a training's own copy of a split (row_table.py); never part of an artifact.
PROPOSED = pa.field("proposals", pa.list_(BOX), nullable=False)


def read_proposal_table(proposals: Folder, shard: int, columns: Sequence[str]) -> pa.Table:
    """Return some columns of a shard's proposals, as PROPOSALS has them."""
    with proposals.open_table(f"proposals-{shard:05d}.parquet") as file:
        return pq.read_table(file, columns=list(columns)).combine_chunks()
