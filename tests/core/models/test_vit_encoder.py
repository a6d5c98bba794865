"""ViT region features against a loop over tokens and against open_clip's own blocks; freezing; what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from official_files import SMALL
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.tokenizer import SimpleTokenizer
from small_towers import (
    CONVNEXT,
    EVA,
    EVA1,
    PE,
    PE_BARE,
    SIGLIP,
    TEXT,
    VIT,
    naive_roi_mean,
    resized,
    small_clip,
    stirred,
    tower,
)
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.models.clip import build_clip
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.towers import region_encoder
from regionclip_core.models.vit_encoder import VitEncoder, quarters, resize_positions
from regionclip_core.training.optim import make_optimizer

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
BOXES = [(0.0, 0.0, 32.0, 32.0), (8.0, 0.0, 24.0, 16.0), (3.0, 5.0, 30.0, 14.5), (20.0, 20.0, 20.5, 21.0), (9, 9, 9, 9)]


def small_vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    vision = {**VIT["vision_cfg"], **{k: v for k, v in changes.items() if k != "quick_gelu"}}
    return stirred(_build_vision_tower(24, CLIPVisionCfg(**vision), changes.get("quick_gelu", False)))


# ---------------------------------------------------------------- a loop over tokens


def normed(norm: nn.Module, token: Tensor) -> Tensor:
    if isinstance(norm, nn.Identity):
        return token
    mean, variance = token.mean(), ((token - token.mean()) ** 2).mean()
    return (token - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def scaled(scale: nn.Module, token: Tensor) -> Tensor:
    return token if isinstance(scale, nn.Identity) else token * scale.gamma


def feed_forward(block: nn.Module, token: Tensor) -> Tensor:
    hidden = block.mlp.c_fc.weight @ normed(block.ln_2, token) + block.mlp.c_fc.bias
    quick = type(block.mlp.gelu).__name__ == "QuickGELU"
    hidden = hidden * torch.sigmoid(1.702 * hidden) if quick else hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return token + scaled(block.ls_2, block.mlp.c_proj.weight @ hidden + block.mlp.c_proj.bias)


def attend(block: nn.Module, tokens: list[Tensor]) -> list[Tensor]:
    """A whole transformer block, every token asking every other."""
    width, heads = len(tokens[0]), block.attn.num_heads
    inputs = [normed(block.ln_1, token) for token in tokens]
    weights, biases = block.attn.in_proj_weight.split(width), block.attn.in_proj_bias.split(width)
    queries, keys, values = ([w @ x + b for x in inputs] for w, b in zip(weights, biases, strict=True))
    out = []
    for token, query in zip(tokens, queries, strict=True):
        answer = []
        for head in range(heads):
            own = slice(head * width // heads, (head + 1) * width // heads)
            scores = torch.stack([query[own] @ key[own] for key in keys]) / math.sqrt(width // heads)
            answer.append(sum(s * v[own] for s, v in zip(scores.softmax(0), values, strict=True)))
        out.append(
            token + scaled(block.ls_1, block.attn.out_proj.weight @ torch.cat(answer) + block.attn.out_proj.bias)
        )
    return [feed_forward(block, token) for token in out]


def own_value(block: nn.Module, token: Tensor) -> Tensor:
    """What the block's attention adds to a token that hears itself alone."""
    width = len(token)
    value = block.attn.in_proj_weight[2 * width :] @ normed(block.ln_1, token) + block.attn.in_proj_bias[2 * width :]
    return scaled(block.ls_1, block.attn.out_proj.weight @ value + block.attn.out_proj.bias)


def keep_own(block: nn.Module, token: Tensor) -> Tensor:
    """The block in which a token hears itself alone."""
    return feed_forward(block, token + own_value(block, token))


