"""CLIP files by other projects' names: each gives the embeddings of the code that wrote it, or is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import out, same_bits, save, write_model_json
from safetensors.torch import save_file
from small_towers import EVA, EVA1, PE, PE_BARE, SIGLIP, TEXT, VIT, small_clip
from torch import Tensor

from regionclip_core.config.architectures import model_config
from regionclip_core.models.clip import ClipModel, build_clip, load_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.import_report import ImportReport
from regionclip_core.weights.importing import import_checkpoint

State = dict[str, Tensor]
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def imported(tmp_path: Path, file: str, config: dict[str, Any]) -> tuple[ImportReport, ClipModel]:
    report = import_checkpoint(file, out(tmp_path), model=write_model_json(tmp_path / "tiny.json", config))
    assert report.kind == "clip"
    return report, load_clip(Folder(out(tmp_path)))


def refused(tmp_path: Path, state: State, config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        imported(tmp_path, save(tmp_path / "w.pth", state), config)
    assert not Path(out(tmp_path)).exists()


def without(state: State, name: str) -> State:
    return {own: tensor for own, tensor in state.items() if own != name}


# ---------------------------------------------------------------- EVA's and Perception Encoder's own names


def by_evas_names(clip: ClipModel) -> State:
    """The layout of EVA's releases, CLIPSelf and DeCLIP, written out by hand from open_clip's."""
    renames = [
        (r"\.attn\.norm\.", ".attn.inner_attn_ln."),
        (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.w3." if "eva02" in str(clip.architecture) else r"\1.mlp.fc2."),
        (r"\.([qv])_proj\.bias", r".\1_bias"),
        (r"^visual\.trunk\.", "visual."),
    ]
    found = {}
    for name, tensor in clip.model.state_dict().items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        found[name] = tensor.clone()
    return found


def by_perception_encoders_names(clip: ClipModel) -> State:
    """The layout of Meta's releases, which is OpenAI's with an attention pool."""
    renames = [
        (r"^visual\.trunk\.patch_embed\.proj", "visual.conv1"),
        (r"^visual\.trunk\.norm_pre", "visual.ln_pre"),
        (r"^visual\.trunk\.norm\.", "visual.ln_post."),
        (r"^visual\.trunk\.blocks", "visual.transformer.resblocks"),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.out_proj."),
        (r"^visual\.trunk\.attn_pool\.latent", "visual.attn_pool.probe"),
        (r"^visual\.trunk\.attn_pool\.proj\.", "visual.attn_pool.attn.out_proj."),
        (r"^visual\.trunk\.attn_pool\.norm\.", "visual.attn_pool.layernorm."),
        (r"^visual\.trunk\.attn_pool\.mlp\.", "visual.attn_pool.mlp."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^text\.", ""),
    ]
    state, found = dict(clip.model.state_dict()), {}
    pool = "visual.trunk.attn_pool."
    for end in ("weight", "bias"):
        parts = [state.pop(f"{pool}q.{end}"), state.pop(f"{pool}kv.{end}")]
        found[f"visual.attn_pool.attn.in_proj_{end}"] = torch.cat(parts)
    found["visual.proj"] = state.pop("visual.trunk.head.weight").T.clone()
    found["visual.positional_embedding"] = state.pop("visual.trunk.pos_embed")[0].clone()
    assert not state.pop("visual.trunk.head.bias").any()
    if "visual.trunk.cls_token" in state:
        found["visual.class_embedding"] = state.pop("visual.trunk.cls_token")[0, 0].clone()
    for name, tensor in state.items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        found[name] = tensor.clone()
    return found


def original(config: dict[str, Any]) -> ClipModel:
    clip = small_clip(config, seed=5)
    if config in (PE, PE_BARE):
        clip.model.visual.trunk.head.bias.data.zero_()
    return clip


ROPE = ["visual.rope.freqs_cos", "visual.rope.freqs_sin", "visual.blocks.1.attn.rope.freqs_cos"]


@pytest.mark.parametrize("wrapping", ["bare", "state_dict", "module", "safetensors"])
@pytest.mark.parametrize("config", [EVA, EVA1], ids=["eva02", "eva01"])
def test_evas_own_names(tmp_path: Path, config: dict[str, Any], wrapping: str) -> None:
    clip = original(config)
    state = by_evas_names(clip)
    tables = {name: torch.ones(16, 16) for name in ROPE}
    file = tmp_path / "w.pt"
    if wrapping == "safetensors":
        save_file(state | tables, str(file))
    elif wrapping == "state_dict":
        torch.save({"epoch": 6, "state_dict": {f"module.{n}": t for n, t in (state | tables).items()}}, file)
    else:
        torch.save({"module": state | tables} if wrapping == "module" else state | tables, file)
    report, loaded = imported(tmp_path, str(file), config)
    assert same_bits(loaded.model.state_dict(), clip.model.state_dict())
    assert {name for name, reason in report.left_over.items() if "RoPE" in reason} == tables.keys()
    assert {*report.matched, *report.renamed} == state.keys() and not report.added
    # The model that wrote it, as open_clip runs it.
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_images(IMAGES), clip.model.encode_image(IMAGES), **CLOSE)
        boxes = [torch.tensor([[3.0, 4.0, 30.0, 28.0]])] * 2
        assert torch.equal(region_encoder(loaded)(IMAGES, boxes), region_encoder(clip)(IMAGES, boxes))


@pytest.mark.parametrize("config", [PE, PE_BARE], ids=["with a class token", "without"])
def test_perception_encoders_own_names(tmp_path: Path, config: dict[str, Any]) -> None:
    clip = original(config)
    state = by_perception_encoders_names(clip)
    torch.save({"weights": state | {"visual.rope.rope.freqs": torch.ones(8)}}, tmp_path / "w.pt")
    report, loaded = imported(tmp_path, str(tmp_path / "w.pt"), config)
    assert same_bits(loaded.model.state_dict(), clip.model.state_dict())
    assert {*report.matched, *report.renamed} == state.keys() and list(report.left_over) == ["visual.rope.rope.freqs"]
    assert list(report.added) == ["visual.trunk.head.bias"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_images(IMAGES), clip.model.encode_image(IMAGES), **CLOSE)
        assert torch.equal(loaded.encode_text(["a cat"]), clip.encode_text(["a cat"]))


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (
            EVA,
            lambda s: without(s, "visual.blocks.2.attn.q_bias"),
            r"1 missing: visual\.trunk\.blocks\.2\.attn\.q_proj",
        ),
        (EVA, lambda s: s | {"visual.mask_token": torch.ones(3)}, r"unknown: .*visual\.mask_token"),
        (EVA, lambda s: s | {"visual.blocks.0.attn.gate": torch.ones(3)}, r"1 unknown: .*blocks\.0\.attn\.gate"),
        (EVA, lambda s: without(s, "text.ln_final.bias"), r"1 missing: text\.ln_final\.bias"),
        (EVA, lambda s: s | {"visual.pos_embed": torch.ones(1, 26, 32)}, "pos_embed is of another image size"),
        (EVA, lambda s: s | {"visual.patch_embed.proj.weight": torch.ones(32, 3, 4, 4)}, "proj.weight is of another"),
        (EVA, lambda s: s | {"ln_final.bias": torch.ones(16)}, "weights under two names, or in several layouts"),
        (EVA, lambda s: s | {"visual.blocks.0.attn.q_proj.bias": torch.ones(32)}, "1 unknown: .*q_bias"),
        (EVA, lambda s: s | {"visual.patch_embed.proj.weight": torch.ones(3)}, "timm can't read its image tower"),
        (EVA, lambda s: s | {"visual.pos_embed": torch.ones(1, 30, 32)}, "image size|timm can't read"),
        (EVA1, by_evas_names, "missing"),  # EVA-02's
        (VIT, lambda s: s, "missing"),
    ],
)
def test_eva_files_that_do_not_fit(tmp_path: Path, config: dict[str, Any], change: Any, match: str) -> None:
    clip = original(EVA)
    refused(tmp_path, by_evas_names(clip) if change is by_evas_names else change(by_evas_names(clip)), config, match)


def test_a_perception_encoder_that_does_not_fit(tmp_path: Path) -> None:
    state = by_perception_encoders_names(original(PE))
    refused(tmp_path, state, PE_BARE, r"cls_token|of another image size")
    refused(tmp_path, without(state, "visual.attn_pool.probe"), PE, r"1 missing: visual\.trunk\.attn_pool\.latent")


# ---------------------------------------------------------------- Hugging Face's names


def hugging_face_clip(activation: str = "gelu") -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    shared = {"hidden_act": activation, "layer_norm_eps": 1e-5}
    vision = VIT["vision_cfg"]
    config = CLIPConfig(
        text_config={
            **shared,
            "hidden_size": TEXT["width"],
            "intermediate_size": 4 * TEXT["width"],
            "num_hidden_layers": TEXT["layers"],
            "num_attention_heads": TEXT["heads"],
            "max_position_embeddings": TEXT["context_length"],
            "vocab_size": TEXT["vocab_size"],
            "eos_token_id": 49407,
        },
        vision_config={
            **shared,
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=24,
    )
    return stir(CLIPModel(config))


def hugging_face_siglip() -> Any:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(3)
    shared = {"hidden_act": "gelu", "hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={
            **shared,
            "num_hidden_layers": 1,
            "max_position_embeddings": 16,
            "vocab_size": 12,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "layer_norm_eps": 1e-5,
        },
        vision_config={**shared, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6},
    )
    return stir(SiglipModel(config))


def stir(model: Any) -> Any:
    """No bias is zero, no norm one: nothing may look like anything else."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def pooled(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


