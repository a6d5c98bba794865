"""Scanned caption files against a naive reading of the whole file."""

from __future__ import annotations

import csv
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from regionclip_core.datasets import caption_rows
from regionclip_core.datasets.caption_scan import CaptionScan
from regionclip_core.storage.records import Folder

Image = tuple[str, list[object], str | None]
"""Name, captions, what is wrong."""

ODD = [*"aé日𝄞 ,'\"\\", "b ", "\u2028", "\x00", "\x0b", "\x85", "\ufeff", "\udce9"]


def odd_text(rng: random.Random) -> str:
    return "".join(rng.choices(ODD, k=rng.randrange(9)))


def odd_json(rng: random.Random, file: str, caption: str) -> str:
    others = [{"caption": caption}, {"file": file}, {"file": 3}, {"file": file, "caption": [caption]}, [1], "text"]
    body = rng.choice([{"file": file, "caption": caption}] * 12 + others)
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5)
    return text if rng.random() < 0.9 else "{broken"


def odd_table(rng: random.Random, kind: str, file: str, caption: str) -> str:
    cells = [caption, file, odd_text(rng)][: rng.choice([3, 3, 3, 1, 2])]
    if kind == "tsv":
        return "\t".join(cells)
    cells[0] += rng.choice(["", "", "\n", "\r", "\r\n"])
    return ",".join('"' + cell.replace('"', '""') + '"' if rng.random() < 0.6 else cell for cell in cells)


def odd_file(rng: random.Random, kind: str) -> bytes:
    """Rows of few names, ended in many ways; some name a row that can't be used."""
    names = ["a.png", "é/b.png", "d\udcff.png", "", f"x.{kind}#4", *"pqrst"]
    text = rng.choice(["", "\ufeff"]) + rng.choice(["", "\n"])
    text += {"csv": "caption,file,more\r\n", "tsv": "caption\tfile\tmore\n", "jsonl": ""}[kind]
    for _ in range(rng.randrange(40)):
        file, caption = rng.choice(names), odd_text(rng)
        text += odd_json(rng, file, caption) if kind == "jsonl" else odd_table(rng, kind, file, caption)
        text += rng.choice(["\n"] * 6 + ["\r\n", "\n\n", "\r", "\n\r", "\n \n"])
    return text[: len(text) - rng.randrange(2)].encode("utf-8", "surrogateescape")


def naive(path: Path) -> list[Image]:
    text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    images: dict[str, Image] = {}
    for line, file, caption, problem in naive_rows(text, path.suffix):
        if not problem and not (isinstance(file, str) and file):
            problem = "field `file` is empty or no text"
        if problem:
            images[f"{path.name}#{line}"] = (f"{path.name}#{line}", [], f"line {line}: {problem}")
        else:
            images.setdefault(str(file), (str(file), [], None))[1].append("" if caption is None else caption)
    return [(name, captions if problem is None else [], problem) for name, captions, problem in images.values()]


def naive_rows(text: str, kind: str) -> list[tuple[int, Any, Any, str]]:
    """(line, file, caption, problem)"""
    if kind == ".jsonl":
        return [naive_json(line, raw) for line, raw in enumerate(text.split("\n"), start=1) if raw.strip()]
    if kind == ".tsv":
        lines = [(line, raw.rstrip("\r").split("\t")) for line, raw in enumerate(text.split("\n"), start=1)]
        rows = [(line, cells) for line, cells in lines if cells != [""]]
    else:
        return naive_csv(text)
    return [naive_cells(line, cells, rows[0][1]) for line, cells in rows[1:]]


def naive_cells(line: int, cells: list[str], header: list[str]) -> tuple[int, Any, Any, str]:
    if len(cells) > 1:
        return line, cells[1], cells[0], ""
    return line, "", "", f"{len(cells)} fields, expected {len(header)}"


def naive_csv(text: str) -> list[tuple[int, Any, Any, str]]:
    lines = list(io.StringIO(text, newline=""))
    reader, start, found = csv.reader(lines), 0, []
    for cells in reader:
        raw, start = lines[start : reader.line_num], reader.line_num
        if list(csv.reader([*raw, "\n", "end\n"]))[-1] != ["end"]:
            raise ValueError("a quote is opened and not closed")
        if cells:
            found.append((reader.line_num, cells, raw))
    return [
        (line, "", "", f"{len(raw)} lines held together by a quote, and text behind the closing one: {DOUBLED}")
        if len(raw) > 1 and refused_when_strict(raw)
        else naive_cells(line, cells, found[0][1])
        for line, cells, raw in found[1:]
    ]


DOUBLED = "expected quotes to be closed, and those inside a text to be doubled"


def refused_when_strict(raw: list[str]) -> bool:
    try:
        list(csv.reader(raw, strict=True))
    except csv.Error:
        return True
    return False


def naive_json(line: int, raw: str) -> tuple[int, Any, Any, str]:
    try:
        body = json.loads(raw)
    except ValueError:
        return line, "", "", "not valid JSON"
    if not isinstance(body, dict) or "file" not in body:
        return line, "", "", "no object with the fields `file` and `caption`"
    return line, body["file"], body.get("caption"), ""