def naive_patches(visual: nn.Module, image: Tensor, value_blocks: int = 0) -> Tensor:
    """Embedding [D, h, w] of every patch of one image of the tower's own size."""
    side = visual.patch_size[0]
    tokens = [visual.class_embedding]
    for top in range(0, image.shape[1], side):
        for left in range(0, image.shape[2], side):
            pixels = image[:, top : top + side, left : left + side]
            tokens.append(torch.stack([(kernel * pixels).sum() for kernel in visual.conv1.weight]))
    tokens = [normed(visual.ln_pre, t + p) for t, p in zip(tokens, visual.positional_embedding, strict=True)]
    blocks = list(visual.transformer.resblocks)
    states = [tokens]  # the input of every block
    for block in blocks[:-1]:
        states.append(attend(block, states[-1]))
    last = [keep_own(blocks[-1], token) for token in states[-1]]
    if value_blocks:
        pairs = list(zip(blocks, states, strict=True))[-value_blocks:]
        last = [sum(own_value(block, state[row]) for block, state in pairs) for row in range(len(tokens))]
    embedded = [normed(visual.ln_post, token) @ visual.proj for token in last[1:]]
    return torch.stack(embedded, 1).reshape(-1, image.shape[1] // side, image.shape[2] // side)


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"ls_init_value": 0.3, "no_ln_pre": True, "layers": 2}])
def test_embeddings_against_a_loop_over_tokens(changes: dict[str, Any]) -> None:
    visual = small_vit(**changes)
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        patches = naive_patches(visual, image)
        expected = torch.stack([naive_roi_mean(patches, box, stride=8, bins=7) for box in BOXES])
        found = VitEncoder(visual)(image[None], [torch.tensor(BOXES)])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("value_blocks", [1, 2, 4])
def test_values_of_the_last_blocks_against_a_loop_over_tokens(value_blocks: int) -> None:
    visual = small_vit(ls_init_value=0.3)
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        patches = naive_patches(visual, image, value_blocks)
        expected = torch.stack([naive_roi_mean(patches, box, stride=8, bins=7) for box in BOXES])
        found = VitEncoder(visual, value_blocks)(image[None], [torch.tensor(BOXES)])
        assert (found - VitEncoder(visual)(image[None], [torch.tensor(BOXES)])).abs().max() > 0.1
    torch.testing.assert_close(found, expected, **CLOSE)


def test_values_of_more_blocks_than_there_are() -> None:
    for wanted in (5, -1):
        with pytest.raises(ValueError, match=rf"at most the 4 blocks of the image tower \(came: {wanted}\)"):
            VitEncoder(small_vit(), wanted)


# ---------------------------------------------------------------- the true architectures, other image sizes


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("ViT-B-32", 90, 140),
        ("ViT-B-32-quickgelu", 64, 64),
        ("ViT-B-16", 48, 75),
        pytest.param("ViT-L-14", 56, 80, marks=pytest.mark.slow),
        pytest.param("ViT-L-14-336", 56, 80, marks=pytest.mark.slow),
    ],
)
def test_true_architectures_against_open_clip(name: str, height: int, width: int) -> None:
    """All blocks but the last by open_clip's model for this very size, then token by token."""
    visual = tower(name)
    side = visual.patch_size[0]
    grid = (math.ceil(height / side), math.ceil(width / side))
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0.0, 0.0, grid[1] * side, grid[0] * side], [5.0, 3.0, 40.0, 44.0]])
    with torch.no_grad():
        found = VitEncoder(visual)(image, [box])
        model = resized(visual, tower(name, (grid[0] * side, grid[1] * side)))
        padded = torch.zeros(1, 3, grid[0] * side, grid[1] * side)
        padded[:, :, :height, :width] = image
        [states] = model.forward_intermediates(
            padded, indices=[len(model.transformer.resblocks) - 2], intermediates_only=True, output_fmt="NLC"
        )["image_intermediates"]
        tokens = [normed(model.ln_post, keep_own(model.transformer.resblocks[-1], t)) @ model.proj for t in states[0]]
        patches = torch.stack(tokens, 1).reshape(-1, *grid)
        expected = torch.stack([naive_roi_mean(patches, b, side, bins=7) for b in box.tolist()])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_whole_image_at_clips_own_size_is_the_mean_of_its_patches() -> None:
    encoder = VitEncoder(tower("ViT-B-16", layers=2))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        patches = encoder.features(image)
        found = encoder(image, [torch.tensor([[0.0, 0.0, 224.0, 224.0]])])
    assert patches.shape == (1, 768, 14, 14)
    torch.testing.assert_close(found, patches.mean((2, 3)) @ encoder.proj, **CLOSE)


