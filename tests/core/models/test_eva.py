"""EVA's CLIPs and Perception Encoder: region features against loops over tokens, bins and keys, and timm's forward."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from small_towers import (
    EVA,
    EVA1,
    PE,
    PE_BARE,
    naive_bins,
    naive_pool,
    naive_roi_mean,
    small_clip,
    tower,
)
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from regionclip_core.models.eva_encoder import EvaEncoder
from regionclip_core.models.towers import region_encoder

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
BOXES = [(0.0, 0.0, 56.0, 40.0), (8.0, 16.0, 40.0, 32.0), (3.0, 4.0, 20.0, 39.0), (9.0, 9.0, 9.0, 9.0)]
REFERENCE = 5  # ref_feat_shape of the small towers
State = dict[str, Tensor]


# ---------------------------------------------------------------- a loop over tokens, by EVA's equations


def normed(state: State, name: str, token: Tensor, eps: float = 1e-6) -> Tensor:
    centred = token - token.mean()
    return centred / torch.sqrt((centred**2).mean() + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, token: Tensor) -> Tensor:
    bias = state.get(f"{name}.bias")
    return state[f"{name}.weight"] @ token + (0 if bias is None else bias)


def turned(part: Tensor, place: tuple[float, float]) -> Tensor:
    """A head's query or key, turned by its patch's place: a half for rows, a half for columns, pair by pair."""
    out, half = part.clone(), len(part) // 2
    for axis in (0, 1):
        for pair in range(half // 2):
            angle = place[axis] * 10000 ** (-2 * pair / half)
            first = axis * half + 2 * pair
            a, b = part[first], part[first + 1]
            out[first] = a * math.cos(angle) - b * math.sin(angle)
            out[first + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attend(state: State, block: str, tokens: list[Tensor], places: list[Any]) -> list[Tensor]:
    """What the attention of a block adds to every token; the class token has no place."""
    inputs, heads = [normed(state, f"{block}.norm1", token) for token in tokens], 2
    queries, keys, values = ([linear(state, f"{block}.attn.{n}_proj", x) for x in inputs] for n in "qkv")
    size, added = len(tokens[0]) // heads, []
    for query, place in zip(queries, places, strict=True):
        answer = []
        for own in (slice(head * size, (head + 1) * size) for head in range(heads)):
            asked = query[own] if place is None else turned(query[own], place)
            offered = [k[own] if p is None else turned(k[own], p) for k, p in zip(keys, places, strict=True)]
            shares = torch.stack([asked @ key for key in offered]).div(math.sqrt(size)).softmax(0)
            answer.append(sum(share * value[own] for share, value in zip(shares, values, strict=True)))
        added.append(linear(state, f"{block}.attn.proj", normed(state, f"{block}.attn.norm", torch.cat(answer))))
    return added


def own_value(state: State, block: str, token: Tensor) -> Tensor:
    value = linear(state, f"{block}.attn.v_proj", normed(state, f"{block}.norm1", token))
    return linear(state, f"{block}.attn.proj", normed(state, f"{block}.attn.norm", value))


def feed_forward(state: State, block: str, token: Tensor) -> Tensor:
    x = normed(state, f"{block}.norm2", token)
    gate = linear(state, f"{block}.mlp.fc1_g", x)
    hidden = gate * torch.sigmoid(gate) * linear(state, f"{block}.mlp.fc1_x", x)
    return token + linear(state, f"{block}.mlp.fc2", normed(state, f"{block}.mlp.norm", hidden))


def naive_patches(state: State, image: Tensor, value_blocks: int) -> Tensor:
    """What is projected, [C, h, w], of every 8 x 8 patch of an image whose sides are whole numbers of patches."""
    h, w = image.shape[1] // 8, image.shape[2] // 8
    positions = resample_abs_pos_embed(state["pos_embed"], [h, w], [4, 4], num_prefix_tokens=1)[0]
    tokens, places = [state["cls_token"][0, 0] + positions[0]], [None]
    for row in range(h):
        for column in range(w):
            pixels = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            kernels = state["patch_embed.proj.weight"]
            token = torch.stack([(kernel * pixels).sum() for kernel in kernels]) + state["patch_embed.proj.bias"]
            tokens.append(token + positions[len(tokens)])
            places.append((row * REFERENCE / h, column * REFERENCE / w))
    names = [f"blocks.{number}" for number in range(4)]
    states = [tokens]
    for block in names[:-1]:
        added = attend(state, block, states[-1], places)
        states.append([feed_forward(state, block, x + a) for x, a in zip(states[-1], added, strict=True)])
    last = []
    for row in range(1, len(tokens)):
        if value_blocks:
            pairs = list(zip(names, states, strict=True))[-value_blocks:]
            final = sum(own_value(state, block, of[row]) for block, of in pairs)
        else:
            final = feed_forward(state, names[-1], states[-1][row] + own_value(state, names[-1], states[-1][row]))
        last.append(normed(state, "norm", final))
    return torch.stack(last, 1).reshape(-1, h, w)


@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
@pytest.mark.parametrize("value_blocks", [0, 1, 3])
def test_embeddings_against_a_loop_over_tokens(size: tuple[int, int], value_blocks: int) -> None:
    visual = small_clip(EVA).model.visual
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        state = visual.trunk.state_dict()
        patches = naive_patches(state, image, value_blocks)
        means = [naive_roi_mean(patches, box, stride=8, bins=7) for box in BOXES]
        expected = torch.stack([linear(state, "head", mean) for mean in means])
        found = EvaEncoder(visual, value_blocks)(image[None], [torch.tensor(BOXES)])
    torch.testing.assert_close(found, expected, **CLOSE)


# ---------------------------------------------------------------- timm's own forward


def at_size(visual: nn.Module, height: int, width: int) -> Any:
    """timm's tower with the same weights for images of another size, fitted by timm itself."""
    trunk: Any = copy.deepcopy(visual.trunk)
    if trunk.attn_pool is not None:  # Perception Encoder's places are numbers of patches, whatever the size
        trunk.rope.ref_feat_shape = None
    trunk.set_input_size((height, width))
    return trunk


