"""Parsers, counts and the pool."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import spacy
from caption_gold import read_gold
from places import GOLDEN
from spacy.tokens import Doc
from spacy.training import Example

from regionclip_core.concepts import parser as concepts_module
from regionclip_core.concepts.parser import (
    ConceptCounts,
    count_captions,
    make_parser,
    parser_identity,
)
from regionclip_core.concepts.phrases import Phrase, clean, pieces
from regionclip_core.concepts.pool import build_pool, merge_counts
from regionclip_core.concepts.rules.component import blank_pipeline
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES

GOLD = GOLDEN / "captions_gold.txt"
MISSING = "en_no_such_pipeline"

IMAGES = [
    ["A dog and a cat.", "Two dogs on a mat.", "A picture of dogs"],
    ["A wine glass on a table.", "glasses of wine"],
    ["A cat.", ""],
    ["People with wine glasses in front of a dog."],
]


def config(**settings: object) -> ConceptsConfig:
    return ConceptsConfig(splits=("train",), **{"parser": "rules", "min_count": 1} | settings)  # type: ignore[arg-type]


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


# ---------------------------------------------------------------- parsers


def test_auto_falls_back_to_the_rules_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parser = make_parser(config(parser="auto", spacy_model=MISSING))
    assert parser.name == "rules"
    assert len(caplog.records) == 1
    assert MISSING in caplog.text


def test_a_missing_pipeline_is_named_with_three_ways_out() -> None:
    with pytest.raises(ValueError) as error:
        make_parser(config(parser="spacy", spacy_model=MISSING))
    for part in (
        MISSING,
        f"python -m spacy download {MISSING}",
        "concepts.spacy_model",
        "path",
        "`rules`",
        "no download",
    ):
        assert part in str(error.value)
    assert isinstance(error.value.__cause__, OSError)


def test_only_a_failed_load_means_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError of the pipeline's own, after the load, is not taken for a missing one."""

    class Broken:
        lang, meta = "en", {"lang": "en", "name": "broken", "version": "1"}

        def __call__(self, text: str) -> Doc:
            raise OSError("disk on fire")

    monkeypatch.setattr(concepts_module, "_load_pipeline", lambda name: Broken())
    with pytest.raises(OSError, match="disk on fire"):
        make_parser(config(parser="auto"))


def test_a_pipeline_without_a_parser_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match=r"POS, DEP, LEMMA.*`rules`"):
        make_parser(config(parser="spacy", spacy_model=str(tmp_path / "blank")))


def trained_pipeline(folder: Path) -> list[str]:
    """A small tagger and parser trained on gold captions with spaCy's own training; returns the captions."""
    captions = [caption.text for caption in read_gold(GOLD) if caption.section == "dev"][:24]
    teacher, nlp = blank_pipeline(), spacy.blank("en")
    nlp.tokenizer.infix_finditer = teacher.tokenizer.infix_finditer  # type: ignore[attr-defined]
    model = {"@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 48, "depth": 2,
             "embed_size": 500, "window_size": 1, "maxout_pieces": 2, "subword_features": True}  # fmt: skip
    nlp.add_pipe("tok2vec", config={"model": model})
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 48, "upstream": "*"}
    nlp.add_pipe("morphologizer", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}})
    parser = {"@architectures": "spacy.TransitionBasedParser.v2", "state_type": "parser", "extra_state_tokens": False,
              "hidden_width": 48, "maxout_pieces": 2, "use_upper": True, "tok2vec": listener}  # fmt: skip
    nlp.add_pipe("parser", config={"model": parser, "min_action_freq": 1})
    nlp.add_pipe("lemmatizer", config={"mode": "lookup"})
    examples = [Example(nlp.make_doc(text), teacher(text)) for text in captions]
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: examples)
    for _ in range(80):
        nlp.update(examples, sgd=optimizer)
    nlp.meta["name"], nlp.meta["version"] = "small", "0.1.2"
    nlp.to_disk(folder)
    return captions


