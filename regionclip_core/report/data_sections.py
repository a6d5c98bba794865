"""What the stages that make data did: data, concepts, proposals, labels, pairs. A few samples of each are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from regionclip_core.config.tree import Config
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.report.detections import as_box, true_boxes, true_labels, truth_drawn
from regionclip_core.report.markup import escape, facts, figure, grid, section, table
from regionclip_core.report.pictures import Drawn, PictureBook, crop, draw
from regionclip_core.report.samples import SampleImage, rows_by_key, sample_images, spread
from regionclip_core.storage.records import Folder, Manifest

SPLIT_IMAGES = 4
"""Images shown of each split."""
PROPOSAL_IMAGES = 4
PROPOSALS_DRAWN = 10
"""Proposals drawn an image, best objectness first."""
CONCEPT_CHIPS = 40
DROPPED_EXAMPLES = 6
"""Most frequent dropped phrases named a reason."""
CROPS = 24
"""Pseudo-labelled regions shown."""
CROP_IMAGES = 24
MATCH_IOU = 0.5
"""From this IoU on a region is taken to be the annotated object that it overlaps most."""


@dataclass
class Sources:
    """What sections read from: finished artifacts and their manifests by stage name."""

    config: Config
    folders: dict[str, Folder]
    manifests: dict[str, Manifest]
    vocabulary: Vocabulary
    book: PictureBook = field(default_factory=PictureBook)

    def summary(self, stage: str) -> dict[str, Any]:
        """The stage's own summary; empty where the stage was not run."""
        return self.manifests[stage].summary if stage in self.manifests else {}

    def bad(self, stage: str) -> str:
        """A line about samples, or parts of them, that could not be used; empty when all could."""
        counts = self.manifests[stage].counts if stage in self.manifests else {}
        told = []
        for prefix, what in (("bad_", "Bad samples, left out"), ("lost_", "Good images that lost a part")):
            named = [(name.removeprefix(prefix), n) for name, n in sorted(counts.items()) if name.startswith(prefix)]
            named = [one for one in named if one[0] != "annotations"]  # lost_annotations: of no image
            parts = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in named if n)
            told += [f"{what}: {escape(parts)}."] if parts else []
        orphans = counts.get("lost_annotations", 0)
        told += [f"Annotations of no image: {orphans:,}."] if orphans else []
        return f"<p class='note'>{' '.join(told)}</p>" if told else ""


# ---------------------------------------------------------------- data


def data_section(sources: Sources) -> str:
    """Sizes of the splits, and sample images with captions and boxes."""
    known = sources.folders["data"].read_json("splits.json")
    splits = [name for name in sources.config.data.splits if name in known]
    uses = _uses(sources.config)
    sizes = [[name, uses[name], f"{known[name]['images']:,}", f"{len(known[name]['shards']):,}"] for name in splits]
    vocabulary = sources.vocabulary
    parts = [
        "<p>Images, captions and boxes, as named splits. Detection is measured on "
        f"{len(vocabulary.base_ids)} base and {len(vocabulary.novel_ids)} novel categories.</p>",
        table(["split", "used by", "images", "shards"], sizes, texts=2),
        sources.bad("data"),
        f"<p class='note'>Novel: {escape(_some(vocabulary.novel, 40))}.</p>" if vocabulary.novel else "",
    ]
    for name in splits:
        images = sample_images(sources.folders["data"], name, SPLIT_IMAGES)
        if images:
            parts += [f"<h3>Split <code>{escape(name)}</code></h3>", _split_pictures(images, name, sources)]
    return section("data", "Data", *parts)


def _split_pictures(images: list[SampleImage], split: str, sources: Sources) -> str:
    views = []
    for image in images:
        picture = sources.book.add(f"{split}/{image.row.key}", image.pixels)
        drawn = truth_drawn(image.row, sources.vocabulary)
        captions = "<br>".join(f"“{escape(_short(caption))}”" for caption in list(image.row.captions)[:3])
        views.append(figure(draw(picture, drawn, f"sample {image.row.key} of {split}"), captions))
    return grid(views, "four")


def _uses(config: Config) -> dict[str, str]:
    """Which stages read each split."""
    training = config.teacher.training
    readers: dict[str, tuple[str, ...]] = {
        "concepts": config.concepts.splits,
        "teacher": training.splits if config.teacher.weights == "train" and training else (),
        "rpn": (config.rpn.split,) if config.proposals.method == "rpn" and config.rpn.weights == "train" else (),
        "proposals": config.proposals.splits,
        "labels": config.labels.splits,
        "finetune": (config.finetune.split,),
        "evaluate": (config.evaluate.split, config.evaluate.whole_image_split or ""),
    }
    return {
        name: ", ".join(stage for stage, splits in readers.items() if name in splits) or "-"
        for name in config.data.splits
    }


# ---------------------------------------------------------------- concepts


