"""The data stage: whole artifacts, their bytes, and what their fingerprint depends on."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lvis_samples import write_lvis
from places import TINY_COCO

from regionclip_core.config.tree import Config
from regionclip_core.datasets import coco_source
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.images import ImageReader, encode_png
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.storage.records import Folder, ShardRecord
from stages.base import StageContext
from stages.data import WORK
from stages.declarations import STAGES

settings = STAGES["data"].settings


def make_config(splits: dict[str, Any], categories: str = "world", shard_size: int = 4, seed: int = 3) -> Config:
    first = next(iter(splits))
    return Config(
        seed=seed,
        data={"splits": splits, "categories": categories, "shard_size": shard_size},
        concepts={"splits": [first]},
        teacher={"weights": "random"},
        rpn={"split": first},
        proposals={"splits": [first]},
        labels={"splits": [first]},
        finetune={"split": first},
        evaluate={"split": first},
    )


def run(config: Config, url: str, order: int = 1) -> tuple[Folder, list[ShardRecord], dict[str, Any]]:
    """All of the stage; `order` -1 does the shards backwards."""
    ctx = StageContext(config, Folder(url), {})
    records = []
    for shard in WORK.shards(ctx)[::order]:
        state = WORK.setup(ctx)  # again for each shard, as on as many workers
        result = WORK.process(ctx, state, shard)
        records.append(ShardRecord(shard, result.rows, result.counts, [], 0.0))
    return ctx.out, records, WORK.merge(ctx, records)


WORLD = {
    "train": {"source": "world", "kind": "closeup", "images": 6, "image_size": 80},
    "val": {"source": "world", "images": 5, "image_size": 96, "objects": [2, 4], "object_size": [0.15, 0.3]},
}


def test_world_artifact_is_what_the_world_draws(tmp_path) -> None:
    out, records, summary = run(make_config(WORLD), str(tmp_path))
    assert [r.rows for r in records] == [4, 2, 4, 1]
    assert summary["images"] == {"train": 6, "val": 5}
    assert out.read_json("splits.json") == {
        "train": {"shards": [0, 1], "images": 6},
        "val": {"shards": [2, 3], "images": 5},
    }
    vocabulary = Vocabulary.from_json(out.read_json("categories.json"))
    assert vocabulary.digest == load_categories("world").digest
    rows = [row for shard in split_shards(out, ["val"]) for row in read_index(out, shard, vocabulary.digest)]
    assert [row.key for row in rows] == [f"{i:06d}" for i in range(5)]
    with ImageReader(out) as reader:
        for number, row in enumerate(rows):
            sample = make_sample("scene", 3, "val", number, 96, (2, 4), (0.15, 0.3))
            np.testing.assert_array_equal(reader.read(row), sample.image)
            assert list(row.captions) == sample.captions
            np.testing.assert_array_equal(row.boxes, sample.boxes)
            assert [vocabulary.names[i] for i in row.box_labels] == sample.labels


def test_same_bytes_again_in_any_order_and_place(tmp_path) -> None:
    first, *_ = run(make_config(WORLD), str(tmp_path / "a"))
    second, *_ = run(make_config(WORLD), f"memory://{tmp_path.name}/b", order=-1)
    assert len(first.names()) == 10
    digests = [{w.name: w.sha256 for w in folder.written} for folder in (first, second)]
    assert digests[0] == digests[1]
    third, *_ = run(make_config(WORLD, seed=4), str(tmp_path / "c"))
    assert {w.name: w.sha256 for w in third.written}["images-00000.tar"] != digests[0]["images-00000.tar"]


def test_images_tar_is_a_plain_tar(tmp_path) -> None:
    out, *_ = run(make_config(WORLD), str(tmp_path))
    rows = read_index(out, 0)
    with tarfile.open(out.path("images-00000.tar")) as tar:
        assert tar.getnames() == [f"{row.key}.png" for row in rows]
        assert [(m.offset_data, m.size) for m in tar] == [(row.offset, row.size) for row in rows]


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in {
            "0.png": encode_png(np.zeros((20, 20, 3), np.uint8)),
            "0.txt": b"a good one",
            "1.png": b"no image",
            "1.txt": b"its caption",
            "2.png": encode_png(np.zeros((20, 20, 3), np.uint8)),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_counts_by_status(tmp_path) -> None:
    write_tar(tmp_path / "x.tar")
    config = make_config({"pairs": {"source": "tars", "urls": str(tmp_path / "*.tar")}})
    out, records, summary = run(config, str(tmp_path / "out"))
    assert records[0].counts == {"ok": 1, "bad_image": 1, "bad_caption": 1}
    assert summary["images"] == {"pairs": 1}
    assert [row.status for row in read_index(out, 0)] == ["ok", "bad_image", "bad_caption"]


def test_dropped_parts_are_counted_beside_good_rows(tmp_path) -> None:
    size = {"width": 50, "height": 50}
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", **size}, {"id": 2, "file_name": "b.jpg", **size}],
        "annotations": [{"id": w, "image_id": 1, "category_id": 1, "bbox": [1, 1, w, 5]} for w in (5, 0, 0)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "categories.json").write_text(json.dumps({"base": ["cat"], "novel": []}))
    (tmp_path / "a.jpg").write_bytes(b"")
    split = {"source": "coco", "images": str(tmp_path), "instances": str(tmp_path / "instances.json")}
    config = make_config({"a": split}, categories=str(tmp_path / "categories.json"))
    out, records, _ = run(config, str(tmp_path / "out"))
    assert records[0].counts == {"lost_box": 1, "ok": 2, "base_boxes": 1}
    row = read_index(out, 0)[0]
    assert len(row.boxes) == 1
    assert row.reason == "2 x box dropped: zero area (0 x 5)"


def test_fingerprint_follows_what_the_output_depends_on(tmp_path) -> None:
    write_tar(tmp_path / "x.tar")
    tars = {"source": "tars", "urls": str(tmp_path / "*.tar")}
    base = settings(make_config(WORLD))
    assert settings(make_config(WORLD)) == base
    assert settings(make_config(WORLD, seed=4)) != base
    assert settings(make_config(WORLD, shard_size=5)) != base
    assert settings(make_config(WORLD, categories="coco_ovd")) != base
    backwards = dict(reversed(WORLD.items()))
    assert settings(make_config(backwards)) != base, "shard numbers follow the order of the splits"
    with_tars = settings(make_config({"a": tars}))
    assert settings(make_config({"a": tars}, seed=9)) == with_tars, "nothing is drawn, so the seed is idle"
    with (tmp_path / "x.tar").open("ab") as file:
        file.write(bytes(512))
    assert settings(make_config({"a": tars})) != with_tars


def test_raw_inputs_name_the_annotation_files(tmp_path) -> None:
    splits = {
        "c": {"source": "coco", "images": "i", "instances": "inst.json", "captions": "caps.json"},
        "d": {"source": "coco", "images": "i", "captions": "caps.json"},
        "f": {"source": "folder", "images": "i", "captions": "c.tsv"},
        "l": {"source": "lvis", "images": "i", "instances": "lvis.json", "captions": "caps.json"},
        **WORLD,
    }
    assert STAGES["data"].raw_inputs(make_config(splits)) == ["c.tsv", "caps.json", "inst.json", "lvis.json"]


def test_tars_without_samples_are_refused(tmp_path) -> None:
    (tmp_path / "x.tar").write_bytes(bytes(10240))
    config = make_config({"a": {"source": "tars", "urls": str(tmp_path / "*.tar")}, **WORLD})
    with pytest.raises(ValueError, match=r"data\.splits\.a\.urls: no samples are in .*\*\.tar"):
        run(config, str(tmp_path / "out"))


def test_annotations_of_no_image_are_counted(tmp_path) -> None:
    """By the first shard of the split, whatever its other shards are."""
    sample = write_lvis(tmp_path / "lvis", 9)
    body = json.loads(sample.instances.read_text())
    body["annotations"] += [{"image_id": 10**9}, "no object"]
    sample.instances.write_text(json.dumps(body))
    config = make_config({"train": sample.split()}, categories=str(sample.instances))
    _, records, _ = run(config, str(tmp_path / "a"))
    assert [r.counts["ok"] for r in records] == [4, 4, 1]
    assert [r.counts.get("lost_annotations") for r in records] == [2, None, None]


def test_missing_tars_are_named(tmp_path) -> None:
    config = make_config({"a": {"source": "tars", "urls": str(tmp_path / "{00..02}.tar")}})
    with pytest.raises(FileNotFoundError, match=r"00\.tar"):
        WORK.shards(StageContext(config, Folder(str(tmp_path / "out")), {}))


def test_lvis(tmp_path, monkeypatch) -> None:
    """Two splits; each file is read once, whatever the number of workers, and nothing of it is left at the end."""
    samples = {name: write_lvis(tmp_path / name, count) for name, count in (("train", 9), ("val", 4))}
    splits = {"train": samples["train"].split(captions=str(samples["train"].captions)), "val": samples["val"].split()}
    read_files = []
    join = coco_source.join_annotations
    monkeypatch.setattr(coco_source, "join_annotations", lambda f, *more: read_files.append(f) or join(f, *more))
    config = make_config(splits, categories=str(samples["train"].instances))
    listed = samples["train"].body["categories"]
    kind_of = {one["id"]: "novel_boxes" if one["frequency"] == "r" else "base_boxes" for one in listed}
    out, records, summary = run(config, str(tmp_path / "a"))
    assert read_files == [
        {"instances": str(samples["train"].instances), "captions": str(samples["train"].captions)},
        {"instances": str(samples["val"].instances)},
    ]
    assert [r.counts["ok"] for r in records] == [4, 4, 1, 4]
    assert summary.pop("boxes") == {
        name: dict(Counter(kind_of[one["category_id"]] for one in sample.body["annotations"]))
        for name, sample in samples.items()
    }
    assert summary == {"images": {"train": 9, "val": 4}, "categories": {"base": 4, "novel": 2}}
    assert out.folders() == []
    vocabulary = Vocabulary.from_json(out.read_json("categories.json"))
    assert vocabulary == load_categories(config.data.categories)
    rows = [row for shard in split_shards(out, ["train"]) for row in read_index(out, shard, vocabulary.digest)]
    assert [row.image_id for row in rows] == [image["id"] for image in samples["train"].body["images"]]
    assert all(len(row.box_masks) == len(row.boxes) and row.neg_labels is not None for row in rows)
    again, *_ = run(config, f"memory://{tmp_path.name}/b", order=-1)
    assert {w.name: w.sha256 for w in out.written} == {w.name: w.sha256 for w in again.written}


def test_an_interrupted_run_goes_on_with_the_list_it_has(tmp_path, monkeypatch) -> None:
    sample = write_lvis(tmp_path / "lvis", 9)
    config = make_config({"train": sample.split()}, categories=str(sample.instances))
    ctx = StageContext(config, Folder(str(tmp_path / "a")), {})
    assert WORK.shards(ctx) == [0, 1, 2]
    monkeypatch.setattr(coco_source, "join_annotations", lambda *_: pytest.fail("read again"))
    _, records, _ = run(config, str(tmp_path / "a"))
    assert [r.rows for r in records] == [4, 4, 1]


def test_the_fingerprint_follows_the_groups_of_categories(tmp_path) -> None:
    """Which categories are common and which frequent is no part of the vocabulary's digest."""
    sample = write_lvis(tmp_path)
    config = make_config({"train": sample.split()}, categories=str(sample.instances))
    before = settings(config)
    body = json.loads(sample.instances.read_text())
    next(one for one in body["categories"] if one["frequency"] == "c")["frequency"] = "f"
    sample.instances.write_text(json.dumps(body))
    after = settings(config)
    assert {key for key in before if before[key] != after[key]} == {"category_groups"}


