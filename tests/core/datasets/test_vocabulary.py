"""Vocabulary: indices, digest, and the category files."""

import gzip
import json

import pytest
from lvis_samples import BASE, CATEGORIES, NAMES, write_lvis
from places import GOLDEN, TINY_COCO

from regionclip_core.datasets import categories as annotation_categories
from regionclip_core.datasets.categories import annotation_vocabulary, load_categories
from regionclip_core.datasets.vocabulary import Vocabulary, clean_lvis_name


def test_indices_follow_the_order_of_names():
    vocabulary = Vocabulary(("pear", "apple", "fig", "kiwi"), base=("fig", "pear"))
    assert vocabulary.base_ids == [0, 2]
    assert vocabulary.novel_ids == [1, 3]
    assert vocabulary.novel == ("apple", "kiwi")
    assert len(vocabulary) == 4


def test_digest_is_fixed():
    """A digest lives in files: it must not change from one version of the code to the next."""
    import hashlib

    expected = hashlib.sha256(b'[["b","a\\u00e9"],["a\\u00e9"]]').hexdigest()
    assert Vocabulary(("b", "aé"), base=("aé",)).digest == expected


def test_digest_changes_with_order_names_and_base_only():
    one = Vocabulary(("a", "b", "c"), base=("a", "b"))
    assert one.digest == Vocabulary(("a", "b", "c"), base=("b", "a")).digest
    others = [
        Vocabulary(("b", "a", "c"), base=("a", "b")),
        Vocabulary(("a", "b", "d"), base=("a", "b")),
        Vocabulary(("a", "b", "c"), base=("a",)),
        Vocabulary(("a", "b", "c")),
        Vocabulary(("a", 'b","c'), base=("a",)),  # names are quoted, not joined
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6


def test_json_round_trip():
    vocabulary = Vocabulary(("a", "é", "c"), base=("c",))
    text = json.dumps(vocabulary.to_json())
    assert Vocabulary.from_json(json.loads(text)) == vocabulary
    changed = {**json.loads(text), "names": ["a", "c", "é"]}
    with pytest.raises(ValueError, match=vocabulary.digest[:12]):
        Vocabulary.from_json(changed)


def test_groups_come_back_in_one_order_and_leave_the_digest_alone():
    groups = (("rare", ("c",)), ("common", ("b",)), ("frequent", ("a",)))
    vocabulary = Vocabulary(("a", "b", "c"), ("a", "b"), groups)
    assert vocabulary.digest == Vocabulary(("a", "b", "c"), ("a", "b")).digest
    text = json.dumps(vocabulary.to_json(), sort_keys=True)
    assert Vocabulary.from_json(json.loads(text)) == vocabulary
    assert dict(vocabulary.groups) == dict(groups)
    with pytest.raises(ValueError, match="groups rare holds"):
        Vocabulary(("a",), (), (("rare", ("d",)),))


def test_require_names_both_digests():
    one, other = Vocabulary(("a", "b")), Vocabulary(("b", "a"))
    one.require(one.digest, "labels")
    with pytest.raises(ValueError, match="labels") as error:
        one.require(other.digest, "labels")
    assert one.digest[:12] in str(error.value)
    assert other.digest[:12] in str(error.value)


@pytest.mark.parametrize(
    ("names", "base", "match"),
    [
        (("a", "b", "a"), (), "more than once"),
        (("a", "b"), ("a", "a"), "more than once"),
        (("a", "b"), ("c",), "not among"),
        (("a", " "), (), "not blank"),
        (("a", 7), (), "not blank"),
    ],
)
def test_bad_names_are_refused(names, base, match):
    with pytest.raises(ValueError, match=match):
        Vocabulary(names, base)


def test_coco_ovd_has_the_published_sizes():
    vocabulary = load_categories("coco_ovd")
    assert (len(vocabulary), len(vocabulary.base_ids), len(vocabulary.novel_ids)) == (65, 48, 17)
    assert {"airplane", "cat", "dog", "scissors", "umbrella", "couch"} <= set(vocabulary.novel)
    assert "person" in vocabulary.base
    assert "hot dog" not in vocabulary.names  # one of the 15 that are in neither


@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="no tiny_coco beside the repository")
def test_coco_ovd_is_in_coco_order():
    annotations = json.loads((TINY_COCO / "annotations" / "instances_val2017.json").read_text())
    ids = {category["name"]: category["id"] for category in annotations["categories"]}
    order = [ids[name] for name in load_categories("coco_ovd").names]
    assert order == sorted(order)


