"""Embeddings of names: published rows where there are any, the text encoder's otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from small_artifacts import tiny_clip, tiny_config

from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.clip import ClipModel, build_clip, small_architecture
from regionclip_core.models.prompt_templates import SHORT, prompt_templates
from regionclip_core.models.prompts import embed_texts
from regionclip_core.models.text_embeddings import (
    check_rows,
    embed_names,
    embed_pool,
    load_embeddings,
    read_embeddings,
    read_pool,
    save_embeddings,
)
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import text_files, text_settings
from regionclip_core.storage.tables import CONCEPTS

WIDTH = 16


def write_folder(path: Path, names: list[str], rows: torch.Tensor) -> str:
    path.mkdir()
    save_file({"embeddings": rows}, str(path / "embeddings.safetensors"))
    (path / "embeddings.json").write_text(json.dumps({"names": names}))
    return str(path)


def teacher(*folders: str, normalize: bool = False) -> TeacherConfig:
    return TeacherConfig(weights="random", prompts="short", normalize_prompts=normalize, embeddings=folders)


@pytest.mark.parametrize("normalize", [True, False])
def test_stored_rows_come_before_the_text_encoder_and_earlier_folders_before_later_ones(
    tmp_path: Path, normalize: bool
) -> None:
    clip = tiny_clip()
    first, second = torch.randn(2, WIDTH), torch.randn(3, WIDTH) * 5
    folders = (
        write_folder(tmp_path / "a", ["cat", "aerosol can"], first),
        write_folder(tmp_path / "b", ["dog", "cat", "kite"], second),
    )
    found = embed_names(clip, ["bus", "cat", "dog", "cup", "aerosol can"], teacher(*folders, normalize=normalize))
    encoded = embed_texts(clip, ["bus", "cup"], ("{}.", *_short()), normalize)
    expected = torch.stack([encoded[0], first[0], second[0], encoded[1], first[1]])
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)


def test_names_that_no_folder_has_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file imported under LVIS's raw names would give its one-word names alone, and nobody would see it."""
    folder = write_folder(tmp_path / "a", ["cat", "aerosol_can"], torch.randn(2, WIDTH))
    embed_names(tiny_clip(), ["cat"], teacher(folder))
    assert not caplog.messages
    embed_names(tiny_clip(), ["cat", "aerosol can"], teacher(folder))
    assert caplog.messages == [
        "teacher.embeddings: 1 of 2 names are in none of its folders, such as ['aerosol can']; the text encoder embeds "
        "them"
    ]


def _short() -> tuple[str, ...]:
    assert SHORT[0] == "{}."
    return SHORT[1:]


def test_without_folders_it_is_the_text_encoder(tmp_path: Path) -> None:
    clip = tiny_clip()
    expected = embed_texts(clip, ["cat"], ("{}.", *_short()), False)
    torch.testing.assert_close(embed_names(clip, ["cat"], teacher()), expected)
    others = write_folder(tmp_path / "a", ["zebra"], torch.ones(1, WIDTH))
    torch.testing.assert_close(embed_names(clip, ["cat"], teacher(others)), expected)


def test_stored_names_are_embedded_for_the_check_only(tmp_path: Path) -> None:
    rows = torch.randn(2, WIDTH)
    folder = write_folder(tmp_path / "a", ["cat", "dog"], rows.half())
    clip = tiny_clip()
    tokenizer, asked = clip.tokenizer, list[str]()
    clip.tokenizer = lambda texts: (asked.extend(texts), tokenizer(texts))[1]
    torch.testing.assert_close(embed_names(clip, ["dog", "cat"], teacher(folder)), rows.half().float().flip(0))
    assert asked == ["a photo of a cat.", "a photo of a dog."]


# ---------------------------------------------------------------- rows of other names


def wide_clip(seed: int) -> ClipModel:
    """A text encoder of 128 numbers: in fewer, cosines of unrelated directions are too large to be told apart."""
    architecture = ClipArchitecture(image_size=32, vision_width=8, context_length=16)
    return build_clip(small_architecture(architecture), "small", seed)


def many_names() -> list[str]:
    return list(load_categories("coco_ovd").names)


@pytest.mark.parametrize("names", [many_names(), many_names()[:5], many_names()[:2], many_names()[:1]])
@pytest.mark.parametrize("prompts", ["single", "short", "clip81"])
def test_embeddings_of_other_prompts_fit_their_names(names: list[str], prompts: str) -> None:
    clip = wide_clip(0)
    for normalize in (True, False):
        check_rows(clip, names, embed_texts(clip, names, prompt_templates(prompts), normalize).half(), "e")


