"""The counts of all shards to the pool, in memory that neither the shards nor the phrases' number moves.

merge_counts(tables)                   sums schemas.PHRASES tables, phrase by phrase
build_pool(counts, config, drop, ...)  the pool, most frequent first; what is left out goes to `drop`, table by table

Both sort on disk (external_sort.py). Held is the pool, which the stages after this one hold too, with an embedding
each.
Legend: P phrases of a table, F surface forms of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from regionclip_core.concepts.parser import PARSER_KEY
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.external_sort import MEMORY, sorted_tables
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES

SURFACE_FORMS = 8
"""Surface forms kept of a concept in the pool, most frequent first."""

_NUMBERS = ("n_captions", "n_images", "n_mentions")
_COUNTS = pa.schema([field.with_nullable(True) for field in PHRASES])  # as columns are that Arrow computes
_KEPT = ""  # drop_reason of a phrase that may become a concept: keys are sorted by and have no nulls


# ---------------------------------------------------------------- sums


def merge_counts(tables: Iterable[pa.Table], memory: int = MEMORY) -> Iterator[pa.Table]:
    """The sum of schemas.PHRASES tables, by phrase and drop_reason; nothing is read before the first is asked for.

    Head, number of words and example are those of the first table that has the phrase. `drop_reason` is empty where
    the tables have null, and surface forms are in no order. `memory` is `sorted_tables`'s.

    Raises:
        ValueError: the tables were made by different parsers.
    """
    keys = ("phrase", "drop_reason")
    return sorted_tables(_of_one_parser(tables), [(key, "ascending") for key in keys], _sum_phrases, memory)


def _of_one_parser(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    made_by = set()
    for table in tables:
        made_by.add((table.schema.metadata or {}).get(PARSER_KEY, b"").decode())
        if len(made_by) > 1:
            raise ValueError(
                f"the shards were parsed by different parsers: {' and '.join(sorted(made_by))}; install the same on "
                "every machine, or set concepts.parser to `rules`, and run the stage again"
            )
        yield _with(table.cast(_COUNTS), {"drop_reason": pc.fill_null(table["drop_reason"], _KEPT)})


def _sum_phrases(table: pa.Table) -> pa.Table:
    """One row a key of a sorted table: numbers and surface forms summed, the rest of the first row."""
    starts = np.flatnonzero(_changes(table["phrase"]) | _changes(table["drop_reason"]))
    if len(starts) == table.num_rows:
        return table
    summed: dict[str, Any] = {name: pa.array(np.add.reduceat(table[name].to_numpy(), starts)) for name in _NUMBERS}
    groups = np.repeat(np.arange(len(starts)), np.diff(starts, append=table.num_rows))
    forms = _forms(table, groups).group_by(["group", "form"], use_threads=False).aggregate([("count", "sum")])
    order = np.argsort(forms["group"].to_numpy(), kind="stable")
    group, forms = forms["group"].to_numpy()[order], forms.take(order)
    summed |= _surface_columns(group, forms["form"], forms["count_sum"], len(starts))
    return _with(table.take(starts), summed)


def _changes(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """[P] where a column's value differs from the row before; the first does."""
    flags = np.ones(len(column), np.bool_)
    flags[1:] = pc.not_equal(column[1:], column[:-1]).to_numpy()
    return flags


def _forms(table: pa.Table, groups: npt.NDArray[np.int64]) -> pa.Table:
    """[F] rows `form`, `count` and `group`: the number in `groups` [P] of the phrase they are of."""
    lengths = pc.list_value_length(table["surface_forms"]).to_numpy()
    columns = {
        "group": pa.array(np.repeat(groups, lengths)),
        "form": pc.list_flatten(table["surface_forms"]),
        "count": pc.list_flatten(table["surface_counts"]),
    }
    return pa.table(columns)


def _surface_columns(
    group: npt.NDArray[np.int64], form: pa.ChunkedArray, count: pa.ChunkedArray, groups: int
) -> dict[str, pa.Array]:
    """Inverse of `_forms`, by ascending group."""
    offsets = pa.array(np.searchsorted(group, np.arange(groups + 1)).astype(np.int32))
    lists = {"surface_forms": form, "surface_counts": count}
    return {name: pa.ListArray.from_arrays(offsets, values.combine_chunks()) for name, values in lists.items()}


