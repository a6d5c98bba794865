"""Caption files grouped by image, against a naive reading of the whole file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regionclip_core.datasets import folder_source
from regionclip_core.datasets.folder_source import caption_rows_by_image

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
    if 1 < len(cells) <= len(header) or (len(cells) > 1 and not any(cells[len(header) :])):
        return line, cells[1], cells[0], ""
    hint = "; in a .csv, quote a text that holds the separator" if len(cells) > 1 else ""
    return line, "", "", f"{len(cells)} fields, expected {len(header)}{hint}"


def naive_csv(text: str) -> list[tuple[int, Any, Any, str]]:
    lines = list(io.StringIO(text, newline=""))
    reader, start, found = csv.reader(lines), 0, []
    for cells in reader:
        raw, start = lines[start : reader.line_num], reader.line_num
        if list(csv.reader([*raw, "\n", "end\n"]))[-1] != ["end"]:
            raise ValueError("a quote is opened in this row and not closed")
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


def read(url: str) -> list[Image]:
    found: list[Image] = []
    for rows in map(json.loads, caption_rows_by_image(url)):
        problems = [problem for _, _, problem in rows if problem]
        captions = [] if problems else [caption for _, caption, _ in rows]
        found.append((rows[0][0], captions, problems[-1] if problems else None))
        assert {file for file, _, _ in rows} == {rows[0][0]}
    return found


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_against_a_naive_reading(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    seen = 0
    for seed in range(60):
        path.write_bytes(odd_file(random.Random(seed), kind))
        try:
            expected = naive(path)
        except ValueError as error:
            with pytest.raises(ValueError, match=str(error)):
                read(str(path))
            continue
        assert read(str(path)) == expected, seed
        seen += len(expected)
    assert seen > 90


PLAIN: list[Image] = [("1.jpg", ["a dog, a cat"], None), ("2.jpg", ["a bird"], None)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("csv", 'file,caption\n1.jpg,"a dog, a cat"\n2.jpg,a bird\n'),
        ("csv", 'File,CAPTION\n1.jpg,"a dog, a cat"\n2.jpg,a bird\n'),
        ("csv", 'file, caption\n1.jpg, "a dog, a cat"\n2.jpg, a bird\n'),
        ("csv", 'caption , file\n"a dog, a cat" , 1.jpg \na bird , 2.jpg \n'),
        ("csv", '"File";"Caption"\n"1.jpg";"a dog, a cat"\n2.jpg;a bird\n'),
        ("csv", "file; caption\n1.jpg; a dog, a cat\n2.jpg; a bird\n"),
        ("csv", "file\tcaption\n1.jpg\ta dog, a cat\n2.jpg\ta bird\n"),
        ("csv", 'file,caption\n1.jpg,"a dog, a cat",,\n2.jpg,a bird,\n'),  # empty cells of a spreadsheet
        ("tsv", " File \tCaption\n1.jpg\ta dog, a cat\n2.jpg\ta bird\n"),
        ("jsonl", '{"file": "1.jpg", "caption": "a dog, a cat"}\n{"file": "2.jpg", "caption": "a bird"}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_people_have_them(tmp_path: Path, kind: str, text: str, encoding: str) -> None:
    for ending in ("\n", "\r\n"):
        (tmp_path / f"x.{kind}").write_bytes(text.replace("\n", ending).encode(encoding))
        found = read(str(tmp_path / f"x.{kind}"))
        assert [(name, [str(one).strip() for one in captions], why) for name, captions, why in found] == PLAIN


@pytest.mark.parametrize(("kind", "mark"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_a_row_of_too_many_fields_is_bad(tmp_path: Path, kind: str, mark: str) -> None:
    """A caption that was not quoted must not lose its rest without a word."""
    rows = [["file", "caption"], ["1.jpg", "a dog", " a cat", " and a bird"], ["1.jpg", "a tree"], ["2.jpg"]]
    (tmp_path / f"x.{kind}").write_text("\n".join(mark.join(row) for row in rows))
    hint = "; in a .csv, quote a text that holds the separator"
    assert read(str(tmp_path / f"x.{kind}")) == [
        (f"x.{kind}#2", [], f"line 2: 4 fields, expected 2{hint}"),
        ("1.jpg", ["a tree"], None),
        (f"x.{kind}#4", [], "line 4: 1 fields, expected 2"),
    ]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "x.parquet"
    names = pa.array(["1.jpg", "2.jpg", "1.jpg", None, ""]).cast(kind)
    captions = pa.array(["a dog", None, "a cat", "lost", "lost"]).cast(kind)
    pq.write_table(pa.table({"id": [0, 1, 2, 3, 4], "Caption": captions, "file": names}), path, row_group_size=2)
    assert read(str(path)) == [
        ("1.jpg", ["a dog", "a cat"], None),
        ("2.jpg", [""], None),
        ("x.parquet#4", [], "line 4: field `file` is empty or no text"),
        ("x.parquet#5", [], "line 5: field `file` is empty or no text"),
    ]


def test_parquet_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"file": ["1.jpg"], "caption": [[b"a dog"]]}), path)
    with pytest.raises(ValueError, match=r"x\.parquet: column 'caption' holds list<.*expected texts"):
        read(str(path))
    pq.write_table(pa.table({"url": ["1.jpg"], "caption": ["a dog"]}), path)
    with pytest.raises(
        ValueError, match=r"expected a header with `file` and `caption`, once each, found \['url', 'caption'\]"
    ):
        read(str(path))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"x\.parquet: no whole Parquet file"):
        read(str(path))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (gzip.compress(b"file,caption\n", mtime=0), r"x\.csv is compressed"),
        ("file,caption\n".encode("utf-16-le"), r"x\.csv is .*UTF-16 without a byte-order mark"),
        ("file,caption\n1.jpg,a dog".encode("utf-16")[:-1], r"x\.csv, line 2: byte 0x67 is not UTF-16"),
        (b"file,caption,Caption\n1.jpg,a dog,a cat\n", "once each, found"),
        (b"", "expected a header"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(ValueError, match=match):
        read(str(tmp_path / "x.csv"))


def write_tsv(path: Path, rows: int) -> None:
    lines = (f"{'a long caption ' * 20}{n}\t{n // 2 if n % 10 == 9 else n:09d}.jpg\n" for n in range(rows))
    with path.open("w") as file:
        file.write("caption\tfile\n")
        file.writelines(lines)


def test_a_remote_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    write_tsv(path, 2000)
    url = f"memory://{tmp_path.name}/x.tsv"
    fsspec.filesystem("memory").pipe(url, path.read_bytes())
    assert read(url) == naive(path)


@pytest.mark.parametrize("rest", ["x" * 2000, "\nc.png,line" * 200])
def test_a_quote_left_open_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str) -> None:
    monkeypatch.setattr(folder_source, "LARGEST_FIELD", 1000)
    path = tmp_path / "x.csv"
    path.write_text(f'file,caption\na.png,fine\nb.png,"open{rest}')
    with pytest.raises(ValueError, match=r"x\.csv, line \d+: not valid CSV .field larger than field limit"):
        read(str(path))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The captions are on disk while they are grouped."""
    path = tmp_path / "x.tsv"
    write_tsv(path, 20_000)
    tracemalloc.start()
    assert sum(1 for _ in caption_rows_by_image(str(path))) == 19_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 6_000_000
    assert peak < 3_000_000
