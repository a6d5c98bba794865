"""The concept pool as embeddings: computed once by the labels stage, read by labels and pretrain.

C concepts, D embedding.
"""

from __future__ import annotations

import pyarrow.parquet as pq
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.storage.records import Folder

_NAME = "concept_embeddings"


def read_pool(concepts: Folder) -> Vocabulary:
    """The pool's names in the order of their ids, from the concepts stage.

    Raises:
        ValueError: if the pool is empty.
    """
    with concepts.open_table("concepts.parquet") as file:
        names = pq.read_table(file, columns=["concept"])["concept"].to_pylist()
    if not names:
        raise ValueError(f"the concept pool in {concepts.url} is empty; lower concepts.min_count")
    return Vocabulary(names=tuple(names), base=())


def embed_pool(clip: ClipModel, concepts: Folder, teacher: TeacherConfig) -> tuple[Vocabulary, Tensor]:
    """The pool and its embeddings, float32[C, D] with rows of unit length; see `embed_names`."""
    pool = read_pool(concepts)
    embeddings_CD = embed_names(clip, pool.names, teacher)
    return pool, embeddings_CD / embeddings_CD.norm(dim=1, keepdim=True)


def save_embeddings(folder: Folder, pool: Vocabulary, embeddings_CD: Tensor) -> None:
    """Write `concept_embeddings.safetensors` and, beside it, the names they belong to."""
    folder.write_bytes(f"{_NAME}.safetensors", save_tensors({"embeddings": embeddings_CD.cpu().contiguous()}))
    folder.write_json(f"{_NAME}.json", pool.to_json())


def load_embeddings(folder: Folder) -> tuple[Vocabulary, Tensor]:
    """What `save_embeddings` wrote."""
    embeddings_CD = load_tensors(folder.read_bytes(f"{_NAME}.safetensors"))["embeddings"]
    return Vocabulary.from_json(folder.read_json(f"{_NAME}.json")), embeddings_CD
