"""SigLIP: regions through the attention pool, the tokenizer from files, what its probabilities mean, CLIP files."""

from __future__ import annotations

import copy
import itertools
import math
import socket
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_towers import SIGLIP, WORDS, naive_bins, naive_pool, small_clip, tower, write_tokenizer
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.models.clip import ClipModel, build_clip, create_clip, load_clip, save_clip
from regionclip_core.models.siglip_encoder import SiglipEncoder
from regionclip_core.models.towers import region_encoder
from regionclip_core.pretraining.pseudo_labels import pseudo_labels
from regionclip_core.storage.records import Folder

CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def with_tokenizer(folder: Path, **text: Any) -> ClipModel:
    pytest.importorskip("transformers")
    write_tokenizer(folder)
    description = copy.deepcopy(SIGLIP)
    description["text_cfg"] |= {"hf_tokenizer_name": str(folder), **text}
    return small_clip(description)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ---------------------------------------------------------------- regions


SLOW = ["ViT-L-16-SigLIP2-256", "ViT-B-16-SigLIP-384"]


@pytest.mark.parametrize(
    "name", ["small", "ViT-B-16-SigLIP", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_whole_image_has_the_models_own_embedding(name: str) -> None:
    visual = small_clip(SIGLIP).model.visual if name == "small" else tower(name)
    side = visual.image_size[0]
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    encoder = SiglipEncoder(visual)
    with torch.no_grad():
        found = encoder(image, [torch.tensor([[0.0, 0.0, side, side]])])
        own = visual(image)
    grid = side // encoder.stride
    assert encoder.roi_size == min(16, grid)
    if grid <= 16:
        torch.testing.assert_close(found, own, **CLOSE)
    else:  # 16 bins over 24 patches
        assert float(torch.cosine_similarity(found, own)) > 0.999


def test_regions_at_another_size_against_timm_and_a_loop() -> None:
    """Patch features by timm's tower for this very size, then every bin and every key by itself."""
    visual = small_clip(SIGLIP).model.visual
    image = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    boxes = [(0.0, 0.0, 56.0, 40.0), (8.0, 16.0, 40.0, 32.0), (3.0, 4.0, 20.0, 39.0)]
    reference = copy.deepcopy(visual.trunk)
    reference.patch_embed.strict_img_size = False
    reference.pos_embed = nn.Parameter(resample_abs_pos_embed(visual.trunk.pos_embed, [5, 7], num_prefix_tokens=0))
    with torch.no_grad():
        patches = reference.forward_features(image)[0].T.reshape(24, 5, 7)
        expected = [naive_pool(reference.attn_pool, naive_bins(patches, box, stride=8, bins=4)) for box in boxes]
        found = SiglipEncoder(visual)(image, [torch.tensor(boxes)])
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)


def test_an_empty_region_is_the_pool_of_one_value() -> None:
    """All bins of a tiny box hold the same: the pool then passes on the value path of that one place."""
    encoder = region_encoder(small_clip(SIGLIP))
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = encoder(image, [torch.tensor([[11.99, 11.99, 12.01, 12.01]])])[0]
        centre = encoder.features(image)[0, :, 1, 1]
        torch.testing.assert_close(found, naive_pool(encoder.trunk.attn_pool, [centre]), atol=2e-3, rtol=2e-3)


# ---------------------------------------------------------------- text


def test_tokens_are_those_of_the_files(tmp_path: Path, no_network: None) -> None:
    clip = with_tokenizer(tmp_path / "tokens")
    rows = clip.tokenizer(["A photo of the red CAT.", "unicorn"])
    # "canonicalize": lower case, no punctuation
    assert [WORDS[n] for n in rows[0].tolist()][:8] == ["a", "photo", "of", "the", "red", "cat", "</s>", "<pad>"]
    assert rows.shape == (2, 16)
    assert rows[1].tolist() == [1, 2] + [0] * 14
    long = clip.tokenizer(["cat " * 40])[0].tolist()
    assert long == [6] * 15 + [2]
    assert clip.encode_text(["a cat", "a dog"]).shape == (2, 24)


def test_the_saved_model_has_its_tokenizer_with_it(tmp_path: Path, no_network: None) -> None:
    clip = with_tokenizer(tmp_path / "tokens")
    save_clip(clip, Folder(str(tmp_path / "saved")))
    (tmp_path / "tokens" / "tokenizer.json").unlink()
    loaded = load_clip(Folder(str(tmp_path / "saved")))
    texts, images = ["a cat", "the red bus"], torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode_text(texts), clip.encode_text(texts))
    assert torch.equal(loaded.encode_images(images), clip.encode_images(images))
    assert loaded.architecture == clip.architecture
    save_clip(loaded, Folder(str(tmp_path / "again")))
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == ["clip.json", "clip.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_open_clip_opens_what_was_saved(tmp_path: Path, no_network: None) -> None:
    clip = with_tokenizer(tmp_path / "tokens")
    save_clip(clip, Folder(str(tmp_path / "saved")))
    (tmp_path / "saved" / "clip.safetensors").rename(tmp_path / "saved" / "open_clip_model.safetensors")
    (tmp_path / "saved" / "clip.json").rename(tmp_path / "saved" / "open_clip_config.json")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'saved'}")(["a cat"])
    assert torch.equal(model.encode_text(tokens), clip.encode_text(["a cat"]))
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.encode_image(image), clip.encode_images(image))


