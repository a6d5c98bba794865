"""Names as people write them: the usual forms are read, and none becomes one odd name, a letter or a file's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lvis_samples import NAMES, write_lvis

from regionclip_core.datasets.categories import class_names, load_categories
from regionclip_core.datasets.names import names_in


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("cat", ["cat"]),
        (" cat , red umbrella,", ["cat", "red umbrella"]),
        ("cat; red umbrella", ["cat", "red umbrella"]),
        ("cat\nred umbrella\n", ["cat", "red umbrella"]),  # "$(cat classes.txt)"
        ('["cat", "salt, pepper"]', ["cat", "salt, pepper"]),
        ("[cat, no, red umbrella]", ["cat", "no", "red umbrella"]),
        ("bow (ribbon), T-shirt, 7 up, Moniter/TV, world", ["bow (ribbon)", "T-shirt", "7 up", "Moniter/TV", "world"]),
        ("café, собака, 猫, 😀", ["café", "собака", "猫", "😀"]),
        (",".join(f"name {n}" for n in range(1203)), [f"name {n}" for n in range(1203)]),
    ],
)
def test_names_that_are_written_out(value: str, names: list[str]) -> None:
    assert class_names(value) == tuple(names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "names no category"),
        (" , ", "names no category"),
        ("[]", "names no category"),
        ("a,b,a", r"names \['a'\] more than once"),
        ("a; b, c", "'a; b' does not look like one name"),
        ("'cat','dog'", "because of"),
        ("“cat, dog”", "because of '“'"),
        ("cat|dog", r"because of '\|'"),
        ("猫，狗", "because of '，'"),
        ("- cat\n- dog", "line 1: '- cat' does not look like one name"),
        ("cat\n1. dog", r"line 2: '1. dog' does not look like one name"),
        ("cat\nred\tcar", "line 2"),
        ("cat, dog\nbird, fox", "'cat, dog' does not look like one name.*JSON list"),
        ("base: [cat]", "because of"),
        ("[cat, 3]", "entry 2 is 3"),
        ('["\\ud83d", "a"]', "entry 1 is"),
        ("[cat", r"--classes '\[cat', line 1, column 5: not valid YAML"),
        ("{cat: dog}", "expected a list of names"),
        ("nowhere.txt", "'nowhere.txt' is not .*a file that is there"),
        ("nowhere.json", "'nowhere.json' is not .*a file that is there"),
        ("@nowhere", "'nowhere' is not .*a file that is there"),
        ("./nowhere", "'./nowhere' is not .*a file that is there"),
        ("memory://nowhere/classes", "is not .*a file that is there"),
    ],
)
def test_what_is_no_list_of_names_is_refused(value: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        class_names(value)
    assert "--classes" in str(caught.value)


@pytest.mark.parametrize("name", ["classes.txt", "CLASSES.TXT", "coco.names", "dog", "x.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_has_a_name_per_line(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("# mine\r\ncar\r\n\r\n  street light \r\ncafé".encode(encoding))
    for value in (name, f"@{name}", f"./{name}", str(tmp_path / name)):
        assert class_names(value) == ("car", "street light", "café")


def test_other_forms_of_files(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"name {n}" for n in range(1203)))
    assert len(class_names("many.txt")) == 1203
    (tmp_path / "line.txt").write_text("car, street light\n")
    assert class_names("line.txt") == ("car", "street light")
    (tmp_path / "list.json").write_text('["car", "salt, pepper"]', "utf-8-sig")
    assert class_names("list.json") == class_names("@list.json") == ("car", "salt, pepper")
    (tmp_path / "list.txt").write_text('["car", "salt, pepper"]')
    assert class_names("list.txt") == ("car", "salt, pepper")
    for text in ("names: [car, dog]\nnc: 2", "names:\n  0: car\n  1: dog\n", "base: [car]\nnovel: [dog]", "[car, dog]"):
        (tmp_path / "data.yaml").write_text(text)
        assert class_names("data.yaml") == ("car", "dog")
    coco = {"categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "car"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco), "utf-16")
    assert class_names("coco.json") == ("car", "dog")
    assert class_names(str(write_lvis(tmp_path).instances)) == NAMES
    assert class_names("coco_ovd") == load_categories("coco_ovd").names
    (tmp_path / "folder").mkdir()
    assert class_names("folder") == ("folder",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", "car\ncaf\xe9".encode("latin-1"), r"c\.txt, line 2: byte 0xe9 is not UTF-8"),
        ("c.txt", b"", "'c.txt' names no category"),
        ("c.txt", b"car\ndog\ncar\n", r"c\.txt names \['car'\] more than once"),
        ("c.txt", b"item {\n  id: 1\n}", r"c\.txt, line 1: 'item {' does not look like one name"),
        ("c.csv", b"id,name\n1,car\n", r"c\.csv, line 1: 'id,name' does not look like one name"),
        ("c.json", b'["car", "do', r"c\.json: not valid JSON: .* line 1 column 9 .*is the file whole"),
        ("c.yaml", b"names: car", r"c\.yaml: expected a list of names, such as .*found 'car'"),
        ("c.yaml", b"classes: [car]", r"c\.yaml must hold .*found .*classes"),
    ],
)
def test_files_that_hold_no_names_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        class_names(name)


def test_a_message_about_many_names_stays_short() -> None:
    with pytest.raises(ValueError) as caught:
        class_names("a," * 5000 + "b|c")
    assert len(str(caught.value)) < 500


def test_line_ends_make_no_difference() -> None:
    assert names_in("a\r\nb\rc\n\n", "x") == ("a", "b", "c")
