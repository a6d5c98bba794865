"""Workspace and inputs in object storage, over the real S3 protocol; broken connections."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3, s3_server
from small_inputs import write_coco, write_folder, write_tars
from small_runs import DETERMINISTIC, small_config
from toy_runs import Toy

from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.records import (
    ShardRecord,
    canonical_json,
    shard_record_name,
    write_plan,
    write_records,
)
from stages.commands.verify import artifacts, verify_workspace
from stages.engine.lock import WorkspaceLocked, hold, read_holder
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline

MIB = 2**20


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken connection is an error at once."""
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def bucket(s3: S3) -> Any:
    """A client of the server that doesn't run through the proxy."""
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=s3.direct_url, skip_instance_cache=True, use_listings_cache=False)


@pytest.fixture(scope="module")
def inputs(s3: S3) -> dict[str, Any]:
    """One split of each source, in the bucket."""
    root = Folder(f"s3://{BUCKET}/inputs")
    return {
        "web": {"source": "tars", "urls": write_tars(root.child("tars"))},
        "train": write_coco(root.child("train"), stream="train"),
        "val": write_coco(root.child("val"), stream="val"),
        "folder": write_folder(root.child("folder")),
    }


def config(workspace: Path | str, inputs: dict[str, Any], **sections: Any) -> Config:
    chosen: dict[str, Any] = {
        "data": {"splits": inputs, "shard_size": 2},
        "concepts": {"splits": ["web", "folder"], "min_count": 1, "parser": "rules"},
        "proposals": {"splits": ["web", "train", "val"]},
        "labels": {"splits": ["web"]},
    }
    return small_config(workspace, **{**chosen, **sections})


def files(workspace: Folder, stages: tuple[str, ...] = STAGE_NAMES) -> dict[str, bytes]:
    """Content of every artifact by stage and name, without the frame's own files; empty where it says how long a
    stage took."""
    own = ("shard-", "failed", "records", "manifest", "plan", "progress")
    timed = ("report.html", "times.csv")
    return {
        f"{stage}/{name}": b"" if stage == "report" and name in timed else folder.read_bytes(name)
        for stage, folder in artifacts(workspace)
        for name in folder.names()
        if stage in stages and not name.startswith(own)
    }