def test_a_trained_pipeline_goes_the_same_way(tmp_path: Path) -> None:
    """Tagger, parser and lemmatizer of spaCy's own, loaded by path: its phrases are those of the captions it knows."""
    captions = trained_pipeline(tmp_path / "small")
    settings = config(parser="auto", spacy_model=str(tmp_path / "small"))
    parser = make_parser(settings, ("cell phone",))
    assert (parser.name, parser.version, parser.tables) == ("spacy:en_small", "0.1.2", None)
    assert parser_identity(settings)["version"] == "0.1.2"
    rules = make_parser(config(), ("cell phone",))
    both = zip(parser.parse(captions), rules.parse(captions), strict=True)
    names = [({p.text for p in ours}, {p.text for p in theirs}) for ours, theirs in both]
    shared = sum(len(ours & theirs) for ours, theirs in names)
    assert shared >= 0.8 * max(sum(len(ours) for ours, _ in names), sum(len(theirs) for _, theirs in names))
    assert list(parser.parse(["", "🐶"])) == [[], []]


def test_the_rules_survive_a_save_and_load(tmp_path: Path) -> None:
    blank_pipeline().to_disk(tmp_path / "saved")
    parser = make_parser(config(parser="spacy", spacy_model=str(tmp_path / "saved")))
    captions = [caption for group in IMAGES for caption in group]
    assert list(parser.parse(captions)) == list(make_parser(config()).parse(captions))


def test_identity_names_rules_and_tables() -> None:
    identity = parser_identity(config(parser="auto", spacy_model=MISSING))
    parser = make_parser(config())
    assert identity == {"parser": parser.name, "version": parser.version, "tables": parser.tables}
    assert parser_identity(config(parser="spacy", spacy_model=MISSING))["version"] is None
    assert parser.description()["tables"].startswith("spacy-lookups-data ")


# ---------------------------------------------------------------- text


def test_clean_leaves_plain_captions_alone() -> None:
    caption = "A man's t-shirt, red & white; 50% off! (really?)"
    assert clean("A man's t-shirt, 50% off! (really?)") == "A man's t-shirt, 50% off! (really?)"
    assert clean(caption) == caption
    assert clean("a &quot;dog&quot;") == 'a "dog"'
    assert clean("“a dog’s”") == "“a dog’s”"


