"""How often a shard's captions have each phrase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from small_captions import IMAGES, config

from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.parser import make_parser
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.tables import PHRASES


def naive_counts(
    settings: ConceptsConfig, images: Sequence[Sequence[str]]
) -> dict[tuple[str, str | None], tuple[int, ...]]:
    """(captions, images, mentions) of each phrase, one caption at a time."""
    parser = make_parser(settings)
    captions, in_images, mentions = Counter(), Counter(), Counter()
    for group in images:
        parsed = [next(parser.parse([caption])) for caption in group]
        keys = [[(phrase.text, phrase.drop_reason) for phrase in phrases] for phrases in parsed]
        mentions.update(key for some in keys for key in some)
        captions.update(key for some in keys for key in set(some))
        in_images.update({key for some in keys for key in some})
    return {key: (captions[key], in_images[key], mentions[key]) for key in mentions}


def test_counts_equal_a_naive_loop() -> None:
    table = count_captions(make_parser(config()), IMAGES)
    assert table.schema.equals(PHRASES)
    rows = table.to_pylist()
    found = {(r["phrase"], r["drop_reason"]): (r["n_captions"], r["n_images"], r["n_mentions"]) for r in rows}
    assert found == naive_counts(config(), IMAGES)
    assert found["dog", None] == (4, 2, 4)
    assert found["glass", None] == (3, 2, 3)
    by_name = {row["phrase"]: row for row in rows}
    assert dict(zip(by_name["dog"]["surface_forms"], by_name["dog"]["surface_counts"], strict=True)) == {
        "dog": 2,
        "dogs": 2,
    }
    assert by_name["wine glass"]["n_words"] == 2
    assert by_name["wine glass"]["head"] == "glass"
    assert by_name["dog"]["example"] == "A dog and a cat."


def test_one_caption_counts_a_phrase_once() -> None:
    captions = ["A dog and a dog.", "a dog"]
    (row,) = count_captions(make_parser(config()), [captions]).to_pylist()
    assert (row["n_captions"], row["n_images"], row["n_mentions"]) == (2, 1, 3)
