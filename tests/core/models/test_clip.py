"""CLIP models: text tower and tokenizer against the official ones, where weights come from, saving."""

import json
import socket

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, QuickGELU, _build_text_tower
from open_clip.tokenizer import SimpleTokenizer
from places import GOLDEN
from safetensors.torch import save_file
from small_artifacts import tiny_config

import regionclip_core.models.clip as clip_module
from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.clip import (
    OPEN_CLIP_LAYOUT,
    build_clip,
    create_clip,
    load_clip,
    named_architecture,
    save_clip,
)
from regionclip_core.models.text_encoder import encode_tokens
from regionclip_core.models.tokenization import make_tokenizer
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.teacher import WORK

TEXT = np.load(GOLDEN / "text_encoder.npz")
TOKENS = json.loads((GOLDEN / "tokenizer.json").read_text())
TINY = ClipArchitecture(vision_width=8, embed_dim=16, text_width=16, text_heads=2, context_length=12)


def config(**settings):
    return TeacherConfig(**{"weights": "random", "architecture": TINY, **settings})


def state_of(clip):
    return {key: value.clone() for key, value in clip.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- text


def golden_clip():
    """A CLIP whose text tower holds the golden weights, built as every other model here."""
    architecture = clip_module.small_architecture(TINY)
    architecture |= {"embed_dim": 24, "quick_gelu": True}
    architecture["text_cfg"] = {"context_length": 77, "vocab_size": 512, "width": 32, "heads": 2, "layers": 2}
    clip = build_clip(architecture, "golden", 0)
    state = clip.model.state_dict()
    weights = {key[2:]: torch.from_numpy(TEXT[key]) for key in TEXT.files if key.startswith("w/")}
    assert not weights.keys() - state.keys()
    assert {key for key in state.keys() - weights.keys() if not key.startswith("visual.")} == {"logit_scale"}
    clip.model.load_state_dict(weights, strict=False)
    return clip


def test_text_features_match_the_official_ones():
    model = golden_clip().model
    tokens = torch.from_numpy(TEXT["tokens"])
    assert np.array_equal(tokens.argmax(1).numpy(), TEXT["eot_index"])
    expected = torch.from_numpy(TEXT["text_features"])
    for features in (model.encode_text(tokens), encode_tokens(model, tokens), encode_tokens(model, tokens[-1:])):
        torch.testing.assert_close(features, expected[-len(features) :], atol=5e-6, rtol=1e-5)
    assert len(set(tokens.argmax(1).tolist())) > 3  # texts of several lengths


def test_raw_prompt_average_matches_the_official_one(monkeypatch):
    from regionclip_core.models.prompts import embed_texts

    clip = golden_clip()
    rows = iter(torch.from_numpy(TEXT["tokens"][:6]).split(4))
    clip.tokenizer = lambda texts: next(rows)
    mean = embed_texts(clip, ["anything"], ["{}"] * 6, normalize_prompts=False, batch_size=4)
    torch.testing.assert_close(mean[0], torch.from_numpy(TEXT["template_mean_of_first6"]), atol=5e-6, rtol=1e-5)


def test_activation_matters_to_the_golden():
    """The golden differs between QuickGELU and GELU, so matching it shows that quick_gelu arrives."""
    clip = golden_clip()
    other = build_clip({**clip.architecture, "quick_gelu": False}, "gelu", 0)
    other.model.load_state_dict(clip.model.state_dict())
    tokens = torch.from_numpy(TEXT["tokens"])
    assert (other.model.encode_text(tokens) - clip.model.encode_text(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("case", TOKENS["texts"], ids=lambda case: case["text"][:20])
def test_tokens_match_the_official_ones(case):
    # open_clip writes CLIP's two special tokens differently; the official spelling is ordinary text to it.
    text = case["text"].replace("<|startoftext|>", "<start_of_text>").replace("<|endoftext|>", "<end_of_text>")
    ids = SimpleTokenizer().encode(text)
    assert ids == case["ids"]
    row = SimpleTokenizer(context_length=77)([text])[0].tolist()
    prefix = list(case["padded77_nonzero_prefix"])
    if len(ids) + 2 > 77:
        # The official tokenizer cuts the end token off, so that every such text gets the embedding of the start
        # token. Here the last id is the end token again.
        assert prefix[-1] != TOKENS["eot"]
        prefix[-1] = TOKENS["eot"]
    assert row[: len(prefix)] == prefix
    assert not any(row[len(prefix) :])


def test_tokenizer_has_the_context_of_the_architecture():
    clip = create_clip(config(), 0)
    rows = clip.tokenizer(["a cat", "one two three four five six seven eight nine ten eleven twelve"])
    assert rows.shape == (2, 12)
    assert rows[1, 11] == rows.max() == TOKENS["eot"]
    assert clip.encode_text(["a cat"]).shape == (1, 16)


# ---------------------------------------------------------------- building


def test_random_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one = create_clip(config(), seed=5)
    assert torch.equal(torch.rand(3), expected)  # the global generator was left alone
    two = create_clip(config(weights="train", training={"splits": ("train",)}), seed=5)
    assert same(state_of(one), state_of(two))
    assert not same(state_of(one), state_of(create_clip(config(), seed=6)))
    assert not one.model.training


def test_small_architecture():
    clip = create_clip(TeacherConfig(weights="random"), 0)
    visual = clip.model.visual
    assert (visual.image_size, visual.output_dim, visual.attnpool.num_heads) == (64, 128, 8)
    assert [len(getattr(visual, f"layer{i}")) for i in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert clip.model.token_embedding.weight.shape == (TOKENS["vocab_size"], 128)
    assert clip.model.context_length == 32
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert clip.embed_dim == clip.encode_images(torch.zeros(1, 3, 64, 64)).shape[1] == 128


def test_models_share_a_tokenizer_only_with_the_same_options():
    short, long, again = (make_tokenizer({"context_length": length}) for length in (8, 12, 8))
    assert short is again and [one(["a cat"]).shape for one in (short, long)] == [(1, 8), (1, 12)]
    cleaning = make_tokenizer({"context_length": 8, "tokenizer_kwargs": {"clean": "canonicalize"}})
    assert cleaning(["A cat."]).equal(short(["a cat"])) and not short(["A cat."]).equal(short(["a cat"]))


@pytest.mark.parametrize(
    ("change", "match"),
    [({"image_size": 80}, "multiple of 32"), ({"text_heads": 3}, "text_heads"), ({"vision_width": 7}, "multiple of 2")],
)
def test_impossible_architectures_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        create_clip(TeacherConfig(weights="random", architecture=ClipArchitecture(**TINY.model_dump() | change)), 0)


@pytest.mark.parametrize(
    "name", ["RN50", "RN50x4", "RN101", "ViT-B-32", "RN50-quickgelu", "ViT-B-16-SigLIP", "convnext_base"]
)
def test_named_architectures_are_open_clips(name):
    assert named_architecture(name) == open_clip.get_model_config(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("roberta-ViT-B-32", "text tower is Hugging Face's roberta-base"),
        ("xlm-roberta-base-ViT-B-32", "without the network"),
        ("coca_ViT-B-32", "captioning"),
    ],
)
def test_other_kinds_of_clip_are_refused(name, reason):
    with pytest.raises(ValueError, match=rf"teacher.model: {name} can't be used: .*{reason}"):
        create_clip(config(model=name), 0)


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(ValueError, match="RN50"):
        create_clip(config(model="RN-50"), 0)


# ---------------------------------------------------------------- weights


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def caches(monkeypatch, tmp_path, no_network):
    """Empty caches of huggingface_hub and of open_clip's own downloader."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def tiny_rn50(monkeypatch):
    """RN50 in name and in its pretrained tags, but small."""
    monkeypatch.setattr(clip_module, "named_architecture", lambda name: clip_module.small_architecture(TINY))


def put_in_hub_cache(caches, repository, state):
    folder = caches / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    save_file(state, str(snapshot / "open_clip_model.safetensors"))


def test_absent_tag_says_how_to_fetch_it(caches):
    with pytest.raises(FileNotFoundError, match=r"downloads nothing[\s\S]*create_model\('RN50', pretrained='openai'\)"):
        create_clip(config(model="RN50", weights="openai"), 0)


def test_unknown_tag_lists_the_known_ones(caches):
    with pytest.raises(ValueError, match="yfcc15m"):
        create_clip(config(model="RN50", weights="openia"), 0)
    with pytest.raises(ValueError, match="neither a file"):
        create_clip(config(model="small", weights="nowhere.pt"), 0)


def test_cached_tag_is_read_with_quick_gelu(caches, tiny_rn50):
    source = create_clip(config(), 7)
    put_in_hub_cache(caches, "timm/resnet50_clip.openai", state_of(source))
    clip = create_clip(config(model="RN50", weights="openai"), 0)
    assert same(state_of(clip), state_of(source))
    assert clip.architecture["quick_gelu"] is True
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, QuickGELU)


def test_url_cache_needs_the_right_checksum(caches):
    path = caches / "home" / ".cache" / "clip" / "RN50.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not OpenAI's file")
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        create_clip(config(model="RN50", weights="openai"), 0)


@pytest.mark.parametrize("layout", ["safetensors", "bare", "open_clip", "openai_half"])
def test_weights_from_a_file(tmp_path, layout, no_network):
    source = create_clip(config(), 7)
    state = state_of(source)
    path = tmp_path / ("w.safetensors" if layout == "safetensors" else "w.pt")
    if layout == "safetensors":
        save_file(state, str(path))
    elif layout == "bare":
        torch.save(state, path)
    elif layout == "open_clip":
        state["logit_scale"] = state["logit_scale"].reshape(1)
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        extras = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(12)}
        half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        torch.save(half | extras, path)
    clip = create_clip(config(weights=str(path)), 0)
    if layout == "openai_half":
        assert all(p.dtype == torch.float32 for p in clip.model.parameters())
        assert torch.equal(clip.model.text_projection, source.model.text_projection.half().float())
        assert clip.architecture["quick_gelu"] is True  # those extra keys mark OpenAI's weights
    else:
        assert same(state_of(clip), state_of(source))
        assert clip.architecture["quick_gelu"] is False


def test_file_of_another_architecture_is_refused(tmp_path):
    save_file(state_of(create_clip(config(), 7)), str(tmp_path / "w.safetensors"))
    wider = TINY.model_copy(update={"vision_layers": (2, 1, 1, 1), "text_width": 32})
    # the second block of layer1: three convs, three norms of four tensors
    with pytest.raises(ValueError, match=r"fit the architecture: 15 missing.*of another shape.*\(small here\)"):
        create_clip(TeacherConfig(weights=str(tmp_path / "w.safetensors"), architecture=wider), 0)


def test_norm_counters_may_be_absent(tmp_path):
    source = create_clip(config(), 7)
    state = {key: value for key, value in state_of(source).items() if not key.endswith("num_batches_tracked")}
    save_file(state, str(tmp_path / "w.safetensors"))  # as frozen batch norms are stored
    assert same(state_of(create_clip(config(weights=str(tmp_path / "w.safetensors")), 0)), state_of(source))


@pytest.mark.parametrize(
    ("model", "layout", "noted"),
    [
        ("ViT-L-14", "bare", "published weights of ViT-L-14 differ in them"),  # LAION's one has 0.5
        ("ViT-S-16", "bare", "no published weights of ViT-S-16 are known"),
        ("RN50", "bare", ""),
        ("small", "bare", ""),
        ("ViT-L-14", "openai", ""),
    ],
)
def test_a_normalisation_that_the_file_leaves_open_is_noted(tmp_path, tiny_rn50, model, layout, noted):
    """No silent guess: what the teacher stage says of it is in its summary, which the report and `show` print."""
    state = state_of(create_clip(config(), 7))
    torch.save(state | ({"input_resolution": torch.tensor(64)} if layout == "openai" else {}), tmp_path / "w.pt")
    clip = create_clip(config(model=model, weights=str(tmp_path / "w.pt")), 0)
    assert noted in clip.note and bool(clip.note) == bool(noted)
    assert clip.mean == open_clip.OPENAI_DATASET_MEAN
    run = tiny_config().model_copy(update={"teacher": config(model=model, weights=str(tmp_path / "w.pt"))})
    summary = WORK.run(StageContext(run, Folder(str(tmp_path / "out")), {}))
    assert summary.get("note", "") == clip.note
    if noted:
        assert "open_clip_config.json of the folder that `regionclip import` makes" in clip.note
        assert create_clip(config(model=model, weights=str(tmp_path / "out")), 0).note == ""  # a folder says it


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"state_dict": Payload(tmp_path / "harm")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"names io\.open: reading it would run code"):
        create_clip(config(weights=str(tmp_path / "w.pt")), 0)
    assert not (tmp_path / "harm").exists()


@pytest.mark.filterwarnings("ignore")  # torch.jit is old; so are OpenAI's files
def test_torchscript_is_read_as_data(tmp_path):
    """OpenAI's downloads: programs, of which the tensors alone are taken. A number among them marks OpenAI's layout."""
    source = create_clip(config(), 7)

    class Openai(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.ln_final = source.model.visual, source.model.ln_final
            self.transformer, self.token_embedding = source.model.transformer, source.model.token_embedding
            self.positional_embedding = source.model.positional_embedding
            self.text_projection, self.logit_scale = source.model.text_projection, source.model.logit_scale
            self.register_buffer("input_resolution", torch.tensor(64))

        def forward(self, images):
            return self.visual(images)

    torch.jit.trace(Openai(), torch.zeros(1, 3, 64, 64)).half().save(str(tmp_path / "w.pt"))
    clip = create_clip(config(weights=str(tmp_path / "w.pt")), 0)
    assert clip.architecture["quick_gelu"] is True
    expected = {k: v.half().float() if v.is_floating_point() else v for k, v in state_of(source).items()}
    assert same(state_of(clip), expected)


def test_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="no state dict"):
        create_clip(config(weights=str(tmp_path / "w.pt")), 0)
    torch.save({"weight": torch.zeros(2), "steps": 5}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        create_clip(config(weights=str(tmp_path / "w.pt")), 0)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("layout", ["ours", "open_clip", "pretrained"])
def test_weights_from_a_folder(tmp_path, layout):
    source = create_clip(config(), 7)
    source.architecture["quick_gelu"] = True  # the activation follows the folder, not the config
    folder = tmp_path / "teacher" if layout == "pretrained" else tmp_path
    save_clip(source, Folder(str(folder)))
    if layout != "ours":
        (folder / "clip.json").rename(folder / "open_clip_config.json")
        (folder / "clip.safetensors").rename(folder / "open_clip_model.safetensors")
    clip = create_clip(config(weights=str(tmp_path)), 0)
    assert same(state_of(clip), state_of(source))
    assert (clip.name, clip.mean, clip.architecture) == (source.name, source.mean, source.architecture)


def test_values_are_the_configs_or_else_the_folders(tmp_path):
    clip = create_clip(config(), 7)
    clip.value_blocks = 3
    save_clip(clip, Folder(str(tmp_path)), OPEN_CLIP_LAYOUT)
    for wanted, found in [(None, 3), (0, 0), (2, 2)]:
        assert create_clip(config(weights=str(tmp_path), value_blocks=wanted), 0).value_blocks == found
        assert create_clip(config(value_blocks=wanted), 0).value_blocks == (wanted or 0)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    save_clip(create_clip(config(), 7), Folder(str(tmp_path / "clip")))
    with pytest.raises(ValueError, match=r"holds the model small, of another architecture.*set teacher\.model: small"):
        create_clip(config(model="RN50", weights=str(tmp_path / "clip")), 0)
    (tmp_path / "student_only" / "student").mkdir(parents=True)
    with pytest.raises(ValueError, match="only a student/"):
        create_clip(config(weights=str(tmp_path / "student_only")), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no CLIP model"):
        create_clip(config(weights=str(tmp_path / "empty")), 0)
    with pytest.raises(FileNotFoundError, match=r"expected open_clip_config\.json or clip\.json"):
        load_clip(Folder(str(tmp_path / "empty")))


# ---------------------------------------------------------------- saving


def test_save_and_load(tmp_path):
    clip = create_clip(config(), 7)
    with torch.no_grad():
        clip.model.visual.bn1.running_mean.add_(1)  # buffers travel too
    save_clip(clip, Folder(str(tmp_path)))
    loaded = load_clip(Folder(str(tmp_path)))
    assert same(state_of(loaded), state_of(clip))
    for field in ("name", "architecture", "image_size", "mean", "std"):
        assert getattr(loaded, field) == getattr(clip, field)
    assert not loaded.model.training
    images, texts = torch.randn(2, 3, 64, 64), ["a cat", "two dogs"]
    assert torch.equal(loaded.encode_images(images), clip.encode_images(images))
    assert torch.equal(loaded.encode_text(texts), clip.encode_text(texts))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_clip(create_clip(config(), 7), Folder(str(tmp_path / name)))
    for file in ("clip.safetensors", "clip.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_open_clip_opens_what_was_saved(tmp_path, no_network):
    clip = create_clip(config(), 7)
    clip.value_blocks = 3
    save_clip(clip, Folder(str(tmp_path)), OPEN_CLIP_LAYOUT)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    model.eval()
    assert same(model.state_dict(), state_of(clip))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat"])
    torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(["a cat"]))
    normalize = preprocess.transforms[-1]
    assert tuple(normalize.mean) == pytest.approx(clip.mean)


def test_golden_text_tower_is_the_one_of_clip():
    """open_clip keeps the text tower's parts on CLIP itself; the golden must not depend on that."""
    tower = _build_text_tower(24, CLIPTextCfg(77, 512, width=32, heads=2, layers=2), quick_gelu=True)
    tower.load_state_dict({key[2:]: torch.from_numpy(TEXT[key]) for key in TEXT.files if key.startswith("w/")})
    tokens = torch.from_numpy(TEXT["tokens"])
    torch.testing.assert_close(tower(tokens), golden_clip().model.encode_text(tokens), atol=5e-6, rtol=1e-5)