def test_pieces_are_the_text() -> None:
    text = "one two three four five"
    assert list(pieces(text, 9)) == ["one two", " three", " four", " five"]
    assert "".join(pieces(text, 9)) == text
    assert list(pieces("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert list(pieces("", 3)) == [""]


# ---------------------------------------------------------------- counts


def test_counts_equal_a_naive_loop() -> None:
    table = count_captions(make_parser(config()), IMAGES).to_table()
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
    counts = ConceptCounts()
    phrase = Phrase("dog", "dog", 1, "dog", None)
    counts.add(["a dog, a dog", "a dog"], [[phrase, phrase], [phrase]])
    (row,) = counts.to_table().to_pylist()
    assert (row["n_captions"], row["n_images"], row["n_mentions"]) == (2, 1, 3)


def test_shards_sum_to_the_whole() -> None:
    parser = make_parser(config())
    whole = count_captions(parser, IMAGES).to_table()
    parts = [count_captions(parser, [group]).to_table() for group in IMAGES]
    assert pool_and_dropped(parts, config()) == pool_and_dropped([whole], config())


def test_shards_of_two_parsers_are_refused() -> None:
    counts = count_captions(make_parser(config()), IMAGES)
    tables = [counts.to_table({"parser": "rules"}), counts.to_table({"parser": "spacy:en_core_web_sm"})]
    with pytest.raises(ValueError, match=r"rules.*spacy:en_core_web_sm"):
        list(merge_counts(tables))
    assert pa.concat_tables(merge_counts([tables[0], tables[0]])).num_rows == tables[0].num_rows


# ---------------------------------------------------------------- pool


def pool_and_dropped(
    tables: Sequence[pa.Table], settings: ConceptsConfig, names: dict[str, str] | None = None
) -> tuple[pa.Table, pa.Table]:
    dropped = [DROPPED_CONCEPTS.empty_table()]
    pool = build_pool(merge_counts(tables), settings, dropped.append, names)
    return pool, pa.concat_tables(dropped)


def pool_of(**settings: object) -> tuple[pa.Table, pa.Table]:
    cfg = config(**settings)
    return pool_and_dropped([count_captions(make_parser(cfg), IMAGES).to_table()], cfg)


def test_the_pool_is_ordered_by_count_then_name() -> None:
    pool, dropped = pool_of()
    assert pool.schema.equals(CONCEPTS) and dropped.schema.equals(DROPPED_CONCEPTS)
    rows = pool.to_pylist()
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert rows == sorted(rows, key=lambda row: (-row["n_captions"], row["concept"]))
    assert [row["concept"] for row in rows] == ["dog", "glass", "cat", "wine glass", "mat", "person", "table", "wine"]
    assert {row["concept"]: row["reason"] for row in dropped.to_pylist()} == {"picture": "image", "front": "relational"}


def test_every_phrase_is_in_the_pool_or_has_a_reason() -> None:
    cfg = config(min_count=2, max_concepts=2)
    counts = count_captions(make_parser(cfg), IMAGES).to_table()
    pool, dropped = pool_and_dropped([counts], cfg)
    assert pool.num_rows + dropped.num_rows == counts.num_rows
    assert pool.column("concept").to_pylist() == ["dog", "glass"]
    reasons = {row["concept"]: row["reason"] for row in dropped.to_pylist()}
    assert reasons["cat"] == "beyond_max_concepts"
    assert reasons["table"] == "below_min_count"


def test_count_unit_image() -> None:
    by_caption, _ = pool_of(min_count=2)
    by_image, _ = pool_of(min_count=2, count_unit="image")
    assert by_caption.column("concept").to_pylist() == ["dog", "glass", "cat", "wine glass"]
    assert by_image.column("concept").to_pylist() == ["cat", "dog", "glass", "wine glass"]
    with pytest.raises(ValueError, match="no concept was seen in 9 images"):
        pool_of(min_count=9, count_unit="image")


def test_an_empty_pool_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"'dog', was seen in 4\. Lower concepts\.min_count"):
        pool_of(min_count=100)
    with pytest.raises(ValueError, match="English captions"):
        pool_and_dropped([ConceptCounts().to_table()], config())
    with pytest.raises(ValueError, match="English captions"):
        pool_and_dropped([], config())


def test_class_names_mark_concepts_but_add_none() -> None:
    cfg = config()
    parser = make_parser(cfg)
    counts = count_captions(parser, IMAGES).to_table()
    names = {parser.class_name(name): name for name in ("dogs", "Wine Glass", "zebra")}
    pool, _ = pool_and_dropped([counts], cfg, names)
    plain, _ = pool_and_dropped([counts], cfg)
    assert pool.column("concept").equals(plain.column("concept"))
    marked = {row["concept"]: row["dataset_class"] for row in pool.to_pylist() if row["dataset_class"]}
    assert marked == {"dog": "dogs", "wine glass": "Wine Glass"}
    assert set(pool.column("source").to_pylist()) == {"parsed"}
    protected, _ = pool_and_dropped([counts], config(protect_categories=True), names)
    assert {r["concept"] for r in protected.to_pylist() if r["source"] == "dataset"} == {"dog", "wine glass"}


def test_the_world_s_categories_come_out_of_its_captions() -> None:
    """Every category of the embedded world that captions name is in the pool, as often as the words say."""
    import re

    from regionclip_core.datasets.world.categories import CATEGORIES
    from regionclip_core.datasets.world.sample import make_sample

    images = [
        list(make_sample("closeup" if i % 2 else "scene", 1, "captions", i, 96, (3, 6), (0.15, 0.3)).captions)
        for i in range(160)
    ]
    cfg = config()
    parser = make_parser(cfg)
    captions = [caption for group in images for caption in group]
    parsed = list(parser.parse(captions))
    named = found = 0
    for category in CATEGORIES:
        forms = re.compile(rf"\b(?:{re.escape(category.plural)}|{re.escape(category.name)})\b")
        concept = parser.class_name(category.name)
        for caption, phrases in zip(captions, parsed, strict=True):
            wanted = len(forms.findall(caption.lower()))
            named += wanted
            found += min(wanted, sum(p.text == concept and p.drop_reason is None for p in phrases))
    assert named > 200
    assert found >= 0.99 * named
