"""CLIP's text embeddings without what no embedding depends on: equal to open_clip's own up to rounding.

In CLIP's text transformer a token sees itself and those before it, and the embedding is read at the end token. So the
padding after the longest text can be cut off, and the last block has to give the end token alone.

Shapes: B texts, L tokens, D embedding, W channels.
"""

from __future__ import annotations

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


def encode_tokens(model: CLIP | CustomTextCLIP, ids_BL: Tensor) -> Tensor:
    """Return embeddings [B, D], not normalised, of B >= 1 texts as padded ids int64[B, L], with gradients."""
    if not reads_the_end_token(model):
        return model.encode_text(ids_BL)  # type: ignore[no-any-return]
    end_B = ids_BL.argmax(1)  # the end token has the highest id
    length, rows_B = int(end_B.max()) + 1, torch.arange(len(ids_BL), device=ids_BL.device)
    x_BLW = model.token_embedding(ids_BL[:, :length]) + model.positional_embedding[:length]
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        x_BLW = block(x_BLW, attn_mask=model.attn_mask[:length, :length])

    # The last block, whose only query is the end token.
    keys_BLW = last.ln_1(x_BLW)
    query_B1W = keys_BLW[rows_B, end_B, None]
    padding_BL = torch.arange(length, device=ids_BL.device) > end_B[:, None]
    mixed_B1W, _ = last.attn(query_B1W, keys_BLW, keys_BLW, key_padding_mask=padding_BL, need_weights=False)
    x_BW = x_BLW[rows_B, end_B] + last.ls_1(mixed_B1W[:, 0])
    x_BW = x_BW + last.ls_2(last.mlp(last.ln_2(x_BW)))
    return model.ln_final(x_BW) @ model.text_projection  # type: ignore[no-any-return]


def reads_the_end_token(model: CLIP | CustomTextCLIP) -> bool:
    """Whether the text tower is built as CLIP's; SigLIP's, whose tokens see all others, isn't."""
    return (
        isinstance(model, CLIP)
        and model.attn_mask is not None
        and model.text_pool_type == "argmax"
        and isinstance(model.text_projection, nn.Parameter)
        and isinstance(model.transformer.resblocks[-1], ResidualAttentionBlock)
    )
