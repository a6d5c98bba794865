"""Names to embeddings: published ones where they are given, the text encoder's otherwise.

C names, n stored names, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from regionclip_core.config.tree import Config, TeacherConfig
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.prompts import embed_texts, prompt_templates
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import EMBEDDING_FILES

_log = logging.getLogger(__name__)


def read_embeddings(folder: Folder) -> tuple[tuple[str, ...], Tensor]:
    """Names and float32[n, D] of an embeddings folder.

    Raises:
        FileNotFoundError: if it has not both files.
        ValueError: if they are damaged, don't fit each other, or a name stands there twice.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    names_file, tensor_file = EMBEDDING_FILES
    for name in EMBEDDING_FILES:
        if not folder.exists(name):
            raise FileNotFoundError(
                f"teacher.embeddings: {folder.url} has no {name}; expected a folder that `regionclip import` made of "
                "an embedding file"
            )
    try:
        rows = load(folder.read_bytes(tensor_file)).get("embeddings")
    except SafetensorError as error:
        raise ValueError(
            f"teacher.embeddings: {folder.path(tensor_file)} is damaged ({error}); import it again"
        ) from None
    names = tuple(folder.read_json(names_file)["names"])
    if rows is None or rows.ndim != 2 or len(rows) != len(names):
        shape = "none" if rows is None else str(tuple(rows.shape))
        raise ValueError(
            f"teacher.embeddings: {folder.url} has {len(names)} names, expected a tensor `embeddings` with one row "
            f"each, got {shape}; import it again with the names in the order of the rows"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"teacher.embeddings: {folder.path(names_file)} names {twice!r} twice; give each row its name")
    if not bool(torch.isfinite(rows).all()) or bool((rows == 0).all(1).any()):
        raise ValueError(f"teacher.embeddings: {folder.path(tensor_file)} holds rows that are zero or not finite")
    return names, rows.float()


def embed_names(clip: ClipModel, names: Sequence[str], teacher: TeacherConfig) -> Tensor:
    """One embedding a name: float32[C, D] on the model's device, no gradient.

    The first folder of `teacher.embeddings` that holds a name gives its row, the text encoder all others, averaged
    over the prompts. With `normalize_prompts` rows have norm 1.

    Raises:
        ValueError: if stored embeddings are of another width than the model's.
    """

    given: dict[str, Tensor] = {}
    for where in teacher.embeddings:
        stored, rows = read_embeddings(Folder(where))
        if rows.shape[1] != clip.embed_dim:
            raise ValueError(
                f"teacher.embeddings: {where} has embeddings of width {rows.shape[1]}, but {clip.name} makes "
                f"{clip.embed_dim}; take those of the same architecture (RN50: 1024, RN50x4: 640)"
            )
        given = dict(zip(stored, rows, strict=True)) | given
    others = [name for name in names if name not in given]
    if teacher.embeddings and others:  # another spelling, such as LVIS's raw names, would look like this
        _log.warning(
            "teacher.embeddings: %d of %d names are in none of its folders, such as %s; the text encoder embeds them",
            len(others),
            len(names),
            others[:3],
        )
    encoded = embed_texts(clip, others, prompt_templates(teacher.prompts), teacher.normalize_prompts)
    if not given:
        return encoded
    result = torch.empty((len(names), clip.embed_dim), device=clip.device)
    is_given = torch.tensor([name in given for name in names], dtype=torch.bool, device=clip.device)
    result[~is_given] = encoded
    if bool(is_given.any()):
        rows = torch.stack([given[name] for name in names if name in given]).to(clip.device)
        result[is_given] = torch.nn.functional.normalize(rows, dim=1) if teacher.normalize_prompts else rows
    return result


def class_embeddings(clip: ClipModel, names: tuple[str, ...], config: Config) -> Tensor:
    """float32[K, D]: embeddings of category names, published ones where `teacher.embeddings` has them."""
    return embed_names(clip, names, config.teacher)
