"""Settings of the trainings: teacher, proposal network, student, detector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from regionclip_core.config.regions import Resize
from regionclip_core.config.section import (
    CheckpointEvery,
    Count,
    CountOrZero,
    Flip,
    ImagesPerStep,
    Listed,
    LongerSide,
    PositiveShare,
    Section,
    ShorterSide,
    Side,
    Steps,
    Temperature,
    Weight,
)


class OptimConfig(Section):
    """Optimiser and learning-rate schedule of one training."""

    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """AdamW and Muon decay matrices only; SGD decays every parameter, as the official code does. Muon makes the updates
    of hidden layers' matrices orthogonal, with four times the rate, and a training from nothing takes fewer steps;
    everything else takes AdamW."""
    lr: float = Field(1e-3, gt=0, le=1000)
    """Highest learning rate, reached after the warm-up."""
    weight_decay: Weight = 0.05
    """Weight decay: decoupled from the gradient in AdamW, added to it in SGD."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD and Muon."""
    schedule: Literal["constant", "cosine", "one_cycle", "steps"] = "cosine"
    """After the warm-up: `cosine` and `one_cycle` fall to 0, `steps` falls at `drops`. `one_cycle` also warms up along
    a cosine."""
    warmup_steps: CountOrZero = 0
    """Steps over which the rate rises from `warmup_factor * lr` to `lr`."""
    warmup_factor: PositiveShare = 1e-3
    """Multiplier of the rate at step 0."""
    drops: Listed[tuple[Count, ...]] = ()
    """`steps` only: the steps at which the rate is multiplied by `drop_factor`."""
    drop_factor: PositiveShare = 0.1
    """`steps` only: multiplier of the rate at each of `drops`."""
    clip_norm: float | None = Field(None, gt=0, le=1e9)
    """Largest L2 norm of the gradient; null clips nothing."""
    clip_per_tensor: bool = False
    """Clip each parameter's gradient on its own, as the official pretraining does, instead of all together."""


Optim = Annotated[OptimConfig, Field(description="Optimiser and learning-rate schedule.")]

Channels = Annotated[int, Field(ge=1, le=2**14)]
Depth = Annotated[int, Field(ge=1, le=1000)]


class ClipArchitecture(Section):
    """A small CLIP with open_clip's own modules: ModifiedResNet and a text transformer."""

    embed_dim: Channels = 128
    """Dimensions of the embedding that images and texts share."""
    image_size: int = Field(64, multiple_of=32, ge=32, le=2048)
    """Side of the square input, in pixels; a multiple of 32."""
    vision_width: int = Field(16, multiple_of=2, ge=2, le=2**14)
    """Channels of the first stage; even, since the stem has half as many."""
    vision_layers: Listed[tuple[Depth, Depth, Depth, Depth]] = (1, 1, 1, 1)
    """Residual blocks of the four stages."""
    text_width: Channels = 128
    """Channels of the text transformer."""
    text_heads: Channels = 4
    """Attention heads of the text transformer; a divisor of `text_width`."""
    text_layers: Depth = 1
    """Blocks of the text transformer."""
    context_length: int = Field(32, ge=8, le=2**14)
    """Tokens per caption, start and end included; with fewer than 8 a prompt has no room for its category."""
    quick_gelu: bool = False
    """OpenAI's approximation of the GELU, x * sigmoid(1.702 x)."""

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
    """Splits whose images and captions are learned from."""
    steps: Steps = 1000
    batch_size: int = Field(64, ge=2, le=2**20)
    """Images per step, over all workers together; each caption is contrasted with all of them."""
    min_crop: PositiveShare = 0.8
    """Smallest area of the random resized crop, as a share of the image."""
    flip: Flip = 0.5
    optim: Optim = OptimConfig(optimizer="muon", lr=1.5e-3, schedule="one_cycle", warmup_steps=200)
    checkpoint_every: CheckpointEvery = 400


class TeacherConfig(Section):
    """The CLIP whose knowledge of whole images is carried to regions."""

    model: str = "small"
    """`small` (see `architecture`) or an open_clip architecture: an RN, a ViT (ViT-B-16), an EVA-CLIP (EVA02-B-16), a
    Perception Encoder (PE-Core-B-16), a SigLIP (ViT-B-16-SigLIP); others can only label, with `labels.mode: crop`."""
    weights: str = "train"
    """`train` (on `training.splits`), an open_clip pretrained tag (`openai`), a local checkpoint file, a folder from
    `regionclip import` or `export`, or `random` (untrained: for trying the pipeline out, never for results)."""
    architecture: ClipArchitecture = ClipArchitecture()
    """How the model `small` is built."""
    value_blocks: int | None = Field(None, ge=0, le=12)
    """ViTs and EVA's: a region's features are the values of the last so many blocks, summed, without what passes beside
    the attention. 0: the last block's values, its residual and its MLP. Null: what the folder of weights says, else 0.
    Student and detectors have the teacher's."""
    training: TeacherTraining | None = None
    """How `weights: train` trains it; null where it isn't trained."""
    prompts: str = "short"
    """Prompt templates: `single`, `short`, `clip81` (the paper's), or a text file of lines with `{}`."""
    normalize_prompts: bool = True
    """Normalise each prompt's embedding before averaging; false averages the raw ones, as the official code does."""
    embeddings: Listed[tuple[str, ...]] = ()
    """Folders that `regionclip import` made of published embedding files. The names in them take their embeddings from
    there, all others from the text encoder."""


