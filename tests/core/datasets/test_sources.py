"""Folder and COCO sources: what each one reads, and that every bad sample is a row with its reason."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TINY_COCO
from source_samples import VOCABULARY, jpeg, opened, picture, read_all, statuses

from regionclip_core.config.tree import CocoSplit, FolderSplit
from regionclip_core.datasets import annotation_files
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.images import ImageReader, read_image_file
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.shard_plan import plan_shards
from regionclip_core.datasets.source import even_pieces
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import Folder

# --------------------------------------------------------------- folder


def write_folder(folder: Path, kind: str) -> str:
    for name, data in {
        "a.png": picture(1),
        "sub/b.v2.png": picture(2),
        "cut.jpg": jpeg()[:2000],
        "empty.jpg": b"",
        "plain.png": picture(3),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    rows = [
        ("a.png", "first of a"),
        ("sub/b.v2.png", "of b, with a comma"),
        ("a.png", "second of a"),
        ("a.png", ""),
        ("cut.jpg", "truncated"),
        ("empty.jpg", "zero bytes"),
        ("gone.jpg", "not there"),
        ("../up.png", "outside"),
        ("plain.png", ""),
    ]
    path = folder / f"captions.{kind}"
    if kind == "jsonl":
        lines = [json.dumps({"file": f, "caption": c}) for f, c in rows]
        text = "\n".join([*lines[:4], "{broken", '["no", "object"]', *lines[4:]])
    elif kind == "csv":
        text = "caption,file\r\n" + "".join(f'"{c}",{f}\r\n' for f, c in rows[:4])
        text += "only one field\r\n" + "".join(f'"{c}",{f}\r\n' for f, c in rows[4:])
    else:
        text = "\n".join(["file\tcaption", *("\t".join(r) for r in rows[:4]), "x", *("\t".join(r) for r in rows[4:])])
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_folder_source(tmp_path, kind: str) -> None:
    captions = write_folder(tmp_path, kind)
    found = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=captions), shard_size=4)
    broken = {"jsonl": ["captions.jsonl#5", "captions.jsonl#6"], "csv": ["captions.csv#6"], "tsv": ["captions.tsv#6"]}
    assert statuses(found) == {
        "a.png": "ok",
        "sub/b.v2.png": "ok",
        **dict.fromkeys(broken[kind], "bad_caption"),
        "cut.jpg": "bad_image",
        "empty.jpg": "bad_image",
        "gone.jpg": "bad_image",
        "../up.png": "bad_unsafe_member",
        "plain.png": "bad_caption",
    }
    first, second = found[0], found[1]
    assert first.captions == ["first of a", "second of a"]
    assert found[0].lost == ("lost_caption",)
    assert first.reason == "caption is empty"
    assert second.captions == ["of b, with a comma"]
    assert (second.width, second.height, second.image_id) == (30, 20, 1)
    with ImageReader(Folder(str(tmp_path))) as reader:
        assert int(reader.read(second)[0, 0, 0]) == 2


def test_bytes_that_are_not_utf8_cost_their_caption_only(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())
    for kind, text in {
        "tsv": b"file\tcaption\na.png\tcaf\xe9\nb.png\tfine\n",
        "csv": b"file,caption\na.png,caf\xe9\nb.png,fine\n",
        "jsonl": b'{"file": "a.png", "caption": "caf\xe9"}\n{"file": "b.png", "caption": "fine"}\n',
    }.items():
        (tmp_path / f"c.{kind}").write_bytes(text)
        found = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / f"c.{kind}")))
        assert statuses(found) == {"a.png": "bad_caption", "b.png": "ok"}


def test_file_names_that_are_no_text_cost_their_row_only(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    lines = ['{"file": "\\ud800.png", "caption": "x"}', '{"file": null, "caption": "\\ud800"}']
    (tmp_path / "c.jsonl").write_text("\n".join([*lines, '{"file": "a.png", "caption": "fine"}']))
    found = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.jsonl")))
    assert list(statuses(found).values()) == ["bad_unsafe_member", "bad_caption", "ok"]
    reasons = ["is not UTF-8", "line 2: field `file` is empty or no text"]
    for row, reason in zip(found[:2], reasons, strict=True):
        assert reason in row.reason
        assert (row.key + row.reason).encode()  # can be stored


def test_caption_files_that_make_no_sense(tmp_path) -> None:
    for name, text, message in [
        ("c.csv", "image,text\na,b\n", "expected a header with `file` and `caption`"),
        ("c.tsv", "", "expected a header"),
        (
            "a.jsonl",
            '[\n{"file": "a.png"}]',
            r"a.jsonl begins with '\[', as one JSON list or object; expected one object",
        ),
        ("b.jsonl", '[{"file": "a.png"}]', r"begins with '\[{\"file\": \"a.png\"}\]'"),
        ("c.txt", "x", r"expected .jsonl \(one object per line, .*\), .csv, .tsv or .parquet"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "text"), [("c.csv", "file,caption\n"), ("c.tsv", "file\tcaption\n\n"), ("c.jsonl", "")]
)
def test_caption_files_without_rows_are_refused(tmp_path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"data\.splits\.train: no images are listed in captions: .*/{name}"):
        read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / name)))


def test_a_quote_left_open_is_reported(tmp_path) -> None:
    """With its row's line, where it takes in the rest of the file; else the rows that it takes in are one bad row."""
    split = FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.csv"))
    (tmp_path / "a.png").write_bytes(picture())
    for before, line in [("", 2), ('a.png,"two\nlines"\r\n"a\n.png",', 4)]:
        (tmp_path / "c.csv").write_text(f'file,caption\n{before}"a dog\na.png,a cat\na.png,a bird\n', newline="")
        with pytest.raises(ValueError, match=rf"c\.csv, line {line}: a quote is opened in this row and not closed"):
            read_all(split)
    (tmp_path / "c.csv").write_text('file,caption\nx.png,"a dog\nx.png,"a cat"\na.png,"a ""big""\ndog"\n')
    bad, good = read_all(split)
    assert (bad.key, bad.status) == ("c.csv#3", "bad_caption")
    assert bad.reason.startswith("line 3: 2 lines held together by a quote, and text behind the closing one")
    assert (good.status, good.captions) == ("ok", ['a "big"\ndog'])


