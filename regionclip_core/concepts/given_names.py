"""Names that a person gives the pool: `concepts.file`, `concepts.add` and `concepts.ban`. Imports nothing slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.storage.locations import exists, nearest_file, printable, read_location

_YAML = (".yaml", ".yml", ".json")
_FORMS = (
    "a text file with one name per line, synonyms after a colon (`couch: sofa, settee`), or a YAML file with a list of "
    "names, or with lists of synonyms by name"
)


@dataclass(frozen=True)
class GivenNames:
    """The names that are kept whatever their counts, and those that are never kept; spelled as they were given."""

    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each name that is kept, in the order of the pool; of most names there are none."""
    added: frozenset[str] = frozenset()
    """Those of them that `concepts.add` has."""
    banned: tuple[str, ...] = ()

    def all(self) -> list[str]:
        """Return the kept names and all their synonyms."""
        return [one for name, others in self.synonyms.items() for one in (name, *others)]

    def by_spelling(self, spell: Callable[[str], str]) -> dict[str, str]:
        """Return the kept name that each phrase of a caption counts for.

        `spell` gives a name as a caption's phrases are spelled ("skis" -> "ski"). Where two names are one phrase, the
        one that is spelled like it counts, else the first; a name comes before a synonym.
        """
        spelled = [(spell(name), name) for name in self.synonyms]
        pairs = [pair for pair in spelled if pair[0] == pair[1].lower()] + spelled
        pairs += [(spell(one), name) for name, others in self.synonyms.items() for one in others]
        found: dict[str, str] = {}
        for phrase, name in pairs:
            found.setdefault(phrase, name)
        return found


NO_NAMES = GivenNames()


def given_files(config: ConceptsConfig) -> list[str]:
    """Return the files of names that a config gives."""
    return [one for one in (config.file, config.add, config.ban) if isinstance(one, str)]


def read_given(config: ConceptsConfig) -> GivenNames:
    """Return the names that a config gives.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is of another form, or its names don't go together; all that is wrong is named.
    """
    entries: list[tuple[str, str, tuple[str, ...]]] = []
    for setting, value in (("concepts.file", config.file), ("concepts.add", config.add)):
        where = f"{setting}: {value}" if isinstance(value, str) else setting
        entries += [(where, *entry) for entry in _entries(value or (), where)]
    where = f"concepts.ban: {config.ban}" if isinstance(config.ban, str) else "concepts.ban"
    banned = _entries(config.ban, where)
    wrong: list[str] = []
    is_name: dict[str, str] = {}
    name_of: dict[str, str] = {}
    """By synonym."""
    for here, name, _ in entries:
        if (first := is_name.setdefault(name.lower(), name)) is not name:
            both = f"the name {name!r} is there twice" if first == name else f"{first!r} and {name!r} are one name"
            wrong.append(f"{here}: {both}; leave one out")
    for here, name, others in entries:
        for other in others:
            if other.lower() in is_name:
                wrong.append(f"{here}: {other!r} is a synonym of {name!r}, and a name itself; leave one out")
            elif (first := name_of.setdefault(other.lower(), name)) != name:
                wrong.append(f"{here}: {other!r} is a synonym of {first!r} and of {name!r}; leave it at one of them")
    added = frozenset(name for here, name, _ in entries if here.startswith("concepts.add"))
    for name, others in banned:
        if others:
            wrong.append(f"{where}: {name!r} has synonyms, for which a name that is never kept has no use")
        if is_name.get(name.lower()) in added:
            wrong.append(f"{where}: {name!r} is in concepts.add too; leave it out of one of them")
        elif name.lower() in name_of:
            of = name_of[name.lower()]
            wrong.append(f"{where}: {name!r} is a synonym of {of!r}; ban {of!r}, or leave the synonym out")
    if wrong:
        raise ValueError("; ".join(wrong))
    return GivenNames({name: others for _, name, others in entries}, added, tuple(name for name, _ in banned))


def _entries(value: str | Iterable[str], where: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return names with their synonyms, of a list or of a file."""
    if not isinstance(value, str):
        return [(_name(one, f"{where}, entry {number}"), ()) for number, one in enumerate(value, start=1)]
    if not exists(value):
        setting = where.partition(":")[0]
        near = nearest_file(value)
        raise FileNotFoundError(
            f"{setting}: no file {printable(value)} (looked from {os.getcwd()}); expected {_FORMS}{near}"
        )
    text = decode_text(read_location(value), where)
    found = _of_yaml(parse_yaml(text, where), where) if value.lower().endswith(_YAML) else _of_lines(text, where)
    if not found:
        raise ValueError(f"{where} holds no name; expected {_FORMS}")
    return found


def _of_lines(text: str, where: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        here = f"{where}, line {number}"
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, others = line.partition(":")
        if "," in name:
            raise ValueError(
                f"{here}: expected one name per line, synonyms after a colon, found {line.strip()[:100]!r}"
            )
        found.append((_name(name, here), tuple(_name(one, here) for one in others.split(",")) if colon else ()))
    return found


def _of_yaml(content: Any, where: str) -> list[tuple[str, tuple[str, ...]]]:
    if isinstance(content, dict) and content.keys() <= {"base", "novel", "order"}:  # a set of categories
        content = [one for key in ("base", "novel") for one in content.get(key) or ()]
    if isinstance(content, dict):
        content = [{name: others} for name, others in content.items()]
    if not isinstance(content, list):
        raise ValueError(f"{where}: expected {_FORMS}, found {str(content)[:100]!r}")
    found = []
    for number, entry in enumerate(content, start=1):
        here = f"{where}, entry {number}"
        name, others = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
        listed = [] if others is None else others if isinstance(others, list) else [others]
        found.append((_name(name, here), tuple(_name(one, here) for one in listed)))
    return found


def _name(name: Any, where: str) -> str:
    """Return a name with single spaces. ValueError, which begins with `where`, for what is none."""
    if not isinstance(name, str) or not name.strip() or printable(name) != name:
        raise ValueError(
            f"{where}: expected a name, a text that is not blank (in quotes where it is a number), came {name!r:.100}"
        )
    return " ".join(name.split())