def test_world_categories():
    world = pytest.importorskip("regionclip_core.datasets.world.categories")
    vocabulary = load_categories("world")
    assert vocabulary.names == tuple(category.name for category in world.CATEGORIES)
    assert set(vocabulary.base) == {category.name for category in world.CATEGORIES if not category.novel}
    assert set(vocabulary.novel) == {category.name for category in world.CATEGORIES if category.novel}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])  # JSON is YAML, too
def test_category_files(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_text('{"base": ["cat", "dog"], "novel": ["cow"]}')
    assert load_categories(str(path)) == Vocabulary(("cat", "dog", "cow"), base=("cat", "dog"))
    path.write_text('{"base": ["cat", "dog"], "novel": ["cow"], "order": ["cow", "dog", "cat"]}')
    assert load_categories(str(path)).names == ("cow", "dog", "cat")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[cat, dog]", "must hold the lists"),
        ("{novel: [cat]}", "must hold the lists"),
        ("{base: [cat], novel: [dog], classes: [cow]}", "must hold the lists"),
        ("{base: [cat], novel: [cat, dog]}", "both base and novel"),
        ("{base: [cat], novel: [dog], order: [cat]}", "order:.*dog"),
        ("{base: [cat, ~], novel: [dog]}", "not blank"),
        ("base: [cat]\nbase: [dog]", "line 2, .*duplicate key"),
        ("base: [cat\n", r"mine\.yaml, line 2, "),
        ("base:\n\t- cat\n", r"mine\.yaml, line 2, .*indent with spaces"),
        ("base: person\nnovel: [dog]", r"mine\.yaml: base: expected a list of names, such as .*found 'person'"),
        ("base: [cat]\nnovel: dog", r"mine\.yaml: novel: expected a list"),
        ("base: [cat]\norder: cat", r"mine\.yaml: order: expected a list"),
        ("base: 0\nnovel: [dog]", r"mine\.yaml: base: expected a list"),
        ("base: {0: cat}", r"mine\.yaml: base: expected a list"),
        ("base: [cat, 7]", r"mine\.yaml: base: entry 2 is 7"),
        ("base: [cat, cat]", r"mine\.yaml: base names \['cat'\] more than once"),
        ("person\ncar\n", r"mine\.yaml must hold the lists.*found 'person car'"),
        ("names: [cat]", r"mine\.yaml must hold the lists.*found .*names"),
    ],
)
def test_bad_category_files_are_refused(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_categories(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".yaml", ".json", ".JSON"])
def test_category_files_of_any_editor(tmp_path, suffix, encoding):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes('{"base": ["café"],\r\n "novel": ["\\ud83d\\ude00"]}\r\n'.encode(encoding))
    assert load_categories(str(path)) == Vocabulary(("café", "😀"), base=("café",))


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("c.json", b'{"base": ["cat", "do', r"c\.json: not valid JSON: .*column 18 .*is the file whole"),
        ("c.json", gzip.compress(b'{"base": ["cat"]}', mtime=0), r"c\.json is compressed"),
        ("c.json", b'{"categories": [{"id": 1, "name": "ca', r"c\.json: not valid JSON"),
        ("c.json", b'{"base":\n["caf\xe9"]}', r"c\.json, line 2: byte 0xe9 is not UTF-8"),
        ("c.yaml", b"base:\n- caf\xe9\n", r"c\.yaml, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_damaged_category_files_are_named(tmp_path, name, data, match):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=match):
        load_categories(str(tmp_path / name))


def test_unknown_categories_name_the_known_ones():
    with pytest.raises(FileNotFoundError, match="coco_ovd"):
        load_categories("coco_17")


# ---------------------------------------------------------------- annotation files


def test_lvis_names_are_cleaned_as_the_official_code_does():
    examples = json.loads((GOLDEN / "tokenizer.json").read_text())["lvis_name_cleaning_examples"]
    written = {
        "arctic_(type_of_shoe)", "bow_(decorative_ribbons)", "railcar_(part_of_a_train)", "crisp_(potato_chip)",
        "cleat_(for_securing_rope)", "clippers_(for_plants)", "cooler_(for_food)", "cork_(bottle_plug)",
        "drum_(musical_instrument)", "glass_(drink_container)", "headstall_(for_horses)", "home_plate_(baseball)",
    }  # fmt: skip
    assert {clean_lvis_name(name) for name in written} == set(examples)
    assert clean_lvis_name("T-shirt") == "T-shirt"


def test_coco_categories_are_all_base(tmp_path):
    path = tmp_path / "instances.json"
    entries = [{"id": 9, "name": "kite_1 (toy)"}, {"id": 2, "name": "cat"}]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": entries}))
    assert load_categories(str(path)) == Vocabulary(("cat", "kite_1 (toy)"), ("cat", "kite_1 (toy)"))


@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="no tiny_coco beside the repository")
def test_categories_of_tiny_coco():
    vocabulary = load_categories(str(TINY_COCO / "annotations" / "instances_val2017.json"))
    assert (len(vocabulary), len(vocabulary.base), vocabulary.names[0], vocabulary.names[-1]) == (
        *(80, 80),
        "person",
        "toothbrush",
    )