SIGLIP_TEXT = {**SIGLIP, "text_cfg": {**SIGLIP["text_cfg"], "heads": 2, "width": 24}}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("form", ["saved", "old"])
def test_hugging_faces_clip(tmp_path: Path, activation: str, form: str) -> None:
    pytest.importorskip("transformers")
    model = hugging_face_clip(activation)
    if form == "saved":
        model.save_pretrained(tmp_path / "hub")
        file, ids = str(tmp_path / "hub" / "model.safetensors"), set()
    else:  # older files hold the numbers of the positions too
        ids = {f"{tower}_model.embeddings.position_ids" for tower in ("text", "vision")}
        file = save(tmp_path / "w.bin", model.state_dict() | {name: torch.arange(16)[None] for name in ids})
    config = {**VIT, "quick_gelu": activation == "quick_gelu"}
    report, loaded = imported(tmp_path, file, config)
    assert report.left_over.keys() == ids
    assert any("hidden_act" in note for note in report.notes)
    tokens = loaded.tokenizer(["a photo of a cat", "two dogs"])
    with torch.no_grad():
        images = pooled(model.get_image_features(pixel_values=IMAGES))
        texts = pooled(model.get_text_features(input_ids=tokens))
        torch.testing.assert_close(loaded.encode_images(IMAGES), images, **CLOSE)
        torch.testing.assert_close(loaded.encode_text(["a photo of a cat", "two dogs"]), texts, **CLOSE)
    assert loaded.logit_scale == pytest.approx(min(100.0, model.logit_scale.exp().item()))


