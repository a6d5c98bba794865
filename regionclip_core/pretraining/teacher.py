"""CLIP trained from scratch on captioned images: the teacher where no published one is used.

B images, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from regionclip_core.models.clip import ClipModel
from regionclip_core.pretraining.captioned_images import ClipBatch
from regionclip_core.pretraining.losses import image_text_contrastive
from regionclip_core.training.distributed import gather_rows, use_global_batch_norms

_MAX_LOGIT_SCALE = math.log(100)  # CLIP's own ceiling on the learned temperature


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
