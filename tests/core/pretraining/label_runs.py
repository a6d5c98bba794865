"""The labels stage on a few hand-made pictures, for the tests of corrections and of labels from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from small_artifacts import TRAIN, VOCABULARY, rows_of, run_stage, tiny_clip, tiny_config, write_data, write_proposals

from regionclip_core.models.clip import save_clip
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import CONCEPTS
from stages.base import StageContext
from stages.declarations import STAGES

POOL = {"kitty": "cat", "dog": "dog", "red cup": None, "tree": None, "cup": "cup"}
"""Concepts, and the category that each spells; "bus" is none of them."""
IDS = {"cat": 17, "dog": 18, "bus": 6}
"""The categories' ids in the annotation file of `train`; it has no "cup"."""


class LabelRun:
    """Inputs of the stage; `run` gives its rows by key, and its summary."""

    def __init__(self, root: Path) -> None:
        names = ("teacher", "concepts", "proposals")
        self.root, self.inputs = root, {name: Folder(str(root / name)) for name in names}
        self.inputs["data"] = data = write_data(root / "data", {"train": TRAIN, "val": [TRAIN[0][:2]]})
        data.write_json("categories.json", {**VOCABULARY.to_json(), "ids": {"train": IDS}})
        save_clip(tiny_clip(), self.inputs["teacher"])
        numbers = dict.fromkeys(("id", "n_words", "n_captions", "n_images", "n_mentions"), 1)
        texts = {"head": "", "surface_forms": [], "source": "parsed", "example": None}
        rows = [{"concept": n, "dataset_class": own, **numbers, **texts} for n, own in POOL.items()]
        with self.inputs["concepts"].write("concepts.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=CONCEPTS), file)
        self.images = rows_of(data, "train")
        # The objects, and a box that is on none of them.
        boxes = {
            row.key: torch.cat([torch.from_numpy(row.boxes), torch.tensor([[0.0, 0, 6, 6]])])
            for row in self.images
            if row.ok
        }
        write_proposals(self.inputs["proposals"], data, "train", boxes, torch.linspace(3, -3, 9))
        self.out = Folder(str(root / "none"))

    def run(self, name: str, **settings: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        config = tiny_config(labels={"top_k": 3, "max_regions": 4, "threshold": 0.3, **settings})
        self.out = Folder(str(self.root / name))
        inputs = {need: self.inputs[need] for need in STAGES["labels"].needs(config)}
        summary = run_stage(STAGES["labels"], StageContext(config, self.out, inputs))
        rows = {}
        for shard in (0, 1):
            with self.out.open(f"labels-{shard:05d}.parquet") as file:
                rows |= {row["key"]: row for row in pq.read_table(file).to_pylist()}
        return rows, summary
