"""Vocabulary: the ordered names behind class indices, and their digest. The only source of class indices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from regionclip_core.datasets.names import checked_names

_CORE = Path(__file__).resolve().parents[1]
DATA_FOLDER = next(folder for folder in (_CORE.parent / "data", _CORE / "data") if (folder / "coco_ovd.yaml").exists())
"""The small committed inputs, category splits and prompts: beside the package in a checkout, inside it where it is
installed."""


@dataclass(frozen=True)
class Vocabulary:
    """Ordered names. A name's place is its class index, everywhere; a concept pool has no `base`."""

    names: tuple[str, ...]
    base: tuple[str, ...] = ()
    """Names whose boxes training may see; the others are novel."""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Further groups of names that evaluation reports on, such as LVIS's (`rare`, ...); no part of the digest. Kept in
    the alphabetical order of their names, so that a vocabulary that was stored equals itself."""
    source: str = field(default="data.categories", compare=False)
    """Where the names are from, for messages; not stored."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(sorted(self.groups)))
        for part, values in [("names", self.names), ("base", self.base)]:
            checked_names([*values], f"Vocabulary.{part}")
        for part, values in [("base", self.base), *((f"groups {name}", members) for name, members in self.groups)]:
            unknown = sorted(set(values) - set(self.names))
            if unknown:
                raise ValueError(f"Vocabulary.{part} holds {unknown[:5]}, which are not among the names")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """sha256 of the names in order and of the base set: equal if and only if all class indices mean the same."""
        canonical = json.dumps([list(self.names), sorted(self.base)], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @cached_property
    def base_ids(self) -> list[int]:
        """Indices of base names, rising."""
        base = set(self.base)
        return [i for i, name in enumerate(self.names) if name in base]

    @cached_property
    def novel_ids(self) -> list[int]:
        """Indices of all other names, rising."""
        base = set(self.base)
        return [i for i, name in enumerate(self.names) if name not in base]

    @property
    def novel(self) -> tuple[str, ...]:
        """Names that are not base, in order."""
        return tuple(self.names[i] for i in self.novel_ids)

    def to_json(self) -> dict[str, Any]:
        """Return {"names", "base", "digest"} and, where there are any, "groups": what `from_json` reads."""
        groups = {"groups": {name: list(members) for name, members in self.groups}} if self.groups else {}
        return {"names": list(self.names), "base": list(self.base), "digest": self.digest, **groups}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Vocabulary:
        """Load what `to_json` returned. Raises ValueError if a stored digest does not match the names."""
        groups = tuple((name, tuple(members)) for name, members in obj.get("groups", {}).items())
        vocabulary = cls(tuple(obj["names"]), tuple(obj.get("base", ())), groups)
        vocabulary.require(obj.get("digest", vocabulary.digest), "this vocabulary's own file")
        return vocabulary

    def require(self, digest: str, source: str) -> None:
        """Raise ValueError, with both digests, for class indices made with another vocabulary."""
        if digest != self.digest:
            raise ValueError(
                f"{source} was made with the vocabulary {digest[:12]}, but the one here is {self.digest[:12]} "
                f"({len(self)} names): class indices would not mean the same. Run the stage that made it again"
            )


def clean_lvis_name(name: str) -> str:
    """Return an LVIS category's name as text: `bow_(decorative_ribbons)` is "bow decorative ribbons".

    Underscores become spaces and parentheses go, as in the official code: these are the names that get embedded.
    """
    return name.replace("_", " ").replace("(", "").replace(")", "")
