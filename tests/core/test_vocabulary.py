"""Vocabulary: indices, digest, and the category files."""

import json
import os
from pathlib import Path

import pytest

from regionclip_core.vocabulary import Vocabulary, digest_names, load_categories

TINY_COCO = Path(os.environ.get("REGIONCLIP_TINY_COCO", Path(__file__).parents[3] / "shared" / "tiny_coco"))


def test_indices_follow_the_order_of_names():
    vocabulary = Vocabulary(("pear", "apple", "fig", "kiwi"), base=("fig", "pear"))
    assert [vocabulary.index(name) for name in vocabulary.names] == [0, 1, 2, 3]
    assert vocabulary.base_ids == [0, 2]
    assert vocabulary.novel_ids == [1, 3]
    assert vocabulary.novel == ("apple", "kiwi")
    assert len(vocabulary) == 4
    with pytest.raises(ValueError, match="'plum'"):
        vocabulary.index("plum")


def test_digest_is_fixed():
    """A digest lives in files: it must not change from one version of the code to the next."""
    import hashlib

    expected = hashlib.sha256(b'[["b","a\\u00e9"],["a\\u00e9"]]').hexdigest()
    assert Vocabulary(("b", "aé"), base=("aé",)).digest == expected == digest_names(["b", "aé"], ["aé"])


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
        (("a", "b", "a"), (), "repeats"),
        (("a", "b"), ("a", "a"), "repeats"),
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
    world = pytest.importorskip("regionclip_core.world")
    vocabulary = load_categories("world")
    assert vocabulary.names == tuple(category.name for category in world.CATEGORIES)
    assert set(vocabulary.base) == set(world.base_names())
    assert set(vocabulary.novel) == set(world.novel_names())


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
        ("{base: [cat, no], novel: [dog]}", "not blank"),  # YAML reads `no` as false
    ],
)
def test_bad_category_files_are_refused(tmp_path, text, match):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        load_categories(str(path))


def test_unknown_categories_name_the_known_ones():
    with pytest.raises(FileNotFoundError, match="coco_ovd"):
        load_categories("coco_17")
