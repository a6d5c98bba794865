"""Every Arrow schema of the pipeline, in one place.

Boxes are absolute xyxy pixels in the original image. One row is one image, except in the concept tables.
A row whose status is not `ok` keeps its key and says why; readers skip it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.storage.records import Folder

BOX = pa.list_(pa.float32(), 4)

INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique in the split
        pa.field("status", pa.string(), nullable=False),  # ok | bad_image | no_caption | ...
        pa.field("reason", pa.string()),  # why the status is not ok
        pa.field("image_id", pa.int64(), nullable=False),  # COCO id, or the running number in the split
        pa.field("url", pa.string(), nullable=False),  # file that holds the bytes; relative: in the data folder
        pa.field("offset", pa.int64(), nullable=False),  # of the image's bytes in that file
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("box_labels", pa.list_(pa.int32()), nullable=False),  # row in the Vocabulary; -1: not in it
        pa.field("box_crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("box_area", pa.list_(pa.float32()), nullable=False),  # COCO's area (mask), for the size ranges of AP
        pa.field("box_masks", pa.list_(pa.binary()), nullable=False),  # COCO's compressed run lengths; empty: none read
        pa.field("neg_labels", pa.list_(pa.int32())),  # LVIS: categories known to be absent; null: all are annotated
        pa.field("not_exhaustive_labels", pa.list_(pa.int32())),  # LVIS: categories not annotated to the last object
    ]
)

CONCEPTS = pa.schema(
    [
        pa.field("id", pa.int32(), nullable=False),
        pa.field("concept", pa.string(), nullable=False),
        pa.field("head", pa.string(), nullable=False),
        pa.field("n_words", pa.int32(), nullable=False),
        pa.field("n_captions", pa.int64(), nullable=False),
        pa.field("n_images", pa.int64(), nullable=False),
        pa.field("n_mentions", pa.int64(), nullable=False),
        pa.field("surface_forms", pa.list_(pa.string()), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # parsed | dataset
        pa.field("dataset_class", pa.string()),
        pa.field("example", pa.string()),
    ]
)

DROPPED_CONCEPTS = pa.schema(
    [
        pa.field("concept", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("n_captions", pa.int64(), nullable=False),
        pa.field("n_images", pa.int64(), nullable=False),
        pa.field("n_mentions", pa.int64(), nullable=False),
        pa.field("example", pa.string()),
    ]
)

# One shard's counts, before the merge: one row a phrase.
PHRASES = pa.schema(
    [
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("head", pa.string(), nullable=False),
        pa.field("n_words", pa.int32(), nullable=False),
        pa.field("n_captions", pa.int64(), nullable=False),
        pa.field("n_images", pa.int64(), nullable=False),
        pa.field("n_mentions", pa.int64(), nullable=False),
        pa.field("surface_forms", pa.list_(pa.string()), nullable=False),
        pa.field("surface_counts", pa.list_(pa.int64()), nullable=False),
        pa.field("drop_reason", pa.string()),
        pa.field("example", pa.string()),
    ]
)

PROPOSALS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("objectness_logit", pa.list_(pa.float32()), nullable=False),  # raw logit, best first
    ]
)

LABELS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("objectness_logit", pa.list_(pa.float32()), nullable=False),
        pa.field("concept_id", pa.list_(pa.int32()), nullable=False),  # row in the concept pool
        pa.field("score", pa.list_(pa.float32()), nullable=False),  # the concept's teacher probability
        pa.field("kept", pa.list_(pa.bool_()), nullable=False),  # score > threshold
        pa.field("top_concepts", pa.list_(pa.list_(pa.int32())), nullable=False),
        pa.field("top_probabilities", pa.list_(pa.list_(pa.float32())), nullable=False),
        pa.field("residual_mass", pa.list_(pa.float32()), nullable=False),  # 1 - sum(top_probabilities)
    ]
)

# Beside the columns of INDEX in a training's own copy of a split (row_table.py); never part of an artifact.
PROPOSED = pa.field("proposals", pa.list_(BOX), nullable=False)


def read_proposal_table(proposals: Folder, shard: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard's proposals, schemas.PROPOSALS."""
    with proposals.open_table(f"proposals-{shard:05d}.parquet") as file:
        return pq.read_table(file, columns=list(columns)).combine_chunks()
