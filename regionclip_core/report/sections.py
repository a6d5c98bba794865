"""What each section of the page shows: read from the artifacts here, written as HTML by templates/sections/<name>.html.

A function per section returns the values that its template uses, None where the run has nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from regionclip_core.config.tree import Config
from regionclip_core.datasets.index import category_ids
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.pretraining.concept_truth import best_and_worst
from regionclip_core.pretraining.label_quality import concept_categories
from regionclip_core.report.curves import charts
from regionclip_core.report.pictures import Drawn, PictureBook
from regionclip_core.report.results import (
    MARGIN,
    MASKS,
    ONE_GROUP,
    groups_of,
    judge,
    metrics_in,
    minus,
    result_rows,
    shift_rows,
)
from regionclip_core.report.samples import (
    Sample,
    as_box,
    correct,
    kind_of,
    read_detections,
    rows_of,
    sample_images,
    spread,
)
from regionclip_core.storage.records import Folder, Manifest

Values = dict[str, Any]

IMAGES = 4
"""Images shown per split, and with proposals."""
PROPOSALS_DRAWN = 10
"""Proposals drawn per image, highest objectness first."""
SCORE_THRESHOLD = 0.3
"""Detections below this score are not drawn."""
DETECTIONS_DRAWN = 8
"""Detections drawn per image, highest score first."""
CONCEPTS = 40
"""Most frequent concepts shown."""
DROPPED_EXAMPLES = 6
"""Most frequent dropped phrases shown per reason."""
CONCEPT_LINES = 10
"""Concepts shown of which most, and of which fewest labels are clean."""
CROPS = 24
"""Pseudo-labelled regions shown, from at most as many images."""
INITS = {"clip": "CLIP init", "regionclip": "RegionCLIP init"}


@dataclass
class Run:
    """A finished run: its artifacts and their manifests by stage name."""

    config: Config
    folders: Mapping[str, Folder]
    manifests: Mapping[str, Manifest]
    vocabulary: Vocabulary
    book: PictureBook = field(default_factory=PictureBook)

    def summary(self, stage: str) -> Values:
        """Return the stage's own summary; empty where the stage was not run."""
        return self.manifests[stage].summary if stage in self.manifests else {}

    def left_out(self, stage: str) -> list[str]:
        """Return sentences about samples, or parts of samples, that the stage could not use."""
        counts = self.manifests[stage].counts if stage in self.manifests else {}
        lines = []
        for prefix, what in (("bad_", "Bad samples, left out"), ("lost_", "Images used without a bad part")):
            named = {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix)}
            parts = [f"{name.replace('_', ' ')} {n:,}" for name, n in named.items() if n and name != "annotations"]
            lines += [f"{what}: {', '.join(parts)}."] if parts else []
        if orphans := counts.get("lost_annotations"):  # they cost no sample
            lines.append(f"Annotations whose image is not listed: {orphans:,}.")
        return lines

    def training(self, stage: str, files: Mapping[str, str] | None = None) -> Values | None:
        """Return charts of a stage's trainings, `files` by training; None where the stage had nothing to do."""
        if stage not in self.folders or "unused" in self.summary(stage):
            return None
        folder, files = self.folders[stage], files or {stage: "history.json"}
        histories = {run: folder.read_json(file) for run, file in files.items() if folder.exists(file)}
        return {"charts": charts(histories), "runs": list(histories)}

    def true_boxes(self, sample: Sample, text: bool = True) -> list[Drawn]:
        """Return the annotated objects, to be drawn in the colour of their kind."""
        named = [(box, self.vocabulary.names[label]) for box, label in sample.objects]
        return [Drawn(box, n if text else "", kind_of(n, self.vocabulary), hint=n) for box, n in named]


# ---------------------------------------------------------------- results


