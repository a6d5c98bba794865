"""Settings of what is trained: teacher, proposal network, student, detector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from regionclip_core.config.regions import Resize
from regionclip_core.config.section import (
    BatchSize,
    Count,
    CountOrNone,
    Listed,
    PositiveShare,
    Section,
    Share,
    Side,
    Temperature,
    Weight,
)


class OptimConfig(Section):
    """Optimiser and schedule of one training job."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0, le=1000)
    weight_decay: Weight = 0.05
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD only."""
    schedule: Literal["constant", "cosine", "one_cycle", "steps"] = "cosine"
    warmup_steps: CountOrNone = 0
    warmup_factor: PositiveShare = 1e-3
    """Multiplier of the rate at step 0; rises linearly to 1."""
    drops: Listed[tuple[Count, ...]] = ()
    """`steps` only: the rate falls by `drop_factor` at these steps."""
    drop_factor: PositiveShare = 0.1
    clip_norm: float | None = Field(None, gt=0, le=1e9)
    """Gradient L2 norm; null clips nothing."""
    clip_per_tensor: bool = False
    """Clip each parameter on its own, as the official pretraining does, not the global norm."""


Channels = Annotated[int, Field(ge=1, le=2**14)]
Depth = Annotated[int, Field(ge=1, le=1000)]


class ClipArchitecture(Section):
    """A small CLIP with open_clip's own modules: ModifiedResNet and a text transformer."""

    embed_dim: Channels = 128
    image_size: int = Field(64, multiple_of=32, ge=32, le=2048)
    """Side of the square input, pixels; a multiple of 32."""
    vision_width: int = Field(16, multiple_of=2, ge=2, le=2**14)
    """Channels of the first stage; even, since the stem has half as many."""
    vision_layers: Listed[tuple[Depth, Depth, Depth, Depth]] = (1, 1, 1, 1)
    text_width: Channels = 128
    text_heads: Channels = 4
    text_layers: Depth = 1
    context_length: int = Field(32, ge=8, le=2**14)
    """Tokens a caption, start and end included; in fewer than 8 a prompt has no room for its category."""
    quick_gelu: bool = False

    @field_validator("text_heads")
    @classmethod
    def _heads_divide_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("text_width", heads)  # absent where it is itself wrong
        if width % heads:
            raise ValueError(f"expected a divisor of text_width, which is {width} (came: {heads})")
        return heads


class TeacherTraining(Section):
    """CLIP from nothing on the captioned splits (the embedded default)."""

    splits: Listed[tuple[str, ...]]
    steps: Count = 2400
    batch_size: int = Field(64, ge=2, le=2**20)
    min_crop: PositiveShare = 0.8
    """Random-resized-crop area, smallest share."""
    flip: Share = 0.5
    optim: OptimConfig = OptimConfig(lr=1.5e-3, schedule="one_cycle", warmup_steps=200)
    checkpoint_every: Count = 400


class TeacherConfig(Section):
    """The CLIP whose knowledge of whole images is carried to regions."""

    model: str = "small"
    """`small` (see `architecture`) or an open_clip architecture: an RN, a ViT (ViT-B-16), a SigLIP (ViT-B-16-SigLIP);
    others can label with `labels.mode: crop` and no more."""
    weights: str = "train"
    """`train` (on `training.splits`), an open_clip pretrained tag (`openai`), a local checkpoint file, a folder from
    `regionclip import` or `export`, or `random` (untrained: for trying the pipeline out, never for results)."""
    architecture: ClipArchitecture = ClipArchitecture()
    training: TeacherTraining | None = None
    prompts: str = "short"
    """Prompt templates: `single`, `short`, `clip81` (the paper's), or a text file with `{}` lines."""
    normalize_prompts: bool = True
    """Normalise each prompt's embedding before averaging; false reproduces the official average of raw ones."""
    embeddings: Listed[tuple[str, ...]] = ()
    """Folders from `regionclip import` of published embedding files. Names that they hold take their embedding from
    there, all others from the text encoder."""

    @model_validator(mode="after")
    def _training_is_given(self) -> TeacherConfig:
        if self.weights == "train" and self.training is None:
            raise ValueError("weights: train needs a `training:` section that names its splits")
        return self


