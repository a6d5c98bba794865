"""Folders, records and fingerprints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from regionclip_core.storage.fingerprints import InputDigests, fingerprint
from regionclip_core.storage.folder import HALF_REMOVED
from regionclip_core.storage.local_files import local_copy
from regionclip_core.storage.records import (
    Failure,
    FileRecord,
    Folder,
    ShardListing,
    ShardRecord,
    StagePlan,
    canonical_json,
    content_digest,
    done_shards,
    list_shards,
    read_failure,
    read_manifest,
    read_plan,
    read_records,
    read_shard_record,
    read_shard_records,
    record_prefixes,
    shard_record_name,
    write_failure,
    write_plan,
    write_records,
    write_shard_record,
)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "a" / "b")) if request.param == "local" else Folder(f"memory://{tmp_path.name}/a/b")


def test_write_and_read_back(folder: Folder) -> None:
    assert folder.names() == []
    with folder.write("x.bin") as f:
        f.write(b"header....")
        f.seek(0)  # writers such as zip go back to fill in a header
        f.write(b"HEADER")
    data = b"HEADER...."
    assert folder.read_bytes("x.bin") == data
    assert folder.written == [FileRecord("x.bin", len(data), hashlib.sha256(data).hexdigest())]
    assert folder.exists("x.bin") and not folder.exists("y.bin")
    folder.child("sub").write_bytes("inner", b"1")
    assert folder.names() == ["x.bin"] and folder.folders() == ["sub"]
    assert [w.name for w in folder.written] == ["x.bin"]
    with folder.open("x.bin") as stream:
        stream.seek(3)
        assert stream.read(2) == b"DE"
    again = pickle.loads(pickle.dumps(folder))  # a folder travels to workers
    assert again.names() == ["x.bin"]
    folder.remove("x.bin")
    folder.remove("x.bin")
    assert folder.names() == []
    folder.remove_all()
    folder.remove_all()
    assert folder.folders() == []


def test_a_file_that_vanishes_meanwhile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "a"))
    for name in ("one", "two", "three"):
        folder.child(name).write_bytes("x", b"1")
    unlink, gone = os.unlink, []

    def raced(path: Any, **more: Any) -> None:
        unlink(path, **more)
        if not gone:  # somebody else was first
            gone.append(path)
            raise FileNotFoundError(path)

    monkeypatch.setattr(os, "unlink", raced)
    folder.remove_all()
    assert gone
    assert not (tmp_path / "a").exists()


def test_a_name_written_twice_has_one_record(folder: Folder) -> None:
    folder.write_bytes("x", b"one")
    folder.write_bytes("x", b"two!")
    assert folder.read_bytes("x") == b"two!"
    assert [w.bytes for w in folder.written] == [4]  # the last


def test_names_by_their_beginnings(folder: Folder) -> None:
    for name in ("shard-00001.json", "shard-01000.json", "failed-00002.json", "failed.json", "index-00001.parquet"):
        folder.write_bytes(name, b"")
    folder.child("shard-00").write_bytes("shard-00009.json", b"")
    assert folder.names("shard-00", "failed-") == ["failed-00002.json", "shard-00001.json"]
    assert folder.names("x") == []


def test_a_local_copy_lives_as_long_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Folder(f"memory://{tmp_path.name}/weights")
    folder.write_bytes("x", b"one")
    killed = "import os, signal; from regionclip_core.storage.local_files import local_copy; "
    killed += "from regionclip_core.storage.folder import Folder; Folder('memory://a').write_bytes('b', b'one'); "
    killed += "c = local_copy('memory://a/b'); c.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert len(list(tmp_path.glob("*downloads*/*"))) == 1
    with local_copy(folder.path("x")) as first, local_copy(folder.path("x")) as second:
        assert first != second  # two workers don't wait for one another
        assert first.read_bytes() == second.read_bytes() == b"one"
        assert set(tmp_path.glob("*downloads*/*")) == {first, second}  # what a killed process left is gone
    assert list(tmp_path.glob("*downloads*/*")) == []
    with pytest.raises(FileNotFoundError, match=rf"no file at {folder.path('y')}"), local_copy(folder.path("y")):
        pass
    with pytest.raises(ValueError, match=rf"{folder.path('x')} is damaged"), local_copy(folder.path("x")) as copy:
        raise ValueError(f"{copy} is damaged")
    assert list(tmp_path.glob("*downloads*/*")) == []
    (tmp_path / "here").write_bytes(b"2")
    for name in (str(tmp_path / "here"), f"file://{tmp_path / 'here'}"):
        with local_copy(name) as copy:
            assert copy == tmp_path / "here"
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_where(folder: Folder, code: int) -> None:
    def write() -> None:
        with folder.write("x.bin"):
            raise OSError(code, os.strerror(code))  # as a write to a file does: without a name

    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        write()
    # A remote file is written here first, and it is this machine's disk that is full.
    assert raised.value.filename == folder.path("x.bin") if folder.is_local else "uploads" in raised.value.filename


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(folder: Folder) -> None:
    folder.write_bytes("x", b"old")

    def fail_midway() -> None:
        with folder.write("x") as f:
            f.write(b"new, but")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert folder.read_bytes("x") == b"old"
    assert folder.names() == ["x"]
    assert len(folder.written) == 1
    if folder.is_local:
        assert os.listdir(folder.url) == ["x"]


def test_uploads_of_killed_writers_are_removed_and_those_of_living_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote file is written here first; a killed writer leaves that copy behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    writing = "import os, signal; from regionclip_core.storage.folder import Folder; "
    writing += "w = Folder('memory://x').write('y'); w.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", writing], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = Folder(f"memory://{tmp_path.name}/uploads")
    assert len(list(tmp_path.glob("*/*"))) == 1
    with folder.write("x") as file:
        file.write(b"1")
        assert len(list(tmp_path.glob("*/*"))) == 2
        folder.remove_temporary()
        [mine] = tmp_path.glob("*/*")
        assert f"-{os.getpid()}-" in mine.name
    assert folder.read_bytes("x") == b"1"


@pytest.mark.parametrize("name", ["a/b", "../x", ".hidden"])
def test_names_that_are_no_plain_names_are_refused(folder: Folder, name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        folder.write_bytes(name, b"")


def test_a_killed_writer_leaves_no_visible_file(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from regionclip_core.storage.records import Folder\n"
        "with Folder(sys.argv[1]).write('x') as f:\n"
        "    f.write(b'half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = Folder(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 1  # what it had begun
    assert folder.names() == []
    folder.remove_temporary()
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- canonical JSON and fingerprints


def test_equal_values_give_equal_bytes() -> None:
    assert canonical_json({"b": (1, 2.5), "a": None}) == canonical_json({"a": None, "b": [1, 2.5]})
    assert json.loads(canonical_json({"é": [True, "x"]})) == {"é": [True, "x"]}
    assert canonical_json(1) != canonical_json(True)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": float("nan")}}, "settings.a.b"),
        ({"a": [1, {2, 3}]}, r"settings.a\[1\].*set"),
        ({"a": Path("x")}, "settings.a.*Path"),
        ({1: "x"}, "settings.*key 1"),
        ({"a": b"x"}, "settings.a.*bytes"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        canonical_json(value, "settings")


def test_numpy_scalars_are_refused_not_guessed() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match=r"summary\.ap.*float64"):
        canonical_json({"ap": numpy.float64(0.5)}, "summary")


def test_fingerprint_depends_on_everything_that_decides_the_output() -> None:
    base: dict[str, Any] = {
        "stage": "labels",
        "version": 1,
        "settings": {"labels": {"threshold": 0.1}, "seed": 0},
        "inputs": {"data": "d1"},
        "raw_inputs": {"x.json": "r1"},
    }
    variants = [
        {"stage": "pairs"},
        {"version": 2},
        {"settings": {"labels": {"threshold": 0.2}, "seed": 0}},
        {"inputs": {"data": "d2"}},
        {"inputs": {"dat": "d1"}},
        {"raw_inputs": {"x.json": "r2"}},
        {"raw_inputs": {}},
    ]
    marks = {fingerprint(**{**base, **v}) for v in variants} | {fingerprint(**base)}
    assert len(marks) == len(variants) + 1
    reordered = {**base, "settings": {"seed": 0, "labels": {"threshold": 0.1}}}
    assert fingerprint(**reordered) == fingerprint(**base)
    # The value is part of the on-disk format: changing it orphans every workspace there is.
    assert (
        fingerprint("s", 1, {"a": (1, 0.5)}, {}, {})
        == hashlib.sha256(
            b'{"inputs":{},"raw_inputs":{},"settings":{"a":[1,0.5]},"stage":"s","version":1}\n'
        ).hexdigest()
    )


def test_content_digest_ignores_order_and_place() -> None:
    a, b = FileRecord("a", 1, "00"), FileRecord("b", 2, "11")
    assert content_digest([a, b]) == content_digest([b, a])
    assert content_digest([a, b]) != content_digest([a])
    assert content_digest([a]) != content_digest([FileRecord("a", 1, "01")])


def test_input_digests_see_content_and_remember_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(b"one")
    cache = Folder(str(tmp_path / "ws"))
    monkeypatch.setattr("regionclip_core.storage.fingerprints.SETTLED", 0)
    cache.write_json("input-digests.json", {f"{file} 3 1": "of an older version"})
    digests = InputDigests(cache)
    one = hashlib.sha256(b"one").hexdigest()
    assert digests.digest(str(file)) == digests.digest(f"file://{file}") == one
    digests.save()
    with monkeypatch.context() as patch:
        patch.setattr("regionclip_core.storage.fingerprints.file_sha256", lambda path: pytest.fail("read again"))
        assert InputDigests(cache).digest(str(file)) == one
        assert InputDigests(cache).changed_since({str(file): one, str(tmp_path / "gone"): one}) == [
            str(tmp_path / "gone")
        ]
    before = os.stat(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp --preserve` and `touch -r` do
    assert InputDigests(cache).digest(str(file)) == hashlib.sha256(b"two").hexdigest()
    assert InputDigests(cache).changed_since({str(file): one}) == [str(file)]


def test_what_was_written_a_moment_ago_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contents of one size within one tick of the clock have the same times."""
    file, cache = tmp_path / "x.json", Folder(str(tmp_path / "ws"))
    file.write_bytes(b"one")
    reads: list[Path] = []
    monkeypatch.setattr("regionclip_core.storage.fingerprints.file_sha256", lambda path: reads.append(path) or "digest")
    for settled, expected in ((60.0, 2), (0.0, 3)):
        monkeypatch.setattr("regionclip_core.storage.fingerprints.SETTLED", settled)
        digests = InputDigests(cache)
        assert [digests.digest(str(file)) for _ in range(2)] == ["digest"] * 2
        digests.save()
        assert len(reads) == expected
        assert cache.exists("input-digests.json") == (settled == 0)


