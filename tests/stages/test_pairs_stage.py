"""The pairs stage: data and labels in, tars out, the same bytes each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import read_index
from regionclip_core.pretraining.pairs import RegionPairs
from regionclip_core.storage.records import Folder, ShardRecord
from regionclip_core.storage.tables import LABELS
from stages.base import StageContext
from stages.data import WORK as DATA
from stages.declarations import STAGES
from stages.pairs import WORK

SPLITS = {
    "train": {"source": "world", "images": 7, "image_size": 80},
    "val": {"source": "world", "images": 3, "image_size": 80},
}


def make_config(**pairs: int) -> Config:
    return Config(
        data={"splits": SPLITS, "shard_size": 4},
        concepts={"splits": ["train"]},
        teacher={"weights": "random"},
        proposals={"splits": ["train", "val"]},
        labels={"splits": ["train"]},
        pairs=pairs,
    )


def run_all(stage: Any, ctx: StageContext) -> tuple[list[ShardRecord], dict[str, Any]]:
    records = []
    for shard in stage.shards(ctx):
        result = stage.process(ctx, stage.setup(ctx), shard)
        records.append(ShardRecord(shard, result.rows, result.counts, [], 0.0))
    return records, stage.merge(ctx, records)


def write_labels(data: Folder, labels: Folder, kept: bool = True) -> None:
    """Every annotated box as a region whose label is its category."""
    for shard in (0, 1):
        rows = []
        for row in read_index(data, shard):
            n = len(row.boxes)
            top = np.stack([row.box_labels, (row.box_labels + 1) % 65], 1)
            rows.append(
                {
                    "key": row.key,
                    "status": "ok",
                    "boxes": row.boxes.tolist(),
                    "objectness_logit": [1.0] * n,
                    "concept_id": row.box_labels.tolist(),
                    "score": [0.7] * n,
                    "kept": [kept] * n,
                    "top_concepts": top.tolist(),
                    "top_probabilities": [[0.7, 0.2]] * n,
                    "residual_mass": [0.1] * n,
                }
            )
        with labels.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=LABELS.with_metadata({"vocabulary": "pool"})), file)


@pytest.fixture
def inputs(tmp_path) -> dict[str, Folder]:
    folders = {name: Folder(str(tmp_path / name)) for name in ("data", "labels")}
    run_all(DATA, StageContext(make_config(), folders["data"], {}))
    write_labels(folders["data"], folders["labels"])
    return folders


def test_pairs_are_the_labelled_split(tmp_path, inputs) -> None:
    out = Folder(str(tmp_path / "pairs"))
    records, summary = run_all(WORK, StageContext(make_config(), out, inputs))
    assert [record.shard for record in records] == [0, 1]
    assert summary == {"samples": 7, "vocabulary": "pool"}
    rows = {row.key: row for shard in (0, 1) for row in read_index(inputs["data"], shard)}
    samples = RegionPairs(out, 0, "pool").batch(0, 7)
    assert len(samples) == 7
    with ImageReader(inputs["data"]) as reader:
        for sample in samples:
            row = rows[sample.key]
            assert sample.image_bytes == reader.read_bytes(row)
            np.testing.assert_array_equal(sample.boxes.numpy(), row.boxes)
            np.testing.assert_array_equal(sample.concept_id.numpy(), row.box_labels)
            assert sample.captions == tuple(row.captions)
            assert sample.top_concepts.shape == (len(row.boxes), 2)


def test_same_bytes_again(tmp_path, inputs) -> None:
    digests = []
    for url in (str(tmp_path / "a"), f"memory://{tmp_path.name}/b"):
        out = Folder(url)
        run_all(WORK, StageContext(make_config(), out, inputs))
        digests.append({w.name: w.sha256 for w in out.written})
    assert digests[0] == digests[1]
    assert set(digests[0]) == {*(f"pairs-0000{n}.{kind}" for n in (0, 1) for kind in ("tar", "idx")), "pairs.json"}


def test_settings(tmp_path, inputs) -> None:
    out = Folder(str(tmp_path / "pairs"))
    _, summary = run_all(WORK, StageContext(make_config(max_regions=2, min_regions=2), out, inputs))
    assert summary["samples"] <= 7
    assert {len(s.boxes) for s in RegionPairs(out, 0).batch(0, summary["samples"])} == {2}
    assert STAGES["pairs"].settings(make_config(max_regions=2)) != STAGES["pairs"].settings(make_config())


def test_nothing_kept_is_an_error_that_says_what_to_do(tmp_path, inputs) -> None:
    write_labels(inputs["data"], inputs["labels"], kept=False)
    out = Folder(str(tmp_path / "pairs"))
    with pytest.raises(ValueError, match=r"lower labels\.threshold or pairs\.min_regions \(now 0\.1 and 1\)"):
        run_all(WORK, StageContext(make_config(), out, inputs))