def test_positions_of_another_grid_are_smooth_between_the_old_ones() -> None:
    """A linear ramp stays one, away from the edges; rows and columns are not mixed up."""
    ys, xs = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    ramp = torch.stack([ys, xs], -1).reshape(49, 2)
    out = resize_positions(ramp, (7, 7), (14, 21)).reshape(14, 21, 2)
    expected_y, expected_x = (torch.arange(14) + 0.5) / 2 - 0.5, (torch.arange(21) + 0.5) / 3 - 0.5
    torch.testing.assert_close(out[4:10, :, 0], expected_y[4:10, None].expand(6, 21), atol=1e-5, rtol=0)
    torch.testing.assert_close(out[:, 6:15, 1], expected_x[None, 6:15].expand(14, 9), atol=1e-5, rtol=0)
    assert resize_positions(ramp, (7, 7), (7, 7)) is ramp


# ---------------------------------------------------------------- images in a batch


@pytest.mark.parametrize("description", [VIT, EVA, PE, SIGLIP], ids=["vit", "eva", "pe", "siglip"])
def test_an_image_has_the_same_features_in_any_batch(description: dict[str, Any]) -> None:
    encoder = region_encoder(small_clip(description))
    sizes = [(40, 64), (50, 20), (40, 60), (32, 32)]  # the third has the patches of the first
    images = torch.zeros(4, 3, 50, 64)
    boxes = [torch.tensor([[0.0, 0.0, w, h], [2.0, 3.0, w - 1.0, 17.5]]) for h, w in sizes]
    alone = []
    for image, (h, w), box in zip(images, sizes, boxes, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w)
        alone.append(encoder(image[None, :, :h, :w], [box]))
    torch.testing.assert_close(encoder(images, boxes, sizes), torch.cat(alone), **CLOSE)
    assert (encoder(images, boxes)[2:4] - alone[1]).abs().max() > 0.01  # the padding would be seen


@pytest.mark.parametrize("description", [VIT, EVA, PE, SIGLIP], ids=["vit", "eva", "pe", "siglip"])
def test_sides_that_are_no_multiple_of_a_patch_are_padded_with_zeros(description: dict[str, Any]) -> None:
    encoder = region_encoder(small_clip(description))
    image = torch.randn(1, 3, 37, 41)
    padded = F.pad(image, (0, 7, 0, 3))
    assert encoder.features(image).shape[2:] == (5, 6)
    assert torch.equal(encoder.features(image), encoder.features(padded))
    assert encoder.features(image[:, :, :3, :5]).shape[2:] == (1, 1)  # less than a patch


def test_no_boxes_and_wrong_boxes() -> None:
    encoder = region_encoder(small_clip(VIT))
    out = encoder(torch.randn(2, 3, 32, 40), [torch.zeros(0, 4)] * 2)
    assert out.shape == (0, encoder.embed_dim) == (0, 24)
    assert encoder.regions(encoder.features(torch.randn(1, 3, 32, 32)), [torch.zeros(2, 4)]).shape == (2, 32, 7, 7)
    assert encoder.feature_dim == 32


# ---------------------------------------------------------------- training