class RpnConfig(Section):
    """A class-agnostic region proposal network, trained on the boxes of base categories only."""

    backbone: Literal["small", "resnet50_c4", "resnet50_fpn", "resnet50_fpn_lsj", "torchvision_fpn"] = "small"
    """`small`: for small images. `resnet50_*`: the official proposal branches. `torchvision_fpn`: torchvision's."""
    weights: str = "train"
    """`train`, `random` (for trying out), or a file or folder from `regionclip import`."""
    split: str = "train"
    """Split whose boxes of base categories are learned from."""
    width: int = Field(24, ge=1, le=2**12)
    """Channels of the small backbone's first stage."""
    image_size: int = Field(128, ge=16, le=2**14)
    """Shorter side of the resized image, in pixels."""
    max_size: LongerSide = 1333
    anchor_sizes: Listed[Annotated[tuple[Side, ...], Field(min_length=1)]] = (12, 20, 32)
    """Sides of the anchors, in pixels of the resized image (small backbone only)."""
    steps: Steps = 300
    batch_size: ImagesPerStep = 16
    optim: Optim = OptimConfig(lr=4e-3)
    checkpoint_every: CheckpointEvery = 100


RPN_FIELDS = ("backbone", "width", "anchor_sizes", "image_size", "max_size")
"""The settings of RpnConfig that decide how a network is built and what input it gets."""


class PretrainConfig(Section):
    """Region-text pretraining of the student (paper section 3.3, equations 1-4)."""

    weights: str = "train"
    """`train`, or a student to take as it is: a folder from `regionclip import`, an exported CLIP folder, or the folder
    of an artifact that holds one."""
    init: str = "teacher"
    """What the student's visual encoder starts from: the `teacher`, or a CLIP or pretrained folder of its architecture.
    The text encoder stays the teacher's."""
    steps: Steps = 300
    batch_size: ImagesPerStep = 16
    regions_per_image: Count = 12
    """Regions per image and step, drawn at random from the kept ones; and as many from `pairs.other_regions`."""
    image_size: ShorterSide = 128
    max_size: LongerSide = 1333
    resize: Resize = "detection"
    """As `labels.resize`."""
    flip: Flip = 0.5
    freeze_at: int = Field(2, ge=0, le=5)
    """Frozen parts of the visual encoder. ResNets: 1 the stem, 2 also stage 1, ..., 5 all but the attention pool.
    ViTs: 1 patch embedding and positions, 2 also the first quarter of the blocks, ..., 5 all but what pools."""
    temperature: Temperature | None = None
    """Temperature of the three losses; null takes the teacher's own."""
    contrastive_weight: Weight = 1.0
    """Weight of the region-text contrastive loss."""
    distill_weight: Weight = 1.0
    """Weight of the distillation of the teacher's probabilities over concepts."""
    image_text_weight: Weight = 1.0
    """Weight of CLIP's image-text contrastive loss."""
    crop_weight: Weight = 0.0
    """Weight of the crop distillation: 1 - cosine between a region's feature and the teacher's embedding of the
    region's own crop. Needs `labels.crop_features`."""
    weigh_by_score: bool = False
    """Weight each region in the contrast and in both distillations by its label's score; each loss is divided by the
    sum of the weights."""
    weight_average: PositiveShare = 1.0
    """Share of the trained weights in the student that is saved; the rest are the weights that it started from."""
    gather_regions: bool = True
    """Contrast the regions of all workers with each other, so that their number doesn't matter; false reproduces the
    official code, where each worker contrasts its own regions only."""
    global_box: Literal["image", "padded"] = "image"
    """Box of the image-text loss: the `image`, or, as in the official code, its `padded` canvas in the batch."""
    optim: Optim = OptimConfig(lr=5e-4, weight_decay=1e-4, clip_norm=5.0)
    checkpoint_every: CheckpointEvery = 100


DETECTORS = {"regionclip": "pretrain", "clip": "teacher", "oracle": "pretrain"}
"""The finetune stage's detectors, and the stage whose CLIP model each started from."""


class FinetuneConfig(Section):
    """Open-vocabulary detector from base boxes (paper section 3.4)."""

    weights: str = "train"
    """`train`, or a published detector to take as `regionclip`: a folder from `regionclip import`."""
    split: str = "train"
    """Split whose boxes of base categories are learned from."""
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    """`repeat_factor`: images with rare categories are drawn more often, as LVIS does."""
    repeat_threshold: PositiveShare = 0.001
    """`repeat_factor`: categories that are in a smaller share of the images are repeated."""
    oracle: bool = True
    """Also finetune one detector on the boxes of all categories, as an upper limit in the results."""
    steps: Steps = 60
    batch_size: ImagesPerStep = 16
    regions_per_image: Count = 16
    """Proposals per image and step that the losses are computed on."""
    positive_fraction: PositiveShare = 0.25
    """Largest share of objects among them; background fills the rest."""
    image_size: ShorterSide = 128
    max_size: LongerSide = 1333
    train_sizes: Listed[tuple[Side, ...]] = ()
    """Shorter sides to draw from, one per image and step, in pixels; empty: always `image_size`."""
    flip: Flip = 0.5
    freeze_at: int = Field(2, ge=0, le=5)
    """As `pretrain.freeze_at`."""
    temperature: Temperature | None = None
    """Divides the cosines of regions and categories; null takes the teacher's own."""
    background: Literal["zero", "learnable"] = "learnable"
    """Background logit: the official fixed zero embedding, or one learnable logit."""
    background_weight: float = Field(0.2, gt=0, le=1000)
    """Weight of background regions in the classification loss."""
    focal_gamma: float | None = Field(0.5, ge=0, le=100)
    """Exponent of the focal loss; null: cross entropy, divided by the sum of weights (the official LVIS loss)."""
    mask_head: bool = False
    """Also train a class-agnostic mask head; needs a split with `masks: true`."""
    optim: Optim = OptimConfig(lr=3e-4, weight_decay=1e-4)
    checkpoint_every: CheckpointEvery = 50
