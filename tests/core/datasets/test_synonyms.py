"""The committed lists of synonyms, and files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.synonyms import synonym_names
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.datasets.world.categories import CATEGORIES


def test_the_committed_lists_fit_their_categories() -> None:
    coco = load_categories("coco_ovd")
    names = synonym_names("coco", coco)
    assert len(names) == len(set(names)) == 65
    assert not set(names) & set(coco.names)
    plurals = tuple(category.plural for category in CATEGORIES)
    assert synonym_names("world", load_categories("world")) == plurals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: kitten", "expected lists of synonyms by category"),
        ("cat: []", "expected lists of synonyms by category"),
        ("whale: [orca]", "has a synonym of no category"),
        ("cat: [pet]\ndog: [pet]", "'cat' and 'dog' would both be called 'pet'"),
        ("cat: [dog]", "'cat' and 'dog' would both be called 'dog'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        synonym_names(str(tmp_path / "s.yaml"), Vocabulary(("cat", "dog")))


def test_a_name_of_no_list_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"'cocoo' is not one of \['coco', 'world'\].*nearest: coco"):
        synonym_names("cocoo", Vocabulary(("cat",)))
