"""The labels stage in a small run: the table of concepts, synonyms, corrections, labels from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_inputs import NAMES, write_coco
from small_runs import artifact, manifest, run_small, small_config, small_tree

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config
from regionclip_core.models.clip import build_clip, save_clip, small_architecture
from regionclip_core.storage.folder import Folder
from stages.commands.show import show_stage
from stages.commands.verify import verify_workspace
from stages.engine.look_ahead import look_ahead
from stages.engine.plan import Planner

# With the annotated boxes as proposals every label is on an object.
GIVEN = {"proposals": {"method": "given"}}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with labels of the annotated boxes, for tests to copy."""
    workspace = tmp_path_factory.mktemp("labelled") / "ws"
    assert run_small(small_config(workspace, **GIVEN), "labels").ok
    return workspace


def test_show_has_the_table_of_concepts(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "ws")
    config = small_config(tmp_path / "ws", **GIVEN)
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


def test_another_list_of_synonyms_changes_no_content(labelled: Path, tmp_path: Path) -> None:
    """So that nothing after the labels runs again."""
    shutil.copytree(labelled, tmp_path / "ws")
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


class Elsewhere:
    """A COCO folder, and a detector's results on it: its objects, by the ids of the annotation file."""

    def __init__(self, root: Path, split: dict[str, Any]) -> None:
        self.root, self.results, self.split = root, root / "results.json", split
        found = json.loads(Path(self.split["instances"]).read_text())
        self.boxes = [
            {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.8}
            for one in found["annotations"]
        ]
        self.images = found["images"]
        more = [{**self.boxes[0], "category_id": None, "name": "thingamajig"}, {**self.boxes[0], "image_id": 77}]
        self.results.write_text(json.dumps([*self.boxes, *more]))
        (root / "c.yaml").write_text(yaml.safe_dump({"base": NAMES[:-2], "novel": NAMES[-2:]}))

    def config(self, **labels: Any) -> Config:
        sections = {
            "data": {"splits": {"train": self.split}, "categories": str(self.root / "c.yaml"), "shard_size": 3},
            "concepts": {"splits": ["train"], "min_count": 1, "parser": "rules"},
            "labels": {"splits": ["train"], "source": str(self.results), "crop_features": True, **labels},
            "pairs": {"other_regions": 2},
            "pretrain": {"steps": 2, "batch_size": 2, "image_size": 64, "crop_weight": 0.5, "regions_per_image": 3},
            "finetune": {"split": "train"},
            "evaluate": {"split": "train"},
        }
        tree = {**small_tree(self.root / "ws"), **sections}
        del tree["proposals"], tree["finetune"], tree["evaluate"]
        return parse_config(tree)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Its workspace, up to the teacher, is copied by the tests, whose labels differ."""
    root = tmp_path_factory.mktemp("elsewhere")
    one = Elsewhere(root, write_coco(Folder(str(root / "coco")), 8))
    assert run_small(one.config(), "teacher", "concepts").ok
    return one


@pytest.fixture
def elsewhere(begun: Elsewhere, tmp_path: Path) -> Elsewhere:
    shutil.copytree(begun.root / "ws", tmp_path / "ws")
    return Elsewhere(tmp_path, begun.split)


def test_labels_from_elsewhere_train_a_student_without_proposals(elsewhere: Elsewhere) -> None:
    config = elsewhere.config(unknown_names="add", threshold=0.5)
    workspace = elsewhere.root / "ws"
    result = run_small(config, "pretrain")
    assert result.ok, result.messages
    assert {one.name for one in workspace.iterdir() if one.is_dir()} == {
        *("data", "concepts", "teacher", "labels", "pairs", "pretrain", "tensorboard")
    }
    summary = manifest(workspace, "labels")["summary"]
    assert summary["kept"] == summary["regions"] == len(elsewhere.boxes) + 1
    # Every box is an object's with its own name, but for the added one.
    kinds = summary["truth"]["all"]
    lost = summary["source"].get("rejected", {})
    assert lost == {"unknown_image": 1}
    assert kinds["clean"] + kinds["wrong_name"] == summary["kept"] and kinds["wrong_name"] >= 1
    assert summary["source"]["most_frequent_unknown"]["thingamajig"] == 1
    history = json.loads((artifact(workspace, "pretrain") / "history.json").read_text())
    assert "crop" in json.dumps(history)
    assert [problems for _, _, problems in verify_workspace(Folder(str(workspace))) if problems] == []
    planner = Planner(config)
    shown = show_stage(planner.current()["labels"], planner.workspace)
    assert "rejected.parquet: 1 rows; the first 1" in shown and "labels-00002.parquet: 2 rows" in shown
    # Another file is another result.
    elsewhere.results.write_text(json.dumps(elsewhere.boxes))
    assert Planner(config).current()["labels"].state == "missing"


def test_names_that_the_file_adds_come_after_the_pool(elsewhere: Elsewhere) -> None:
    workspace = elsewhere.root / "ws"
    assert run_small(elsewhere.config(unknown_names="add"), "labels").ok
    pool = artifact(workspace, "labels") / "concept_embeddings.json"
    names = json.loads(pool.read_text())["names"]
    own = (artifact(workspace, "concepts") / "concepts.txt").read_text().splitlines()
    assert names[: len(own)] == own and "thingamajig" in names[len(own) :]


def test_labels_from_elsewhere_resume(elsewhere: Elsewhere) -> None:
    """As after a run that was killed in its merge, or between two shards."""
    config = elsewhere.config(unknown_names="add")
    assert run_small(config, "labels").ok
    folder, before = artifact(elsewhere.root / "ws", "labels"), manifest(elsewhere.root / "ws", "labels")
    for lost in (["manifest.json"], ["manifest.json", "records.json", "shard-00001.json"]):
        for name in lost:
            (folder / name).unlink()
        assert run_small(config, "labels").ok
        after = manifest(elsewhere.root / "ws", "labels")
        assert all(after[key] == before[key] for key in ("content_digest", "summary", "counts"))
        assert [one.name for one in folder.iterdir() if one.is_dir()] == ["truth"]


def wrong(config: Config) -> str:
    with pytest.raises(ValueError) as caught:
        look_ahead(config, ["data", "concepts", "teacher", "labels"], Planner(config).current())
    return str(caught.value)


def test_what_is_wrong_with_the_files_is_known_before_the_run(elsewhere: Elsewhere) -> None:
    assert "labels" in look_ahead(elsewhere.config(), ["labels"], Planner(elsewhere.config()).current())
    assert wrong(elsewhere.config(source="gone.json")).startswith("labels.source: input 'gone.json' is not there")
    (elsewhere.root / "c.csv").write_text("key,box,name\na,1 2 3,b\n")
    pq.write_table(pa.table({"a": [1]}), elsewhere.root / "a.parquet")
    (elsewhere.root / "s.yaml").write_text("nothing: [else]")
    files = {"source": "a.parquet", "corrections": "c.csv", "synonyms": "s.yaml"}
    found = wrong(elsewhere.config(**{key: str(elsewhere.root / name) for key, name in files.items()})).splitlines()
    assert found[0] == "3 wrong; fix them and run again:"
    assert "labels.source: " in found[1] and "expected the columns" in found[1]
    assert "labels.corrections: " in found[2] and "line 2: expected a box" in found[2]
    assert "s.yaml: has a synonym of no category" in found[3]


def test_corrections_in_a_run(labelled: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled, tmp_path / "ws")
    row = pq.read_table(artifact(tmp_path / "ws", "labels") / "labels-00000.parquet").slice(0, 1).to_pylist()[0]
    box = " ".join(map(str, row["boxes"][0]))
    (tmp_path / "c.csv").write_text(f"key,box,name\n{row['key']},{box},no object\n")
    corrected = small_config(tmp_path / "ws", **GIVEN, labels={"corrections": str(tmp_path / "c.csv")})
    assert run_small(corrected, "labels").ok
    line = Planner(corrected).current()["labels"]
    assert line.manifest is not None and line.manifest.summary["corrections"] == {"used": 1, "without_region": []}
    assert line.manifest.summary["kept"] == line.manifest.summary["regions"] - 1
    (tmp_path / "c.csv").write_text(f"key,box,name\n{row['key']},{box},kat\n")
    result = run_small(corrected, "labels")
    assert not result.ok
    failure = json.loads(next((tmp_path / "ws" / "labels").glob("*/failed.json")).read_text())
    assert "line 2: no concept of the pool is called 'kat'" in failure["error"]


@pytest.mark.parametrize("mode", ["roi", pytest.param("crop", marks=pytest.mark.slow)])
def test_an_earlier_student_names_regions_as_if_it_were_the_teacher(tmp_path: Path, mode: str) -> None:
    crops = {"labels": {"mode": mode, "crop_features": True}}
    config = small_config(tmp_path / "ws", **crops)
    assert run_small(config, "pretrain").ok
    student = tmp_path / "student"
    shutil.copytree(artifact(tmp_path / "ws", "pretrain"), student)
    by_teacher = table(Planner(config))
    config = small_config(tmp_path / "ws", labels={**crops["labels"], "weights": str(student)})
    assert run_small(config, "labels").ok
    line = Planner(config).finished()["labels"]
    assert {str(student / name) for name in ("clip.json", "clip.safetensors")} == set(line.raw_inputs)
    as_teacher = small_config(tmp_path / "plain", labels=crops["labels"], teacher={"weights": str(student)})
    assert run_small(as_teacher, "labels").ok
    expected, found = table(Planner(as_teacher)), table(Planner(config))
    assert not expected["score"].equals(by_teacher["score"]) and not expected["crops"].equals(by_teacher["crops"])
    assert found.drop(["crops"]).equals(expected.drop(["crops"]))
    # The embeddings of crops stay the teacher's, which are what the distillation is to learn.
    assert found["crops"].equals(by_teacher["crops"])


def table(planner: Planner) -> pa.Table:
    return pq.read_table(Path(str(planner.finished()["labels"].path)) / "labels-00000.parquet")


def test_what_names_regions_must_embed_texts_as_the_teacher_does(tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = small_config(tmp_path / "ws", labels={"weights": str(other)})
    with pytest.raises(ValueError, match=r"labels.weights: .*other"):
        look_ahead(config, ["labels"], Planner(config).current())
    save_clip(build_clip(small_architecture(config.teacher.architecture), "small", 9), Folder(str(other)))
    result = run_small(config, "labels")
    assert not result.ok and "text encoder is not the teacher's" in result.messages["labels"]