def concepts_section(sources: Sources) -> str:
    """The pool's most frequent concepts, the categories that it lacks, and what was dropped; empty without a pool."""
    if "concepts" not in sources.folders:
        return ""
    import pyarrow.parquet as pq

    folder, vocabulary = sources.folders["concepts"], sources.vocabulary
    with folder.open("concepts.parquet") as file:
        pool = pq.read_table(file, columns=["concept", "n_captions"])
    names, counts = pool["concept"].to_pylist(), pool["n_captions"].to_pylist()
    chips = "".join(
        f'<li class="{_chip(name, vocabulary)}">{escape(name)}<small>{count:,}</small></li>'
        for name, count in list(zip(names, counts, strict=True))[:CONCEPT_CHIPS]
    )
    missing = [name for name in vocabulary.names if name not in set(names)]
    held = len(vocabulary) - len(missing)
    protected = sources.config.concepts.protect_categories
    part = "No rule drops a category name." if protected else "The list of categories plays no part in it."
    lacking = f" Not in it: {_some(missing, 20)}." if missing else ""
    return section(
        "concepts",
        "Concepts",
        f"<p>Nouns parsed from the captions make a pool of {len(names):,} concepts, the names that pseudo labels can "
        f"take. {part} It holds {held} of the {len(vocabulary)} category names.{escape(lacking)}</p>",
        facts(sources.summary("concepts")),
        sources.bad("concepts"),
        f"<h3>The {min(CONCEPT_CHIPS, len(names))} most frequent, with their captions</h3>",
        f'<ul class="chips">{chips}</ul>',
        "<p class='legend'><span><i class='key box base'></i>base category</span>"
        "<span><i class='key box novel'></i>novel category</span><span>others are distractors or finer names</span>"
        "</p>",
        _dropped(folder),
    )


def _chip(name: str, vocabulary: Vocabulary) -> str:
    if name in vocabulary.base:
        return "base"
    return "novel" if name in vocabulary.names else "other"


def _dropped(folder: Folder) -> str:
    """Reasons with their number of phrases and most frequent examples; the table is read in batches."""
    import pyarrow.parquet as pq

    if not folder.exists("dropped.parquet"):
        return ""
    phrases: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    examples: dict[str, list[tuple[int, str]]] = {}
    with folder.open("dropped.parquet") as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["concept", "reason", "n_captions"]):
            columns = (batch.column(i).to_pylist() for i in range(3))
            for concept, reason, count in zip(*columns, strict=True):
                phrases[reason] += 1
                captions[reason] += count
                best = examples.setdefault(reason, [])
                best.append((-count, concept))
                if len(best) > 50 * DROPPED_EXAMPLES:
                    best[:] = sorted(best)[:DROPPED_EXAMPLES]
    if not phrases:
        return ""
    rows = [
        [
            reason,
            ", ".join(name for _, name in sorted(examples[reason])[:DROPPED_EXAMPLES]),
            f"{phrases[reason]:,}",
            f"{captions[reason]:,}",
        ]
        for reason in sorted(phrases, key=lambda r: (-captions[r], r))
    ]
    return "<h3>Dropped</h3>\n" + table(["reason", "most frequent", "phrases", "mentions in captions"], rows, texts=2)


# ---------------------------------------------------------------- proposals


def proposals_section(sources: Sources) -> str:
    """Recall by split, and the best proposals on sample images."""
    config = sources.config
    recall: dict[str, dict[str, float]] = sources.summary("proposals").get("recall", {})
    split = config.evaluate.split
    trained = config.proposals.method == "rpn" and config.rpn.weights == "train"
    shown = " The network was trained on base boxes only: novel objects are new to it." if trained else ""
    images = sample_images(sources.folders["data"], split, PROPOSAL_IMAGES)
    found = rows_by_key(sources.folders["proposals"], "proposals", images)
    views = []
    for image in images:
        row = found.get((image.shard, image.row.key))
        if row is None:
            continue
        picture = sources.book.add(f"{split}/{image.row.key}", image.pixels)
        best = [Drawn(as_box(box)) for box in row["boxes"][:PROPOSALS_DRAWN]]
        truth = truth_drawn(image.row, sources.vocabulary, text=False)
        caption = f"best {len(best)} of {len(row['boxes'])} proposals"
        views.append(figure(draw(picture, [*best, *truth], f"proposals of {image.row.key}"), caption))
    return section(
        "proposals",
        "Proposals",
        f"<p>Class-agnostic boxes that may hold an object, method <code>{escape(config.proposals.method)}</code>, at "
        f"most {config.proposals.max_regions} an image. Recall is the share of annotated boxes that one of the best "
        f"10, 50 or 100 proposals covers at IoU 0.5.{escape(shown)}</p>",
        _recall_table(recall) if recall else "<p class='note'>No annotated boxes to measure recall on.</p>",
        sources.bad("proposals"),
        "<p class='legend'><span><i class='key box thin'></i>proposal</span>"
        "<span><i class='key box base'></i>base object</span>"
        "<span><i class='key box novel'></i>novel object</span></p>",
        grid(views, "four") if views else "",
    )


