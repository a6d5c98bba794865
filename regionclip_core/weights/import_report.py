"""A file of weights to import, and what became of each tensor in it: in short on screen, in full in import.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regionclip_core.models.checkpoint_files import misfits
from regionclip_core.models.official_keys import why_left_over
from regionclip_core.storage.records import size

_SHOWN = 4


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds, and what the user said about it."""

    name: str
    """For messages."""
    tensors: dict[str, Tensor]
    """By the file's names."""
    others: dict[str, Any]
    """Entries among the tensors that are not tensors."""
    names: str | None = None
    """`--names`."""
    model: str | None = None
    """`--model`."""

    def check_fit(self, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], part: str) -> None:
        """Check that `state` is exactly what a module holds (counters of norms may be absent), and finite.

        Raises:
            ValueError: it is not; the message names the file, the `part` and the differences.
        """
        if problems := misfits(expected, state):
            raise ValueError(
                f"{self.name}: its {part} is incomplete or of another architecture: {'; '.join(problems)}. Get the "
                "file again, or the one that was meant"
            )
        broken = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise ValueError(
                f"{self.name}: its {part} holds NaN or infinite numbers in {_shorten(broken)}: it is damaged"
            )


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
    """Parts that such a file may have and this one lacks, and what follows from it."""
    added: dict[str, str] = field(default_factory=dict)
    """Tensors that the file lacks, and how they were made."""
    converted: dict[str, str] = field(default_factory=dict)
    """Tensors that are stored as they came but computed with in another type."""
    notes: list[str] = field(default_factory=list)

    def take(self, renamed: Mapping[str, str], place: str = "") -> None:
        """Record tensors that were taken: the file's name to ours, which is in the folder `place`."""
        for name, own in renamed.items():
            if place or name != own:
                target = f"{place}{own}"
                # One tensor of the file may be needed in two places.
                self.renamed[name] = f"{self.renamed[name]}, {target}" if name in self.renamed else target
            else:
                self.matched.append(name)

    def leave(self, names: Iterable[str], reason: str) -> None:
        """Record what is not taken; known constants and counters get a reason of their own."""
        for name in names:
            self.left_over[name] = why_left_over(name) or reason

    def note_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Record floating-point tensors that are not float32 (what all modules compute in)."""
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.dtype.itemsize != 4:
                self.converted[name] = f"{str(tensor.dtype).removeprefix('torch.')} -> float32"

    def lines(self) -> list[str]:
        """Return a few lines for the screen; many names are grouped by their prefixes."""
        converted = ", ".join(f"{n} tensors {how}" for how, n in Counter(self.converted.values()).items())
        rows = [
            ("file", f"{self.file}, {size(self.bytes)}, {self.layout}, sha256 {self.sha256[:12]}"),
            ("kind", self.kind + (f", {self.model}" if self.model else "")),
            ("matched", f"{len(self.matched)} tensors by their own names"),
            ("renamed", f"{len(self.renamed)} tensors{_renames(self.renamed)}"),
            ("left over", _reasons(self.left_over)),
            ("missing", _reasons(self.missing)),
            ("added", _reasons(self.added)),
            ("converted", converted or "nothing"),
        ]
        return [f"  {name:<10} {text}" for name, text in [*rows, *(("note", note) for note in self.notes)]]


def _renames(renamed: Mapping[str, str]) -> str:
    """Return the pairs of prefixes that differ, such as ': backbone. -> detector.encoder. (295), ...'."""

    def prefix(words: list[str]) -> str:
        two = words[0] in ("detector", "roi_heads") or words[0].endswith("/")
        return ".".join(words[: 2 if two else 1]).replace("/.", "/")

    pairs: Counter[str] = Counter()
    for name, targets in renamed.items():
        for own in targets.split(", "):
            old, new = name.split("."), own.replace("/", "/.").split(".")
            while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
                old, new = old[:-1], new[:-1]
            pairs[f"{prefix(old)} -> {prefix(new)}"] += 1
    shown = [f"{pair} ({count})" for pair, count in pairs.most_common(2 * _SHOWN)]
    return (": " + ", ".join(shown) + (" ..." if len(pairs) > len(shown) else "")) if shown else ""


def _reasons(named: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in named.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{_shorten(names)}: {reason}" for reason, names in by_reason.items()) or "nothing"


def _shorten(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