def results(run: Run) -> Values:
    """Verdicts on the paper's claims, the table of APs, the domain shift, single categories."""
    metrics = run.folders["evaluate"].read_json("metrics.json")
    rows = result_rows(metrics)
    rules = "LVIS" if metrics.get("protocol") == "lvis" else "COCO"

    # The protocol's numbers (12 of COCO, 13 of LVIS) of everything that was measured with all names.
    titles = {"zero_shot_gt": "given boxes", "zero_shot_rpn": "proposals", "finetuned": "finetuned"}
    standard = [
        (title, model, kind, part[rules.lower()])
        for setting, title in titles.items()
        for model, scores in metrics.get(setting, {}).items()
        for kind, part in (("boxes", scores), ("masks", scores.get("segm", {})))
        if rules.lower() in part
    ]

    # AP50 per category: novel ones first, each kind by what RegionCLIP gains, those without a difference last.
    finetuned = {name: scores.get("per_category", {}) for name, scores in metrics.get("finetuned", {}).items()}
    frequency = {name: group for group, names in run.vocabulary.groups for name in names}
    categories = []
    for name in run.vocabulary.names:
        values = {model: scores.get(name) for model, scores in finetuned.items()}
        gain = minus(values.get("regionclip"), values.get("clip"))
        categories.append((name, frequency.get(name, kind_of(name, run.vocabulary)), values, gain))
    categories.sort(key=lambda row: (row[0] in run.vocabulary.base, row[3] is None, -(row[3] or 0), row[0]))
    return {
        "claims": judge(metrics),
        "margin": MARGIN,
        "images": metrics.get("images"),
        "rows": rows,
        "groups": groups_of(metrics),
        "metrics": metrics_in(rows),
        "one_group": any(row.setting in ONE_GROUP for row in rows),
        "fused": any(", fused" in row.setting for row in rows),
        "masks": any(row.setting.endswith(MASKS) for row in rows),
        "shift": shift_rows(metrics),
        "rules": rules,
        "standard": standard,
        "finetuned": list(finetuned),
        "categories": categories,
    }


def detections(run: Run) -> Values | None:
    """Ground truth beside the detections of both finetuned detectors, on images with a novel object."""
    evaluate, names = run.folders["evaluate"], run.vocabulary.names
    detectors = [name for name in INITS if evaluate.exists(f"detections-{name}.json")]
    if not run.config.report.images or not detectors:
        return None
    novel = set(run.vocabulary.novel_ids)
    samples = sample_images(run.folders["data"], run.config.evaluate.split, run.config.report.images, novel)
    ids = [sample.row.image_id for sample in samples]
    categories = category_ids(run.folders["data"], run.config.evaluate.split)
    found = {name: read_detections(evaluate, name, ids, SCORE_THRESHOLD, categories) for name in detectors}
    images = []
    for sample in samples:
        key, objects = sample.row.key, sample.objects
        truth = {
            "view": run.book.whole(sample, run.true_boxes(sample), f"ground truth of {key}"),
            "objects": len(objects),
            "novel": sum(label in novel for _, label in objects),
        }
        views = []
        for name in detectors:
            best = found[name][sample.row.image_id][:DETECTIONS_DRAWN]
            hits = correct(best, objects)
            drawn = []
            for one, hit in zip(best, hits, strict=True):
                text, kind = f"{names[one.label]} {one.score:.2f}", kind_of(names[one.label], run.vocabulary)
                drawn.append(Drawn(one.box, text, kind, not hit, f"{text}: {'right' if hit else 'wrong'}"))
            view = {
                "title": INITS[name],
                "view": run.book.whole(sample, drawn, f"{INITS[name]}, {key}"),
                "right": sum(hits),
                "right_novel": sum(hit and one.label in novel for one, hit in zip(best, hits, strict=True)),
                "wrong": len(hits) - sum(hits),
            }
            views.append(view)
        images.append((truth, views))
    return {"images": images, "most": DETECTIONS_DRAWN, "threshold": SCORE_THRESHOLD}


# ---------------------------------------------------------------- stages that make data


def data(run: Run) -> Values:
    """Sizes of the splits and which stages read them, and sample images with captions and boxes."""
    config, folder = run.config, run.folders["data"]
    known = folder.read_json("splits.json")
    training = config.teacher.training
    readers = {
        "concepts": config.concepts.splits,
        "teacher": training.splits if config.teacher.weights == "train" and training else (),
        "rpn": (config.rpn.split,) if config.proposals.method == "rpn" and config.rpn.weights == "train" else (),
        "proposals": config.proposals.splits,
        "labels": config.labels.splits,
        "finetune": (config.finetune.split,),
        "evaluate": (config.evaluate.split, config.evaluate.whole_image_split),
    }
    sizes, samples = [], dict[str, list[Any]]()
    for split in (name for name in config.data.splits if name in known):
        uses = ", ".join(stage for stage, splits in readers.items() if split in splits) or "-"
        sizes.append([split, uses, f"{known[split]['images']:,}", f"{len(known[split]['shards']):,}"])
        samples[split] = []
        for sample in sample_images(folder, split, IMAGES):
            view = run.book.whole(sample, run.true_boxes(sample), f"sample {sample.row.key} of {split}")
            samples[split].append((view, sample.row.captions))
    return {"sizes": sizes, "samples": samples}