def test_input_digest_of_a_folder_and_of_a_pattern_is_its_listing(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "tars" / name).mkdir(parents=True)
        (tmp_path / "tars" / name / "0.tar").write_bytes(b"12")
    digests = InputDigests(Folder(str(tmp_path / "ws")))
    pattern = str(tmp_path / "tars" / "*" / "*.tar")
    before = digests.digest(str(tmp_path / "tars")), digests.digest(pattern)
    (tmp_path / "tars" / "a" / "1.tar").write_bytes(b"")
    after = digests.digest(str(tmp_path / "tars")), digests.digest(pattern)
    assert before[0] != after[0] and before[1] != after[1]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        digests.digest(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no file"):
        digests.digest(str(tmp_path / "*.zip"))


def test_input_digest_of_a_url(tmp_path: Path) -> None:
    folder = Folder(f"memory://{tmp_path.name}/in")
    folder.write_bytes("x", b"one")
    digests = InputDigests(Folder(str(tmp_path)))
    assert digests.digest(folder.path("x")) == hashlib.sha256(b"one").hexdigest()
    before = digests.digest(folder.url)
    folder.write_bytes("y", b"two")
    assert digests.digest(folder.url) != before


# ---------------------------------------------------------------- records


def record(shard: int) -> ShardRecord:
    return ShardRecord(shard, 10 + shard, {"ok": 9, "bad_x": 1}, [FileRecord(f"f-{shard:05d}", 3, "ab")], 0.5)


def test_records_read_back_from_the_roll_up_and_from_files(folder: Folder) -> None:
    for shard in (0, 2, 100_000):
        write_shard_record(folder, record(shard))
    write_records(folder, [record(0)])
    assert done_shards(folder.names()) == [0, 2, 100_000]
    assert list_shards(folder).done == list_shards(folder, StagePlan(100_001)).done == (0, 2, 100_000)
    assert read_shard_records(folder, [2, 0, 100_000]) == [record(0), record(2), record(100_000)]
    folder.remove("shard-00000.json")  # shard 0 is in the roll-up only
    assert read_shard_records(folder, [0, 2]) == [record(0), record(2)]
    folder.write_bytes("records.json", b"{ torn")
    assert read_shard_records(folder, [2]) == [record(2)]


def test_a_plan_reads_back_and_tells_the_pages_of_records_apart(folder: Folder) -> None:
    assert read_plan(folder) is None
    for shards, plan in ((None, StagePlan(None)), ([], StagePlan(0)), ([3, 1], StagePlan(2, 3))):
        write_plan(folder, shards)
        assert read_plan(folder) == plan
    folder.write_json("plan.json", {"total": 7})  # of an older version
    assert read_plan(folder) == StagePlan(7)
    for shards in (range(1500), range(99_000, 100_500), [*range(1001), 250_000]):  # more than one page of names
        prefixes = record_prefixes(StagePlan(len(shards), max(shards)))
        names = [shard_record_name(shard) for shard in shards]
        assert all(sum(name.startswith(prefix) for prefix in prefixes) == 1 for name in names)
        assert max(sum(name.startswith(prefix) for name in names) for prefix in prefixes) <= 1000


def test_a_roll_up_is_canonical(folder: Folder) -> None:
    records, files = [record(shard) for shard in (3, 0)], [FileRecord("merged ä", 7, "cd")]
    write_records(folder, records, files)
    rolled = {"shards": [asdict(r) for r in records], "stage": [asdict(f) for f in files]}
    assert folder.read_bytes("records.json") == canonical_json(rolled)


def test_a_failure_counts_until_the_shard_succeeds(folder: Folder) -> None:
    write_failure(folder, Failure("s", 3, "E: x", "Traceback ...", "host", "now"))
    write_failure(folder, Failure("s", None, "E: x", "Traceback ...", "host", "now"))
    assert folder.names() == ["failed-00003.json", "failed.json"]
    assert list_shards(folder) == ShardListing((), (3,))
    write_shard_record(folder, record(3))
    assert list_shards(folder) == ShardListing((3,), ())


def test_a_half_removed_artifact_has_no_record_left(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        folder.write_bytes(f"x-{shard:05d}.bin", b"content")
        write_shard_record(folder, record(shard))
    write_records(folder, map(record, range(3)))
    folder.write_json("manifest.json", {})

    def killed_at_bin(real: Callable[..., None], paths: Any, *more: Any, **how: Any) -> None:
        if any(str(path).endswith(".bin") for path in (paths if isinstance(paths, list) else [paths])):
            raise KeyboardInterrupt
        real(paths, *more, **how)

    with monkeypatch.context() as patch:
        unlink, rm = os.unlink, MemoryFileSystem.rm
        patch.setattr(os, "unlink", lambda path, **how: killed_at_bin(unlink, path, **how))
        patch.setattr(MemoryFileSystem, "rm", lambda fs, p, **how: killed_at_bin(partial(rm, fs), p, **how))
        with pytest.raises(KeyboardInterrupt):
            folder.remove_all()
    assert folder.names() == [HALF_REMOVED, *(f"x-{shard:05d}.bin" for shard in range(3))]
    folder.remove_all()
    assert folder.names() == []


@pytest.mark.parametrize("behind", ["folder", "file", "nothing"])
def test_an_artifact_that_became_a_link_is_removed(tmp_path: Path, behind: str) -> None:
    """As where somebody moved it to another disk: its content goes, and so does the link."""
    moved, beside = tmp_path / "disk" / "moved", tmp_path / "disk" / "other"
    beside.mkdir(parents=True)
    if behind == "folder":
        Folder(str(moved)).write_json("manifest.json", {})
        Folder(str(moved)).write_bytes("x.bin", b"x")
    elif behind == "file":
        moved.write_bytes(b"x")
    (tmp_path / "artifact").symlink_to(moved)
    folder = Folder(str(tmp_path / "artifact"))
    folder.remove_all()
    assert not os.path.lexists(folder.url) and beside.is_dir()
    assert not (moved.is_dir() and any(moved.iterdir()))
    folder.write_bytes("x.bin", b"y")
    assert folder.names() == ["x.bin"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_modes_links_and_flushed_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As exFAT and network shares are. An error of the disk itself is raised."""
    fsync = os.fsync

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def of_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    for name in ("chmod", "link", "symlink"):
        monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr(os, "fsync", of_files)
    folder = Folder(str(tmp_path / "ws"))
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            folder.write_bytes("x", b"one")
        return
    folder.write_bytes("x", b"one")
    assert folder.read_bytes("x") == b"one" and folder.names() == ["x"]


@pytest.mark.parametrize(
    ("name", "content", "read", "message"),
    [
        ("manifest.json", {"stage": "data", "new_field": 1}, read_manifest, r"version: Field required .*run again"),
        ("plan.json", {"total": "4"}, read_plan, r"total: .*integer \(came: '4'\)"),
        ("plan.json", {"done": 3}, read_plan, r"total: Field required"),
        ("plan.json", [], read_plan, "object"),
        ("failed.json", {"stage": "s"}, read_failure, "error: |shard: "),
        ("records.json", {"shards": [{"shard": 1}], "stage": []}, read_records, "shards: 0: rows: Field required"),
        ("records.json", {"shards": [], "stage": [], "more": 1}, read_records, "more: "),
        (
            "shard-00003.json",
            asdict(record(4)),
            lambda folder: read_shard_record(folder, 3),
            r"of shard 3 \(came: of shard 4\)",
        ),
    ],
)
def test_a_file_of_another_version_is_named(
    folder: Folder, name: str, content: Any, read: Callable[[Folder], Any], message: str
) -> None:
    folder.write_json(name, content)
    with pytest.raises(ValueError, match=rf"{name}\b.*{message}"):
        read(folder)
    folder.write_bytes(name, b"{ torn")
    with pytest.raises(ValueError, match=rf"{name} is of another version or damaged: Invalid JSON"):
        read(folder)