@pytest.mark.parametrize(("count", "turn"), [(65, 1), (65, 30), (5, 1), (2, 1)])
def test_names_in_another_order_are_refused_with_the_numbers(tmp_path: Path, count: int, turn: int) -> None:
    clip, names = wide_clip(0), many_names()[:count]
    rows = embed_texts(clip, names, prompt_templates("clip81"), False)
    folder = write_folder(tmp_path / "a", names[turn:] + names[:turn], rows)
    looked_at = min(count, 32)
    with pytest.raises(ValueError, match=rf"a: the names are in another order.*of {looked_at} names looked at") as said:
        embed_names(clip, ["kite"], teacher(folder))
    found = re.search(
        r"looked at, (\d+) fit another row.*as '(.+)', whose cosine is (-?\d\.\d+) .* and (\d\.\d+) with that of "
        r"'(.+)' \(",
        str(said.value),
    )
    assert found is not None
    assert int(found[1]) > 0.75 * looked_at
    assert float(found[3]) + 0.25 < float(found[4])
    # The better row is the name's own one, under the name that it was given.
    shuffled = names[turn:] + names[:turn]
    assert found[5] == shuffled[names.index(found[2])]


def test_half_a_list_that_moved_by_one_is_refused() -> None:
    clip, names = wide_clip(0), many_names()
    rows = embed_texts(clip, names, SHORT, True)
    rows[32:] = rows[32:].roll(1, 0)
    with pytest.raises(ValueError, match=r"of 32 names looked at, 1\d fit another row better"):
        check_rows(clip, names, rows, "e")


def test_rows_of_another_encoder_pass() -> None:
    """Nothing says that they are in a wrong order, as with random weights for trying out."""
    names = many_names()
    for rows in (embed_texts(wide_clip(1), names, SHORT, False), torch.randn(65, 128)):
        check_rows(wide_clip(0), names, rows, "e")


def test_class_embeddings_and_pool_take_them(tmp_path: Path) -> None:
    rows = torch.randn(2, WIDTH)
    folder = write_folder(tmp_path / "a", ["cat", "zebra"], rows)
    config = tiny_config(teacher={"embeddings": [folder], "normalize_prompts": False})
    clip = tiny_clip()
    torch.testing.assert_close(embed_names(clip, ("dog", "cat"), config.teacher)[1], rows[0])
    _, pool = embed_pool(clip, write_pool(tmp_path / "pool", ("zebra", "cup")), config.teacher)
    torch.testing.assert_close(pool[0], rows[1] / rows[1].norm())


def test_another_width_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x4", ["cat"], torch.randn(1, 640))
    with pytest.raises(ValueError, match=r"x4 has embeddings of width 640, but small makes 16"):
        embed_names(tiny_clip(), ["cat"], teacher(folder))


@pytest.mark.parametrize(
    ("names", "rows", "match"),
    [
        (["cat"], torch.ones(2, 3), r"1 names.*of shape \(2, 3\)"),
        (["cat"], torch.ones(3), r"of shape \(3,\)"),
        (["cat", "cat"], torch.ones(2, 3), "'cat' twice"),
        (["cat"], torch.zeros(1, 3), "zero or not finite"),
        (["cat"], torch.full((1, 3), float("nan")), "zero or not finite"),
    ],
)
def test_folders_that_make_no_sense_are_refused(
    tmp_path: Path, names: list[str], rows: torch.Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        read_embeddings(Folder(write_folder(tmp_path / "a", names, rows)))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"embeddings\.json"):
        read_embeddings(Folder(str(tmp_path / "nowhere")))
    folder = write_folder(tmp_path / "a", ["cat"], torch.ones(1, 3))
    whole = (tmp_path / "a" / "embeddings.safetensors").read_bytes()
    (tmp_path / "a" / "embeddings.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="damaged"):
        read_embeddings(Folder(folder))


def test_folders_count_in_fingerprints_by_content_and_order(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, [name], torch.ones(1, WIDTH)) for name in ("a", "b")]
    config = teacher(*folders)
    assert text_files(config) == [
        f"{folder}/{name}" for folder in folders for name in ("embeddings.json", "embeddings.safetensors")
    ]
    assert text_settings(config)["embeddings"] == folders
    assert text_settings(config) != text_settings(teacher(*folders[::-1]))


# ---------------------------------------------------------------- the concept pool

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
