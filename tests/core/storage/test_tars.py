"""Tars: the writer against tarfile, the scanner against WebDataset, and every kind of bad sample."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from source_samples import jpeg, picture, read_all, statuses

from regionclip_core.config.tree import TarsSplit
from regionclip_core.datasets.images import ImageReader
from regionclip_core.storage.fingerprints import InputDigests
from regionclip_core.storage.locations import list_files
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tars import BadTar, TarWriter, scan_tar


def test_tar_writer_against_tarfile(tmp_path) -> None:
    members = {"a.png": picture(), "b/c.json": b"{}", "empty.txt": b"", "long.bin": bytes(range(256)) * 40}
    path = tmp_path / "x.tar"
    with path.open("wb") as file, TarWriter(file) as tar:
        offsets = {name: tar.add(name, data) for name, data in members.items()}
    with tarfile.open(path) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == members
        assert {m.name: m.offset_data for m in tar} == offsets
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in tar)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def test_scan_groups_as_webdataset_does(tmp_path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    names = ["a.jpg", "a.txt", "d/b.x.jpg", "d/b.TXT", "d.e/c.jpg", "nodot", ".hidden.jpg", "__meta__", "a/c.jpg"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            add(tar, name, name.encode())
    with path.open("rb") as file:
        ours = {s.key: sorted(s.members) for s in scan_tar(file)}
    with path.open("rb") as file:
        members = [dict(m, __url__="") for m in tar_file_iterator(file)]
        theirs = {s["__key__"]: sorted(k for k in s if not k.startswith("__")) for s in group_by_keys(members)}
    assert ours == theirs
    assert len(ours) == 4


def test_scan_offsets(tmp_path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "ü" * 150 + ".jpg", b"hello")  # needs an extended header
    data = path.read_bytes()
    with path.open("rb") as file:
        (sample,) = scan_tar(file)
    offset, size = sample.members["jpg"]
    assert data[offset : offset + size] == b"hello"


@pytest.mark.parametrize(
    ("damage", "samples", "message"),
    [
        (lambda data: data, 2, None),
        (lambda data: data[:700], 0, "in the middle of 'a.jpg'"),
        (lambda data: data[: 512 + 1024 + 200], 1, "marker|broken header"),
        (lambda data: data[: 2 * (512 + 1024)], 2, "without an end-of-archive marker"),
        (lambda data: data[:1536] + b"x" * 512 + data[2048:], 1, "broken header at byte 1536"),
        (lambda data: b"x" * 4096, 0, "no uncompressed tar"),
        (lambda data: b"", 0, "no uncompressed tar"),
    ],
)
def test_damaged_tars_yield_what_is_whole(damage, samples: int, message: str | None) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "a.jpg", bytes(1024))
        add(tar, "b.jpg", bytes(1024))
    found = []
    problem = None
    try:
        for sample in scan_tar(io.BytesIO(damage(buffer.getvalue()))):
            found.append(sample.key)
    except BadTar as error:
        problem = str(error)
    assert found == ["a", "b"][:samples]
    if message is None:
        assert problem is None
    else:
        assert re.search(message, problem)


def test_gzipped_tar_is_refused(tmp_path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "a.jpg", b"1")
    with path.open("rb") as file, pytest.raises(BadTar, match="no uncompressed tar"):
        list(scan_tar(file))


def write_bad_tar(path: Path) -> None:
    """One good sample of each kind and everything that issue trackers of such sets complain about."""
    with tarfile.open(path, "w") as tar:
        add(tar, "good.png", picture(1))
        add(tar, "good.txt", b"a good one")
        add(tar, "./dotted.png", picture(2))
        add(tar, "./dotted.json", json.dumps({"caption": "from json", "key": "x"}).encode())
        add(tar, "both.json", json.dumps({"caption": "from json"}).encode())
        add(tar, "both.txt", "from text é".encode())
        add(tar, "both.PNG", picture(3))
        add(tar, "truncated.jpg", jpeg()[:3000])
        add(tar, "truncated.txt", b"half an image")
        add(tar, "zero.jpg", b"")
        add(tar, "zero.txt", b"no image")
        add(tar, "tiny.png", picture(1, 1, 1))
        add(tar, "tiny.txt", b"one pixel")
        add(tar, "textonly.txt", b"no image member")
        add(tar, "uncaptioned.png", picture())
        add(tar, "uncaptioned.json", json.dumps({"caption": None}).encode())
        add(tar, "latin.png", picture())
        add(tar, "latin.txt", "café".encode("latin-1"))
        add(tar, "long.png", picture())
        add(tar, "long.txt", b"x" * 100_000)
        add(tar, "broken.png", picture())
        add(tar, "broken.json", b"{not json")
        add(tar, "good.png", picture(9))
        add(tar, "good.txt", b"the key again")
        add(tar, "/etc/absolute.png", picture())
        add(tar, "../up.png", picture())
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "link.txt", b"a link")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="good.png")
        add(tar, "fifo.png", type=tarfile.FIFOTYPE)
        add(tar, "twice.png", picture(4))
        add(tar, "twice.txt", b"first")
        add(tar, "twice.png", picture(5))
        add(tar, "twice.txt", b"second")
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "last.png", picture(6))
        add(tar, "last.txt", b"still here")


BAD_TAR = {
    "t/good": "ok",
    "t/dotted": "ok",
    "t/both": "ok",
    "t/truncated": "bad_image",
    "t/zero": "bad_image",
    "t/tiny": "bad_image",
    "t/textonly": "bad_image",
    "t/uncaptioned": "bad_caption",
    "t/latin": "bad_caption",
    "t/long": "bad_caption",
    "t/broken": "bad_caption",
    "t/good#11": "bad_duplicate_key",
    "t//etc/absolute": "bad_unsafe_member",
    "t/../up": "bad_unsafe_member",
    "t/link": "bad_unsafe_member",
    "t/hard": "bad_unsafe_member",
    "t/fifo": "bad_unsafe_member",
    "t/twice": "ok",
    "t/twice#18": "bad_duplicate_key",
    "t/last": "ok",
}


@pytest.mark.parametrize("remote", [False, True])
def test_tars_source(tmp_path, remote: bool) -> None:
    write_bad_tar(tmp_path / "t.tar")
    url = str(tmp_path / "t.tar")
    if remote:
        import fsspec

        url = f"memory://{tmp_path.name}/t.tar"
        with fsspec.open(url, "wb") as file:
            file.write((tmp_path / "t.tar").read_bytes())
    found = read_all(TarsSplit(source="tars", urls=url))
    assert statuses(found) == BAD_TAR
    rows = {f.key: f for f in found}
    captions = {key: row.captions for key, row in rows.items()}
    assert captions["t/good"] == ["a good one"]
    assert captions["t/dotted"] == ["from json"]
    assert captions["t/both"] == ["from text é"]
    assert all(row.reason for row in rows.values() if not row.ok)
    with ImageReader(Folder(str(tmp_path / "data"))) as reader:
        shades = {key: int(reader.read(row)[0, 0, 0]) for key, row in rows.items() if row.ok}
    assert shades == {"t/good": 1, "t/dotted": 2, "t/both": 3, "t/twice": 4, "t/last": 6}


def test_tars_are_shards_and_keys_stay_unique(tmp_path) -> None:
    for name in ("x/000.tar", "y/000.tar", "y/001.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / name, "w") as tar:
            add(tar, "00.png", picture())
            add(tar, "00.txt", b"a caption")
    found = read_all(TarsSplit(source="tars", urls=str(tmp_path / "{x,y}" / "*.tar")))
    assert list(statuses(found)) == ["00000/00", "00001/00", "00002/00"]
    assert [f.image_id for f in found] == [0, 10_000_000, 20_000_000]
    braces = str(tmp_path / "y" / "{000..001}.tar")
    assert list(statuses(read_all(TarsSplit(source="tars", urls=braces)))) == ["000/00", "001/00"]


def test_damaged_tar_is_one_bad_row(tmp_path) -> None:
    write_bad_tar(tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(data[:5000])
    found = read_all(TarsSplit(source="tars", urls=str(tmp_path / "t.tar")))
    assert statuses(found)["t/good"] == "ok"
    assert found[-1].status == "bad_tar"
    assert "5000" in found[-1].reason


def test_dots_in_keys_cost_every_image_and_name_the_rule(tmp_path) -> None:
    """300 images would be one sample, and one bad one."""
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for number in range(300):
            add(tar, f"site_v1.5_{number:05d}.png", picture())
            add(tar, f"site_v1.5_{number:05d}.txt", b"a dog")
        add(tar, "good.png", picture())
        add(tar, "good.mask.png", picture())
        add(tar, "good.txt", b"a cat")
        add(tar, "one.left.png", picture())
    found = read_all(TarsSplit(source="tars", urls=str(tmp_path / "t.tar")))
    assert Counter(statuses(found).values()) == {"bad_image": 301, "ok": 1}
    assert [row.image_id for row in found] == list(range(302))
    assert found[299].key == "t/site_v1.5_00299.png#299"
    for part in ("one of 300 images with the key 'site_v1'", "WebDataset cuts names at the first dot"):
        assert part in found[299].reason
    assert found[301].reason.startswith("one of 1 images with the key 'one'")


def test_byte_order_marks_are_no_part_of_captions(tmp_path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        add(tar, "a.png", picture())
        add(tar, "a.txt", b"\xef\xbb\xbfa dog\n")
        add(tar, "b.png", picture())
        add(tar, "b.json", b'\xef\xbb\xbf{"caption": "a cat"}')
    found = read_all(TarsSplit(source="tars", urls=str(tmp_path / "t.tar")))
    assert [(f.status, f.captions) for f in found] == [("ok", ["a dog"]), ("ok", ["a cat"])]


def test_list_files(tmp_path) -> None:
    for name, size in [("b.tar", 3), ("a.tar", 2), ("c.txt", 1)]:
        (tmp_path / name).write_bytes(bytes(size))
    assert list_files(f"{tmp_path}/*.tar") == [(f"{tmp_path}/a.tar", 2), (f"{tmp_path}/b.tar", 3)]
    assert list_files(f"{tmp_path}/{{b,a}}.tar") == [(f"{tmp_path}/b.tar", 3), (f"{tmp_path}/a.tar", 2)]
    with pytest.raises(FileNotFoundError, match=r"c\.tar"):
        list_files(f"{tmp_path}/{{a..c}}.tar")
    with pytest.raises(FileNotFoundError, match="nothing matches"):
        list_files(f"{tmp_path}/*.zip")
    with pytest.raises(FileNotFoundError, match=f"no folder '{tmp_path}/no'; check the path"):
        list_files(f"{tmp_path}/no/{{a,b}}.tar")
    for folder in (f"{tmp_path}", f"{tmp_path}/", f"{tmp_path}/{{a.tar,../{tmp_path.name}}}"):
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name}' is a folder; .*/{tmp_path.name}/\*\.tar"):
            list_files(folder)


@pytest.mark.parametrize("store", ["", "memory://"])
@pytest.mark.parametrize("name", ["cc3m[1].tar", "part?.tar", "star*.tar"])
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path, store: str, name: str) -> None:
    folder = Folder(f"{store}{tmp_path}")
    for written in (name, "cc3m1.tar", "part1.tar", "star1.tar"):
        folder.write_bytes(written, written.encode())
    assert list_files(folder.path(name)) == [(folder.path(name), len(name))]
    digest = InputDigests(folder).digest
    before = digest(folder.path(name))
    folder.write_bytes(name, name.upper().encode())  # as large as before
    assert digest(folder.path(name)) != before


def test_a_file_with_braces_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "{a,b}.tar").write_bytes(b"x")
    assert list_files(f"{tmp_path}/{{a,b}}.tar") == [(f"{tmp_path}/{{a,b}}.tar", 1)]
