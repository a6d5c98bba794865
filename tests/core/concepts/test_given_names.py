"""Names that a person gives the pool: the forms of the files, what is wrong in them, and the pool that they make."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_captions import config

from regionclip_core.concepts import parser as parser_module
from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.given_names import GivenNames, read_given
from regionclip_core.concepts.parser import make_parser
from regionclip_core.concepts.pool import build_pool

Row = dict[str, Any]
IMAGES = [
    ["A sofa and a couch.", "two couches"],
    ["A hot dog on a table.", "A dog under a settee"],
    ["A traffic light beside two dogs", "A man in the background"],
    ["A mug on skis", "A picture of a cat"],
]


@pytest.fixture(scope="module", autouse=True)
def _one_pipeline() -> Iterator[None]:
    """Making the parser's pipeline takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser_module, "blank_pipeline", cache(parser_module.blank_pipeline))
        yield


def pool(images: Sequence[Sequence[str]] = IMAGES, **settings: object) -> tuple[list[Row], dict[str, str]]:
    """The pool's rows, and why phrases were dropped."""
    section = config(**settings)
    given = read_given(section)
    parser = make_parser(section, given=given)
    file = io.BytesIO()
    tables = [count_captions(parser, [captions]) for captions in images]
    found, _ = build_pool(tables, section, file, names=list(given.synonyms), banned=parser.banned)
    dropped = pq.read_table(io.BytesIO(file.getvalue())).to_pylist()
    return found.to_pylist(), {row["concept"]: row["reason"] for row in dropped}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "# furniture\ncouch: sofa,  settee\n\n traffic   light\nDog:  hound\n"),
        ("names.yaml", "couch: [sofa, settee]\ntraffic light:\nDog: hound\n"),
        ("names.yaml", "- couch: [sofa, settee]\n- traffic light\n- Dog: [hound]\n"),
        ("names.json", '[{"couch": ["sofa", "settee"]}, "traffic  light", {"Dog": "hound"}]'),
    ],
)
def test_forms_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    given = read_given(config(file=str(tmp_path / name)))
    assert given == GivenNames({"couch": ("sofa", "settee"), "traffic light": (), "Dog": ("hound",)})
    added = read_given(config(add=["red  cup"], ban=str(tmp_path / name))) if ":" not in text else None
    assert added is None or added.banned == ("couch", "traffic light", "Dog")


