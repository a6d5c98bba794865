"""The names behind the rows of an imported classifier or embedding file.

A file of weights holds rows and no names, so the names come from the user, and their number and order must fit.
K rows, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.categories import annotation_vocabulary, load_categories
from regionclip_core.datasets.vocabulary import Vocabulary

_SAME = 0.9999  # cosine of two embeddings of one name
_KNOWN_ROWS = {
    80: "COCO's 80: --names instances_val2017.json",
    866: "LVIS's 866 base categories: --names lvis_v1_train.json",
    1203: "LVIS's 1203: --names lvis_v1_val.json",
}


@dataclass(frozen=True)
class NameSpec:
    """What `--names` gives: one vocabulary, or a categories set of which a part may be meant."""

    source: str
    choices: tuple[Vocabulary, ...]
    """In the order of preference; of a set with base and novel names: all, the base ones, the novel ones."""


def read_names(spec: str) -> NameSpec:
    """Read `--names`: a text file (one name a line), a COCO or LVIS annotation file, a vocabulary.json, or whatever
    `data.categories` takes (`coco_ovd`, a YAML or JSON file with `base:` and `novel:`).

    COCO's and LVIS's names come in the order of the category ids. FileNotFoundError, ValueError as for those.
    """
    path = Path(spec)
    if path.suffix in (".txt", ".names") or (path.is_file() and path.suffix not in (".json", ".yaml", ".yml")):
        if not path.is_file():
            raise FileNotFoundError(f"--names {spec}: no such file")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return NameSpec(spec, (Vocabulary(tuple(line for line in lines if line)),))
    if path.suffix == ".json" and path.is_file():
        annotated = annotation_vocabulary(spec)
        if annotated is not None:
            return NameSpec(spec, _parts(annotated if annotated.groups else _coco(annotated.names)))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--names {spec}: not valid JSON ({error})") from None
        if isinstance(content, dict) and "names" in content:
            return NameSpec(spec, _parts(Vocabulary.from_json(content)))
    try:
        return NameSpec(spec, _parts(load_categories(spec)))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("data.categories", "--names")) from None


def _coco(names: tuple[str, ...]) -> Vocabulary:
    """COCO's categories: which of them are base is known of the open-vocabulary split alone."""
    split = load_categories("coco_ovd")
    return split if names == split.names else Vocabulary(names)


def _parts(vocabulary: Vocabulary) -> tuple[Vocabulary, ...]:
    """All of it, its base names, its novel names."""
    base, novel = tuple(n for n in vocabulary.names if n in set(vocabulary.base)), vocabulary.novel
    return vocabulary, *([Vocabulary(base, base)] if base else []), *([Vocabulary(novel)] if base and novel else [])


def name_rows(spec: str | None, rows: int, what: str) -> Vocabulary:
    """The vocabulary of `rows` rows of `what` (which the messages name).

    Without a spec only COCO's open-vocabulary split has known sizes (48, 17, 65), and its own order. ValueError if the
    number of names is another.
    """
    given = read_names(spec or "coco_ovd")
    fitting = [vocabulary for vocabulary in given.choices if len(vocabulary) == rows]
    if fitting:
        return fitting[0]
    if spec is None:
        hint = _KNOWN_ROWS.get(rows, "--names names.txt, a text file with one name a line, in the order of the rows")
        raise ValueError(
            f"{what} has {rows} rows, and nothing in the file names them. Say what they are: {hint}. (Without --names "
            "only 48, 17 and 65 rows are known, as COCO's open-vocabulary split)"
        )
    counts = [len(vocabulary) for vocabulary in given.choices]
    raise ValueError(
        f"{what} has {rows} rows, but --names {spec} gives {_or(counts)} names. Give the names that the weights were "
        "made with, in the order of the rows"
    )


def _or(counts: Sequence[int]) -> str:
    words = [str(count) for count in counts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def with_base(vocabulary: Vocabulary, train: Tensor, test: Tensor) -> tuple[Vocabulary, str | None]:
    """The vocabulary with its base names checked against the classifier of training, and a note for the report.

    Args:
        vocabulary: names of the rows of `test` [K, D]; train: [K_base, D]. Both of any norm.

    The same text encoder made both, so a base name's embedding stands in both. Where every row of `train` is found in
    `test`, that tells the base names; where none is found (random weights, other prompts), only the number can be
    checked. ValueError if what is found contradicts the vocabulary's own base names.
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
        if vocabulary.base:
            return vocabulary, None
        return vocabulary, "base names unknown: --names tells none, and the training rows are not among the test rows"
    if not vocabulary.base:
        base = tuple(vocabulary.names[row] for row in found)
        return Vocabulary(vocabulary.names, base), f"{len(base)} base names told by the rows of training"
    if found != vocabulary.base_ids:
        row = next(i for i, (a, b) in enumerate(zip(found, vocabulary.base_ids, strict=True)) if a != b)
        raise ValueError(
            f"the names are not in the order of the rows: row {row} of training is row {found[row]} of the test "
            f"classifier, which --names calls {vocabulary.names[found[row]]!r}, but the base name there is "
            f"{vocabulary.names[vocabulary.base_ids[row]]!r}. Give the names in the order of the weights"
        )
    return vocabulary, None


def rows_of(train: Tensor, test: Tensor) -> list[int] | None:
    """For each row of `train` the one row of `test` of the same direction; None unless all have just one."""
    cosines = F.normalize(train.float(), dim=1) @ F.normalize(test.float(), dim=1).T
    same = cosines > _SAME
    if not bool((same.sum(dim=1) == 1).all()):
        return None
    rows: list[int] = torch.where(same)[1].tolist()
    return rows if len(set(rows)) == len(rows) else None
