"""A look at pools and labels by name: a pool, what differs from another one, and the labels of each concept.

A section is a title and the rows of a table, its header first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.pretraining.concept_truth import clean_shares
from regionclip_core.pretraining.kept_labels import BINS, best_regions, concept_number, count_labels, pool_names
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.tables import POOL_NAMES

Section = tuple[str, Sequence[tuple[str, ...]]]

SHOWN_NAMES = 20
"""Lines per section."""
SHOWN_REGIONS = 10
_BAR = 40  # letters of the longest bar


def pool_sections(concepts: Folder) -> list[Section]:
    """Return the most frequent concepts, and what was left out, by reason."""
    pool, dropped = _table(concepts, "concepts.parquet"), _table(concepts, "dropped.parquet")
    rows = [("id", "concept", "captions", "images", "source", "also written")]
    for row in pool.slice(0, SHOWN_NAMES).to_pylist():
        forms = ", ".join(form for form in row["surface_forms"] if form != row["concept"])
        counts = (str(row["n_captions"]), str(row["n_images"]))
        rows.append((str(row["id"]), row["concept"], *counts, row["source"], forms))
    sections: list[Section] = [(f"the pool: {len(pool)} concepts{_first(len(pool))}; all in concepts.txt", rows)]
    if len(dropped):
        of_reason: dict[str, list[str]] = {}
        for name, reason in zip(dropped["concept"].to_pylist(), dropped["reason"].to_pylist(), strict=True):
            of_reason.setdefault(reason, []).append(name)
        ordered = sorted(of_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        left = [("reason", "phrases", "such as"), *((why, str(len(n)), ", ".join(n[:5])) for why, n in ordered)]
        sections.append((f"left out: {len(dropped)} phrases; all in dropped.parquet", left))
    return sections


def pool_difference(concepts: Folder, other: Folder) -> list[Section]:
    """Return what this pool has and the other one hasn't, the other way round, and other counts of the same."""
    (new, why_not_new), (old, why_not_old) = ((_counts(folder), _reasons(folder)) for folder in (concepts, other))
    added = [(name, str(new[name]), why_not_old.get(name, "not seen")) for name in new if name not in old]
    removed = [(name, str(old[name]), why_not_new.get(name, "not seen")) for name in old if name not in new]
    changed = [(name, old[name], new[name]) for name in new if name in old and new[name] != old[name]]
    changed.sort(key=lambda row: (-abs(row[2] - row[1]), row[0]))
    counts = [(name, str(was), str(now), f"{now - was:+d}") for name, was, now in changed]
    tables: list[tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]] = [
        (f"added: {len(added)}", ("concept", "captions", "in the other pool"), added),
        (f"removed: {len(removed)}", ("concept", "captions there", "here"), removed),
        (f"other counts: {len(counts)}", ("concept", "there", "here", "difference"), counts),
    ]
    sizes = f"{len(new)} concepts here, {len(old)} in {other.url}, {len(new.keys() & old.keys())} in both"
    shown = [(title + _first(len(rows)), [head, *rows[:SHOWN_NAMES]] if rows else []) for title, head, rows in tables]
    return [(sizes, []), *shown]


def label_sections(labels: Folder, shards: Sequence[int], concept: str | None = None) -> list[Section]:
    """Return kept labels per concept and the histogram of scores, or what the labels of one concept are.

    Nothing before there are any labels. ValueError if the pool has no such concept.
    """
    if not shards or not labels.exists(POOL_NAMES):
        return []
    number = None if concept is None else concept_number(pool_names(labels), concept)
    counts, shares = count_labels(labels, shards, number), clean_shares(labels)
    kept_C = counts.kept_C
    order = [number] if number is not None else np.lexsort((np.arange(len(kept_C)), -kept_C)).tolist()
    rows = [("concept", "kept", "mean score", "clean")]
    used = int((kept_C > 0).sum())
    for row in order[: min(SHOWN_NAMES, max(1, used))]:
        name, kept = counts.names[row], int(kept_C[row])
        mean = f"{counts.score_C[row] / kept:.3f}" if kept else ""
        rows.append((name, str(kept), mean, f"{shares[name]:.1%}" if name in shares else ""))
    if number is None:
        title = f"kept labels by concept: {used} of {len(kept_C)} concepts have any{_first(used)}"
        return [(title, rows), ("regions by score", _histogram(counts.by_score))]
    found = [("score", "key", "box")]
    for one in best_regions(labels, shards, number, SHOWN_REGIONS):
        found.append((f"{one.score:.3f}", one.key, " ".join(f"{side:.2f}" for side in one.box)))
    histogram = (f"regions of {concept!r} by score", _histogram(counts.by_score))
    return [("labels of one concept", rows), histogram, ("the kept ones with the highest scores", found)]


def _histogram(by_score: npt.NDArray[np.int64]) -> Sequence[tuple[str, ...]]:
    """Return a row per range of scores: kept regions as #, others as dots. `by_score`: [2, BINS], see LabelCounts."""
    most = max(1, int(by_score.sum(0).max()))
    rows = [("score", "kept", "others", "# kept, . not kept")]
    for number, (others, kept) in enumerate(by_score.T.tolist()):
        marks = "#" * -(-kept * _BAR // most) + "." * (others * _BAR // most)
        rows.append((f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}", str(kept), str(others), marks))
    return rows


def _first(rows: int) -> str:
    return f", the first {SHOWN_NAMES}" if rows > SHOWN_NAMES else ""


def _table(concepts: Folder, name: str) -> pa.Table:
    with concepts.open_table(name) as file:
        return pq.read_table(file)


def _counts(concepts: Folder) -> dict[str, int]:
    pool = _table(concepts, "concepts.parquet")
    return dict(zip(pool["concept"].to_pylist(), pool["n_captions"].to_pylist(), strict=True))


def _reasons(concepts: Folder) -> dict[str, str]:
    """Return why phrases are not in a pool, with their captions."""
    table: Any = _table(concepts, "dropped.parquet").to_pydict()
    rows = zip(table["concept"], table["reason"], table["n_captions"], strict=True)
    return {name: f"{reason}, {count} captions" for name, reason, count in rows}
