"""Embeddings of names: published ones where they are given, the text encoder's otherwise; the stored concept pool.

Shapes: K names, n stored names, C concepts, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow.parquet as pq
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.checkpoint_files import read_safetensors
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.prompt_templates import SINGLE, prompt_templates
from regionclip_core.models.prompts import embed_texts
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import EMBEDDING_FILES
from regionclip_core.storage.tables import POOL_NAMES

PROMPTS = "prompts.json"
"""The file beside an exported text encoder that says how it embeds names."""
_POOL = "concept_embeddings"
_CHECKED = 32  # names at most
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamePrompts:
    """How a text encoder embeds names."""

    templates: tuple[str, ...]
    """Each with one `{}`."""
    normalize: bool
    """Whether each prompt's embedding is normalised before the average."""
    published: tuple[str, ...] = ()
    """Embeddings folders that are searched first; they are not written into `prompts.json`."""

    @classmethod
    def from_config(cls, teacher: TeacherConfig) -> Self:
        """Return what the teacher section says."""
        return cls(prompt_templates(teacher.prompts), teacher.normalize_prompts, teacher.embeddings)

    @classmethod
    def official(cls) -> Self:
        """Return the official code's way: the 81 templates, averages of raw embeddings."""
        return cls(prompt_templates("clip81"), False)

    def embed(self, clip: ClipModel, names: Sequence[str]) -> Tensor:
        """Return one embedding per name: float32[K, D] on the model's device, no gradient.

        A name's embedding comes from the first folder of `published` that holds it, or else from the text encoder, as
        the average over the templates. With `normalize` rows have norm 1.

        Raises:
            ValueError: if stored embeddings are of another width than the model's, or fit other names than theirs.
        """
        given: dict[str, Tensor] = {}
        for where in self.published:
            stored, rows = read_embeddings(Folder(where))
            if rows.shape[1] != clip.embed_dim:
                raise ValueError(
                    f"teacher.embeddings: {where} has embeddings of width {rows.shape[1]}, but {clip.name} makes "
                    f"{clip.embed_dim}; take those of the same architecture (RN50: 1024, RN50x4: 640)"
                )
            check_rows(clip, stored, rows, f"teacher.embeddings: {where}")
            given = dict(zip(stored, rows, strict=True)) | given
        others = [name for name in names if name not in given]
        if given and others:  # another spelling, such as LVIS's raw names, would look like this
            _log.warning(
                "teacher.embeddings: %d of %d names are in none of its folders, such as %s; the text encoder embeds "
                "them",
                len(others),
                len(names),
                others[:3],
            )
        encoded = embed_texts(clip, others, self.templates, self.normalize)
        if len(others) == len(names):
            return encoded
        result = torch.empty((len(names), clip.embed_dim), device=clip.device)
        is_given = torch.tensor([name in given for name in names], dtype=torch.bool, device=clip.device)
        result[~is_given] = encoded
        rows = torch.stack([given[name] for name in names if name in given]).to(clip.device)
        result[is_given] = torch.nn.functional.normalize(rows, dim=1) if self.normalize else rows
        return result


def check_rows(clip: ClipModel, names: Sequence[str], rows: Tensor, source: str) -> None:
    """Raise ValueError if rows [n, D] of any norm, from `source`, fit other names clearly better than their own.

    Some names, evenly spread, are embedded with one simple prompt and compared with all rows. Texts have much in
    common, so means are removed before the cosines are taken; a name's own row then has one of 0.7 to 1, also where it
    was made of 81 prompts. Rows of another encoder fit no name, and pass.
    """
    looked_at = torch.linspace(0, len(names) - 1, min(len(names), _CHECKED)).round().long().tolist()
    made = embed_texts(clip, [names[row] for row in looked_at], SINGLE, True).cpu()
    stored = torch.nn.functional.normalize(rows.float().cpu(), dim=1)
    made, stored = (torch.nn.functional.normalize(e - e.mean(0), dim=1) for e in (made, stored))
    cosines = made @ stored.T
    own, (best, nearest) = cosines[range(len(looked_at)), looked_at], cosines.max(1)
    # The largest of n cosines of unrelated directions is about sqrt(2 ln n / D).
    by_chance = math.sqrt(2 * math.log(len(names)) / clip.embed_dim)
    wrong = torch.where((best > own + 0.25) & (best > by_chance + 0.5))[0].tolist()
    if len(wrong) >= max(2, len(looked_at) / 10):
        at = wrong[0]
        raise ValueError(
            f"{source}: the names are in another order than the rows, or of another file: of {len(looked_at)} names "
            f"looked at, {len(wrong)} fit another row better than their own, by the text encoder of {clip.name}; such "
            f"as {names[looked_at[at]]!r}, whose cosine is {own[at]:.2f} with its own row and {best[at]:.2f} with that "
            f"of {names[int(nearest[at])]!r} (without the mean of all). Import it again with --names in the order of "
            "the rows"
        )


