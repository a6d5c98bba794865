"""Names of categories against those of annotation files."""

from __future__ import annotations

import pytest

from regionclip_core.datasets.category_match import refuse_near_names, unmatched
from regionclip_core.datasets.vocabulary import Vocabulary

NAMES = {"person", "hot dog", "t-shirt"}


@pytest.mark.parametrize("name", ["Person", " person", "person ", "hotdog", "Hot_Dog", "hot  dog", "t shirt"])
def test_names_that_differ_in_case_or_spaces_only_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.splits\.val\.instances: data\.categories has .* differ only in case or"
    ):
        refuse_near_names("data.splits.val.instances", NAMES, Vocabulary((name, "car")))


def test_other_names_are_not(tmp_path) -> None:
    """Also where a file has both forms, and the vocabulary one of them."""
    refuse_near_names("x", NAMES, Vocabulary(("person", "hot dogs", "shirt")))
    refuse_near_names("x", {"Person", "person"}, Vocabulary(("person",)))


def test_many_names_are_cut(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"has 'A0' for 'a0', .*'A9' for 'a9' and 2 more\. They differ"):
        refuse_near_names(
            "x", {f"a{n}" for n in range(9)} | {"a9", "b", "c"}, Vocabulary((*(f"A{n}" for n in range(10)), "B", "C"))
        )


def test_what_matches_nothing_is_said_with_the_nearest_name_and_the_boxes() -> None:
    boxes = {"cat": 4, "chair": 7, "umbrella": 0, "dog": 2}
    found = unmatched(boxes, Vocabulary(("cat", "chiar", "umbrela", "unicorn")))
    assert found == {
        "not_annotated": {"chiar": "chair", "umbrela": "umbrella", "unicorn": None},
        "in_neither_set": {"chair": 7, "dog": 2},
        "notes": [
            "no annotation file has these names of data.categories: 'chiar' (nearest: 'chair'), "
            "'umbrela' (nearest: 'umbrella'), 'unicorn'",
            "9 boxes are of categories that are neither base nor novel: 'chair' (7), 'dog' (2)",
        ],
    }
    assert unmatched(boxes, Vocabulary(tuple(boxes))) == {}
    assert unmatched({}, Vocabulary(("cat",))) == {}  # nothing is annotated
