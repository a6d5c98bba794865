"""The table of what kept labels are, by concept, beside the labels artifact: its schema, and its first and last lines.

It is in a folder of its own, `truth`, and like the summary no part of the artifact's content: no stage reads it, so
another list of synonyms changes nothing that comes after the labels.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.storage.folder import Folder

CONCEPT_TRUTH = pa.schema(
    [
        pa.field("concept", pa.string(), nullable=False),
        pa.field("category", pa.string()),  # that it names; null: none, so that no label of it can be clean
        pa.field("kept", pa.int64(), nullable=False),  # labels in the annotated splits: the sum of the next four
        pa.field("clean", pa.int64(), nullable=False),
        pa.field("wrong_name", pa.int64(), nullable=False),
        pa.field("loose", pa.int64(), nullable=False),
        pa.field("off_object", pa.int64(), nullable=False),
        pa.field("mostly_on", pa.string()),  # of the wrong names: the category whose objects most of them are on
        pa.field("mostly_on_count", pa.int64(), nullable=False),
    ]
)
_FILE = "concepts.parquet"


def truth_folder(labels: Folder) -> Folder:
    """Return the folder of the table, which need not be there."""
    return labels.child("truth")


def write_truth(labels: Folder, table: pa.Table) -> None:
    """Write CONCEPT_TRUTH."""
    with truth_folder(labels).write(_FILE) as file:
        pq.write_table(table, file)


def best_and_worst(labels: Folder, most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the first rows of the table, of which most labels are clean, and the last ones, the last one first.

    At most `most` each, none twice; of the last ones none whose labels are all clean. Both are empty where nothing is
    annotated, and for labels from before there was a table.
    """
    folder = truth_folder(labels)
    if not folder.exists(_FILE):
        return [], []
    with folder.open(_FILE) as file:
        rows = pq.read_table(file).to_pylist()
    others = [row for row in rows[most:] if row["clean"] < row["kept"]]
    return rows[:most], others[::-1][:most]


def clean_shares(labels: Folder) -> dict[str, float]:
    """Return the share of clean labels of each concept in the table; empty as for `best_and_worst`."""
    folder = truth_folder(labels)
    if not folder.exists(_FILE):
        return {}
    with folder.open(_FILE) as file:
        rows = pq.read_table(file, columns=["concept", "clean", "kept"]).to_pylist()
    return {row["concept"]: row["clean"] / row["kept"] for row in rows}
