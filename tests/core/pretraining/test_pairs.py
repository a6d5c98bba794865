"""Region-text pairs: what is written is read back to the bit, and the loader's order is exact."""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds

from regionclip_core.config.tree import PairsConfig
from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.index import IndexRow, index_name, write_index
from regionclip_core.pretraining.pairs import (
    REGION_FIELDS,
    RegionPairs,
    RegionSample,
    best_regions,
    crop_dimensions,
    encode_body,
    labels_digest,
    pairs_name,
    stored_probabilities,
    write_meta,
    write_pairs,
)
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS, LABELS_WITH_CROPS
from regionclip_core.storage.tars import TarWriter
from regionclip_core.training.error_budget import ErrorRateExceeded

DIGEST = "d" * 64
TOP_K = 3
DIMENSIONS = 5


def label_row(rng: np.random.Generator, key: str, regions: int, kept: int, status: str = "ok") -> dict[str, Any]:
    top = np.sort(rng.dirichlet(np.ones(TOP_K + 1), regions).astype(np.float32)[:, :TOP_K], axis=1)[:, ::-1]
    ids = np.array([rng.permutation(50)[:TOP_K] for _ in range(regions)]).reshape(regions, TOP_K)
    corners = np.sort(rng.uniform(0, 20, (regions, 2, 2)), axis=1).reshape(regions, 4).astype(np.float32)
    return {
        "key": key,
        "status": status,
        "reason": None if status == "ok" else "why not",
        "boxes": corners.tolist(),
        "objectness_logit": rng.normal(size=regions).tolist(),
        "concept_id": ids[:, 0].tolist(),
        "score": top[:, 0].tolist(),
        "kept": (rng.permutation(regions) < kept).tolist(),
        "top_concepts": ids.tolist(),
        "top_probabilities": top.tolist(),
        "residual_mass": (1 - top.sum(1)).tolist(),
    }


