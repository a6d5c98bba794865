"""Writes GOLDENS.md, what of ours meets which numbers of the official code and how closely: python docs/goldens.py."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the checks are the tests' own

from golden_checks import ROWS  # noqa: E402
from golden_checks.table import Row, names  # noqa: E402

PAGE = HERE / "GOLDENS.md"

HEAD = """\
# The official numbers and ours

`tests/golden/` holds arrays that the released RegionCLIP code computed, most of them with small random modules, and
facts of its configurations. Each array has one row below, beside the function of ours that must give it; the
functions are those that the pipeline runs. `tests/test_goldens.py` measures every row again, holds it to the
tolerance, and fails if an array has no row or this page is not what `python docs/goldens.py` writes.

This holds the formulas to the official code, not the results: no published checkpoint was here to be loaded, and no
published number has been reproduced.

**Error**: of floating-point arrays the largest difference over the largest magnitude of the golden array; of whole
numbers, masks, names and texts the number of entries that differ. The measured errors are those of one machine (two
CPU cores, one thread, torch {torch}); on another their last digits differ. *input*: what goes into the functions.

| golden | arrays | ours | tolerance | error | |
|---|---|---|---:|---:|---|
"""

BUGS_HEAD = """
## Official bugs

What the official code gets wrong, or does in a way that surprises. Ours does the right thing by default; where a
published number depends on the official way, a setting reproduces it.

| the official code | ours | the setting that reproduces it |
|---|---|---|
"""

BUGS = [
    (
        "The pretraining forward stops: its global boxes lack a field that the RoI head asks for.",
        "Pretraining runs.",
        "none: there is nothing to reproduce",
    ),
    (
        "The global box of an image covers the padding of its batch as well, so that its feature depends on its "
        "neighbours.",
        "The image alone.",
        "`pretrain.global_box: padded`",
    ),
    (
        "Scores with proposals are sqrt(p x the *raw* objectness logit): a negative logit gives NaN and drops the "
        "proposal, and scores exceed 1.",
        "sqrt(p x sigmoid(logit)).",
        "`evaluate.objectness: raw_logit`, `evaluate.finetuned_objectness: raw_logit`; the published zero-shot "
        "and LVIS numbers depend on it, and the presets have it",
    ),
    (
        "Class embeddings in a checkpoint silently win over the file that was asked for, if their number is the same.",
        "The names asked for decide: embeddings are matched by name (`teacher.embeddings`), and what was taken "
        "from a file is printed and recorded.",
        "none needed: `regionclip import` keeps the classifier of the file, and gives its rows their names",
    ),
    (
        "A weight that is missing or of another shape is skipped without a word.",
        "Refused, with what doesn't fit.",
        "none",
    ),
    (
        "Running statistics of norms are reset by the second load, on a modern torch.",
        "Kept.",
        "none: old torch, on which the published numbers were made, kept them too",
    ),
    (
        "The distillation takes the log of a softmax: infinite or NaN where a probability underflows.",
        "Log space throughout; equal wherever the official loss is finite.",
        "none: real weights never get there",
    ),
    (
        "Where no region of a batch passes the threshold, all are kept.",
        "None is used.",
        "`labels.threshold: 0` keeps all, always",
    ),
    (
        "A caption of more than 77 tokens loses its end token, and all such captions get one embedding.",
        "The end token is kept.",
        "none: only pretraining could see it",
    ),
    (
        "The number of captions per image is read off the first image of the batch.",
        "Each image has its own number.",
        "none",
    ),
    (
        "At most 20 TSV files of a folder are read; a single file is read wrongly.",
        "Tars, all of them.",
        "none",
    ),
    (
        "An empty batch of regions fails under focal loss.",
        "Its loss is 0.",
        "none",
    ),
    (
        "Where the target probability rounds to 1, the focal loss has NaN gradients.",
        "0.",
        "none",
    ),
    (
        "Measuring a pretraining model gives nothing.",
        "`evaluate` has zero-shot rows for the student.",
        "none",
    ),
    (
        "LVIS's images without annotations are never predicted on.",
        "Every image is, and counts as LVIS says.",
        "`evaluate.annotated_only: true`; the presets have it",
    ),
    (
        "With soft-NMS the request to report the class probability has no effect.",
        "The same, as the golden mode `soft_mult_vis` wants it: what soft-NMS has lowered is what is reported.",
        "always, with `evaluate.nms_kind` other than `hard`",
    ),
    (
        "The contrast sees the regions of one GPU only.",
        "Those of all processes.",
        "`pretrain.gather_regions: false`",
    ),
]
"""What the official code does, what ours does, and what makes ours do the same."""


def cell(value: str) -> str:
    """Return text that a table may hold."""
    return value.replace("|", "\\|")


def line(row: Row) -> str:
    """One row of the table."""
    arrays = "<br>".join(f"`{pattern}`" for pattern in row.arrays.split())
    if row.measure is None:
        return f"| {row.file} | {arrays} | *input* | | | {cell(row.note)} |\n"
    measured = row.measured()
    error = "not here" if measured is None else f"{measured:.0e}" if measured else "0"
    return f"| {row.file} | {arrays} | `{row.ours}` | {row.tolerance:.0e} | {error} | {cell(row.note)} |\n".replace(
        "| 0e+00 |", "| 0 |"
    )


def page() -> str:
    """The whole page."""
    counts = ", ".join(f"{len(names(file))} in `{file}`" for file in dict.fromkeys(row.file for row in ROWS))
    head = HEAD.format(torch=torch.__version__.split("+")[0])
    bugs = "".join(f"| {' | '.join(bug)} |\n" for bug in BUGS)
    return head + "".join(map(line, ROWS)) + f"\nArrays: {counts}.\n" + BUGS_HEAD + bugs


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {len(ROWS)} rows")
