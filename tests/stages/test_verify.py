"""verify on a real pipeline: every kind of wrong content is found, also where the bytes fit the record."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import artifact, run_small, small_config

from regionclip_core.storage.fingerprints import fingerprint
from regionclip_core.storage.folder import file_sha256
from regionclip_core.storage.records import (
    FileRecord,
    Folder,
    content_digest,
    read_manifest,
    read_records,
    write_manifest,
    write_records,
    write_shard_record,
)
from regionclip_core.storage.tars import TarWriter, scan_tar
from stages.commands.verify import verify_workspace


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("verify") / "ws"
    assert run_small(small_config(workspace), "pairs").ok
    return workspace


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of one's own to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "ws"))


def problems(workspace: Path) -> list[tuple[str, str]]:
    """(stage, what is wrong), file names without their folders."""
    found = verify_workspace(Folder(str(workspace)))
    return [(stage, problem.replace(f"{folder.url}/", "")) for stage, folder, all_ in found for problem in all_]


def record_again(folder: Path) -> None:
    """Make every record fit the files that are now in an artifact, as if the stage itself had written that."""
    where = Folder(str(folder))
    shards, stage_files = read_records(where)

    def again(files: list[FileRecord]) -> list[FileRecord]:
        return [FileRecord(f.name, (folder / f.name).stat().st_size, file_sha256(folder / f.name)) for f in files]

    shards = [type(r)(r.shard, r.rows, r.counts, again(r.files), r.seconds) for r in shards]
    stage_files = again(stage_files)
    for record in shards:
        write_shard_record(where, record)
    write_records(where, shards, stage_files)
    files = [f for r in shards for f in r.files] + stage_files
    manifest = read_manifest(where)
    assert manifest is not None
    changed = {"bytes": sum(f.bytes for f in files), "content_digest": content_digest(files)}
    write_manifest(where, type(manifest)(**{**vars(manifest), **changed}))


def test_a_finished_pipeline_has_nothing_wrong(finished: Path) -> None:
    assert problems(finished) == []
    assert [stage for stage, *_ in verify_workspace(Folder(str(finished)))] == [
        *("data", "concepts", "teacher", "proposals", "labels", "pairs")
    ]


def test_embeddings_of_crops_have_their_places(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    crops = {"labels": {"crop_features": True, "grid_scales": [0.5]}, "pairs": {"other_regions": 2}}
    assert run_small(small_config(workspace, **crops), "pairs").ok
    assert problems(workspace) == []
    for stage, spoil, message in [
        ("labels", spoil_table(LABELS, with_float_crops), r"labels-00000.*lacks .*crops: .*halffloat"),
        ("pairs", spoil_tar(PAIRS, lambda m: m[:2] + m[3:]), r"sample 00001-000000 .* not an image, json, crops\.npy"),
    ]:
        copy = Path(shutil.copytree(workspace, tmp_path / f"copy of {stage}"))
        spoil(artifact(copy, stage))
        record_again(artifact(copy, stage))
        [problem] = [problem for where, problem in problems(copy) if where == stage]
        assert re.search(message, problem), problem


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("stage", ["data", "concepts", "teacher", "proposals", "labels", "pairs"])
def test_a_flipped_bit_in_any_file_is_found(finished: Path, workspace: Path, stage: str) -> None:
    folder = artifact(workspace, stage)
    shards, stage_files = read_records(Folder(str(folder)))
    files = [f.name for r in shards for f in r.files] + [f.name for f in stage_files]
    assert files
    for name in files:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 4
        (folder / name).write_bytes(data)
    found = problems(workspace)
    assert [(s, p.split(":")[0]) for s, p in found] == [(stage, name) for name in files]
    assert all("recorded" in p for _, p in found)


def test_records_that_can_not_be_read_are_a_problem_of_their_artifact(workspace: Path) -> None:
    (artifact(workspace, "labels") / "manifest.json").write_text("{cut")
    (artifact(workspace, "data") / "records.json").write_text('{"shards": [{}]}')
    (artifact(workspace, "concepts") / "records.json").unlink()
    found = dict(problems(workspace))
    assert set(found) == {"labels", "data", "concepts"}
    assert all("its records can't be read" in text for text in found.values())


# ---------------------------------------------------------------- content


def spoil_table(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / name)), folder / name)

    return spoil


def spoil_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))

    return spoil


Members = list[tuple[str, bytes]]


def spoil_tar(name: str, change: Callable[[Members], Members]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / name).open("rb") as stream:
            places = [(f"{s.key}.{e}", *p) for s in scan_tar(stream) for e, p in s.members.items()]
            members = []
            for member, offset, size in places:
                stream.seek(offset)
                members.append((member, stream.read(size)))
        with (folder / name).open("wb") as stream, TarWriter(stream) as tar:
            for member, data in change(members):
                tar.add(member, data)

    return spoil


def with_digest(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({b"vocabulary": b"f" * 64})


def with_float_crops(table: pa.Table) -> pa.Table:
    floats = table["crops"].cast(pa.list_(pa.list_(pa.float32())))
    return table.set_column(table.schema.get_field_index("crops"), "crops", floats)


def widened(table: pa.Table) -> pa.Table:
    return table.set_column(table.schema.get_field_index("width"), "width", table["width"].cast(pa.int64()))


def other_pool(members: Members) -> Members:
    name, body = members[1]
    return [members[0], (name, json.dumps({**json.loads(body), "vocabulary": "0" * 64}).encode()), *members[2:]]


def fewer_embeddings(folder: Path) -> None:
    path = folder / "concept_embeddings.safetensors"
    save_file({"embeddings": np.ascontiguousarray(load_file(path)["embeddings"][:-1])}, path)


INDEX, LABELS, PAIRS = "index-00001.parquet", "labels-00000.parquet", "pairs-00001.tar"
SPOILT = {
    "rows": ("data", spoil_table(INDEX, lambda t: t.slice(1)), r"index-00001.*3 rows, its record says 4"),
    "column type": ("data", spoil_table(INDEX, widened), r"index-00001.*lacks .*width: int32.*has .*width: int64"),
    "column gone": ("proposals", spoil_table("proposals-00002.parquet", lambda t: t.drop_columns("boxes")), r"lacks"),
    "column more": ("labels", spoil_table(LABELS, lambda t: t.append_column("x", t["key"])), r"also has .*x: string"),
    "column order": ("concepts", spoil_table("dropped.parquet", lambda t: t.select(t.column_names[::-1])), r"order"),
    "no table": ("concepts", lambda f: (f / "phrases-00000.parquet").write_bytes(b"PAR1 no"), r"not readable as Parq"),
    "index of others": ("data", spoil_table(INDEX, with_digest), r"index-00001.*vocabulary ffff.*categories.json has"),
    "categories": ("data", spoil_json("categories.json", lambda v: {**v, "digest": "e" * 64}), r"has eeeeeeeeeeee"),
    "splits": ("data", spoil_json("splits.json", lambda v: {"train": v["train"]}), r"splits.json: its shards differ"),
    "image gone": ("data", spoil_tar("images-00000.tar", lambda m: m[:-1]), r"3 images, of which 3 are .* its 4"),
    "image moved": ("data", spoil_tar("images-00000.tar", lambda m: m[1:] + m[:1]), r"4 images, of which 0 are"),
    "tar cut": ("data", lambda f: (f / "images-00000.tar").write_bytes(b"x" * 700), r"images-00000.tar: no uncompr"),
    "labels of others": ("labels", spoil_table(LABELS, with_digest), r"labels-00000.*ffff.*embeddings.json has"),
    "embeddings": ("labels", fewer_embeddings, r"\d+ embeddings for \d+ concepts"),
    "pool of others": ("labels", spoil_json("concept_embeddings.json", lambda v: {**v, "names": v["names"][::-1]}),
                       r"its concepts differ from .*concepts.txt"),
    "sample gone": ("pairs", spoil_tar(PAIRS, lambda m: m[2:]), r"pairs-00001.tar: 3 samples, its record says 4"),
    "half a sample": ("pairs", spoil_tar(PAIRS, lambda m: m[1:]), r"pairs-00001.tar: sample 00001-000000 has the mem"),
    "index of pairs": ("pairs", lambda f: (f / "pairs-00001.idx").write_bytes((f / "pairs-00000.idx").read_bytes()),
                       r"pairs-00001.idx: the samples of .*pairs-00001.tar are elsewhere"),
    "sample of others": ("pairs", spoil_tar(PAIRS, other_pool), r"pairs-00001.tar, 1 samples: of the vocabulary 0000"),
    "pairs.json": ("pairs", spoil_json("pairs.json", lambda v: {**v, "vocabulary": "d" * 64}), r"pairs.json: .*dddd"),
    "pairs counts": ("pairs", spoil_json("pairs.json", lambda v: {**v, "shards": v["shards"][:1]}),
                     r"pairs.json: None samples in shard 1, recorded 4"),
    "another form": ("pairs", spoil_json("pairs.json", lambda v: {}), r"content can't be read: KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_wrong_content_is_found_though_its_record_fits(workspace: Path, kind: str) -> None:
    stage, spoil, message = SPOILT[kind]
    spoil(artifact(workspace, stage))
    assert problems(workspace)  # the bytes are not those recorded
    record_again(artifact(workspace, stage))
    found = problems(workspace)
    assert {s for s, _ in found} == {stage}
    assert [p for _, p in found if re.search(message, p)], found


def of_another_version(folder: Path) -> None:
    """Make it an artifact of version 0 of its stage, with the fingerprint and the name that it then has."""
    manifest = read_manifest(Folder(str(folder)))
    assert manifest is not None
    parts = manifest.settings, manifest.inputs, manifest.raw_inputs
    mark = fingerprint(manifest.stage, 0, *parts)
    write_manifest(Folder(str(folder)), replace(manifest, version=0, fingerprint=mark))
    folder.rename(folder.with_name(mark[:12]))


def test_what_another_version_of_a_stage_wrote_is_read_for_its_bytes_only(workspace: Path) -> None:
    folder = artifact(workspace, "data")
    spoil_table(INDEX, widened)(folder)
    record_again(folder)
    assert len(problems(workspace)) == 1
    of_another_version(folder)
    assert problems(workspace) == []


def test_an_unfinished_artifact_is_read_as_far_as_it_goes(workspace: Path) -> None:
    folder = artifact(workspace, "labels")
    for name in ("manifest.json", "records.json", "shard-00001.json"):
        (folder / name).unlink()
    assert problems(workspace) == []
    spoil_table(LABELS, lambda t: t.slice(1))(folder)
    assert "recorded" in problems(workspace)[0][1]
