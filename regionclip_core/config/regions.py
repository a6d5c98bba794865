"""Settings of regions and of what is computed from them: proposals, pseudo labels, pairs, average precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from regionclip_core.config.section import (
    BatchSize,
    Count,
    CountOrZero,
    Listed,
    LongerSide,
    PositiveShare,
    Section,
    Share,
    ShorterSide,
    Side,
    Temperature,
)

Resize = Literal["detection", "pretraining"]
GridScale = Annotated[float, Field(ge=0.01, le=1)]


class ProposalsConfig(Section):
    """Boxes that may hold an object."""

    splits: Listed[tuple[str, ...]] = ()
    """Splits whose images get proposals; all later stages choose among them."""
    method: Literal["rpn", "grid", "random", "given"] = "rpn"
    """`rpn`: by the network of the stage rpn. `given`: the annotated boxes, whatever their category."""
    max_regions: int = Field(100, ge=1, le=10**5)
    """Proposals kept per image, highest objectness first."""
    pre_nms: Count = 1000
    """Boxes with the highest objectness that enter the NMS, per level of the feature pyramid."""
    nms: PositiveShare = 0.7
    """IoU above which the NMS drops the box of lower objectness."""
    min_objectness: Share = 0.0
    """Proposals below this objectness, the sigmoid of the logit, are dropped."""
    grid_scales: Listed[Annotated[tuple[GridScale, ...], Field(min_length=1)]] = (0.15, 0.25, 0.5)
    """`grid`: box sides as shares of the shorter image side; `random` draws between the extremes."""


class LaterRoundsConfig(Section):
    """How regions are labelled in the rounds after the first, by the student of the round before; with `rounds`."""

    mode: Literal["roi", "crop"] = "roi"
    """As `labels.mode`: a student was trained on region features, and names crops worse."""
    threshold: float | None = Field(None, ge=0, lt=1)
    """Replaces `labels.threshold`, unless null: the student's probabilities are others than the teacher's."""


class LabelsConfig(Section):
    """Teacher pseudo labels for proposals (paper section 3.3)."""

    splits: Listed[tuple[str, ...]] = ()
    """Splits whose proposals are labelled; the student learns from them."""
    weights: str = "teacher"
    """What names the regions: the `teacher`, or a CLIP folder, an artifact's too, such as an earlier student. It must
    embed texts as the teacher does. The embeddings of crops stay the teacher's."""
    mode: Literal["roi", "crop"] = "crop"
    """`roi`: RoIAlign on the image's feature map, as in the paper. `crop`: each region alone through the teacher."""
    context: float = Field(1.2, ge=1, le=100)
    """`crop`, `crop_features`: side of the square crop, as a multiple of the longer side of the box."""
    image_size: Side = 128
    """`roi`: shorter side of the resized image, in pixels."""
    max_size: LongerSide = 1333
    resize: Resize = "detection"
    """`roi`: `detection` resizes bilinearly and rounds the longer side; `pretraining` is the rule of the official
    pretraining: bicubic, longer side rounded down."""
    canvas: Literal["image", "padded"] = "image"
    """`roi`: how images are batched. `image`: only with others of the same size, so that no label depends on another
    image. `padded`: as officially, `images_per_canvas` of any size, in their order, zero-padded to the largest height
    and width among them; the padding changes features near an image's right and lower edge."""
    images_per_canvas: Count = 3
    """`padded`: images that share a canvas; officially the 3 images of a GPU."""
    max_regions: CountOrZero = 16
    """Proposals labelled per image, highest objectness first, or boxes of `source`, highest score first; 0, with
    `grid_scales`: only the grid."""
    crop_features: bool = False
    """Also store the teacher's embedding of each region's own crop (`context`, `batch_size`), 2 bytes per dimension,
    for `pretrain.crop_weight`."""
    grid_scales: Listed[tuple[GridScale, ...]] = ()
    """Besides the proposals, square boxes on grids over the image, their sides as shares of its shorter side; at most
    1,000. Their objectness is 1/2, and they are never kept: with `pairs.other_regions` they take part in the crop
    distillation alone."""
    threshold: float = Field(0.1, ge=0, lt=1)
    """Regions whose score is not above this are stored, but not used."""
    objectness_power: float = Field(0.0, ge=0, le=100)
    """A region's score is its best probability times its objectness, the sigmoid of the logit, to this power; 0, as in
    the paper: the probability alone. Proposals without an objectness (any method but `rpn`) count as 1."""
    temperature: Temperature | None = None
    """Temperature of the softmax over concepts; null takes the teacher's own, 1 / exp(logit_scale)."""
    top_k: Count = 16
    """Teacher probabilities stored per region; the rest is stored as one residual mass."""
    batch_size: BatchSize = 64
    """`crop`, `crop_features`: crops per forward pass."""
    later_rounds: LaterRoundsConfig = LaterRoundsConfig()
    """How the rounds after the first label, with `rounds`."""
    source: str | None = None
    """File with boxes, names and scores that take the place of the proposals and of the teacher's names: COCO results
    (.json) or a table (.parquet), see data/README.md. `max_regions` and `threshold` go by its scores, which no
    objectness changes. null: proposals, named by the teacher."""
    unknown_names: Literal["drop", "add"] = "drop"
    """`source`: names that are no concept of the pool. `drop`: their rows are left out, and counted. `add`: the pool of
    the labels has them too, after the others."""
    source_probabilities: Literal["source", "teacher"] = "source"
    """`source`: what the distillation learns. `source`: the name with its score, and the rest as one residual mass, so
    that the teacher looks at no image. `teacher`: the teacher's `top_k` probabilities of the file's boxes."""
    corrections: str | None = None
    """CSV file with the columns key, box (x1 y1 x2 y2) and name, or `no object`: what a person says of the region at
    that box (IoU from 0.5) wins over the teacher, with the score 1. See data/README.md."""
    synonyms: str | None = None
    """YAML file of synonyms (`coco` or `world` in data/synonyms, or a path): where boxes are annotated, a label that is
    a synonym or the plural of the object's category counts as its name. It changes how labels are judged, no label;
    null: only the category's own name counts."""