def alone(block: Any, tokens: Tensor) -> Tensor:
    """A block on tokens [n, N, C], each of them a sequence of its own, in which it can only attend to itself."""
    return block(tokens.flatten(0, 1)[:, None])[:, 0].unflatten(0, tokens.shape[:2])


@pytest.mark.parametrize("name", ["eva", "eva1", pytest.param("EVA02-B-16", marks=pytest.mark.slow)])
def test_patches_at_another_size_against_timms_blocks(name: str) -> None:
    visual = {"eva": small_clip(EVA).model.visual, "eva1": small_clip(EVA1).model.visual}.get(name) or tower(name)
    encoder = EvaEncoder(visual)
    height, width = 5 * encoder.stride, 7 * encoder.stride
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    trunk = at_size(visual, height, width)
    with torch.no_grad():
        [before] = trunk.forward_intermediates(
            image, indices=[len(trunk.blocks) - 2], output_fmt="NLC", intermediates_only=True
        )
        expected = trunk.norm(alone(trunk.blocks[-1], before)).transpose(1, 2).unflatten(2, (5, 7))
        torch.testing.assert_close(encoder.features(image), expected, atol=1e-4, rtol=1e-4)


def test_values_of_fused_projections() -> None:
    """EVA-01 has queries, keys and values in one tensor, and layer scale."""
    visual = small_clip(EVA1).model.visual
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = visual.trunk.forward_intermediates(image, output_fmt="NLC", intermediates_only=True, indices=4)
        blocks = visual.trunk.blocks
        values = [
            b.gamma_1 * alone(lambda x, b=b: b.attn(b.norm1(x)), o) for b, o in zip(blocks[1:], outputs, strict=False)
        ]
        expected = visual.trunk.norm(values[-1] + values[-2]).transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(EvaEncoder(visual, 2).features(image), expected, **CLOSE)


@pytest.mark.parametrize("name", ["pe", "bare", pytest.param("PE-Core-B-16", marks=pytest.mark.slow)])
def test_perception_encoders_regions_against_timm_and_a_loop(name: str) -> None:
    """Patch features by timm's tower for this very size, then every bin and every key by itself."""
    visual = {"pe": small_clip(PE).model.visual, "bare": small_clip(PE_BARE).model.visual}.get(name) or tower(name)
    encoder = EvaEncoder(visual)
    height, width = 5 * encoder.stride, 7 * encoder.stride
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    trunk = at_size(visual, height, width)
    boxes = BOXES[:3] if encoder.stride == 8 else [(7.0, 5.0, 90.0, 60.0)]
    with torch.no_grad():
        tokens = trunk.forward_features(image)[0, trunk.num_prefix_tokens :]
        patches = tokens.T.reshape(-1, 5, 7)
        bins = [naive_bins(patches, box, encoder.stride, encoder.roi_size) for box in boxes]
        expected = torch.stack([trunk.head(naive_pool(trunk.attn_pool, some)) for some in bins])
        found = encoder(image, [torch.tensor(boxes)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_whole_image_has_the_models_own_embedding_without_a_class_token() -> None:
    clip = small_clip(PE_BARE)
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = region_encoder(clip)(image, [torch.tensor([[0.0, 0.0, 32.0, 32.0]])] * 2)
        torch.testing.assert_close(found, clip.encode_images(image), **CLOSE)


def test_images_of_any_size_leave_the_encoder_as_it_was() -> None:
    """Buffers of other sizes in other processes would stop a distributed training."""
    encoder = EvaEncoder(small_clip(EVA).model.visual)
    before = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    encoder.features(torch.randn(1, 3, 40, 56))
    after = dict(encoder.named_buffers())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(len(tensor.shape) <= 1 for tensor in after.values())
