"""CLIP trained from scratch on captioned images: the teacher where no published one is used.

B images, D embedding, V tokens of the captions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_encoder import reads_the_end_token
from regionclip_core.pretraining.captioned_images import ClipBatch
from regionclip_core.pretraining.losses import image_text_contrastive
from regionclip_core.training.distributed import gather_rows, use_global_batch_norms

_MAX_LOGIT_SCALE = math.log(100)  # CLIP's own ceiling on the learned temperature
_TOKENISED = 2**16
"""Captions whose tokens are kept, 100 MB at 77 tokens each: tokenising takes 3 % of a small CLIP's step."""


class ClipTrainer(nn.Module):
    """CLIP with its symmetric contrastive loss and learned temperature; batch norms are over all ranks."""

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        use_global_batch_norms(clip.model)
        self.clip = clip
        self.model = clip.model

    def forward(self, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Return the image-text loss of the global batch (CLIP, section 2.3)."""
        image_BD, text_BD = self.clip.encode_images(batch.images), self.clip.encode_text(batch.captions)
        scale = self.model.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
        return {"loss_image_text": image_text_contrastive(image_BD, text_BD, 1 / scale, gather=gather_rows)}


@contextmanager
def tokens_of_captions(clip: ClipModel, captions: Iterable[Sequence[str]]) -> Iterator[ClipModel]:
    """Yield the same model with the rows of these captions' tokens alone, for a training on no others.

    CLIP's table has 49,408 rows, of which drawings need some hundred: a step would fill, and the optimiser go through,
    a gradient that is zero in all others. Afterwards the model has all rows again, those of the captions trained, the
    others as they were. A text tower that isn't built as CLIP's is left as it is.
    """
    if not reads_the_end_token(clip.model):
        yield clip
        return

    @lru_cache(_TOKENISED)
    def ids_L(text: str) -> Tensor:
        return clip.tokenizer([text])[0]

    ids: set[int] = set()
    for texts in captions:
        for text in texts:
            ids.update(ids_L(text).tolist())
    ids_V = torch.tensor(sorted(ids))

    def tokenizer(texts: list[str]) -> Tensor:
        """Texts to rows of the short table; ids keep their order, so the end token is still the highest."""
        ids_BL = torch.stack([ids_L(text) for text in texts])
        rows_BL = torch.searchsorted(ids_V, ids_BL)
        assert torch.equal(ids_V[rows_BL.clamp(max=len(ids_V) - 1)], ids_BL), "a caption that was not announced"
        return rows_BL

    table = clip.model.token_embedding
    used_V = ids_V.to(table.weight.device)
    rows = table.weight.detach()[used_V]
    clip.model.token_embedding = nn.Embedding(len(rows), table.embedding_dim, _weight=rows)
    try:
        yield replace(clip, tokenizer=tokenizer)
    finally:
        short, clip.model.token_embedding = clip.model.token_embedding, table
        with torch.no_grad():
            table.weight[used_V] = short.weight