def read(scan: CaptionScan, shard_size: int) -> list[Image]:
    found: list[Image] = []
    for start in range(0, len(scan), shard_size):
        for name, rows in scan.images(start, min(start + shard_size, len(scan))):
            problems = [row.problem for row in rows if row.problem]
            found.append((name, [] if problems else [row.caption for row in rows], problems[-1] if problems else None))
    return found


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("memory", [1, 2_000, 1 << 25])
def test_against_a_naive_reading(tmp_path: Path, kind: str, memory: int) -> None:
    path = tmp_path / f"x.{kind}"
    seen = 0
    for seed in range(15 if memory == 1 else 40):
        rng = random.Random(seed)
        path.write_bytes(odd_file(rng, kind))
        scratch = Folder(str(tmp_path / f"{seed}"))
        try:
            expected = naive(path)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)):
                CaptionScan(str(path), scratch, "a", memory)
            continue
        assert read(CaptionScan(str(path), scratch, "a", memory), rng.choice([1, 3, 100])) == expected, seed
        assert read(CaptionScan(str(path), scratch, "a", memory), 2) == expected, seed  # as another process reads it
        seen += len(expected)
    assert seen > 90


@contextmanager
def arrow_pool() -> Iterator[pa.MemoryPool]:
    """Arrow's memory of the block alone."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(usual)


def write_tsv(path: Path, rows: int) -> None:
    lines = (f"{'a long caption ' * 20}{n}\t{n // 2 if n % 10 == 9 else n:09d}.jpg\n" for n in range(rows))
    with path.open("w") as file:
        file.write("caption\tfile\n")
        file.writelines(lines)


def test_a_remote_file_is_read_where_it_is_scanned_and_copied_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    write_tsv(path, 2000)
    url = f"memory://{tmp_path.name}/x.tsv"
    fsspec.filesystem("memory").pipe(url, path.read_bytes())
    scan = CaptionScan(url, Folder(f"memory://{tmp_path.name}/scan"), "a b", memory=10_000)
    assert read(scan, 100) == naive(path)
    assert Folder(f"memory://{tmp_path.name}/scan").names() == ["a b.images", "a b.rows"]


def test_the_file_is_scanned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, scratch = tmp_path / "x.tsv", Folder(str(tmp_path / "scan"))
    write_tsv(path, 100)
    expected = read(CaptionScan(str(path), scratch, "a"), 10)
    monkeypatch.setattr("regionclip_core.datasets.caption_scan.open_location", None)
    assert read(CaptionScan(str(path), scratch, "a"), 10) == expected


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path, scratch = tmp_path / "x.tsv", Folder(str(tmp_path / "scan"))
    write_tsv(path, 10)
    text = path.read_text()
    scan = CaptionScan(str(path), scratch, "a")
    for changed, start in [(text.replace("caption 7", "caption 8"), 7), (text[:-1], 4), ("Caption" + text[7:], 0)]:
        path.write_text(changed)
        with pytest.raises(ValueError, match=r"x\.tsv has changed since this run began"):
            list(scan.images(start, 9))
    path.write_text(text)
    assert len(list(scan.images(0, 9))) == 9


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_a_line_too_large_to_read_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(caption_rows, "LARGEST_ROW", 1000)
    path = tmp_path / f"x.{kind}"
    rows = [("a.png", "first"), ("b.png", "x" * 5000), ("a.png", "y" * 500), ("c.png", "last")]
    as_line = {"tsv": lambda f, c: f"{f}\t{c}\n", "jsonl": lambda f, c: json.dumps({"file": f, "caption": c}) + "\n"}
    lines = [as_line[kind](*row) for row in rows]
    path.write_text("".join(["file\tcaption\n"] * (kind == "tsv") + lines))
    line = 3 if kind == "tsv" else 2
    problem = f"line {line}: {len(lines[1])} bytes, at most 1000"
    assert read(CaptionScan(str(path), Folder(str(tmp_path / "scan")), "a"), 9) == [
        ("a.png", ["first", "y" * 500], None),
        (f"x.{kind}#{line}", [], problem),
        ("c.png", ["last"], None),
    ]


@pytest.mark.parametrize("end", ["", "\n" * 2000])
def test_a_quote_left_open_is_told_before_it_swallows_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(caption_rows, "LARGEST_ROW", 1000)
    path = tmp_path / "x.csv"
    path.write_text(f'file,caption\na.png,fine\nb.png,"open{"x" * (0 if end else 2000)}{end}')
    with pytest.raises(ValueError, match=r"x\.csv, line \d+: a row of more than 1000 bytes, which starts at byte 24"):
        CaptionScan(str(path), Folder(str(tmp_path / "scan")), "a")
    assert Folder(str(tmp_path / "scan")).names() == []


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Python's and Arrow's memory, for the count of the images and for 100 of them, at ten times the rows."""

    def peaks(rows: int) -> tuple[int, int, int]:
        path, scratch = tmp_path / f"{rows}.tsv", Folder(str(tmp_path / f"{rows}"))
        write_tsv(path, rows)
        tracemalloc.start()
        with arrow_pool() as pool:
            count = len(CaptionScan(str(path), scratch, "a", memory=1 << 18))
            scanning = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert len(list(CaptionScan(str(path), scratch, "a").images(count - 100, count))) == 100
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return scanning, pool.max_memory(), reading

    few, many = peaks(2_000), peaks(20_000)
    assert (tmp_path / "20000.tsv").stat().st_size > 6_000_000
    assert many[0] < 5_000_000 and many[1] < 3_000_000, (few, many)
    assert many[2] < 500_000, (few, many)  # which bytes of a row end where moves it between 90,000 and 240,000
