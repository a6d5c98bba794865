"""Synonyms of categories, from a YAML file, for `evaluate.synonyms` and `labels.synonyms`. Imports nothing slow."""

from __future__ import annotations

import os

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.datasets.vocabulary import DATA_FOLDER, Vocabulary
from regionclip_core.storage.locations import exists, nearest_file, read_location


def synonym_file(spec: str) -> str:
    """Return the path of a file under data/synonyms (`coco`, `world`), or the path or URL itself."""
    return spec if os.path.splitext(spec)[1] else str(DATA_FOLDER / "synonyms" / f"{spec}.yaml")


def synonym_lists(spec: str, vocabulary: Vocabulary, setting: str) -> dict[str, list[str]]:
    """Return the synonyms of each of the vocabulary's names that the file has; it may have further names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is something else, or has no category of the vocabulary.
    """
    url = synonym_file(spec)
    if not exists(url):
        known = sorted(file.stem for file in (DATA_FOLDER / "synonyms").glob("*.yaml"))
        near = nearest_file(spec) if url == spec else nearest_hint(spec, known)
        raise FileNotFoundError(
            f"{setting}: {spec!r} is not one of {known}, or a file that is there (looked from {os.getcwd()}){near}"
        )
    lists = parse_yaml(decode_text(read_location(url), url), url)
    fits = isinstance(lists, dict) and all(
        isinstance(name, str) and isinstance(others, list) and others and all(isinstance(one, str) for one in others)
        for name, others in lists.items()
    )
    if not fits:
        raise ValueError(f"{url}: expected lists of synonyms by category, such as `couch: [sofa, settee]`, got {lists}")
    if not lists.keys() & set(vocabulary.names):
        raise ValueError(f"{url}: has a synonym of no category, which are {list(vocabulary.names[:5])} ...")
    return {name: lists[name] for name in vocabulary.names if name in lists}


def synonym_names(spec: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the vocabulary's names, each replaced by its first synonym where the file has one.

    Raises as `synonym_lists`, and ValueError if two categories become equal.
    """
    lists, url = synonym_lists(spec, vocabulary, "evaluate.synonyms"), synonym_file(spec)
    names = tuple(lists.get(name, [name])[0] for name in vocabulary.names)
    owner: dict[str, str] = {}
    for name, synonym in zip(vocabulary.names, names, strict=True):
        if (other := owner.setdefault(synonym, name)) != name:
            raise ValueError(
                f"{url}: {other!r} and {name!r} would both be called {synonym!r}; name another synonym first"
            )
    return names


def categories_by_synonym(spec: str, vocabulary: Vocabulary, setting: str) -> dict[str, int]:
    """Return the category, a row of the vocabulary, that each of its names and each synonym in the file names.

    A category's own name is never another one's synonym. Raises as `synonym_lists`, and ValueError for a synonym of two
    categories.
    """
    rows = {name: row for row, name in enumerate(vocabulary.names)}
    found: dict[str, int] = {}
    for name, others in synonym_lists(spec, vocabulary, setting).items():
        for other in others:
            if (first := found.setdefault(other, rows[name])) != rows[name] and other not in rows:
                raise ValueError(
                    f"{synonym_file(spec)}: {other!r} is a synonym of {vocabulary.names[first]!r} and of {name!r}; "
                    f"{setting} needs it at one of them alone"
                )
    return found | rows