@pytest.fixture(scope="module")
def local(s3: S3, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The run with a local workspace."""
    workspace = tmp_path_factory.mktemp("local") / "ws"
    assert Pipeline(config(workspace, inputs), Reporter()).run().ok
    return Folder(str(workspace))


@pytest.mark.slow
def test_the_whole_pipeline_in_a_bucket_gives_the_bytes_of_a_local_run(
    s3: S3, inputs: dict[str, Any], local: Folder
) -> None:
    workspace = Folder(f"s3://{BUCKET}/whole")
    pipeline = Pipeline(config(workspace.url, inputs), Reporter())
    assert set(pipeline.run().outcomes.values()) == {"done"}
    assert read_holder(workspace) is None
    expected = files(local)
    found = files(workspace)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert [problems for *_, problems in verify_workspace(workspace)] == [[]] * len(STAGE_NAMES)
    assert set(pipeline.run().outcomes.values()) == {"skipped"}


# ---------------------------------------------------------------- single files


def test_a_large_file_goes_in_parts_and_a_hiccup_is_not_noticed(s3: S3) -> None:
    """The connection breaks in the middle of a part, once."""
    folder = Folder(f"s3://{BUCKET}/parts")
    before = s3.proxy.cuts
    s3.proxy.cut_after(60 * MIB, for_good=False)
    with folder.write("large") as file:
        for _ in range(101):
            file.write(b"0123456789abcdef" * (MIB // 16))
    assert s3.proxy.cuts == before + 1
    info = bucket(s3).info(f"{BUCKET}/parts/large")
    assert info["size"] == folder.written[0].bytes == 101 * MIB
    assert info["ETag"].rstrip('"').split("-")[-1] in ("2", "3")  # an object of parts
    with folder.open("large") as stream:
        stream.seek(70 * MIB)
        assert stream.read(16) == b"0123456789abcdef"


@pytest.mark.parametrize(("size", "cut"), [(3 * MIB, 1 * MIB), (101 * MIB, 60 * MIB)], ids=["one put", "parts"])
def test_a_connection_lost_while_writing_leaves_what_was_there(s3: S3, one_try: None, size: int, cut: int) -> None:
    folder = Folder(f"s3://{BUCKET}/lost-{size}")
    folder.write_bytes("x", b"old")
    s3.proxy.cut_after(cut)
    try:
        with pytest.raises(ConnectionError, match=rf"s3://{BUCKET}/lost-{size}: "):
            folder.write_bytes("x", bytes(size))
        with pytest.raises(ConnectionError):
            folder.names()
    finally:
        s3.proxy.repair()
    direct = bucket(s3)
    assert direct.find(f"{BUCKET}/lost-{size}") == [f"{BUCKET}/lost-{size}/x"]
    assert direct.cat_file(f"{BUCKET}/lost-{size}/x") == folder.read_bytes("x") == b"old"
    folder.write_bytes("x", bytes(size))
    assert len(folder.read_bytes("x")) == size


def test_one_of_many_gets_the_lock(s3: S3) -> None:
    """Runs that start at the same moment: a conditional put lets one create the lock."""
    workspace = Folder(f"s3://{BUCKET}/locked")
    got: list[str] = []
    together, held = threading.Barrier(6), threading.Event()

    def run() -> None:
        together.wait()
        try:
            with hold(workspace):
                got.append("lock")
                held.wait(20)
        except WorkspaceLocked as error:
            got.append(str(error).split(",")[0])
            if len(got) == 6:
                held.set()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    message = f"workspace {workspace.url} is held by host {socket.gethostname()}"
    assert sorted(got) == ["lock"] + [message] * 5
    assert workspace.names() == []


# ---------------------------------------------------------------- many records


def test_records_are_listed_once_per_command_by_pages_that_come_together(
    toy: Toy, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of an unfinished stage are listed once; of a finished stage nothing is listed."""
    import toy_stages
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.s3.responses import S3Response

    count = 2500
    monkeypatch.setattr(toy_stages, "SHARDS", count + 1)
    monkeypatch.chdir(toy.root)
    (toy.root / "s3:" / BUCKET).mkdir(parents=True)  # where the toy would keep its log beside the workspace
    toy.workspace = Folder(f"s3://{BUCKET}/many")
    out = Folder(str(toy.plan()["numbers"].path))
    records = [ShardRecord(shard, 10, {"ok": 10}, [], 0.1) for shard in range(count)]
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for record in records:
        key = out.path(shard_record_name(record.shard)).removeprefix(f"s3://{BUCKET}/")
        store.put_object(BUCKET, key, canonical_json(asdict(record)))
        store.put_object(BUCKET, key.replace("shard-", "numbers-"), b"")
    write_plan(out, range(count + 1))
    write_records(out, records)
    listed: list[str] = []
    answer = S3Response.list_objects_v2

    def counted(self: Any) -> Any:
        prefix = self.querystring["prefix"][0]
        # Others ask which stages there are, or whether there is one object.
        if "/numbers/" in prefix and not prefix.endswith(".json/"):
            listed.append(prefix.removeprefix(out.url.removeprefix(f"s3://{BUCKET}/")))
        return answer(self)

    monkeypatch.setattr(S3Response, "list_objects_v2", counted)
    once = ["/failed-", "/shard-00", "/shard-01", "/shard-02"]
    assert (line := toy.plan()["numbers"]).state == "partial" and line.reason == "2500/2501 done"
    assert sorted(listed) == once
    listed.clear()
    assert toy.run("numbers").ok
    assert sorted(listed) == once
    listed.clear()
    assert toy.plan()["numbers"].manifest is not None
    assert toy.run("numbers").outcomes == {"numbers": "skipped"}
    assert listed == []


# ---------------------------------------------------------------- whole runs


def broken_run(s3: S3, inputs: dict[str, Any], local: Folder, name: str, sent: int) -> None:
    """A run whose connection breaks after so many sent bytes; then, over a repaired one, another to the end."""
    workspace = Folder(f"s3://{BUCKET}/{name}")
    pipeline = Pipeline(config(workspace.url, inputs), Reporter())
    expected = files(local, DETERMINISTIC)
    s3.proxy.cut_after(sent)
    try:
        try:
            message = " ".join(pipeline.run(["pairs"]).messages.values())
        except ConnectionError as error:  # before it had begun with a stage
            message = str(error)
        assert re.search(rf"s3://{BUCKET}/({name}|inputs)", message)
        assert s3.proxy.broken
    finally:
        s3.proxy.repair()
    half = files(workspace, DETERMINISTIC)
    assert [name for name, data in half.items() if data != expected[name]] == []  # whole, or not there
    assert len(half) < len(expected)
    assert all(problems == [] for *_, problems in verify_workspace(workspace))
    workspace.remove("lock.json")  # of a process that, in earnest, would be gone by now
    assert pipeline.run(["pairs"]).ok
    assert files(workspace, DETERMINISTIC) == expected
    assert read_holder(workspace) is None


@pytest.mark.slow
def test_a_run_whose_connection_broke_goes_on(s3: S3, inputs: dict[str, Any], local: Folder, one_try: None) -> None:
    broken_run(s3, inputs, local, "broken", 60_000)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [500, 3_000, 20_000, 45_000, 150_000, 2_000_000, 4_600_000, 4_680_000])
def test_wherever_the_connection_breaks(
    s3: S3, inputs: dict[str, Any], local: Folder, one_try: None, sent: int
) -> None:
    broken_run(s3, inputs, local, f"broken-{sent}", sent)


@pytest.mark.slow
def test_the_preset_tiny_on_ray_in_a_bucket(s3: S3, tmp_path: Path) -> None:
    """Every stage, workers of their own; they find the server by the environment that they inherit."""
    from regionclip_core.config.loading import load_config

    remote = f"s3://{BUCKET}/tiny"
    for workspace, backend in ((remote, "ray"), (str(tmp_path / "ws"), "local")):
        settings = [f"workspace={workspace}", f"execution.backend={backend}", "execution.threads=1"]
        assert Pipeline(load_config("tiny", settings), Reporter()).run().ok
    assert files(Folder(remote)) == files(Folder(str(tmp_path / "ws")))
