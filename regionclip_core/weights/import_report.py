"""What an import did with every tensor of a file: printed in a few lines, kept whole in import.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

_SHOWN = 4


@dataclass
class ImportReport:
    """Every tensor of the file is in `matched`, `renamed` or `left_over`."""

    file: str
    """The file's name, without its folder."""
    sha256: str
    bytes: int
    layout: str
    """`safetensors`, `torch` or `torchscript`."""
    kind: str
    """`detector`, `pretrained`, `rpn`, `embeddings` or `clip`."""
    model: str = ""
    """Architecture, in words."""
    matched: list[str] = field(default_factory=list)
    """Tensors that keep their name."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The file's name to ours (with the folder inside, where there are several)."""
    left_over: dict[str, str] = field(default_factory=dict)
    """What was not taken, and why."""
    missing: dict[str, str] = field(default_factory=dict)
    """Parts that such a file may have and this one has not, and what follows from it."""
    added: dict[str, str] = field(default_factory=dict)
    """Tensors that the file has not, and how they were made."""
    converted: dict[str, str] = field(default_factory=dict)
    """Tensors that are stored as they came but computed with in another type."""
    notes: list[str] = field(default_factory=list)

    def take(self, renamed: Mapping[str, str], place: str = "") -> None:
        """Record tensors that were taken: the file's name to ours, which lies in the folder `place`."""
        for name, own in renamed.items():
            if place or name != own:
                target = f"{place}{own}"
                # One tensor of the file may be needed in two places.
                self.renamed[name] = f"{self.renamed[name]}, {target}" if name in self.renamed else target
            else:
                self.matched.append(name)

    def note_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Record floating-point tensors that are not float32 (what all modules compute in)."""
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dtype.itemsize != 4:
                self.converted[name] = f"{str(tensor.dtype).removeprefix('torch.')} -> float32"

    def to_json(self) -> dict[str, Any]:
        """import.json."""
        return {"format": 1, **asdict(self)}

    def lines(self) -> list[str]:
        """A few lines for the screen; groups by prefix where there are many names."""
        rows = [
            ("file", f"{self.file}, {self.bytes / 1e6:.1f} MB, {self.layout}, sha256 {self.sha256[:12]}"),
            ("kind", self.kind + (f", {self.model}" if self.model else "")),
            ("matched", f"{len(self.matched)} tensors by their own names"),
            ("renamed", f"{len(self.renamed)} tensors{_renames(self.renamed)}"),
            ("left over", _reasons(self.left_over)),
            ("missing", _reasons(self.missing)),
            ("added", _reasons(self.added)),
            ("converted", _converted(self.converted)),
        ]
        return [f"  {name:<10} {text}" for name, text in [*rows, *(("note", note) for note in self.notes)]]


def _renames(renamed: Mapping[str, str]) -> str:
    """': backbone. -> detector.encoder. (295), ...': the pairs of prefixes that differ."""
    pairs: Counter[str] = Counter()
    for name, targets in renamed.items():
        for own in targets.split(", "):
            old, new = name.split("."), own.replace("/", "/.").split(".")
            while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
                old, new = old[:-1], new[:-1]
            pairs[f"{_part(old)} -> {_part(new)}"] += 1
    shown = [f"{pair} ({count})" for pair, count in pairs.most_common(2 * _SHOWN)]
    return (": " + ", ".join(shown) + (" ..." if len(pairs) > len(shown) else "")) if shown else ""


def _part(words: Sequence[str]) -> str:
    two = words[0] in ("detector", "roi_heads") or words[0].endswith("/")
    return ".".join(words[: 2 if two else 1]).replace("/.", "/")


def _reasons(named: Mapping[str, str]) -> str:
    if not named:
        return "nothing"
    by_reason: dict[str, list[str]] = {}
    for name, reason in named.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{shorten(names)}: {reason}" for reason, names in by_reason.items())


def _converted(converted: Mapping[str, str]) -> str:
    counts = Counter(converted.values())
    return ", ".join(f"{n} tensors {kind}" for kind, n in counts.items()) or "nothing"


def shorten(names: Iterable[str], limit: int = _SHOWN) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
