"""The public door: what `import regionclip_core` offers. This file is loaded when the first of its names is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.concepts.parser import make_parser
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.detection.assembly import open_model
from regionclip_core.detection.region_model import RegionModel
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

    >>> import regionclip_core
    >>> tables = regionclip_core.open_artifact("runs/tiny", "concepts")
    >>> sorted(tables)
    ['concepts', 'dropped', 'phrases']
    >>> tables["concepts"].column_names[:3]
    ['id', 'concept', 'head']

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
    return {name: pa.concat_tables(tables) for name, tables in parts.items()}


def parse_captions(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Return the concepts of captions with the number of captions that name each, most frequent first.

    >>> import regionclip_core
    >>> regionclip_core.parse_captions(["A dog chases two red kites.", "Dogs at a traffic light"])
    [('dog', 2), ('kite', 1), ('light', 1), ('traffic light', 1)]

    The built-in rules parse them, as with `concepts.parser: rules`; the stage of the pipeline can also use a trained
    spaCy pipeline, drop rare concepts and merge names.
    """
    if isinstance(captions, str):
        raise ValueError(f"expected a list of captions, got the text {captions[:100]!r}; write [caption]")
    counts: Counter[str] = Counter()
    for phrases in make_parser(ConceptsConfig(splits=(), parser="rules")).parse(captions):
        counts.update({phrase.text for phrase in phrases if phrase.drop_reason is None})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