def embed_names(clip: ClipModel, names: Sequence[str], teacher: TeacherConfig) -> Tensor:
    """Return one embedding per name, float32[K, D], as the teacher section says; see `NamePrompts.embed`."""
    return NamePrompts.from_config(teacher).embed(clip, names)


def write_prompts(folder: Folder, prompts: NamePrompts) -> None:
    """Write `prompts.json`."""
    content = {"templates": list(prompts.templates), "normalize_prompts": prompts.normalize}
    folder.write_json(PROMPTS, content, indent=1)


def read_prompts(folder: Folder, default: NamePrompts | None = None) -> NamePrompts:
    """Return what `write_prompts` wrote; `default`, or else the official prompts, where nothing was written.

    Raises:
        ValueError: if the file's content is something else.
    """
    if not folder.exists(PROMPTS):
        return default or NamePrompts.official()
    found = folder.read_json(PROMPTS)
    templates, normalize = found.get("templates"), found.get("normalize_prompts")
    fits = (
        isinstance(templates, list) and templates and all(isinstance(t, str) and t.count("{}") == 1 for t in templates)
    )
    if not fits or not isinstance(normalize, bool):
        raise ValueError(
            f"{folder.path(PROMPTS)}: expected `templates`, a list of texts with one {{}} each, and "
            f"`normalize_prompts`, true or false, got {found}; delete it to use the official prompts"
        )
    return NamePrompts(tuple(templates), normalize)


def read_embeddings(folder: Folder, setting: str = "teacher.embeddings") -> tuple[tuple[str, ...], Tensor]:
    """Return names and float32[n, D] of an embeddings folder; `setting` is what the user set, for messages.

    Raises:
        FileNotFoundError: if one of its two files is not there.
        ValueError: if they are damaged, don't fit each other, or have a name twice.
    """
    names_file, tensor_file = EMBEDDING_FILES
    for name in EMBEDDING_FILES:
        if not folder.exists(name):
            raise FileNotFoundError(
                f"{setting}: {folder.url} has no {name}; expected a folder that `regionclip import` made of "
                "an embedding file"
            )
    rows = read_safetensors(folder, tensor_file).get("embeddings")
    names = tuple(folder.read_json(names_file)["names"])
    shape = () if rows is None else tuple(rows.shape)
    if rows is None or len(shape) != 2 or len(rows) != len(names):
        problem = f"has {len(names)} names and a tensor `embeddings` of shape {shape}; expected one row per name"
    elif len(set(names)) < len(names):
        problem = f"has the name {next(name for name in names if names.count(name) > 1)!r} twice"
    elif not bool(torch.isfinite(rows).all()) or bool((rows == 0).all(1).any()):
        problem = "has rows that are zero or not finite"
    else:
        return names, rows.float()
    raise ValueError(f"{setting}: {folder.url} {problem}; import it again, names in the order of the rows")


# ---------------------------------------------------------------- the concept pool


def read_pool(concepts: Folder) -> Vocabulary:
    """Return the pool's names in the order of their ids, from the artifact of the concepts stage.

    Raises:
        ValueError: if the pool is empty.
    """
    with concepts.open_table("concepts.parquet") as file:
        names = pq.read_table(file, columns=["concept"])["concept"].to_pylist()
    if not names:
        raise ValueError(f"the concept pool in {concepts.url} is empty; lower concepts.min_count")
    return Vocabulary(names=tuple(names), base=())


def embed_pool(
    clip: ClipModel, concepts: Folder, teacher: TeacherConfig, more: Sequence[str] = ()
) -> tuple[Vocabulary, Tensor]:
    """Return the pool, with `more` names at its end, and its embeddings, float32[C, D] with rows of unit length; see
    `NamePrompts.embed`."""
    pool = Vocabulary((*read_pool(concepts).names, *more))
    embeddings_CD = embed_names(clip, pool.names, teacher)
    return pool, embeddings_CD / embeddings_CD.norm(dim=1, keepdim=True)


def save_embeddings(folder: Folder, pool: Vocabulary, embeddings_CD: Tensor) -> None:
    """Write `concept_embeddings.safetensors` and, beside it, the names that the rows belong to."""
    folder.write_bytes(f"{_POOL}.safetensors", save_tensors({"embeddings": embeddings_CD.cpu().contiguous()}))
    folder.write_json(POOL_NAMES, pool.to_json())


def load_embeddings(folder: Folder) -> tuple[Vocabulary, Tensor]:
    """Return what `save_embeddings` wrote."""
    embeddings_CD = read_safetensors(folder, f"{_POOL}.safetensors")["embeddings"]
    return Vocabulary.from_json(folder.read_json(POOL_NAMES)), embeddings_CD
