"""The configuration tree: one frozen, typed model for every setting of every stage.

A stage's name is its key here, in pipeline.yaml, on the command line and in the workspace. Every section but
`workspace` and `execution` enters the fingerprints of the stages that read it. Loading and overriding is
`config_io.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STAGE_NAMES = (
    "data",
    "concepts",
    "teacher",
    "rpn",
    "proposals",
    "labels",
    "pairs",
    "pretrain",
    "finetune",
    "evaluate",
    "report",
)


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


# ---------------------------------------------------------------- execution


class ExecutionConfig(Section):
    """Where and with what the run executes. Never part of a fingerprint."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: workers that live through the run. `local`: everything in this process, for a debugger."""
    address: str | None = None
    """Ray cluster address; null starts Ray on this machine."""
    workers: int | None = Field(None, ge=1)
    """Shard workers; null takes one per available CPU (or per GPU for stages that want one)."""
    train_workers: int = Field(1, ge=1)
    """Processes of one training job; more than one goes through Ray Train (DDP)."""
    threads: int | None = Field(None, ge=1)
    """Torch threads of a training job; null takes every available CPU."""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that one worker of a model stage asks of Ray."""
    shard_retries: int = Field(2, ge=0)
    """How often a shard or a training is done again because a worker died (not because it raised)."""
    max_error_rate: float = Field(0.1, ge=0, le=1)
    """A stage stops when more than this share of its samples is bad; a good one that lost a box or caption is not."""


# ---------------------------------------------------------------- data


class WorldSplit(Section):
    """Images of the embedded world."""

    source: Literal["world"] = "world"
    kind: Literal["closeup", "scene"] = "scene"
    """`closeup`: one to three large objects, as in web images. `scene`: several small objects, as in COCO."""
    images: int = Field(ge=1)
    """Number of images."""
    image_size: int = Field(128, ge=32, le=1024)
    """Side of the square image, pixels."""
    objects: tuple[int, int] = (3, 7)
    """Fewest and most objects in an image (`scene` only)."""
    object_size: tuple[float, float] = (0.11, 0.24)
    """Smallest and largest object, as a share of the image side (`scene` only)."""


class TarsSplit(Section):
    """WebDataset tars in img2dataset's layout: `<key>.jpg`, `<key>.txt`, `<key>.json`."""

    source: Literal["tars"]
    urls: str
    """Path or fsspec URL, with `*` globs or `{00000..00099}` braces."""


class CocoSplit(Section):
    """COCO-style annotations beside a folder of images."""

    source: Literal["coco"]
    images: str
    """Folder (or fsspec URL) that holds the images by their `file_name`."""
    instances: str | None = None
    """instances_*.json, for boxes."""
    captions: str | None = None
    """captions_*.json, for captions."""
    masks: bool = False
    """Read segmentation masks too: for `finetune.mask_head` and mask AP."""
    limit: int | None = Field(None, ge=1)
    """Take only the first images, in the order of the file."""


class LvisSplit(Section):
    """LVIS v1 annotations beside COCO's image folders."""

    source: Literal["lvis"]
    images: str
    """Folder (or fsspec URL) that holds COCO's train2017/ and val2017/, from which LVIS draws its images."""
    instances: str
    """lvis_v1_*.json."""
    captions: str | None = None
    """COCO's captions_*.json, for captions of the same images."""
    masks: bool = True
    """Read segmentation masks too: for `finetune.mask_head` and mask AP."""
    limit: int | None = Field(None, ge=1)
    """Take only the first images, in the order of the file."""


class FolderSplit(Section):
    """A folder of images and one caption file."""

    source: Literal["folder"]
    images: str
    """Folder (or fsspec URL) of images."""
    captions: str
    """.jsonl, .csv or .tsv with the fields `file` and `caption`; a file may stand in several rows."""


Split = Annotated[WorldSplit | TarsSplit | CocoSplit | LvisSplit | FolderSplit, Field(discriminator="source")]