def test_hugging_faces_siglip(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = hugging_face_siglip()
    state = model.state_dict()
    report, loaded = imported(tmp_path, save(tmp_path / "w.bin", state), SIGLIP_TEXT)
    assert {*report.matched, *report.renamed} == state.keys()
    tokens = torch.randint(3, 12, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images, texts = (
            pooled(model.get_image_features(pixel_values=IMAGES)),
            pooled(model.get_text_features(input_ids=tokens)),
        )
        torch.testing.assert_close(loaded.encode_images(IMAGES), images, **CLOSE)
        torch.testing.assert_close(loaded.model.encode_text(tokens), texts, **CLOSE)
    assert loaded.model.logit_bias.item() == model.logit_bias.item()


def test_hugging_face_files_that_do_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip, siglip = hugging_face_clip().state_dict(), hugging_face_siglip().state_dict()
    layer = "vision_model.encoder.layers.2"
    for name, match in [
        (f"{layer}.self_attn.k_proj.bias", r"2\.attn\.in_proj_bias is made of q, k and v .* it has {'q': \(32,\), 'v'"),
        (f"{layer}.mlp.fc1.weight", r"1 missing: visual\.transformer\.resblocks\.2\.mlp\.c_fc\.weight"),
        ("visual_projection.weight", r"1 missing: visual\.proj"),
    ]:
        refused(tmp_path, without(clip, name), VIT, match)
    for name in ("text_filip_projection.weight", f"{layer}.self_attn.gate.weight", "vision_model.pre_layernorm.weight"):
        refused(tmp_path, clip | {name: torch.ones(3)}, VIT, f"1 unknown: {name}")
    odd = {f"{layer}.self_attn.k_proj.weight": torch.ones(3, 3)}
    refused(tmp_path, clip | odd, VIT, r"made of q, k and v of one shape, and it has {'k': \(3, 3\), 'q': \(32, 32\)")
    for shape in [(), (2,), (4, 24)]:
        pool = {"vision_model.head.attention.in_proj_weight": torch.ones(shape)}
        refused(tmp_path, siglip | pool, SIGLIP_TEXT, "of another shape|missing")
    longer = clip | {"text_model.embeddings.position_embedding.weight": torch.ones(24, 16)}
    refused(tmp_path, longer, VIT, r"positional_embedding \(24, 16\) where \(16, 16\) is expected")
    refused(tmp_path, clip, EVA, "Hugging Face's names of a CLIP or SigLIP, and tiny is neither a ViT nor a SigLIP")
    refused(tmp_path, clip, SIGLIP_TEXT, "missing")
    refused(tmp_path, siglip, VIT, "missing")
    flat = siglip | {"vision_model.embeddings.patch_embedding.weight": torch.ones(24, 192)}
    refused(tmp_path, flat, SIGLIP_TEXT, "a NaFlex SigLIP, which takes images in their own proportions")
    with pytest.raises(ValueError, match="say which it is, such as --model ViT-B-32-quickgelu"):
        import_checkpoint(save(tmp_path / "w.pth", clip), out(tmp_path))


# ---------------------------------------------------------------- true sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EVA02-B-16", "PE-Core-B-16"])
def test_true_architectures_come_in_whole(tmp_path: Path, name: str) -> None:
    clip = build_clip(model_config(name), name, 1)
    if name.startswith("PE"):
        clip.model.visual.trunk.head.bias.data.zero_()
    state = by_evas_names(clip) if name.startswith("EVA") else by_perception_encoders_names(clip)
    report = import_checkpoint(save(tmp_path / "w.pt", state), out(tmp_path), model=name)
    assert {*report.matched, *report.renamed} == state.keys() and not report.left_over
    loaded = load_clip(Folder(out(tmp_path)))
    assert (loaded.name, loaded.architecture) == (name, model_config(name))
    assert same_bits(loaded.model.state_dict(), clip.model.state_dict())
    shutil.rmtree(out(tmp_path))


@pytest.mark.slow
def test_hugging_faces_usual_clip_is_vit_b_32(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig()).eval()
    file = save(tmp_path / "w.bin", model.state_dict())
    import_checkpoint(file, out(tmp_path), model="ViT-B-32-quickgelu")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = pooled(model.get_image_features(pixel_values=image))
        torch.testing.assert_close(load_clip(Folder(out(tmp_path))).encode_images(image), expected, **CLOSE)
    shutil.rmtree(out(tmp_path))
