"""Which names a run's models can't know: no caption that its own CLIP was trained on has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regionclip_core.config.tree import Config

from ..engine.plan import PlanLine
from .finished import folder_of


def unknown_names(config: Config, lines: Mapping[str, PlanLine], names: Sequence[str]) -> list[str]:
    """Return the names of which neither the whole nor the last word is a phrase of the run's captions.

    None of them where the CLIP was not trained by the run: published weights know more words. Distances between
    embeddings can't say it: see docs/decisions.md, 67.

    Args:
        lines: the finished stages; without `concepts` nothing is known about the captions.
    """
    if config.teacher.weights != "train" or "concepts" not in lines:
        return []
    import pyarrow.parquet as pq  # takes a moment, and most calls need none

    known: set[str] = set()
    for file, columns in (("concepts.parquet", ["concept", "surface_forms"]), ("dropped.parquet", ["concept"])):
        with folder_of(lines["concepts"]).open_table(file) as opened:
            table = pq.read_table(opened, columns=columns)
        known.update(phrase.lower() for phrase in table["concept"].to_pylist())
        for forms in table["surface_forms"].to_pylist() if "surface_forms" in columns else ():  # plurals
            known.update(form.lower() for form in forms)
    return [name for name in names if not {name.lower(), name.lower().split()[-1]} & known]
