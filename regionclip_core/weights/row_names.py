"""The names behind the rows of an imported classifier or embedding file.

A file of weights holds rows and no names, so the names come from the user, and their number and order must fit.
K rows, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.categories import load_categories, read_names
from regionclip_core.datasets.vocabulary import Vocabulary

_SAME = 0.9999  # cosine of two embeddings of one name
_KNOWN_ROWS = {
    80: "COCO's 80: --names instances_val2017.json",
    866: "LVIS's 866 base categories: --names lvis_v1_train.json",
    1203: "LVIS's 1203: --names lvis_v1_val.json",
}


def name_rows(spec: str | None, rows: int, what: str) -> Vocabulary:
    """Return the vocabulary of `rows` rows of `what` (for messages): all names of `spec`, or its base or novel ones.

    `spec`: see `categories.read_names`; the names of annotation files come in the order of the ids. Without it
    only COCO's open-vocabulary split has known sizes (48, 17, 65), and its own order.

    Raises:
        FileNotFoundError, ValueError: as `read_names`, and where the number of names is different.
    """
    vocabulary = read_names(spec or "coco_ovd", "--names")
    # Names alone don't say which are base; that is known for COCO's open-vocabulary split only.
    if not vocabulary.base and (split := load_categories("coco_ovd")).names == vocabulary.names:
        vocabulary = split
    base = tuple(vocabulary.names[i] for i in vocabulary.base_ids)
    choices = [vocabulary, *[Vocabulary(base, base)] * bool(base)]
    choices += [Vocabulary(vocabulary.novel)] * bool(base and vocabulary.novel)
    if fitting := [vocabulary for vocabulary in choices if len(vocabulary) == rows]:
        return fitting[0]
    if spec is None:
        hint = _KNOWN_ROWS.get(rows, "--names names.txt, a text file with one name per line, in the order of the rows")
        raise ValueError(
            f"{what} has {rows} rows, and nothing in the file names them. Say what they are: {hint}. (Without --names "
            "only 48, 17 and 65 rows are known, as COCO's open-vocabulary split)"
        )
    raise ValueError(
        f"{what} has {rows} rows, but --names {spec} gives {' or '.join(str(len(one)) for one in choices)} names. Give "
        "the names that the weights were made with, in the order of the rows"
    )


def with_base(vocabulary: Vocabulary, train: Tensor, test: Tensor) -> tuple[Vocabulary, str | None]:
    """Return the vocabulary with base names checked against the classifier of training, and a note for the report.

    The same text encoder made both classifiers, so a base name has the same direction in both. Where every row of
    `train` is found in `test`, these rows are the base names; where none is found (random weights, other prompts), only
    their number can be checked.

    Args:
        vocabulary: names of the rows of `test`.
        train: [K_base, D], of any norm.
        test: [K, D], of any norm.

    Raises:
        ValueError: the vocabulary's own base names contradict what is found.
    """
    found = rows_of(train, test)
    if len(train) == len(vocabulary):
        vocabulary = Vocabulary(vocabulary.names, vocabulary.names, vocabulary.groups)  # trained on all of them
    if vocabulary.base and len(vocabulary.base) != len(train):
        raise ValueError(
            f"the classifier of training has {len(train)} rows, but {len(vocabulary.base)} of the {len(vocabulary)} "
            "names are base names: these are not the categories that it was trained on. Give others by --names"
        )
    if found is None:
        unknown = "base names unknown: --names has none, and the training rows are not among the test rows"
        return vocabulary, None if vocabulary.base else unknown
    if not vocabulary.base:
        base = tuple(vocabulary.names[row] for row in found)
        return Vocabulary(vocabulary.names, base), f"{len(base)} base names found by the rows of training"
    if found != vocabulary.base_ids:
        row = next(i for i, (a, b) in enumerate(zip(found, vocabulary.base_ids, strict=True)) if a != b)
        raise ValueError(
            f"the names are not in the order of the rows: row {row} of training is row {found[row]} of the test "
            f"classifier, which --names calls {vocabulary.names[found[row]]!r}, but the base name there is "
            f"{vocabulary.names[vocabulary.base_ids[row]]!r}. Give the names in the order of the weights"
        )
    return vocabulary, None


def rows_of(train: Tensor, test: Tensor) -> list[int] | None:
    """Return for each row of `train` the one row of `test` of the same direction; None unless all have just one."""
    cosines = F.normalize(train.float(), dim=1) @ F.normalize(test.float(), dim=1).T
    same = cosines > _SAME
    if not bool((same.sum(dim=1) == 1).all()):
        return None
    rows: list[int] = torch.where(same)[1].tolist()
    return rows if len(set(rows)) == len(rows) else None