class PairsConfig(Section):
    """Region-text samples as WebDataset tars."""

    max_regions: Count = 16
    """Regions written per image, highest score first."""
    min_regions: CountOrZero = 1
    """Images with fewer kept regions are left out."""
    other_regions: CountOrZero = 0
    """Regions that aren't kept, for the crop distillation alone: written per image, highest score first. They need no
    name."""


class FusionConfig(Section):
    """Rows in which a second classifier takes part: class probabilities p1 ** (1 - a) * p2 ** a for each box, instead
    of p1. Off by default; such rows are beside the others."""

    source: Literal["none", "student", "teacher_crops"] = "none"
    """p2 of the rows `finetuned_fused`, where p1 is the finetuned detector's. `student`: from the region features of
    the student as it was before finetuning. `teacher_crops`: from the teacher's crops with `labels.context`, one pass
    of the whole CLIP per proposal."""
    base: Share = 0.35
    """a for base categories. 0: p1 alone; 1: p2 alone."""
    novel: Share = 0.65
    """a for novel categories."""
    zero_shot: Share = 0.0
    """a of the rows `zero_shot_gt_fused` and `zero_shot_rpn_fused`, for all categories: p1 is a model's zero-shot
    probability, p2 that of the teacher's crops. 0 leaves these rows out."""
    temperature: Temperature | None = None
    """Temperature of p2; null takes that of the zero-shot rows."""


class EvaluateConfig(Section):
    """Average precision on base, novel and all categories."""

    split: str = "val"
    """Split on which the detectors are measured."""
    protocol: Literal["coco", "lvis"] = "coco"
    """`lvis`: federated evaluation with APr, APc and APf; takes LVIS splits."""
    annotated_only: bool = False
    """Leave out images without an object of any category, as the official validation sets do."""
    image_size: ShorterSide = 128
    max_size: LongerSide = 1333
    batch_size: BatchSize = 16
    """Images per forward pass."""
    score_threshold: Share = 0.001
    """Detections with a lower score are dropped."""
    given_score_threshold: Share | None = None
    """Replaces `score_threshold` for zero-shot with annotated boxes, unless null (official for LVIS: 0.0001)."""
    nms: PositiveShare = 0.5
    """IoU of the per-class NMS (`gaussian` doesn't use it)."""
    nms_kind: Literal["hard", "gaussian", "linear"] = "hard"
    """Finetuned detectors: `hard` NMS, or soft-NMS that lowers scores; their official test scripts use `gaussian`.
    Zero-shot rows always have hard NMS, as officially."""
    report_probability: bool = False
    """Report the class probability as the score, although detections are ranked and thresholded by its product with
    the objectness (as the official drawing tool does). Soft-NMS ignores this setting, officially too."""
    max_detections: Count = 100
    """Detections kept per image, highest score first."""
    whole_image_split: str | None = None
    """Split on whose one-object images the whole-image accuracy of teacher and student is measured; null leaves these
    rows out."""
    zero_shot_background: Literal["none", "zero"] = "none"
    """Zero-shot softmax over the categories alone, or with the official zero embedding as one more column."""
    objectness: Literal["none", "sigmoid", "raw_logit"] = "sigmoid"
    """Zero-shot score with proposals: the probability p alone, sqrt(p * sigmoid(logit)), or the official
    sqrt(p * logit)."""
    finetuned_objectness: Literal["none", "sigmoid", "raw_logit"] = "none"
    """The same for finetuned detectors."""
    fusion: FusionConfig = FusionConfig()
    """Further rows, in which a second classifier takes part in the scores."""
    synonyms: str | None = None
    """YAML file of synonyms (`coco` or `world` in data/synonyms, or a path), for rows in which the first synonym stands
    in for each category's name; null leaves them out."""
    fixed_ap: bool = False
    """`lvis`: also LVIS's fixed AP, of the 10,000 best detections of each category over the whole split, however many
    are in one image. Raise `max_detections`, which limits those of an image, far above 300 with it."""
    masks: bool = False
    """Also how often a given object is named right by its mask instead of its box: the bins of its box take part by the
    share that the mask covers. Needs a split with `masks: true`; stuff counts where its file and `data.categories` name
    it."""
    colours: bool = False
    """World only: how often a given box is nearest to its own colour, of "red teapot", "blue teapot" and so on."""