def trainable(encoder: RegionEncoder) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("freeze_at", range(6))
@pytest.mark.parametrize("description", [VIT, EVA, PE, SIGLIP], ids=["vit", "eva", "pe", "siglip"])
def test_freezing(description: dict[str, Any], freeze_at: int) -> None:
    encoder = region_encoder(small_clip(description))
    encoder.freeze(5)
    encoder.freeze(freeze_at)
    if description is VIT:
        embedding: tuple[str, ...] = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
        blocks = [f"transformer.resblocks.{n}." for n in range(4)]
        never: tuple[str, ...] = ("transformer.resblocks.3.attn.in_proj_",)
    else:
        embedding = ("trunk.patch_embed.", "trunk.pos_embed", "trunk.cls_token", "trunk.norm_pre.")
        blocks = [f"trunk.blocks.{n}." for n in range(4)]
        never = ("trunk.blocks.3.attn.q_proj", "trunk.blocks.3.attn.k_proj") if description is EVA else ()
    frozen = (*never, *embedding[: 9 * (freeze_at > 0)], *blocks[: max(0, freeze_at - 1)])
    everything = {name for name, _ in encoder.named_parameters()}
    assert trainable(encoder) == {name for name in everything if not name.startswith(frozen)}
    assert trainable(encoder)


@pytest.mark.parametrize(("count", "lengths"), [(12, [3] * 4), (24, [6] * 4), (27, [7, 7, 6, 7]), (1, [0, 0, 1, 0])])
def test_quarters(count: int, lengths: list[int]) -> None:
    blocks = [nn.Identity() for _ in range(count)]
    parts = quarters(blocks)
    assert [len(part) for part in parts] == lengths
    assert [block for part in parts for block in part] == blocks


ONE_BLOCK = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "layers": 1}}


@pytest.mark.parametrize("regions", [3, 0])
@pytest.mark.parametrize(
    ("description", "value_blocks"),
    [
        *((VIT, 0), (ONE_BLOCK, 0), (VIT, 1), (VIT, 4), (ONE_BLOCK, 1), (SIGLIP, 0)),
        *((EVA, 0), (EVA, 3), (EVA1, 0), (EVA1, 3), (PE, 0), (PE_BARE, 0)),
    ],
    ids=lambda given: given if isinstance(given, int) else given["vision_cfg"].get("timm_model_name", "vit"),
)
def test_every_trainable_parameter_has_a_gradient(description: dict[str, Any], value_blocks: int, regions: int) -> None:
    """Another rank would wait for it, and a rank may have no region."""
    clip = small_clip(description)
    clip.value_blocks = value_blocks
    encoder = region_encoder(clip).train()
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 20.0]]).expand(regions, 4), torch.zeros(0, 4)]
    encoder(torch.randn(2, 3, 40, 32), boxes, [(40, 32), (24, 32)]).square().sum().backward()
    with_gradient = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert with_gradient == trainable(encoder)
    if regions:
        zero = {name for name, p in encoder.named_parameters() if p.grad is not None and not p.grad.abs().max() > 1e-7}
        assert all("kv.bias" in name for name in zero), zero  # shifts all scores alike


def test_the_last_blocks_queries_keep_their_weights_under_weight_decay() -> None:
    """CLIP's own embedding of whole images still goes through them."""
    encoder = region_encoder(small_clip(VIT)).train()
    last = encoder.transformer.resblocks[-1]
    before, output = last.attn.in_proj_weight.clone(), last.attn.out_proj.weight.clone()
    optimizer = make_optimizer(encoder, OptimConfig(lr=0.01, weight_decay=0.5))
    for _ in range(3):
        encoder(torch.randn(1, 3, 32, 32), [torch.tensor([[0.0, 0.0, 30.0, 20.0]])]).square().sum().backward()
        optimizer.step()
    assert torch.equal(last.attn.in_proj_weight, before)
    assert not torch.equal(last.attn.out_proj.weight, output)


@pytest.mark.parametrize("description", [VIT, EVA, PE, SIGLIP], ids=["vit", "eva", "pe", "siglip"])
def test_the_state_is_the_towers_own(description: dict[str, Any]) -> None:
    clip = small_clip(description)
    encoder = region_encoder(clip)
    state, own = encoder.state_dict(), clip.model.visual.state_dict()
    assert list(state) == list(own)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(value.abs().sum() > 0 for value in own.values())  # a copy
    clip.model.visual.load_state_dict(encoder.state_dict())
    assert not any(value.any() for value in clip.model.visual.state_dict().values())


# ---------------------------------------------------------------- whether it means anything