class DataConfig(Section):
    """What goes in: named splits of images, and the categories that detection is measured on."""

    splits: dict[str, Split]
    """Splits by name; the other stages choose theirs by these names."""
    categories: str = "world"
    """`world`, a name under data/ (`coco_ovd`), a YAML/JSON file with `base:` and `novel:` lists, a COCO
    annotation file (all its categories are base), or an LVIS one (rare categories are novel, the others base)."""
    shard_size: int = Field(500, ge=1)
    """Images a shard (tars keep the shards they come in)."""


# ---------------------------------------------------------------- concepts


class ConceptsConfig(Section):
    """Captions to a concept pool (paper section 3.2)."""

    splits: tuple[str, ...]
    """Splits whose captions are parsed."""
    parser: Literal["auto", "spacy", "rules"] = "auto"
    """`spacy`: an installed pipeline. `rules`: the built-in caption parser. `auto`: the first that is there."""
    spacy_model: str = "en_core_web_sm"
    """Name or path for spacy.load; never downloaded."""
    min_count: int = Field(100, ge=1)
    """Concepts seen less often are dropped (the paper's CC3M pool: 100)."""
    count_unit: Literal["caption", "image"] = "caption"
    """What one count is."""
    multiword: Literal["head", "compound", "both"] = "both"
    """Keep the head noun, the full compound, or both."""
    max_words: int = Field(3, ge=1)
    """Longer compounds count for their head only."""
    merge: dict[str, str] = {"people": "person"}
    """Lemmas counted as another."""
    drop: tuple[Literal["relational", "partitive", "image", "time", "abstract"], ...] = (
        "relational",
        "partitive",
        "image",
        "time",
        "abstract",
    )
    """Word classes that make no concept."""
    protect_categories: bool = False
    """Never drop a category name that the captions hold (it must still be seen, and min_count still rules)."""
    max_concepts: int | None = Field(None, ge=1)
    """Keep only the most frequent."""


# ---------------------------------------------------------------- teacher


class ClipArchitecture(Section):
    """A small CLIP with open_clip's own modules: ModifiedResNet and a text transformer."""

    embed_dim: int = 128
    image_size: int = 64
    """Side of the square input, pixels; a multiple of 32."""
    vision_width: int = 16
    vision_layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    text_width: int = 128
    text_heads: int = 4
    text_layers: int = 1
    context_length: int = 32
    """Tokens a caption, start and end included."""
    quick_gelu: bool = False