@pytest.mark.skipif(not TINY_COCO.exists(), reason="needs tiny_coco")
def test_tiny_coco(tmp_path) -> None:
    splits = {
        name: {
            "source": "coco",
            "images": str(TINY_COCO / f"{name}2017"),
            "instances": str(TINY_COCO / "annotations" / f"instances_{name}2017.json"),
            "captions": str(TINY_COCO / "annotations" / f"captions_{name}2017.json"),
        }
        for name in ("train", "val")
    }
    config = make_config(splits, categories="coco_ovd", shard_size=20)
    out, records, summary = run(config, str(tmp_path / "a"))
    assert summary["images"] == {"train": 50, "val": 50}
    assert sum(r.counts["ok"] for r in records) == 100
    counted = {name: sum(boxes.values()) for name, boxes in summary["boxes"].items()}
    assert counted == {"train": 470, "val": 382}
    assert "not_annotated" not in summary
    assert sum(summary["in_neither_set"].values()) == sum(boxes["other_boxes"] for boxes in summary["boxes"].values())
    assert f"{sum(summary['in_neither_set'].values())} boxes are of categories" in summary["notes"][0]
    assert [r.rows for r in records] == [20, 20, 10] * 2
    again, *_ = run(config, str(tmp_path / "b"), order=-1)
    assert {w.name: w.sha256 for w in out.written} == {w.name: w.sha256 for w in again.written}
    rows = [row for shard in split_shards(out, ["val"]) for row in read_index(out, shard)]
    assert sum(len(row.captions) for row in rows) == 250
    assert sum(len(row.boxes) for row in rows) == 382