def write_inputs(data: Folder, labels: Folder, shard: int, rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """A data and a labels shard; returns the image bytes by key."""
    images = {row["key"]: encode_png(np.full((20, 24, 3), i, np.uint8)) for i, row in enumerate(rows)}
    index = []
    with data.write(f"images-{shard:05d}.tar") as file, TarWriter(file) as tar:
        for i, (key, image) in enumerate(images.items()):
            offset = tar.add(f"{i}.png", image)
            captions = [] if key == "silent" else [f"caption of {key} “ü”"] * (1 + i % 2)
            index.append(IndexRow(key, i, f"images-{shard:05d}.tar", offset, len(image), 24, 20, captions))
    with data.write(index_name(shard)) as file:
        write_index(file, index, "categories")
    schema, metadata = LABELS, {"vocabulary": DIGEST}
    if rows and "crops" in rows[0]:
        schema, metadata["crops"] = LABELS_WITH_CROPS, str(DIMENSIONS)
    with labels.write(f"labels-{shard:05d}.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)), file)
    return images


@pytest.fixture
def folders(tmp_path) -> tuple[Folder, Folder, Folder]:
    return tuple(Folder(str(tmp_path / name)) for name in ("data", "labels", "pairs"))


def make_pairs(folders: tuple[Folder, Folder, Folder], sizes: list[int], **settings: int) -> list[dict[str, Any]]:
    """Pairs of len(sizes) shards; returns all label rows."""
    data, labels, pairs = folders
    rng = np.random.default_rng(0)
    everything, written = [], []
    for shard, size in enumerate(sizes):
        rows = [label_row(rng, f"{shard}/a.b.{i}", 4, 1 + i % 4) for i in range(size)]
        write_inputs(data, labels, shard, rows)
        counts, _ = write_pairs(pairs, data, labels, shard, PairsConfig(**settings))
        written.append((shard, counts["ok"]))
        everything += rows
    write_meta(pairs, written, stored_probabilities(labels, list(range(len(sizes)))), DIGEST)
    return everything


def test_samples_come_back_to_the_bit(folders) -> None:
    rows = {row["key"]: row for row in make_pairs(folders, [5, 3])}
    samples = epoch(RegionPairs(folders[2], 0, DIGEST))
    assert {sample.key for sample in samples} == set(rows)
    for sample in samples:
        row = rows[sample.key]
        kept = [i for i, k in enumerate(row["kept"]) if k]
        kept.sort(key=lambda i: -row["score"][i])
        for name in REGION_FIELDS:
            kind = np.int64 if "concept" in name else np.float32
            np.testing.assert_array_equal(getattr(sample, name).numpy(), np.array(row[name], kind)[kept])
        number = int(sample.key.rsplit(".", 1)[1])
        assert sample.image.shape == (3, 20, 24)
        assert sample.image.dtype == torch.uint8
        assert int(sample.image[0, 0, 0]) == number
        assert len(sample.captions) == 1 + number % 2


def test_image_bytes_are_copied(folders) -> None:
    data, labels, pairs = folders
    images = write_inputs(data, labels, 0, [label_row(np.random.default_rng(0), "x", 2, 2)])
    write_pairs(pairs, data, labels, 0, PairsConfig())
    with tarfile.open(pairs.path(pairs_name(0))) as tar:
        assert tar.getnames() == ["00000-000000.png", "00000-000000.json"]
        assert tar.extractfile("00000-000000.png").read() == images["x"]


def test_webdataset_reads_the_tars_by_itself(folders) -> None:
    make_pairs(folders, [4])
    path = folders[2].path(pairs_name(0))
    samples = list(wds.WebDataset(path, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 4
    assert samples[0]["png"].shape == (20, 24, 3)
    assert samples[0]["json"]["key"] == "0/a.b.0"


def test_what_is_left_out_is_counted(folders) -> None:
    data, labels, pairs = folders
    rng = np.random.default_rng(0)
    rows = [
        label_row(rng, "good", 5, 4),
        label_row(rng, "none", 5, 0),
        label_row(rng, "one", 5, 1),
        label_row(rng, "bad", 0, 0, "bad_image"),
        label_row(rng, "silent", 5, 4),  # has no caption
    ]
    write_inputs(data, labels, 0, rows)
    counts, _ = write_pairs(pairs, data, labels, 0, PairsConfig(max_regions=3, min_regions=2))
    assert counts == {"ok": 1, "few_regions": 2, "not_labelled": 1, "no_caption": 1}
    with tarfile.open(pairs.path(pairs_name(0))) as tar:
        body = json.loads(tar.extractfile("00000-000000.json").read())
    assert len(body["boxes"]) == 3
    assert body["score"] == sorted(body["score"], reverse=True)


def test_images_without_regions_can_be_kept(folders) -> None:
    data, labels, pairs = folders
    rng = np.random.default_rng(0)
    write_inputs(data, labels, 0, [label_row(rng, "none", 2, 0), label_row(rng, "two", 2, 2)])
    assert write_pairs(pairs, data, labels, 0, PairsConfig(min_regions=0))[0]["ok"] == 2
    write_meta(pairs, [(0, 2)], TOP_K, DIGEST)
    samples = {s.key: s for s in epoch(RegionPairs(pairs, 0))}
    assert samples["none"].boxes.shape == (0, 4)
    assert samples["none"].top_concepts.shape == (0, TOP_K)
    assert torch.cat([s.top_probabilities for s in samples.values()]).shape == (2, TOP_K)


def test_unreadable_image_costs_itself(folders) -> None:
    data, labels, pairs = folders
    rng = np.random.default_rng(0)
    write_inputs(data, labels, 0, [label_row(rng, "a", 2, 2), label_row(rng, "b", 2, 2)])
    tar = bytearray(data.read_bytes("images-00000.tar"))
    tar[512:520] = bytes(8)  # the first image's signature
    data.write_bytes("images-00000.tar", bytes(tar))
    counts, [bad] = write_pairs(pairs, data, labels, 0, PairsConfig())
    assert counts == {"ok": 1, "bad_image": 1}
    assert (bad["key"], bad["status"]) == ("a", "bad_image") and bad["reason"].startswith("bad_image: ")


def test_artifacts_of_two_runs_do_not_mix(folders) -> None:
    data, labels, pairs = folders
    rng = np.random.default_rng(0)
    write_inputs(data, labels, 0, [label_row(rng, "a", 2, 2)])
    rows = [label_row(rng, "unknown", 2, 2)]
    with labels.write("labels-00000.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=LABELS.with_metadata({"vocabulary": DIGEST})), file)
    with pytest.raises(ValueError, match=r"labels of shard 0: row 0 is of image 'unknown', in the data index of 'a'"):
        write_pairs(pairs, data, labels, 0, PairsConfig())
    with labels.write("labels-00000.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=LABELS), file)
    with pytest.raises(ValueError, match="no vocabulary digest"):
        labels_digest(labels, 0)


def test_best_regions_against_a_naive_loop() -> None:
    row = label_row(np.random.default_rng(3), "k", 40, 25)
    row["score"] = [round(s, 1) for s in row["score"]]  # ties
    order = sorted((i for i in range(40) if row["kept"][i]), key=lambda i: (-np.float32(row["score"][i]), i))[:7]
    assert best_regions(row, 7) == order


def test_floats_are_short_and_exact() -> None:
    values = np.random.default_rng(0).random(1000).astype(np.float32)
    body = encode_body({"score": values.tolist()})
    np.testing.assert_array_equal(np.array(json.loads(body)["score"], np.float32), values)
    assert len(body) < 13 * 1000
    assert encode_body({"score": [float(np.float32(0.1))]}) == b'{"score":[0.1]}'


# ---------------------------------------------------------------- embeddings of crops


def make_crop_pairs(folders: tuple[Folder, Folder, Folder], **settings: int) -> list[dict[str, Any]]:
    """One shard of six images with 0 to 5 regions, of which up to 3 are kept; returns the label rows."""
    data, labels, pairs = folders
    rng = np.random.default_rng(1)
    rows = [label_row(rng, f"a.{n}", n, 3) for n in range(6)]
    for row in rows:
        row["crops"] = list(rng.normal(size=(len(row["boxes"]), DIMENSIONS)).astype(np.float16))
    write_inputs(data, labels, 0, rows)
    counts, _ = write_pairs(pairs, data, labels, 0, PairsConfig(min_regions=0, **settings))
    assert counts["ok"] == 6
    write_meta(pairs, [(0, 6)], TOP_K, DIGEST, crop_dimensions(labels, 0))
    return rows


@pytest.mark.parametrize("settings", [{}, {"other_regions": 9}, {"max_regions": 2, "other_regions": 1}])
def test_crops_come_back_to_the_bit(folders, settings: dict[str, int]) -> None:
    rows = make_crop_pairs(folders, **settings)
    samples = {sample.key: sample for sample in epoch(RegionPairs(folders[2], 0, DIGEST, crops=True))}
    assert len(samples) == 6
    others = 0
    for row in rows:
        order = sorted(range(len(row["score"])), key=lambda i: -row["score"][i])
        kept = [i for i in order if row["kept"][i]][: settings.get("max_regions", 16)]
        other = [i for i in order if not row["kept"][i]][: settings.get("other_regions", 0)]
        sample = samples[row["key"]]
        expected = np.array([row["crops"][i] for i in kept + other], np.float16).reshape(-1, DIMENSIONS)
        assert sample.crops.dtype == torch.float16
        np.testing.assert_array_equal(sample.crops.numpy(), expected)
        assert sample.boxes.tolist() == [row["boxes"][i] for i in kept]
        assert sample.other_boxes.tolist() == [row["boxes"][i] for i in other]
        assert sample.other_score.tolist() == [row["score"][i] for i in other]
        others += len(other)
    assert (others > 0) == bool(settings)


def test_crops_are_a_member_of_their_own_and_read_where_they_are_asked_for(folders) -> None:
    make_crop_pairs(folders, other_regions=2)
    with tarfile.open(folders[2].path(pairs_name(0))) as tar:
        assert tar.getnames()[:3] == ["00000-000000.png", "00000-000000.json", "00000-000000.crops.npy"]
    [sample, *_] = wds.WebDataset(folders[2].path(pairs_name(0)), shardshuffle=False).decode("rgb8")
    assert sample["crops.npy"].shape == (0, DIMENSIONS)
    plain, full = (epoch(RegionPairs(folders[2], 0, crops=crops)) for crops in (False, True))
    for one, other in zip(plain, full, strict=True):
        assert one.crops is None
        assert (one.key, one.image_bytes) == (other.key, other.image_bytes)
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in REGION_FIELDS)


def test_crops_that_are_not_there_or_not_those_of_the_sample_are_refused(folders) -> None:
    rows = make_crop_pairs(folders)
    write_meta(folders[2], [(0, 6)], TOP_K, DIGEST, DIMENSIONS + 1)
    with pytest.raises(ValueError, match=r"pairs-00000\.tar, byte \d+: not the sample .* do it over"):
        epoch(RegionPairs(folders[2], 0, crops=True))
    for row in rows:
        del row["crops"]
    write_inputs(*folders[:2], 0, rows)
    assert crop_dimensions(folders[1], 0) == 0
    write_pairs(folders[2], *folders[:2], 0, PairsConfig(min_regions=0, other_regions=3))
    write_meta(folders[2], [(0, 6)], TOP_K, DIGEST)
    assert all(len(sample.other_boxes) == 0 for sample in epoch(RegionPairs(folders[2], 0)))
    with pytest.raises(ValueError, match=r"no embeddings of crops.*set labels\.crop_features: true and run labels"):
        RegionPairs(folders[2], 0, crops=True)


# ---------------------------------------------------------------- the loader's order


def epoch(pairs: RegionPairs, number: int = 0) -> list[RegionSample]:
    return [pairs[number * len(pairs) + place] for place in range(len(pairs))]


def keys(samples: list[RegionSample]) -> list[str]:
    return [sample.key for sample in samples]


def streamed(pairs: Folder, seed: int, buffer: int, epoch: int) -> list[str]:
    """The keys of an epoch as webdataset streams and shuffles whole tars."""
    order = sorted(entry["shard"] for entry in pairs.read_json("pairs.json")["shards"])
    random.Random(f"{seed} {epoch} shards").shuffle(order)
    urls = [pairs.path(pairs_name(shard)) for shard in order]
    rng = random.Random(f"{seed} {epoch} buffer")
    stream = wds.DataPipeline(
        wds.SimpleShardList(urls), wds.tarfile_to_samples(), wds.shuffle(buffer, initial=buffer, rng=rng)
    )
    return [json.loads(sample["json"])["key"] for sample in stream]


@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_the_order_is_that_of_webdatasets_stream(folders, buffer: int) -> None:
    rows = make_pairs(folders, [7, 5, 9])
    pairs = RegionPairs(folders[2], 3, buffer=buffer)
    assert len(pairs) == 21
    orders = [keys(epoch(pairs, number)) for number in range(3)]
    assert orders == [streamed(folders[2], 3, buffer, number) for number in range(3)]
    other = RegionPairs(folders[2], 4, buffer=buffer)
    assert len({tuple(order) for order in orders}) > 1
    assert orders != [keys(epoch(other, number)) for number in range(3)]
    for order in orders:
        assert sorted(order) == sorted(row["key"] for row in rows)


def test_a_sample_is_one_read_and_an_index_is_read_once(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pairs(folders, [4] * 6)
    pairs = RegionPairs(folders[2], 0, buffer=2)
    opened: list[str] = []
    plain_open = Folder.open
    monkeypatch.setattr(Folder, "open", lambda self, name: opened.append(name) or plain_open(self, name))
    for step in range(1, 6, 3):  # what one of three workers reads
        pairs.batch(step, 4)
    assert len([name for name in opened if name.endswith(".tar")]) == 8
    indices = [name for name in opened if name.endswith(".idx")]
    assert len(indices) == len(set(indices)) <= 6


def test_few_indices_are_kept(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pairs(folders, [3, 4, 5, 2])
    whole = keys(epoch(RegionPairs(folders[2], 0)))
    monkeypatch.setattr("regionclip_core.pretraining.pairs._INDICES", 2)
    pairs = RegionPairs(folders[2], 0)
    assert keys(epoch(pairs)) == whole
    assert len(pairs._indices) == 2


def test_the_index_is_what_tar_says_in_the_form_of_wds2idx(folders) -> None:
    make_pairs(folders, [3])
    first, *lines = folders[2].read_bytes("pairs-00000.idx").decode().splitlines()
    assert first == "v1.2 3"
    with tarfile.open(folders[2].path(pairs_name(0))) as tar:
        members = [f"{m.name[13:]} {m.offset_data} {m.size} {m.name}" for m in tar.getmembers()]
    assert lines == [" ".join(members[i : i + 2]) for i in (0, 2, 4)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_same_global_batches(folders, world_size: int) -> None:
    make_pairs(folders, [7, 6])  # 13: no multiple of either
    pairs = RegionPairs(folders[2], 0, buffer=4)
    batch = 6
    for step in range(7):  # more than three epochs
        parts = [keys(pairs.batch(step, batch, rank, world_size)) for rank in range(world_size)]
        assert {len(part) for part in parts} == {batch // world_size}
        merged = [parts[i % world_size][i // world_size] for i in range(batch)]
        assert merged == keys(pairs.batch(step, batch))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_next_readable_sample_stands_in_for_a_bad_one(folders, world_size: int) -> None:
    make_pairs(folders, [7, 6])
    pairs = folders[2]
    torn = {"0/a.b.2", "0/a.b.3", "1/a.b.0"}
    for shard in range(2):  # the name of a member's image, and so its place, stays
        data = bytearray(pairs.read_bytes(pairs_name(shard)))
        with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
            for member in tar.getmembers():
                number = int(member.name[6:12])
                if member.name.endswith("png") and f"{shard}/a.b.{number}" in torn:
                    data[member.offset_data + 20 : member.offset_data + member.size] = bytes(member.size - 20)
        pairs.write_bytes(pairs_name(shard), bytes(data))
    plain = RegionPairs(pairs, 0, buffer=4)
    order = [key for number in range(7) for key in keys(epoch(plain, number))]
    expected = [next(key for key in order[place:] if key not in torn) for place in range(42)]
    loader = RegionPairs(pairs, 0, buffer=4)
    for step in (0, 1, 2, 5, 6, 3):
        parts = [keys(loader.batch(step, 6, rank, world_size)) for rank in range(world_size)]
        merged = [parts[i % world_size][i // world_size] for i in range(6)]
        assert merged == expected[6 * step : 6 * step + 6]
    assert loader.unreadable.counts() == {"bad_image": 3}
    assert set(loader.unreadable.summary()["unreadable"]["first"]) == torn
    strict = RegionPairs(pairs, 0, buffer=4, max_error_rate=0.2)
    with pytest.raises(ErrorRateExceeded, match="3 of 13 images can't be read"):
        strict.batch(0, 13)


def test_pairs_without_a_readable_image_say_so(folders) -> None:
    make_pairs(folders, [3])
    loader = RegionPairs(folders[2], 0)
    plain = loader._decoded
    loader._decoded = lambda found: replace(plain(found), image_bytes=b"torn")
    with pytest.raises(ErrorRateExceeded, match=r"100 images in a row can't be read.*--force.*0/a\.b\.[012]: "):
        loader.batch(0, 2)


def test_batches_at_any_step(folders) -> None:
    make_pairs(folders, [5, 4])
    pairs = RegionPairs(folders[2], 0)
    in_order = [keys(pairs.batch(step, 4)) for step in range(8)]
    assert [key for batch in in_order for key in batch] == [pairs[position].key for position in range(32)]
    jumping = RegionPairs(folders[2], 0)
    for step in (5, 6, 2, 2, 7, 0):
        assert keys(jumping.batch(step, 4)) == in_order[step]
    with pytest.raises(ValueError, match="batch_size 5 does not divide among 2 workers"):
        pairs.batch(0, 5, 0, 2)


def test_another_pool_is_refused_with_both_digests(folders) -> None:
    make_pairs(folders, [3])
    with pytest.raises(ValueError, match=r"d{12}, expected e{12}"):
        RegionPairs(folders[2], 0, "e" * 64)
    write_meta(folders[2], [(0, 3)], TOP_K, "e" * 64)  # a meta file that doesn't fit its tars
    with pytest.raises(ValueError, match=r"pairs-00000.tar, byte \d+ .*d{12}, expected e{12}"):
        epoch(RegionPairs(folders[2], 0, "e" * 64, buffer=1))


def test_a_wrong_count_is_refused(folders) -> None:
    make_pairs(folders, [3])
    for claimed in (2, 4):
        write_meta(folders[2], [(0, claimed)], TOP_K, DIGEST)
        with pytest.raises(ValueError, match=f"has 3 samples, expected {claimed}"):
            epoch(RegionPairs(folders[2], 0))


def test_a_tar_that_the_index_does_not_fit_is_refused(folders) -> None:
    make_pairs(folders, [3, 3])
    whole = folders[2].read_bytes(pairs_name(0))
    for wrong in (whole[512:], whole[:2000]):
        folders[2].write_bytes(pairs_name(0), wrong)
        with pytest.raises(ValueError, match=r"pairs-00000\.tar, byte \d+: not the sample .* do it over"):
            epoch(RegionPairs(folders[2], 0))


def test_no_pairs_at_all(folders) -> None:
    write_meta(folders[2], [(0, 0)], 0, DIGEST)
    with pytest.raises(ValueError, match="has no region-text pairs"):
        RegionPairs(folders[2], 0)


def test_remote_tars(folders, tmp_path) -> None:
    make_pairs(folders, [3, 2])
    remote = Folder(f"memory://{tmp_path.name}/pairs")
    for name in folders[2].names():
        remote.write_bytes(name, folders[2].read_bytes(name))
    assert keys(RegionPairs(remote, 0).batch(0, 5)) == keys(RegionPairs(folders[2], 0).batch(0, 5))
