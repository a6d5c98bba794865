"""Corrections of labels: what a person writes, against labels that are corrected by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_runs import LabelRun

from regionclip_core.pretraining.corrections import Correction, read_corrections


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelRun:
    return LabelRun(tmp_path_factory.mktemp("labels"))


@pytest.mark.parametrize(
    "text",
    [
        'key,box,name\na/1.jpg,"1.5, 2, 30, 40",red cup\nb,1 2 3 4,No object\n',
        "\ufeffName;Box;seen by;KEY\r\nred cup;[1.5, 2, 30, 40];me;a/1.jpg\r\nno object;(1,2,3,4);;b\r\n",
        "box\tkey\tname\n1.5 2 30 40\ta/1.jpg\tred cup\n\n1 2 3 4\t b\tno object",
    ],
)
def test_forms_of_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_bytes(text.encode())
    found = read_corrections(str(tmp_path / "c.csv"))
    assert [one.line for one in found] == [2, 3 + text.count("\n\n")]
    assert [(one.key, one.box, one.name) for one in found] == [
        ("a/1.jpg", (1.5, 2, 30, 40), "red cup"),
        ("b", (1, 2, 3, 4), None),
    ]
    assert isinstance(found[0], Correction)


def test_lines_that_are_none_are_all_named(tmp_path: Path) -> None:
    lines = [
        "key,box,name",
        "a,1 2 3 4,cup",
        "a,1 2 3,cup",
        "a,1,2,3,4,cup",
        ",1 2 3 4,cup",
        "a,4 2 3 4,cup",
        "a,1 2 3 4,",
    ]
    (tmp_path / "c.csv").write_text("\n".join([*lines, "a,1 2 nan 4,cup"]))
    with pytest.raises(ValueError) as caught:
        read_corrections(str(tmp_path / "c.csv"))
    assert str(caught.value) == (
        f"labels.corrections: {tmp_path}/c.csv: 6 wrong: "
        "line 3: expected a box as x1 y1 x2 y2, came '1 2 3'; "
        "line 4: has more than 3 fields; put the box in quotes; "
        "line 5: expected a key and a name, or 'no object' as the name; "
        "line 6: expected a box as x1 y1 x2 y2, came '4 2 3 4'; "
        "line 7: expected a key and a name, or 'no object' as the name; "
        "line 8: expected a box as x1 y1 x2 y2, came '1 2 nan 4'"
    )
    (tmp_path / "c.csv").write_text("key,bbox,name\n")
    with pytest.raises(ValueError, match=r"expected a header with key, box, name, once each, found \['key', 'bbox'"):
        read_corrections(str(tmp_path / "c.csv"))


def test_corrections_win_over_the_teacher_and_nothing_else_changes(labels: LabelRun) -> None:
    plain, before = labels.run("plain")
    keys = [row.key for row in labels.images]
    # The box of an object a little off; a box on none; one that no region has; an image that can't be read.
    lines = [
        "key,box,name",
        f"{keys[0]},5 6 21 30,red cup",
        f"{keys[0]},0 0 6 6,no object",
        f"{keys[1]},40 0 48 6,tree",
        f"{keys[5]},31 6 49 24,cat",
        f"{keys[6]},5 5 25 25,tree",
        f"{keys[7]},2 2 18 14,tree",
    ]
    file = labels.root / "c.csv"
    file.write_text("\n".join(lines))
    found, summary = labels.run("corrected", corrections=str(file), crop_features=False)
    assert summary.pop("corrections") == {
        "used": 4,
        "without_region": [
            {"line": 4, "key": keys[1], "best_iou": 0.0},
            {"line": 6, "key": keys[6], "best_iou": 0.0},
        ],
    }
    assert summary["kept"] == sum(sum(row["kept"]) for row in found.values())
    # By hand: (key, region, concept) with "cat" spelled "kitty" in the pool.
    for key, region, concept in [(keys[0], 0, 2), (keys[5], 1, 0), (keys[7], 1, 3)]:
        row = plain[key]
        others = [one for one in row["top_concepts"][region] if one != concept][:2]
        row["concept_id"][region], row["score"][region], row["kept"][region] = concept, 1.0, True
        row["top_concepts"][region], row["top_probabilities"][region] = [concept, *others], [1.0, 0.0, 0.0]
        row["residual_mass"][region] = 0.0
    plain[keys[0]]["score"][2], plain[keys[0]]["kept"][2] = 0.0, False
    assert found == plain
    assert before.keys() == summary.keys()


def test_what_is_wrong_in_the_file_stops_the_stage_and_is_named_by_its_line(labels: LabelRun) -> None:
    key = labels.images[0].key
    lines = [
        "key,box,name",
        f"{key},4 6 20 30,tre",
        "train/9999,1 2 3 4,tree",
        f"{key},4 6 20 30,dog",
        f"{key},4 7 20 30,cup",
    ]
    file = labels.root / "wrong.csv"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError) as caught:
        labels.run("wrong", corrections=str(file))
    assert str(caught.value) == (
        f"labels.corrections: {file}: 4 wrong: "
        "line 2: no concept of the pool is called 'tre'; nearest: tree; "
        "line 3: no image of train has the key 'train/9999'; "
        "line 4: is of the same region as line 2; "
        "line 5: is of the same region as line 2"
    )