def concepts(run: Run) -> Values | None:
    """The pool's most frequent concepts, the categories that it lacks, and what was dropped."""
    folder = run.folders.get("concepts")
    if folder is None:
        return None
    with folder.open("concepts.parquet") as file:
        pool = pq.read_table(file, columns=["concept", "n_captions"])
    names, counts = pool["concept"].to_pylist(), pool["n_captions"].to_pylist()
    frequent = list(zip(names, counts, strict=True))[:CONCEPTS]
    dropped = []
    if folder.exists("dropped.parquet"):
        with folder.open("dropped.parquet") as file:
            phrases = pq.read_table(file, columns=["concept", "reason", "n_captions"])
        totals = phrases.group_by("reason").aggregate([("n_captions", "sum"), ([], "count_all")]).to_pylist()
        for total in sorted(totals, key=lambda row: (-row["n_captions_sum"], row["reason"])):
            of_reason = phrases.filter(pc.field("reason") == total["reason"])
            order = [("n_captions", "descending"), ("concept", "ascending")]
            first = pc.select_k_unstable(of_reason, DROPPED_EXAMPLES, order)
            examples = ", ".join(of_reason["concept"].take(first).to_pylist())
            dropped.append([total["reason"], examples, f"{total['count_all']:,}", f"{total['n_captions_sum']:,}"])
    held = set(names)
    return {
        "size": len(names),
        "categories": len(run.vocabulary),
        "missing": [name for name in run.vocabulary.names if name not in held],
        "frequent": [(name, kind_of(name, run.vocabulary), count) for name, count in frequent],
        "dropped": dropped,
    }


def proposals(run: Run) -> Values:
    """Recall by split, and the best proposals on sample images."""
    recall: dict[str, dict[str, float]] = run.summary("proposals").get("recall", {})
    # Novel before base, then by the number of proposals: novel_recall@10, novel_recall@100, base_recall@10.
    columns = {name for scores in recall.values() for name in scores}
    images = []
    samples = sample_images(run.folders["data"], run.config.evaluate.split, IMAGES)
    for sample, row in rows_of(run.folders["proposals"], "proposals", samples):
        best = [Drawn(as_box(box)) for box in row["boxes"][:PROPOSALS_DRAWN]]
        boxes = [*best, *run.true_boxes(sample, text=False)]
        view = run.book.whole(sample, boxes, f"proposals of {sample.row.key}")
        images.append((view, len(best), len(row["boxes"])))
    return {
        "recall": recall,
        "columns": sorted(columns, key=lambda name: (not name.startswith("novel"), len(name), name)),
        "images": images,
    }


def labels(run: Run) -> Values | None:
    """How many regions the teacher named, how often rightly, and some of them."""
    folder = run.folders.get("labels")
    if folder is None:
        return None
    config = run.config.labels
    pool, _ = load_embeddings(folder)
    categories = concept_categories(run.folders["concepts"], pool.names, run.vocabulary, config.synonyms)
    best, worst = best_and_worst(folder, CONCEPT_LINES)
    samples = sample_images(run.folders["data"], config.splits[0], CROPS)
    labelled = [(sample, row) for sample, row in rows_of(folder, "labels", samples) if row["boxes"]]
    # Each image starts at another region, so that not only those of the highest objectness are seen.
    per_image = -(-CROPS // max(len(labelled), 1))
    regions = [
        (sample, row, (start + step) % len(row["boxes"]))
        for start, (sample, row) in enumerate(labelled)
        for step in range(min(per_image, len(row["boxes"])))
    ]
    crops = []
    for sample, row, region in spread(regions, CROPS):
        name, box = pool.names[row["concept_id"][region]], as_box(row["boxes"][region])
        truth = sample.object_at(box)
        crop = {
            "view": run.book.crop(sample, box, config.context, f"region labelled {name}"),
            "name": name,
            "truth": None if truth is None else run.vocabulary.names[truth],
            "right": truth is not None and categories[row["concept_id"][region]] == truth,
            "score": row["score"][region],
            "kept": row["kept"][region],
        }
        crops.append(crop)
    return {"crops": crops, "best": best, "worst": worst}


# ---------------------------------------------------------------- stages that train


def finetune(run: Run) -> Values | None:
    """The detectors' curves in common charts."""
    titles = {name: f"{init}, base boxes" for name, init in INITS.items()}
    titles["oracle"] = "RegionCLIP init, all boxes (oracle)"
    training = run.training("finetune", {title: f"history-{name}.json" for name, title in titles.items()})
    return None if training is None else {**training, "titles": titles}


SECTIONS: Mapping[str, Callable[[Run], Values | None]] = {
    "results": results,
    "detections": detections,
    "data": data,
    "concepts": concepts,
    "teacher": lambda run: run.training("teacher"),
    "rpn": lambda run: run.training("rpn"),
    "proposals": proposals,
    "labels": labels,
    "pretrain": lambda run: run.training("pretrain"),
    "finetune": finetune,
    "artifacts": lambda run: {"manifests": run.manifests},
}
"""In the order of the page."""