@pytest.mark.parametrize("source", ["folder", "coco"])
def test_names_in_a_web_folder(tmp_path: Path, source: str) -> None:
    """`#`, `?` and `%` mean something in an address; as letters of a name they are escaped."""
    names = ["hash#1.png", "q?x=1.png", "per%20cent.png", "50%.png", "a b.png", "a+b&c.png", "[1].png", "ä/图.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "c.tsv").write_text("".join(f"{name}\ta dog\n" for name in names).join(["file\tcaption\n", ""]))
    images = [{"id": i, "file_name": name, "width": 30, "height": 20} for i, name in enumerate(names)]
    captions = [{"image_id": i, "caption": "a dog"} for i in range(len(names))]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        if source == "folder":
            found = read_all(FolderSplit(source="folder", images=url, captions=str(tmp_path / "c.tsv")))
        else:
            found = read_all(CocoSplit(source="coco", images=url, captions=str(tmp_path / "c.json")))
        assert [(row.key, row.status) for row in found] == [(name, "ok") for name in names]
        assert all(read_image_file(row.url) == picture() for row in found)
        server.shutdown()


def test_files_that_cannot_be_opened_cost_their_row_only(tmp_path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.png").write_bytes(picture())
    names = ["loop.png", "x" * 300, "y" * 5000, "a.png"]
    (tmp_path / "c.tsv").write_text(
        "".join(f"{name}\ta dog\n" for name in ["file", *names]).replace("a dog", "caption", 1)
    )
    found = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.tsv")))
    assert list(statuses(found).values()) == ["bad_image"] * 3 + ["ok"]
    for one, reason in zip(found, ["symbolic links", "too long", "too long"], strict=False):
        assert reason in one.reason


def test_tsv_keeps_quotes_and_csv_takes_long_captions(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "c.tsv").write_text('file\tcaption\na.png\t"a \u2028 quote\n')
    (found,) = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.tsv")))
    assert found.captions == ['"a \u2028 quote']
    (tmp_path / "c.csv").write_text(f"file,caption\na.png,{'x' * 200_000}\n")
    (found,) = read_all(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.csv")))
    assert found.status == "bad_caption"
    assert "200000 characters" in found.reason


# --------------------------------------------------------------- coco


def write_coco(folder: Path) -> dict[str, str]:
    size = {"width": 100, "height": 50}
    instances = {
        "images": [
            {"id": 7, "file_name": "seven.jpg", **size},
            {"id": 8, "file_name": "eight.jpg", **size},
            {"id": 7, "file_name": "seven.jpg", **size},
            {"id": 9, "file_name": "../nine.jpg", **size},
            {"id": 10, "file_name": "ten.jpg", "width": 30_000, "height": 30_000},
            {"id": 11, "file_name": "eleven.jpg", "width": 1, "height": 1},
            {"file_name": "no_id.jpg", **size},
            {"id": 2**63, "file_name": "large_id.jpg", **size},
            {"id": 12, "coco_url": "http://images.cocodataset.org/train2017/000000000012.jpg", **size},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 10], "area": 120.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 99, "bbox": [-5, 40, 10, 100], "iscrowd": 1, "area": 3},
            {"id": 3, "image_id": 7, "category_id": 2, "bbox": [1, 1, 0, 5], "area": 0},
            {"id": 4, "image_id": 7, "category_id": 2, "bbox": [200, 1, 5, 5], "area": 25},
            {"id": 5, "image_id": 7, "category_id": 2, "bbox": [float("nan"), 1, 5, 5], "area": 25},
            {"id": 6, "image_id": 7, "category_id": 1234, "bbox": [1, 1, 5, 5], "area": 25},
            {"id": 7, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5], "area": 25},
            {"id": 8, "image_id": 12, "category_id": 5, "bbox": [2, 3, 4, 5], "segmentation": [[1, 2, 3]]},
            {"id": 9, "image_id": 555, "category_id": 5, "bbox": [2, 3, 4, 5]},
        ],
        "categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}, {"id": 99, "name": "submarine"}],
    }
    captions = {
        "images": [*instances["images"][:2], {"id": 13, "file_name": "captions_only.jpg", **size}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "A dog. "},
            {"id": 2, "image_id": 7, "caption": ""},
            {"id": 3, "image_id": 7, "caption": "Another one"},
            {"id": 4, "image_id": 13, "caption": "Third"},
        ],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "captions.json").write_text(json.dumps(captions))
    return {name: str(folder / f"{name}.json") for name in ("instances", "captions")}


