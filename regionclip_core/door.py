"""The public door to models and artifacts, loaded when one of its names is used.

That to captions, which needs spaCy, is `concepts/caption_pool.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.assembly import open_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.storage.records import Folder, read_manifest, read_records


def load(
    path: str,
    *,
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    embeddings: str | None = None,
    device: str = "cpu",
) -> RegionModel:
    """Load a model that knows regions: it finds objects by name, and gives features of boxes and of names.

    >>> import regionclip_core
    >>> model = regionclip_core.load("detector")
    >>> names = ["cup", "traffic light"]
    >>> [found] = model.detect("photo.jpg", names)  # one result per image
    >>> for box, score, label in zip(found.boxes, found.scores, found.labels):
    ...     print(names[label], round(float(score), 2), box.round().tolist())  # doctest: +ELLIPSIS
    traffic light 0...
    >>> features = model.region_features("photo.jpg", [[10, 20, 60, 90], [0, 0, 80, 40]])
    >>> cosines = features @ model.embed(names).T
    >>> cosines.shape
    torch.Size([2, 2])

    Args:
        path: a detector folder, as `regionclip export detector` and `regionclip import` make them; a CLIP folder, such
            as an exported student or the artifact of the teacher or pretrain stage; or an imported pretraining file.
            A path or fsspec URL. A CLIP folder needs `rpn` to detect; without, it gives features and embeddings, and
            sees images at the official 800 pixels of the shorter side (`model.adjusted(image_size=...)` changes that).
        rpn: folder or file of a proposal network, instead of the model's own.
        text: CLIP folder whose text encoder embeds names, instead of the model's own.
        prompts: templates for the names: `single`, `short`, `clip81` or a text file, instead of the model's own.
        embeddings: folder that `regionclip import` made of published class embeddings; its names become the model's.
        device: `cpu`, `cuda` or what else torch knows.

    Raises:
        ValueError: if there is no model, or its parts don't fit each other.
    """
    return open_model(path, rpn=rpn, text=text, prompts=prompts, embeddings=embeddings, device=device)


def open_artifact(workspace: str, stage: str | None = None) -> dict[str, pa.Table]:
    """Open the tables of a finished artifact, by name; those of several shards as one table.

    Beside each column of ids is one of names: `box_names` beside `box_labels` (null: not in the categories),
    `concept_name` beside `concept_id`, `top_names` beside `top_concepts`.

    >>> import regionclip_core
    >>> tables = regionclip_core.open_artifact("runs/tiny", "concepts")
    >>> sorted(tables)
    ['concepts', 'dropped', 'phrases']
    >>> tables["concepts"].column_names[:3]
    ['id', 'concept', 'head']
    >>> labels = regionclip_core.open_artifact("runs/tiny", "labels")["labels"]
    >>> len(labels["concept_name"][0]) == len(labels["concept_id"][0])
    True

    Args:
        workspace: a workspace, of which the stage's newest artifact is opened; without `stage` an artifact's folder.
        stage: data, concepts, proposals or labels: the stages that write tables.

    Raises:
        FileNotFoundError: if there is no finished artifact.
        ValueError: if it has no tables.
    """
    folder = Folder(workspace)
    if stage is not None:
        of_stage = [Folder(workspace).child(stage).child(name) for name in folder.child(stage).folders()]
        done = [(manifest.provenance.get("finished", ""), f) for f in of_stage if (manifest := read_manifest(f))]
        if not done:
            raise FileNotFoundError(f"{workspace} has no finished artifact of the stage {stage}; run it first")
        folder = max(done, key=lambda item: item[0])[1]
    shards, others = read_records(folder)
    files = [file.name for shard in shards for file in shard.files] + [file.name for file in others]
    parts: dict[str, list[pa.Table]] = {}
    for name in files:
        if name.endswith(".parquet"):
            with folder.open_table(name) as file:
                parts.setdefault(re.sub(r"(-\d+)?\.parquet$", "", name), []).append(pq.read_table(file))
    if not parts:
        raise ValueError(f"{folder.url} holds no tables, but {sorted(files)[:5]}")
    whole = {name: pa.concat_tables(tables) for name, tables in parts.items()}
    if "index" in whole:
        names = Vocabulary.from_json(folder.read_json("categories.json")).names
        whole["index"] = _with_names(whole["index"], "box_labels", "box_names", names)
    if "labels" in whole:
        names = load_embeddings(folder)[0].names
        for ids, named in (("concept_id", "concept_name"), ("top_concepts", "top_names")):
            whole["labels"] = _with_names(whole["labels"], ids, named, names)
    return whole


def _with_names(table: pa.Table, ids: str, named: str, names: Sequence[str]) -> pa.Table:
    """Return the table with a column of names after that of ids, lists of int32 rows of `names`; null for -1."""

    def name_of(column: pa.Array) -> pa.Array:
        if pa.types.is_list(column.type):
            return pa.ListArray.from_arrays(column.offsets, name_of(column.values))
        known = pc.if_else(pc.greater_equal(column, 0), column, None)
        return pa.DictionaryArray.from_arrays(known, pa.array(names, pa.string()))

    chunks = [name_of(chunk) for chunk in table[ids].chunks]
    kind = chunks[0].type if chunks else pa.null()
    return table.add_column(table.column_names.index(ids) + 1, named, pa.chunked_array(chunks, kind))