def _with(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """The table with some of its columns replaced."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


# ---------------------------------------------------------------- the pool


def build_pool(
    counts: Iterable[pa.Table],
    config: ConceptsConfig,
    drop: Callable[[pa.Table], object],
    class_names: Mapping[str, str] | None = None,
    memory: int = MEMORY,
) -> pa.Table:
    """The concept pool.

    Args:
        counts: of the whole corpus, as from `merge_counts`.
        config: count_unit, min_count, max_concepts and protect_categories are used.
        drop: is given what is left out, as schemas.DROPPED_CONCEPTS in tables that together are in the pool's order;
            reasons: the phrase's own, `below_min_count`, `beyond_max_concepts`.
        class_names: the data set's class names by their spelling in the pool (`CaptionParser.class_name`); they fill
            `dataset_class`, and with protect_categories also `source`. They add no concept.
        memory: of the sorting, bytes.

    Returns:
        schemas.CONCEPTS, most frequent first (by count_unit, ties by name); held whole, about 200 bytes a concept.

    Raises:
        ValueError: no concept is left.
    """
    unit = "n_captions" if config.count_unit == "caption" else "n_images"
    judged = (_judge(table, unit, config.min_count) for table in counts)
    kept: list[pa.Table] = []
    size, best = 0, None
    for table in sorted_tables(
        judged, [(unit, "descending"), ("phrase", "ascending"), ("drop_reason", "ascending")], memory=memory
    ):
        usable = _equals(table["drop_reason"], _KEPT)
        if best is None and usable.any():
            best = table.slice(int(usable.argmax()), 1).to_pylist()[0]
        wanted = usable & (table[unit].to_numpy() >= config.min_count)
        if config.max_concepts is not None:
            wanted &= np.cumsum(wanted) <= config.max_concepts - size
        if wanted.any():
            kept.append(_concepts(table.filter(wanted), size, class_names or {}, config.protect_categories))
            size += len(kept[-1])
        if not wanted.all():
            drop(_dropped(table.filter(~wanted), unit, config.min_count))
    if not kept:
        raise ValueError(_empty_pool(best, unit, config.min_count))
    return pa.concat_tables(kept).combine_chunks()


def _judge(table: pa.Table, unit: str, min_count: int) -> pa.Table:
    """The table with the surface forms that the pool will have: of phrases that may be in it, the most frequent."""
    may = _equals(table["drop_reason"], _KEPT) & (table[unit].to_numpy() >= min_count)
    rows = np.flatnonzero(may)
    forms = _forms(table.take(rows), rows)
    forms = forms.sort_by([("group", "ascending"), ("count", "descending"), ("form", "ascending")])
    group = forms["group"].to_numpy()
    forms = forms.filter(np.arange(len(group)) - np.searchsorted(group, group) < SURFACE_FORMS)
    lists = _surface_columns(forms["group"].to_numpy(), forms["form"], forms["count"], len(table))
    return _with(table.drop_columns("surface_counts"), {"surface_forms": lists["surface_forms"]})


def _concepts(table: pa.Table, first: int, classes: Mapping[str, str], protect: bool) -> pa.Table:
    """Rows of the pool from the id `first` on."""
    dataset = [classes.get(name) for name in table["phrase"].to_pylist()]
    columns = {
        "id": np.arange(first, first + len(table), dtype=np.int32),
        "concept": table["phrase"],
        **{name: table[name] for name in ("head", "n_words", *_NUMBERS, "surface_forms", "example")},
        "source": ["dataset" if protect and name is not None else "parsed" for name in dataset],
        "dataset_class": dataset,
    }
    return pa.table({name: columns[name] for name in CONCEPTS.names}, schema=CONCEPTS)


def _dropped(table: pa.Table, unit: str, min_count: int) -> pa.Table:
    """Why each row is left out."""
    rare = pc.less(table[unit], min_count)
    cut = pc.if_else(rare, "below_min_count", "beyond_max_concepts")
    columns = {
        "concept": table["phrase"],
        "reason": pc.if_else(pc.equal(table["drop_reason"], _KEPT), cut, table["drop_reason"]),
        **{name: table[name] for name in (*_NUMBERS, "example")},
    }
    return pa.table(columns, schema=DROPPED_CONCEPTS)


def _equals(column: pa.ChunkedArray, value: str) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = pc.equal(column, value).to_numpy()
    return flags


def _empty_pool(best: Mapping[str, Any] | None, unit: str, min_count: int) -> str:
    if best is None:
        return (
            "the captions gave no concept at all: check that the splits in concepts.splits have English captions "
            "(their text is in the column `captions` of the data artifact's index files)"
        )
    return (
        f"no concept was seen in {min_count} {unit.removeprefix('n_')} or more: the most frequent, "
        f"{best['phrase']!r}, was seen in {best[unit]}. Lower concepts.min_count, or add captions"
    )