class OptimConfig(Section):
    """Optimiser and schedule of one training job."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD only."""
    schedule: Literal["constant", "cosine", "one_cycle", "steps"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    warmup_factor: float = Field(1e-3, gt=0, le=1)
    """Multiplier of the rate at step 0; rises linearly to 1."""
    drops: tuple[int, ...] = ()
    """`steps` only: the rate falls by `drop_factor` at these steps."""
    drop_factor: float = Field(0.1, gt=0, le=1)
    clip_norm: float | None = Field(None, gt=0)
    """Gradient L2 norm; null clips nothing."""
    clip_per_tensor: bool = False
    """Clip each parameter on its own, as the official pretraining does, not the global norm."""


class TeacherTraining(Section):
    """CLIP from nothing on the captioned splits (the embedded default)."""

    splits: tuple[str, ...]
    steps: int = Field(2400, ge=1)
    batch_size: int = Field(64, ge=2)
    min_crop: float = Field(0.8, gt=0, le=1)
    """Random-resized-crop area, smallest share."""
    flip: float = Field(0.5, ge=0, le=1)
    optim: OptimConfig = OptimConfig(lr=1.5e-3, schedule="one_cycle", warmup_steps=200)
    checkpoint_every: int = Field(400, ge=1)


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
    embeddings: tuple[str, ...] = ()
    """Folders from `regionclip import` of published embedding files. Names that they hold take their embedding from
    there, all others from the text encoder."""

    @model_validator(mode="after")
    def _training_is_given(self) -> TeacherConfig:
        if self.weights == "train" and self.training is None:
            raise ValueError("weights: train needs a `training:` section that names its splits")
        return self


# ---------------------------------------------------------------- proposals


class RpnConfig(Section):
    """A class-agnostic region proposal network, trained on the boxes of base categories only."""

    backbone: Literal["small", "resnet50_c4", "resnet50_fpn", "resnet50_fpn_lsj", "torchvision_fpn"] = "small"
    """`small`: for small images. `resnet50_*`: the official proposal branches. `torchvision_fpn`: torchvision's."""
    weights: str = "train"
    """`train`, `random` (for trying out), or a file or folder from `regionclip import`."""
    split: str = "train"
    width: int = 24
    """Channels of the small backbone's first stage."""
    image_size: int = 128
    """Shorter side of the input, pixels."""
    max_size: int = 1333
    """Longer side, pixels, at most."""
    anchor_sizes: tuple[int, ...] = (12, 20, 32)
    """Anchor sides at input resolution, pixels (small backbone only)."""
    steps: int = Field(300, ge=1)
    batch_size: int = Field(16, ge=1)
    optim: OptimConfig = OptimConfig(lr=4e-3)
    checkpoint_every: int = Field(100, ge=1)


class ProposalsConfig(Section):
    """Boxes that may hold an object."""

    splits: tuple[str, ...]
    method: Literal["rpn", "grid", "random", "given"] = "rpn"
    """`given` takes the annotated boxes, whatever their category."""
    max_regions: int = Field(100, ge=1)
    """Boxes kept an image, best objectness first."""
    pre_nms: int = Field(1000, ge=1)
    nms: float = Field(0.7, gt=0, le=1)
    min_objectness: float = Field(0.0, ge=0, le=1)
    """Sigmoid of the RPN logit, smallest kept."""
    grid_scales: tuple[float, ...] = (0.15, 0.25, 0.5)
    """`grid`: box sides as shares of the shorter image side; `random` draws between the extremes."""


# ---------------------------------------------------------------- labels, pairs


Resize = Literal["detection", "pretraining"]


class LabelsConfig(Section):
    """Teacher pseudo labels for proposals (paper section 3.3)."""

    splits: tuple[str, ...]
    mode: Literal["roi", "crop"] = "crop"
    """`roi`: RoIAlign on the image's feature map, the paper's way. `crop`: each region alone through the teacher."""
    context: float = Field(1.2, ge=1)
    """`crop`: side of the square crop over the longer side of the box."""
    image_size: int = 128
    """`roi`: shorter side of the input, pixels."""
    max_size: int = 1333
    resize: Resize = "detection"
    """`roi`: `detection` resizes bilinearly and rounds the longer side; `pretraining` is the official pretraining's
    rule: bicubic, longer side rounded down."""
    max_regions: int = Field(16, ge=1)
    """Proposals labelled an image, best objectness first."""
    threshold: float = Field(0.1, ge=0, lt=1)
    """Regions whose best probability is not above this are marked, and not used."""
    temperature: float | None = Field(None, gt=0)
    """null takes the teacher's own, 1 / exp(logit_scale)."""
    top_k: int = Field(16, ge=1)
    """Teacher probabilities stored a region; the rest is stored as one residual mass."""
    batch_size: int = Field(64, ge=1)


class PairsConfig(Section):
    """Region-text samples as WebDataset tars."""

    max_regions: int = Field(16, ge=1)
    """Kept regions an image, highest score first."""
    min_regions: int = Field(1, ge=0)
    """Images with fewer kept regions are left out."""


# ---------------------------------------------------------------- pretrain, finetune, evaluate


class PretrainConfig(Section):
    """Region-text pretraining of the student (paper section 3.3, equations 1-4)."""

    weights: str = "train"
    """`train`, or a student to take as it is: a folder from `regionclip import`, an exported CLIP folder, or the folder
    of an artifact that holds one."""
    steps: int = Field(300, ge=1)
    batch_size: int = Field(16, ge=1)
    """Images a step, all workers together."""
    regions_per_image: int = Field(12, ge=1)
    image_size: int = 128
    """Shorter side of the input, pixels."""
    max_size: int = 1333
    resize: Resize = "detection"
    """As `labels.resize`."""
    flip: float = Field(0.5, ge=0, le=1)
    freeze_at: int = Field(2, ge=0, le=5)
    """Frozen parts of the visual encoder. ResNets: 1 the stem, 2 also stage 1, ..., 5 all but the attention pool.
    ViTs: 1 patch embedding and positions, 2 also the first quarter of the blocks, ..., 5 all but what pools."""
    temperature: float | None = Field(None, gt=0)
    """null takes the teacher's own."""
    contrastive_weight: float = Field(1.0, ge=0)
    distill_weight: float = Field(1.0, ge=0)
    image_text_weight: float = Field(1.0, ge=0)
    gather_regions: bool = True
    """The region losses are those of all workers' regions together, whatever their number; false reproduces the
    official losses, which each worker takes over its own regions."""
    global_box: Literal["image", "padded"] = "image"
    """`padded` reproduces the official global box over the batch's padded canvas."""
    optim: OptimConfig = OptimConfig(lr=5e-4, weight_decay=1e-4, clip_norm=5.0)
    checkpoint_every: int = Field(100, ge=1)


class FinetuneConfig(Section):
    """Open-vocabulary detector from base boxes (paper section 3.4)."""

    weights: str = "train"
    """`train`, or a published detector: a folder from `regionclip import`, taken as it is for the `regionclip` one."""
    split: str = "train"
    sampling: Literal["uniform", "repeat_factor"] = "uniform"
    """`repeat_factor`: images with rare categories come more often (LVIS's way)."""
    repeat_threshold: float = Field(0.001, gt=0, le=1)
    """`repeat_factor`: categories in a smaller share of the images are repeated."""
    oracle: bool = True
    """Also finetune on the boxes of all categories, as an upper row."""
    steps: int = Field(60, ge=1)
    batch_size: int = Field(16, ge=1)
    regions_per_image: int = Field(16, ge=1)
    positive_fraction: float = Field(0.25, gt=0, le=1)
    image_size: int = 128
    max_size: int = 1333
    train_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Shorter sides of the input to draw from, one an image and step; empty: always `image_size`."""
    flip: float = Field(0.5, ge=0, le=1)
    freeze_at: int = Field(2, ge=0, le=5)
    temperature: float | None = Field(None, gt=0)
    background: Literal["zero", "learnable"] = "learnable"
    """Background logit: the official fixed zero embedding, or one learnable logit."""
    background_weight: float = Field(0.2, gt=0)
    focal_gamma: float | None = Field(0.5, ge=0)
    """null: cross entropy, divided by the sum of weights (the official LVIS loss)."""
    mask_head: bool = False
    """Also train a class-agnostic mask head; needs a split with `masks: true`."""
    optim: OptimConfig = OptimConfig(lr=3e-4, weight_decay=1e-4)
    checkpoint_every: int = Field(50, ge=1)


class EvaluateConfig(Section):
    """Average precision on base, novel and all categories."""

    split: str = "val"
    protocol: Literal["coco", "lvis"] = "coco"
    """`lvis`: federated evaluation with APr, APc and APf; takes LVIS splits."""
    annotated_only: bool = False
    """Leave out images without an object of any category, as the official validation sets do."""
    image_size: int = 128
    max_size: int = 1333
    batch_size: int = Field(16, ge=1)
    score_threshold: float = Field(0.001, ge=0)
    given_score_threshold: float | None = Field(None, ge=0)
    """Zero-shot with annotated boxes: replaces `score_threshold`, which null takes (official for LVIS: 0.0001)."""
    nms: float = Field(0.5, gt=0, le=1)
    """IoU of the per-class NMS (`gaussian` doesn't use it)."""
    nms_kind: Literal["hard", "gaussian", "linear"] = "hard"
    """Finetuned detectors: `hard` NMS, or soft-NMS that lowers scores; their official test scripts use `gaussian`.
    Zero-shot rows always have hard NMS, as officially."""
    report_probability: bool = False
    """Report the class probability, though its product with the objectness ranks and is thresholded (as the official
    drawing tool does). Soft-NMS ignores it, officially too."""
    max_detections: int = Field(100, ge=1)
    whole_image_split: str | None = None
    """Split whose one-object images measure the teacher's whole-image accuracy; null leaves that row out."""
    zero_shot_background: Literal["none", "zero"] = "none"
    """Zero-shot softmax over the categories alone, or with the official zero embedding as one more column."""
    objectness: Literal["none", "sigmoid", "raw_logit"] = "sigmoid"
    """Zero-shot score with proposals: the probability p alone, sqrt(p * sigmoid(logit)), or the official
    sqrt(p * logit)."""
    finetuned_objectness: Literal["none", "sigmoid", "raw_logit"] = "none"
    """The same for finetuned detectors."""


class ReportConfig(Section):
    """One self-contained page."""

    images: int = Field(12, ge=0)
    """Pictures of detections shown."""


class Config(Section):
    """The whole run."""

    seed: int = Field(0, ge=0)
    workspace: str = "runs/default"
    """Folder or fsspec URL; every stage writes <workspace>/<stage>/<fingerprint>/."""
    execution: ExecutionConfig = ExecutionConfig()
    data: DataConfig
    concepts: ConceptsConfig
    teacher: TeacherConfig
    rpn: RpnConfig = RpnConfig()
    proposals: ProposalsConfig
    labels: LabelsConfig
    pairs: PairsConfig = PairsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _splits_exist(self) -> Config:
        wanted = [
            ("concepts.splits", self.concepts.splits),
            ("proposals.splits", self.proposals.splits),
            ("labels.splits", self.labels.splits),
            ("rpn.split", (self.rpn.split,)),
            ("finetune.split", (self.finetune.split,)),
            ("evaluate.split", (self.evaluate.split,)),
        ]
        if self.evaluate.whole_image_split is not None:
            wanted.append(("evaluate.whole_image_split", (self.evaluate.whole_image_split,)))
        if self.teacher.training is not None:
            wanted.append(("teacher.training.splits", self.teacher.training.splits))
        for path, names in wanted:
            for name in names:
                if name not in self.data.splits:
                    raise ValueError(f"{path}: no split {name!r} in data.splits, which has {sorted(self.data.splits)}")
        for path, names in [
            ("labels.splits", self.labels.splits),
            ("finetune.split", (self.finetune.split,)),
            ("evaluate.split", (self.evaluate.split,)),
        ]:
            for name in names:
                if name not in self.proposals.splits:
                    raise ValueError(f"{path}: split {name!r} has no proposals; add it to proposals.splits")
        return self

    @model_validator(mode="after")
    def _objectness_is_known(self) -> Config:
        # Their logits are all 0, and so would be every score.
        raw = [n for n in ("objectness", "finetuned_objectness") if getattr(self.evaluate, n) == "raw_logit"]
        if raw and self.proposals.method != "rpn":
            raise ValueError(
                f"evaluate.{raw[0]}: raw_logit multiplies with the objectness of a proposal network, and "
                f"proposals.method {self.proposals.method} has none; set evaluate.{raw[0]}: none"
            )
        return self

    @model_validator(mode="after")
    def _masks_are_read(self) -> Config:
        if self.finetune.mask_head and self.finetune.weights == "train":
            split = self.data.splits[self.finetune.split]
            if not getattr(split, "masks", False):
                raise ValueError(
                    f"finetune.mask_head: split {self.finetune.split!r} has no masks to learn from; set masks: true in "
                    f"data.splits.{self.finetune.split}, which must be a coco or lvis split"
                )
        return self

    @model_validator(mode="after")
    def _architecture_can(self) -> Config:
        from regionclip_core.architectures import check_config

        check_config(self)
        return self
