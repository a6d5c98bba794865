"""The concept pool's embeddings against the text encoder, name by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_artifacts import tiny_clip

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.prompts import prompt_templates
from regionclip_core.models.text_embeddings import embed_pool, load_embeddings, read_pool, save_embeddings
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import CONCEPTS

NAMES = ("red kite", "cup", "tea cup", "zebra", "apple")


def write_pool(url: Path, names: tuple[str, ...]) -> Folder:
    folder = Folder(str(url))
    same = {"n_words": 1, "n_captions": 2, "n_images": 2, "n_mentions": 2, "surface_forms": [], "source": "parsed"}
    rows = [{"id": i, "concept": name, "head": name, **same} for i, name in enumerate(names)]
    with folder.write("concepts.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=CONCEPTS), file)
    return folder


def test_names_keep_the_order_of_their_ids(tmp_path: Path) -> None:
    assert read_pool(write_pool(tmp_path, NAMES)) == Vocabulary(NAMES)


def test_an_empty_pool_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is empty; lower concepts\.min_count"):
        read_pool(write_pool(tmp_path, ()))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("prompts", ["single", "short"])
def test_embeddings_against_a_loop(tmp_path: Path, normalize: bool, prompts: str) -> None:
    clip = tiny_clip()
    settings = TeacherConfig(weights="random", prompts=prompts, normalize_prompts=normalize)
    pool, embeddings = embed_pool(clip, write_pool(tmp_path, NAMES), settings)
    assert pool.names == NAMES
    for name, found in zip(NAMES, embeddings, strict=True):
        with torch.no_grad():
            texts = [template.replace("{}", name) for template in prompt_templates(prompts)]
            rows = [clip.model.encode_text(clip.tokenizer([text]))[0] for text in texts]
        mean = torch.stack([row / row.norm() if normalize else row for row in rows]).mean(0)
        torch.testing.assert_close(found, mean / mean.norm(), atol=1e-5, rtol=1e-5)


def test_stored_embeddings_come_back_with_their_names(tmp_path: Path) -> None:
    pool, embeddings = Vocabulary(NAMES), torch.randn(5, 16)
    save_embeddings(Folder(str(tmp_path)), pool, embeddings.T.contiguous().T)
    found, again = load_embeddings(Folder(str(tmp_path)))
    assert found.digest == pool.digest
    assert torch.equal(again, embeddings)
