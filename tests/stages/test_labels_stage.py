"""The labels stage in a small run: the table of concepts, synonyms."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
from small_runs import artifact, manifest, run_small, small_config

from stages.commands.show import show_stage
from stages.engine.plan import Planner

# With the annotated boxes as proposals every label is on an object.
GIVEN = {"proposals": {"method": "given"}}


def test_show_has_the_table_of_concepts(tmp_path: Path) -> None:
    config = small_config(tmp_path / "ws", **GIVEN)
    assert run_small(config, "labels").ok
    planner = Planner(config)
    shown = show_stage(planner.current()["labels"], planner.workspace).splitlines()
    where = artifact(tmp_path / "ws", "labels") / "truth" / "concepts.parquet"
    begin = shown.index(f"kept labels by concept, most clean ones first (all: {where})")
    rows = pq.read_table(where).to_pylist()
    assert sum(row["kept"] for row in rows) == manifest(tmp_path / "ws", "labels")["summary"]["kept"] > 0
    first = rows[0]
    assert shown[begin + 2].split()[-4:][-2:] == [str(first["loose"]), str(first["off_object"])]
    assert shown[begin + 2].split()[: len(first["concept"].split()) + 2] == [
        *first["concept"].split(),
        str(first["kept"]),
        str(first["clean"]),
    ]


def test_another_list_of_synonyms_changes_no_content(tmp_path: Path) -> None:
    """So that nothing after the labels runs again."""
    assert run_small(small_config(tmp_path / "ws", **GIVEN), "pairs").ok
    plain = manifest(tmp_path / "ws", "labels")
    (tmp_path / "own.yaml").write_text("cat: [thing, dog]")
    config = small_config(tmp_path / "ws", **GIVEN, labels={"synonyms": str(tmp_path / "own.yaml")})
    assert run_small(config, "labels").ok
    lines = Planner(config).current()
    assert lines["labels"].manifest is not None
    assert lines["labels"].fingerprint != plain["fingerprint"]
    assert lines["labels"].manifest.content_digest == plain["content_digest"]
    assert lines["pairs"].state == "done"
    before = lines["report"].wrong
    (tmp_path / "own.yaml").unlink()
    wrong = Planner(config).current()["report"].wrong
    assert not before and len(wrong) == 1 and wrong[0].startswith("labels.synonyms: ")