def colour_vit(seed: int, colours: Tensor, names: Tensor) -> nn.Module:
    """A ViT whose class token has learned to name the colour of the one rectangle in an image."""
    vision = {**VIT["vision_cfg"], "layers": 2}
    visual = build_clip({**VIT, "vision_cfg": vision}, "colours", seed).model.visual.train()
    optimizer = torch.optim.AdamW(visual.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(90):
        labels = torch.randint(len(colours), (24,))
        images = torch.randn(24, 3, 32, 32) * 0.7
        for image, label in zip(images, labels, strict=True):
            height, width = (8 * int(n) for n in torch.randint(1, 5, (2,)))
            top, left = 8 * int(torch.randint(0, 5 - height // 8, ())), 8 * int(torch.randint(0, 5 - width // 8, ()))
            image[:, top : top + height, left : left + width] += colours[label][:, None, None]
        loss = F.cross_entropy(F.normalize(visual(images), dim=1) @ F.normalize(names, dim=1).T / 0.1, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return visual.eval()


def test_regions_of_a_trained_vit_are_named_by_what_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of two colours and of another size; with the last block's attention a patch is led astray by the rest."""
    right_names = {"value path": 0.0, "attention": 0.0, "whole image": 0.0}
    for seed in (0, 1):
        torch.manual_seed(seed)
        colours, names = torch.randn(6, 3) * 1.5, torch.randn(6, 24)
        encoder = VitEncoder(colour_vit(seed, colours, names))
        sides = torch.randint(6, (60, 2))
        images = colours[sides].permute(0, 2, 1)[:, :, None].repeat_interleave(32, 3).expand(-1, -1, 48, -1)
        images = images + torch.randn(60, 3, 48, 64) * 0.7
        halves = torch.tensor([[0.0, 0.0, 32.0, 48.0], [32.0, 0.0, 64.0, 48.0]])
        box = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
        named = F.normalize(names, dim=1)
        with torch.no_grad():
            whole = (encoder(images[:, :, :32, :32], [box] * 60) @ named.T).argmax(1) == sides[:, 0]
            own = (encoder(images, [halves] * 60) @ named.T).argmax(1) == sides.flatten()
            with monkeypatch.context() as patch:
                patch.setattr("regionclip_core.models.vit_encoder.value_path", lambda block, tokens: block(tokens))
                attending = (encoder(images, [halves] * 60) @ named.T).argmax(1) == sides.flatten()
        for name, right in (("value path", own), ("attention", attending), ("whole image", whole)):
            right_names[name] += float(right.float().mean()) / 2
    assert right_names["whole image"] > 0.8, right_names
    assert right_names["value path"] > max(0.5, 0.12 + right_names["attention"]), right_names


# ---------------------------------------------------------------- what has no regions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pool_type": "avg"}, "class token"),
        ({"attentional_pool": True}, "class token"),
        ({"qk_norm": True}, "attention blocks"),
        ({"pos_embed_type": "sin_cos_2d"}, "positions are fixed"),
    ],
)
def test_other_vits_are_refused(changes: dict[str, Any], reason: str) -> None:
    clip = build_clip({**VIT, "vision_cfg": {**VIT["vision_cfg"], **changes}}, "tiny-vit", 0)
    with pytest.raises(ValueError, match=rf"tiny-vit gives no region features: .*{reason}.*labels.mode: crop"):
        region_encoder(clip)


@pytest.mark.parametrize("description", [SIGLIP, PE, SMALL], ids=["siglip", "pe", "resnet"])
def test_values_where_no_class_token_reads_them(description: dict[str, Any]) -> None:
    clip = small_clip(description)
    clip.value_blocks = 2
    with pytest.raises(ValueError, match=r"value_blocks: expected 0 for small test model \(came: 2\): only towers of"):
        region_encoder(clip)


def test_a_convnext_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no region features: .*test_convnext.*labels.mode: crop"):
        region_encoder(small_clip(CONVNEXT))
    assert TEXT["vocab_size"] == SimpleTokenizer().vocab_size