def test_coco_source(tmp_path) -> None:
    files = write_coco(tmp_path)
    found = read_all(CocoSplit(source="coco", images=str(tmp_path), **files), shard_size=3)
    assert statuses(found) == {
        "seven.jpg": "ok",
        "eight.jpg": "ok",
        "seven.jpg#2": "bad_duplicate_key",
        "../nine.jpg#3": "bad_unsafe_member",
        "ten.jpg#4": "bad_image",
        "eleven.jpg#5": "bad_image",
        "no_id.jpg#6": "bad_image",
        "large_id.jpg#7": "bad_image",
        "train2017/000000000012.jpg": "ok",
        "captions_only.jpg": "ok",
    }
    rows = {f.key: f for f in found}
    seven = rows["seven.jpg"]
    assert seven.captions == ["A dog.", "Another one"]
    np.testing.assert_array_equal(seven.boxes, [[10, 5, 30, 15], [0, 40, 5, 50]])
    assert seven.box_labels.tolist() == [VOCABULARY.names.index("dog"), -1]
    assert seven.box_crowd.tolist() == [False, True]
    np.testing.assert_array_equal(seven.box_area, np.float32([120.5, 3]))
    assert found[0].lost == ("lost_caption", "lost_box", "odd_past_edge")
    for part in [
        "box [-5, 40, 10, 100] reaches past the edge of 100 x 50",
        "caption is empty",
        "zero area",
        "outside",
        "not finite",
        "category 1234",
        "box is not four",
    ]:
        assert part in seven.reason
    assert rows["eight.jpg"].captions == []
    twelve = rows["train2017/000000000012.jpg"]
    assert twelve.box_area.tolist() == [20.0]  # none given: the box's
    assert twelve.url == f"{tmp_path}/train2017/000000000012.jpg"