def put_in_hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, repository: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    home = folder / f"models--{repository.replace('/', '--')}"
    write_tokenizer(home / "snapshots" / "0123abcd")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abcd")


def test_tokens_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    pytest.importorskip("transformers")
    put_in_hub_cache(tmp_path, monkeypatch, "nobody/nowhere")
    assert small_clip(SIGLIP).tokenizer(["a cat"])[0, :3].tolist() == [3, 6, 2]


def test_an_absent_tokenizer_says_how_to_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    clip = small_clip(SIGLIP)
    assert clip.encode_images(torch.randn(1, 3, 32, 32)).shape == (1, 24)  # needs none
    wanted = r"nobody/nowhere is not on this machine[\s\S]*AutoTokenizer.from_pretrained\('nobody/nowhere'\)"
    for ask in (lambda: clip.encode_text(["a cat"]), lambda: save_clip(clip, Folder(str(tmp_path / "saved")))):
        with pytest.raises(FileNotFoundError, match=wanted):
            ask()
    assert not (tmp_path / "saved").exists()


# ---------------------------------------------------------------- probabilities


def test_the_temperature_has_no_ceiling_of_clips() -> None:
    clip = build_clip(SIGLIP, "small", 0)
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(117.0))
    assert clip.logit_scale == pytest.approx(117.0)
    assert clip.model.logit_bias.item() == -10


def test_the_softmax_is_the_probability_given_that_one_concept_fits() -> None:
    """By going through all ways in which five independent sigmoids can come out."""
    scale, bias = 117.0, -12.0
    generator = torch.Generator().manual_seed(0)
    region = torch.randn(1, 6, generator=generator)
    concepts = torch.nn.functional.normalize(torch.randn(5, 6, generator=generator) + 3 * region, dim=1)
    cosines = (torch.nn.functional.normalize(region, dim=1) @ concepts.T)[0].double()
    fits = torch.sigmoid(scale * (cosines - cosines.mean()) / 20 + bias).tolist()
    only = [0.0] * 5
    for outcome in itertools.product((False, True), repeat=5):
        if sum(outcome) == 1:
            only[outcome.index(True)] += math.prod(f if yes else 1 - f for f, yes in zip(fits, outcome, strict=True))
    found = pseudo_labels(region, concepts, 20 / scale, threshold=0.0, top_k=5)
    expected = {n: probability / sum(only) for n, probability in enumerate(only)}
    for concept, probability in zip(found.top_concepts[0].tolist(), found.top_probabilities[0].tolist(), strict=True):
        assert probability == pytest.approx(expected[concept], rel=1e-4)


def test_published_weights_are_fed_pixels_from_minus_one_to_one() -> None:
    """Also where they come from a file, which doesn't say."""
    description = copy.deepcopy(SIGLIP)
    for name, mean in (("ViT-B-16-SigLIP", 0.5), ("RN50", 0.48145466), ("anything", 0.48145466)):
        assert build_clip(description, name, 0).mean[0] == pytest.approx(mean)


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_weights_that_lie_beside_their_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, layout: str
) -> None:
    """Names and pixels of ViT-B-16-SigLIP, in a small model."""
    clip = with_tokenizer(tmp_path / "tokens")
    description = {**clip.architecture, "text_cfg": {**clip.architecture["text_cfg"], "hf_tokenizer_name": "no/body"}}
    monkeypatch.setattr("regionclip_core.models.clip.named_architecture", lambda name: copy.deepcopy(description))
    clip.architecture = description
    clip.model.logit_scale.data.fill_(3.0)
    save_clip(clip, Folder(str(tmp_path / "saved")))
    weights = tmp_path / "saved"
    if layout == "file":
        (weights / "clip.json").unlink()
        state = load_file(weights / "clip.safetensors")
        state |= {key: state[key].reshape(1) for key in ("logit_scale", "logit_bias")}  # as some files have them
        save_file(state, weights / "clip.safetensors")
        weights = weights / "clip.safetensors"
    found = create_clip(TeacherConfig(model="ViT-B-16-SigLIP", weights=str(weights)), 0)
    assert torch.equal(found.encode_text(["a cat"]), clip.encode_text(["a cat"]))
    assert found.logit_scale == pytest.approx(math.exp(3.0))
    if layout == "file":
        assert found.mean == (0.5, 0.5, 0.5)