def _recall_table(recall: dict[str, dict[str, float]]) -> str:
    names = sorted({name for scores in recall.values() for name in scores}, key=_recall_order)
    rows = [
        [split, *(f"{100 * scores[name]:.1f}" if name in scores else "-" for name in names)]
        for split, scores in recall.items()
    ]
    return table(["recall, percent", *(name.replace("_recall@", " @") for name in names)], rows)


def _recall_order(name: str) -> tuple[bool, str, int, str]:
    """Novel before base, then by the number of proposals."""
    group, _, rest = name.partition("_")
    top = rest.partition("@")[2].partition("/")[0]
    return group != "novel", group, int(top) if top.isdigit() else 0, name


# ---------------------------------------------------------------- labels, pairs


def labels_section(sources: Sources) -> str:
    """How many regions the teacher named, how often rightly, and some of them; empty where none were labelled."""
    if "labels" not in sources.folders:
        return ""
    summary = sources.summary("labels")
    settings = sources.config.labels
    rows = [
        ["regions kept", _percent(summary.get("kept_share"))],
        ["right, base objects", _percent(summary.get("base_accuracy"))],
        ["right, novel objects", _percent(summary.get("novel_accuracy"))],
    ]
    pairs = sources.summary("pairs").get("samples")
    return section(
        "labels",
        "Pseudo labels",
        f"<p>The teacher compares each proposal (mode <code>{escape(settings.mode)}</code>) with every concept of the "
        f"pool and takes the best. Regions with a probability of at most {settings.threshold:g} are not used. "
        "Where boxes are annotated, the label of a kept region on an object (IoU from 0.5) can be checked; training "
        "never sees that check.</p>",
        table(["", "percent"], [row for row in rows if row[1] != "-"]),
        facts({name: summary[name] for name in ("regions", "kept") if name in summary}),
        f"<p>Packed with their captions into {pairs:,} image-text-region samples.</p>" if pairs else "",
        sources.bad("labels"),
        "<h3>Regions and their labels</h3>",
        "<p class='note'>Spread evenly over images and regions, not chosen. "
        "<span class='right'>✓</span> the annotated object's name; <span class='wrong'>✗</span> another name, the "
        "object's own in brackets; no mark: no annotated object there. Grey: below the threshold, not used.</p>",
        _label_crops(sources) or "<p class='note'>No labelled regions.</p>",
    )


def _label_crops(sources: Sources) -> str:
    from regionclip_core.models.text_embeddings import load_embeddings

    split = sources.config.labels.splits[0]
    images = sample_images(sources.folders["data"], split, CROP_IMAGES)
    found = rows_by_key(sources.folders["labels"], "labels", images)
    pool, _ = load_embeddings(sources.folders["labels"])
    context = sources.config.labels.context
    labelled = [(image, found[image.shard, image.row.key]) for image in images if (image.shard, image.row.key) in found]
    labelled = [(image, row) for image, row in labelled if row["boxes"]]
    if not labelled:
        return ""
    each = -(-CROPS // len(labelled))
    # Images with an odd place start at another region, so that not only the best objectness is seen.
    regions = [
        (image, row, (start + step) % len(row["boxes"]))
        for start, (image, row) in enumerate(labelled)
        for step in range(min(each, len(row["boxes"])))
    ]
    views = []
    for image, row, region in spread(regions, CROPS):
        picture = sources.book.add(f"{split}/{image.row.key}", image.pixels)
        name = pool.names[row["concept_id"][region]]
        box = as_box(row["boxes"][region])
        view = crop(picture, box, f"region labelled {name}", context)
        caption = f"{_mark(name, _object_at(box, image.row, sources.vocabulary))} {row['score'][region]:.2f}"
        style = "" if row["kept"][region] else ' class="unused"'
        views.append(f"<div{style}>{figure(view, caption)}</div>")
    return grid(views, "crops")


def _object_at(box: tuple[float, float, float, float], row: IndexRow, vocabulary: Vocabulary) -> str | None:
    """Name of the annotated object that `box` overlaps most, if by MATCH_IOU."""
    boxes, labels = true_boxes(row), true_labels(row)
    if not boxes:
        return None
    overlap = box_ops.iou(torch.tensor([box]), torch.tensor(boxes))[0]
    at = int(overlap.argmax())
    return vocabulary.names[labels[at]] if float(overlap[at]) >= MATCH_IOU else None


def _mark(name: str, truth: str | None) -> str:
    if truth is None:
        return f"<b>{escape(name)}</b>"
    if truth == name:
        return f"<b>{escape(name)}</b> <span class='right'>✓</span>"
    return f"<b>{escape(name)}</b> <span class='wrong'>✗</span> ({escape(truth)})"


# ---------------------------------------------------------------- texts


def _percent(share: Any) -> str:
    return f"{100 * share:.1f}" if isinstance(share, (int, float)) else "-"


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _some(names: Any, most: int) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