def test_a_set_of_categories_is_a_file_of_names(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("base: [cat, dog]\nnovel: [fox]\norder: [cat, fox, dog]\n")
    assert list(read_given(config(file=str(tmp_path / "c.yaml"))).synonyms) == ["cat", "dog", "fox"]


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        ({}, "dog\ncat\ndog\n", "FILE: the name 'dog' is there twice; leave one out"),
        ({}, "Dog\ndog\n", "FILE: 'Dog' and 'dog' are one name; leave one out"),
        ({}, "couch: sofa\nsofa\n", "FILE: 'sofa' is a synonym of 'couch', and a name itself; leave one out"),
        ({}, "a: b, c\nd: C\n", "FILE: 'C' is a synonym of 'a' and of 'd'; leave it at one of them"),
        ({}, "couch: sofa,,settee\n", "FILE, line 1: expected a name, a text that is not blank .*, came ''"),
        ({}, ": sofa\n", "FILE, line 1: expected a name"),
        ({}, "dog, cat\n", "FILE, line 1: expected one name per line, synonyms after a colon, found 'dog, cat'"),
        ({}, "# nothing\n", "FILE holds no name; expected a text file with one name per line"),
        ({"ban": ["sofa"]}, "couch: sofa\n", "concepts.ban: 'sofa' is a synonym of 'couch'; ban 'couch', or"),
        ({"ban": ["Cup"], "add": ["cup"]}, "couch\n", "concepts.ban: 'Cup' is in concepts.add too"),
        ({"add": ["couch"]}, "couch\n", "concepts.add: the name 'couch' is there twice"),
        ({"add": ["x", " "]}, "couch\n", "concepts.add, entry 2: expected a name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, settings: Row, text: str, message: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match="^" + message.replace("FILE", f"concepts.file: {file}")):
        read_given(config(file=str(file), **settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- dog\n- 747\n",
            r"concepts\.ban: .*, entry 2: expected a name.* \(in quotes where it is a number\), came 747",
        ),
        ("dog\ncat\n", "expected a text file with one name .*, found 'dog cat'"),
        ("couch: [sofa]\n", "'couch' has synonyms, for which a name that is never kept has no use"),
        ("dog: [a]\ndog: [b]\n", "not valid YAML.*found duplicate key"),
    ],
)
def test_yaml_that_holds_no_names(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "ban.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_given(config(ban=str(tmp_path / "ban.yaml")))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"concepts\.add: no file .*names\.txt .*expected a text file with one"):
        read_given(config(add=str(tmp_path / "names.txt")))


def test_a_file_is_the_pool_and_a_synonym_counts_for_its_name(tmp_path: Path) -> None:
    """Counts against captions in which each name and synonym is looked for by hand."""
    (tmp_path / "names.txt").write_text("skis\ncouch: sofa, settee\ncoffee cup: mug\nzebra\ntraffic light\ndog\n")
    rows, dropped = pool(file=str(tmp_path / "names.txt"), add=["background"], ban=["Dogs"], min_count=9)
    assert [row["concept"] for row in rows] == [
        "skis", "couch", "coffee cup", "zebra", "traffic light", "background"
    ]  # fmt: skip
    counts = {row["concept"]: (row["n_captions"], row["n_images"], row["n_mentions"]) for row in rows}
    assert counts == {
        "skis": (1, 1, 1),
        "couch": (3, 2, 4),  # a caption with a sofa and a couch counts once
        "coffee cup": (1, 1, 1),
        "zebra": (0, 0, 0),
        "traffic light": (1, 1, 1),
        "background": (1, 1, 1),  # a class of words that makes no concept by itself
    }
    assert {row["source"] for row in rows} == {"given"} and [row["id"] for row in rows] == list(range(6))
    by_name = {row["concept"]: row for row in rows}
    assert set(by_name["couch"]["surface_forms"]) == {"couch", "couches", "sofa", "settee"}
    assert by_name["zebra"]["surface_forms"] == [] and by_name["zebra"]["example"] is None
    assert (by_name["coffee cup"]["head"], by_name["coffee cup"]["n_words"]) == ("cup", 2)
    assert dropped == {
        "dog": "banned", "hot dog": "not_in_file", "man": "not_in_file", "table": "not_in_file",
        "picture": "image", "cat": "not_in_file",
    }  # fmt: skip


def test_a_name_is_added_and_another_is_banned() -> None:
    plain, _ = pool(min_count=2)
    rows, dropped = pool(min_count=2, add=["Cat", "red cup"], ban=["couches"], max_concepts=1)
    assert [(row["concept"], row["n_captions"]) for row in plain] == [("couch", 2), ("dog", 2)]
    assert [(row["concept"], row["n_captions"], row["source"]) for row in rows] == [
        ("dog", 2, "parsed"),
        ("Cat", 1, "given"),
        ("red cup", 0, "given"),
    ]
    assert dropped["couch"] == "banned" and dropped["sofa"] == "below_min_count"
    with pytest.raises(ValueError, match=r"concepts\.ban: 'couches' is 'couch' of concepts\.add"):
        pool(add=["couch"], ban=["couches"])
    with pytest.raises(ValueError, match="the most frequent, 'couch', was seen in 2"):
        pool(ban=["dog"], min_count=3)


def test_a_pool_without_any_caption(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cups\ncup\n")
    rows, dropped = pool([], file=str(tmp_path / "names.txt"))
    assert [row["concept"] for row in rows] == ["cups", "cup"] and not dropped
    rows, _ = pool([["Cups on a table"]], file=str(tmp_path / "names.txt"))
    assert [row["n_captions"] for row in rows] == [0, 1]  # both are one phrase, that is spelled like the second
    with pytest.raises(ValueError, match=r"concepts\.ban has every name of concepts\.file"):
        pool(file=str(tmp_path / "names.txt"), ban=["cup", "cups"])