class RpnConfig(Section):
    """A class-agnostic region proposal network, trained on the boxes of base categories only."""

    backbone: Literal["small", "resnet50_c4", "resnet50_fpn", "resnet50_fpn_lsj", "torchvision_fpn"] = "small"
    """`small`: for small images. `resnet50_*`: the official proposal branches. `torchvision_fpn`: torchvision's."""
    weights: str = "train"
    """`train`, `random` (for trying out), or a file or folder from `regionclip import`."""
    split: str = "train"
    width: int = Field(24, ge=1, le=2**12)
    """Channels of the small backbone's first stage."""
    image_size: int = Field(128, ge=16, le=2**14)
    """Shorter side of the input, pixels."""
    max_size: Side = 1333
    """Longer side, pixels, at most."""
    anchor_sizes: Listed[Annotated[tuple[Side, ...], Field(min_length=1)]] = (12, 20, 32)
    """Anchor sides at input resolution, pixels (small backbone only)."""
    steps: Count = 300
    batch_size: BatchSize = 16
    optim: OptimConfig = OptimConfig(lr=4e-3)
    checkpoint_every: Count = 100


RPN_FIELDS = ("backbone", "width", "anchor_sizes", "image_size", "max_size")
"""What of RpnConfig builds a network and feeds it."""


class PretrainConfig(Section):
    """Region-text pretraining of the student (paper section 3.3, equations 1-4)."""

    weights: str = "train"
    """`train`, or a student to take as it is: a folder from `regionclip import`, an exported CLIP folder, or the folder
    of an artifact that holds one."""
    steps: Count = 300
    batch_size: BatchSize = 16
    """Images a step, all workers together."""
    regions_per_image: Count = 12
    image_size: Side = 128
    """Shorter side of the input, pixels."""
    max_size: Side = 1333
    resize: Resize = "detection"
    """As `labels.resize`."""
    flip: Share = 0.5
    freeze_at: int = Field(2, ge=0, le=5)
    """Frozen parts of the visual encoder. ResNets: 1 the stem, 2 also stage 1, ..., 5 all but the attention pool.
    ViTs: 1 patch embedding and positions, 2 also the first quarter of the blocks, ..., 5 all but what pools."""
    temperature: Temperature | None = None
    """null takes the teacher's own."""
    contrastive_weight: Weight = 1.0
    distill_weight: Weight = 1.0
    image_text_weight: Weight = 1.0
    gather_regions: bool = True
    """The region losses are those of all workers' regions together, whatever their number; false reproduces the
    official losses, which each worker takes over its own regions."""
    global_box: Literal["image", "padded"] = "image"
    """`padded` reproduces the official global box over the batch's padded canvas."""
    optim: OptimConfig = OptimConfig(lr=5e-4, weight_decay=1e-4, clip_norm=5.0)
    checkpoint_every: Count = 100


class FinetuneConfig(Section):
    """Open-vocabulary detector from base boxes (paper section 3.4)."""

    weights: str = "train"
    """`train`, or a published detector: a folder from `regionclip import`, taken as it is for the `regionclip` one."""
    split: str = "train"
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    """`repeat_factor`: images with rare categories come more often (LVIS's way)."""
    repeat_threshold: PositiveShare = 0.001
    """`repeat_factor`: categories in a smaller share of the images are repeated."""
    oracle: bool = True
    """Also finetune on the boxes of all categories, as an upper row."""
    steps: Count = 60
    batch_size: BatchSize = 16
    regions_per_image: Count = 16
    positive_fraction: PositiveShare = 0.25
    image_size: Side = 128
    max_size: Side = 1333
    train_sizes: Listed[tuple[Side, ...]] = ()
    """Shorter sides of the input to draw from, one an image and step; empty: always `image_size`."""
    flip: Share = 0.5
    freeze_at: int = Field(2, ge=0, le=5)
    temperature: Temperature | None = None
    background: Literal["zero", "learnable"] = "learnable"
    """Background logit: the official fixed zero embedding, or one learnable logit."""
    background_weight: float = Field(0.2, gt=0, le=1000)
    focal_gamma: float | None = Field(0.5, ge=0, le=100)
    """null: cross entropy, divided by the sum of weights (the official LVIS loss)."""
    mask_head: bool = False
    """Also train a class-agnostic mask head; needs a split with `masks: true`."""
    optim: OptimConfig = OptimConfig(lr=3e-4, weight_decay=1e-4)
    checkpoint_every: Count = 50