def test_files_are_read_once_for_all_workers(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first one who asks for the shards; from URLs too. The others find what it left."""
    files = write_coco(tmp_path)
    urls = {name: f"memory://{tmp_path.name}/{name}.json" for name in files}
    for name, path in files.items():
        Folder(f"memory://{tmp_path.name}").write_bytes(f"{name}.json", Path(path).read_bytes())
    opens: list[str] = []
    entries = annotation_files.list_entries
    monkeypatch.setattr(annotation_files, "list_entries", lambda url: opens.append(url) or entries(url))
    source = opened(CocoSplit(source="coco", images=str(tmp_path), **urls))
    plans = plan_shards({"train": source}, 2)
    assert len(plans) == 5 and opens == list(urls.values())
    worker = pickle.loads(pickle.dumps(source))
    assert plan_shards({"train": worker}, 2) == plans and len(opens) == 2
    found = [one for plan in reversed(plans) for one in reversed(list(worker.samples(plan, None)))][::-1]
    expected = read_all(CocoSplit(source="coco", images=str(tmp_path), **files))
    assert [one.key for one in found] == [one.key for one in expected]
    assert statuses(found) == statuses(expected)


def test_coco_limit_and_parts(tmp_path) -> None:
    files = write_coco(tmp_path)
    found = read_all(CocoSplit(source="coco", images="x", limit=2, **files))
    assert list(statuses(found)) == ["seven.jpg", "eight.jpg"]
    found = read_all(CocoSplit(source="coco", images="x", captions=files["captions"]))
    assert list(statuses(found)) == ["seven.jpg", "eight.jpg", "captions_only.jpg"]
    assert len(found[0].boxes) == 0
    with pytest.raises(ValueError, match="needs `instances:`, `captions:` or both"):
        read_all(CocoSplit(source="coco", images="x"))


def test_coco_with_a_foreign_vocabulary_is_refused(tmp_path) -> None:
    files = write_coco(tmp_path)
    split = CocoSplit(source="coco", images="x", instances=files["instances"])
    source = opened(split, Vocabulary(("teapot",), ()))
    with pytest.raises(
        ValueError, match=r"none of its categories \('cat', 'dog', 'submarine'\) is in data.categories \('teapot'\)\."
    ):
        list(source.samples(plan_shards({"train": source}, 9)[0], None))


def test_numbers_written_as_text_or_floats_are_taken(tmp_path) -> None:
    """As tables are often exported; what is no whole number is not."""

    def written(body: dict[str, Any], number: Callable[[float], Any]) -> list[IndexRow]:
        for image in body["images"][:2]:
            image |= {key: number(image[key]) for key in ("id", "width", "height")}
        for one in body["annotations"][:2]:
            one |= {key: number(one[key]) for key in ("image_id", "category_id", "iscrowd", "area")}
            one["bbox"] = [number(value) for value in one["bbox"]]
        (tmp_path / "other.json").write_text(json.dumps(body))
        return read_all(CocoSplit(source="coco", images="x", instances=str(tmp_path / "other.json")))[:2]

    text = Path(write_coco(tmp_path)["instances"]).read_text()
    plain = written(json.loads(text), lambda value: value)
    assert plain[0].box_crowd.tolist() == [False, True]
    for number in (str, float):
        for one, other in zip(plain, written(json.loads(text), number), strict=True):
            assert (one.key, one.status, one.image_id) == (other.key, other.status, other.image_id)
            assert (one.width, one.height, type(other.width)) == (other.width, other.height, int)
            for name in ("boxes", "box_labels", "box_crowd", "box_area"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    halves = written(json.loads(text), lambda value: value + 0.5)
    assert halves[0].reason == "expected an integer id and a file_name, found 7.5 and 'seven.jpg'"


def test_images_that_share_an_id_are_all_bad(tmp_path) -> None:
    """Nobody knows whose the boxes are. An image that is listed twice is one image."""
    body = json.loads(Path(write_coco(tmp_path)["instances"]).read_text())
    body["images"][1]["id"] = 7
    (tmp_path / "x.json").write_text(json.dumps(body))
    found = read_all(CocoSplit(source="coco", images="x", instances=str(tmp_path / "x.json")))
    assert [row.key for row in found if row.status == "bad_duplicate_key"] == [
        "seven.jpg#0",
        "eight.jpg#1",
        "seven.jpg#2",
    ]
    assert found[0].reason.startswith("image 'seven.jpg' is one of several with the id 7: nobody knows whose its boxes")


def test_a_box_of_an_unknown_category_names_both_kinds_of_id(tmp_path) -> None:
    body = json.loads(Path(write_coco(tmp_path)["instances"]).read_text())
    body["annotations"] = [{"image_id": 7, "category_id": "two", "bbox": [1, 1, 5, 5]}]
    (tmp_path / "x.json").write_text(json.dumps(body))
    found = read_all(CocoSplit(source="coco", images="x", instances=str(tmp_path / "x.json")))
    assert found[0].reason == (
        "box of category 'two', which the file does not name (2, 5, 99); add it to its `categories`, or correct the box"
    )


@pytest.mark.parametrize(("ids", "refused"), [([1, 2, 5], True), ([1, 2, 99], False), ([2] * 199 + [1], False)])
def test_ids_that_are_shifted_by_one_are_refused(tmp_path, ids: list[int], refused: bool) -> None:
    """The file's are 2, 5 and 99. A few strange ids among many boxes, or any box of the last category, are no shift."""
    body = json.loads(Path(write_coco(tmp_path)["instances"]).read_text())
    body["annotations"] = [{"image_id": 7, "category_id": one, "bbox": [1, 1, 5, 5]} for one in ids]
    (tmp_path / "x.json").write_text(json.dumps(body))
    source = opened(CocoSplit(source="coco", images=str(tmp_path), instances=str(tmp_path / "x.json")), VOCABULARY)
    piece = source.pieces(9)[0]
    message = "" if refused else "no file"
    with pytest.raises(ValueError if refused else FileNotFoundError, match=message) as caught:
        source.check(piece)
    if refused:
        assert "1 of 3 boxes have the category_id 1, and none has 99: " in str(caught.value)
        assert "the ids look shifted by one" in str(caught.value)


def test_boxes_that_are_hardly_right_are_counted(tmp_path) -> None:
    """More than a pixel past the edge, or of a pixel or less; what rounding explains is not."""
    body = json.loads(Path(write_coco(tmp_path)["instances"]).read_text())
    four = [[90, 1, 11, 5], [90, 1, 12, 5], [0.1, 0.2, 0.3, 0.4], [3, 4, 1.5, 0.5]]
    body["annotations"] = [{"image_id": 7, "category_id": 2, "bbox": one} for one in four]
    (tmp_path / "x.json").write_text(json.dumps(body))
    found = read_all(CocoSplit(source="coco", images="x", instances=str(tmp_path / "x.json")))[0]
    assert (found.status, len(found.boxes), found.lost) == ("ok", 4, ("odd_past_edge", "odd_under_pixel"))
    assert found.reason == (
        "box [90, 1, 12, 5] reaches past the edge of 100 x 50; box [0.1, 0.2, 0.3, 0.4] is of a pixel or less"
    )


def test_images_that_are_not_in_their_folder_are_found_before_any_shard(tmp_path) -> None:
    """One of the first that is there is enough."""
    files = write_coco(tmp_path)

    def check(folder: str) -> None:
        source = opened(CocoSplit(source="coco", images=folder, **files))
        source.check(plan_shards({"train": source}, 100)[0].piece)

    with pytest.raises(FileNotFoundError, match=r"data\.splits\.train\.images: no folder .*/nowhere; give the folder"):
        check(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"none of the first 10 images is there: no file .*/seven\.jpg; give"):
        check(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"none of the first 10 images is there: no file memory://"):
        check(f"memory://{tmp_path.name}")
    (tmp_path / "eight.jpg").write_bytes(b"whatever")
    check(str(tmp_path))


@pytest.mark.parametrize("text", ["[1, 2]", "{}", "{cut", '{"images": [], "annotations": {}}'])
def test_coco_files_that_make_no_sense(tmp_path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_all(CocoSplit(source="coco", images="x", captions=str(tmp_path / "x.json")))


def test_coco_files_without_images_are_refused(tmp_path) -> None:
    (tmp_path / "x.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ValueError, match=r"data\.splits\.train: no images are listed in captions: .*/x\.json"):
        read_all(CocoSplit(source="coco", images="x", captions=str(tmp_path / "x.json")))


def test_coco_annotations_of_no_image_are_counted_once(tmp_path) -> None:
    files = write_coco(tmp_path)
    body = json.loads(Path(files["captions"]).read_text())
    body["annotations"] += ["no object", {"caption": "of no image"}, {"image_id": 77, "caption": "of another"}]
    Path(files["captions"]).write_text(json.dumps(body))
    source = opened(CocoSplit(source="coco", images="x", limit=6, **files))
    assert [source.lost(plan) for plan in plan_shards({"train": source}, 2)] == [{"lost_annotations": 4}, {}, {}]
    source = opened(CocoSplit(source="coco", images="x", instances=files["instances"]))
    assert source.lost(plan_shards({"train": source}, 9)[0]) == {"lost_annotations": 1}


def test_odd_names_and_a_byte_order_mark(tmp_path) -> None:
    """Names that are no Unicode lose their image; a mark at the start of the file is left out."""
    images = [
        {"id": i, "file_name": name, "width": 100, "height": 50} for i, name in enumerate(["\ud800.jpg", "a.jpg"])
    ]
    text = json.dumps({"images": images, "annotations": [], "categories": [{"id": 2, "name": "dog"}]})
    (tmp_path / "x.json").write_text(text, encoding="utf-8-sig")
    found = read_all(CocoSplit(source="coco", images="x", instances=str(tmp_path / "x.json")))
    assert statuses(found) == {"\\xed\\xa0\\x80.jpg#0": "bad_unsafe_member", "a.jpg": "ok"}
    assert all((one.key + str(one.reason)).encode() for one in found)  # can be stored


def test_a_name_with_two_ids_is_refused(tmp_path) -> None:
    """Boxes of both would count, and results could carry only one of them."""
    files = write_coco(tmp_path)
    body = json.loads(Path(files["instances"]).read_text())
    body["categories"][2]["name"] = "dog"
    Path(files["instances"]).write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"the categories \[2, 99\] are all called 'dog'; .*rename all but one"):
        read_all(CocoSplit(source="coco", images=str(tmp_path), **files), shard_size=3)


@pytest.mark.skipif(not TINY_COCO.exists(), reason="needs tiny_coco")
def test_tiny_coco_against_pycocotools() -> None:
    from pycocotools.coco import COCO

    vocabulary = load_categories("coco_ovd")
    files = {kind: str(TINY_COCO / "annotations" / f"{kind}_train2017.json") for kind in ("instances", "captions")}
    split = CocoSplit(source="coco", images=str(TINY_COCO / "train2017"), **files)
    source = opened(split, vocabulary)
    rows: list[IndexRow] = [f for plan in plan_shards({"t": source}, 20) for f in source.samples(plan, None)]
    coco = COCO(files["instances"])
    texts = json.loads(Path(files["captions"]).read_text())["annotations"]
    assert [row.image_id for row in rows] == [image["id"] for image in coco.dataset["images"]]
    assert sum(len(row.boxes) for row in rows) == len(coco.anns) == 470
    with ImageReader(Folder("unused")) as reader:
        for row in rows:
            assert row.ok
            assert reader.read(row).shape == (row.height, row.width, 3)
            wanted = [one["caption"].strip() for one in texts if one["image_id"] == row.image_id]
            assert list(row.captions) == wanted
            anns = coco.loadAnns(coco.getAnnIds(imgIds=row.image_id))
            for i, ann in enumerate(anns):
                x, y, w, h = ann["bbox"]
                np.testing.assert_allclose(row.boxes[i], [x, y, x + w, y + h], atol=0.02)
                name = coco.cats[ann["category_id"]]["name"]
                wanted_label = vocabulary.names.index(name) if name in vocabulary.names else -1
                assert row.box_labels[i] == wanted_label
                assert row.box_crowd[i] == bool(ann["iscrowd"])
                assert row.box_area[i] == np.float32(ann["area"])


# --------------------------------------------------------------- plan


def test_pieces_cover_everything_once() -> None:
    for count, size in [(0, 5), (1, 5), (10, 5), (11, 5)]:
        numbers = [n for piece in even_pieces(count, size) for n in range(piece.start, piece.stop)]
        assert numbers == list(range(count))


def test_shard_numbers_run_over_all_splits(tmp_path) -> None:
    files = write_coco(tmp_path)
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "c.tsv").write_text("file\tcaption\na.png\tx\n")
    sources = {
        "z": opened(CocoSplit(source="coco", images="x", **files)),
        "a": opened(FolderSplit(source="folder", images=str(tmp_path), captions=str(tmp_path / "c.tsv"))),
    }
    plans = plan_shards(sources, 4)
    assert [(p.shard, p.split) for p in plans] == [(0, "z"), (1, "z"), (2, "z"), (3, "a")]
    assert plans == plan_shards(sources, 4)