CAT = {"id": 1, "name": "cat"}
PLACES = {
    "last": {"images": [{"id": 1}], "annotations": [], "categories": [CAT]},
    "first": {"categories": [CAT], "images": [{"id": 1}], "annotations": [{"id": i} for i in range(50)]},
    "named by other lists too": {
        "images": [{"id": 1, "categories": [7]}],
        "categories": [CAT],
        "annotations": [{"categories": [{"id": 2, "name": "dog"}], "text": '"categories": [] }'}],
    },
    "nested only": {"info": {"categories": [CAT]}, "images": []},
    "no list": {"images": [], "categories": {"id": 1}},
    "none": {"images": [], "annotations": []},
}


@pytest.mark.parametrize("tail", [16, 64, 1 << 22])
@pytest.mark.parametrize(("place", "body"), PLACES.items())
def test_categories_are_found_wherever_they_stand(tmp_path, monkeypatch, tail, place, body):
    monkeypatch.setattr(annotation_categories, "_TAIL", tail)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(body))
    found = annotation_vocabulary(str(path))
    assert found == (None if place in ("nested only", "no list", "none") else Vocabulary(("cat",), ("cat",)))


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ([], "different ids"),
        ([CAT, {"id": 1, "name": "dog"}], "different ids"),
        ([CAT, {"id": 2, "name": "cat"}], "1 .'cat'. and 2 .'cat'. are both called 'cat'"),
        ([{"id": "1", "name": "cat"}], "an integer `id` and a `name`"),
        ([{"id": 1}], "an integer `id` and a `name`"),
        ([7], "an integer `id` and a `name`"),
        ([{**CAT, "frequency": "f"}, {"id": 2, "name": "dog"}], "`frequency` of r, c or f.*dog"),
        ([{**CAT, "frequency": "often"}], "`frequency` of r, c or f.*often"),
        (
            [{"id": 1, "name": "a_b", "frequency": "f"}, {"id": 2, "name": "a_(b)", "frequency": "r"}],
            "both called 'a b'",
        ),
    ],
)
def test_categories_that_make_no_vocabulary_are_refused(tmp_path, entries, match):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": entries}))
    with pytest.raises(ValueError, match=match):
        load_categories(str(path))


def test_lvis_against_the_lvis_api(tmp_path):
    LVIS = pytest.importorskip("lvis", exc_type=ImportError).LVIS
    sample = write_lvis(tmp_path)
    api = LVIS(str(sample.instances))
    found = load_categories(str(sample.instances))
    ids = sorted(api.get_cat_ids())
    assert list(found.names) == list(NAMES) == [clean_lvis_name(one["name"]) for one in api.load_cats(ids)]
    assert list(found.base) == list(BASE)
    assert ids == [category_id for category_id, _, _ in CATEGORIES]
