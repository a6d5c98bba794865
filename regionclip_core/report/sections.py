"""What each section of the page shows: read from the artifacts here, written as HTML by templates/sections/<name>.html.

A function per section returns the values that its template uses, None where the run has nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.pretraining.concept_truth import best_and_worst
from regionclip_core.pretraining.label_quality import concept_categories
from regionclip_core.report.curves import chart
from regionclip_core.report.label_counts import LOGITS, SCORES, count_labels, outline
from regionclip_core.report.origin import origin
from regionclip_core.report.pictures import Drawn
from regionclip_core.report.recall_curve import recall_curve
from regionclip_core.report.results_sections import detections, mistakes, results
from regionclip_core.report.run import INITS, Run, Values
from regionclip_core.report.samples import as_box, kind_of, rows_of, sample_images, spread

IMAGES = 4
"""Images shown per split, and with proposals."""
PROPOSALS_DRAWN = 10
"""Proposals drawn per image, highest objectness first."""
CONCEPTS = 40
"""Most frequent concepts shown."""
DROPPED_EXAMPLES = 6
"""Most frequent dropped phrases shown per reason."""
CONCEPT_LINES = 10
"""Concepts shown of which most, and of which fewest labels are clean."""
CROPS = 24
"""Pseudo-labelled regions shown, from at most as many images."""
SHARES = {
    "regions kept": "kept_share",
    "right, base objects": "base_accuracy",
    "right, novel objects": "novel_accuracy",
}
LABELLED = 30
"""Concepts with most kept labels shown as bars."""

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
        sizes.append([split, uses, known[split]["images"], len(known[split]["shards"])])
        samples[split] = []
        for sample in sample_images(folder, split, IMAGES):
            view = run.book.whole(sample, run.true_boxes(sample), f"sample {sample.row.key} of {split}")
            samples[split].append((view, sample.row.captions))
    run.tables.add("splits", ["split", "used by", "images", "shards"], sizes)
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
            dropped.append([total["reason"], examples, total["count_all"], total["n_captions_sum"]])
        run.tables.add("dropped-phrases", ["reason", "most frequent", "phrases", "mentions in captions"], dropped)
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
    ordered = sorted(columns, key=lambda name: (not name.startswith("novel"), len(name), name))
    run.tables.add(
        "recall",
        ["split", *ordered],
        [
            [split, *(100 * scores[name] if name in scores else None for name in ordered)]
            for split, scores in recall.items()
        ],
    )
    curve = recall_curve(run.folders["data"], run.folders["proposals"], run.config.evaluate.split)
    lines = {
        group: [(0.0, 0.0), *((float(number), value) for number, value in enumerate(percent.tolist(), start=1))]
        for group, percent in curve.items()
    }
    run.tables.add(
        "recall-by-proposals",
        ["group", "proposals", "recall"],
        [[group, *point] for group, points in lines.items() for point in points],
    )
    title = f"{run.config.evaluate.split}: recall, percent, against proposals per image"
    return {
        "recall": recall,
        "columns": ordered,
        "curve": [chart(lines, title, top=100)] if lines else [],
        "groups": list(lines),
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
    summary = run.summary("labels")
    shares = [(title, 100 * summary[key]) for title, key in SHARES.items() if summary.get(key) is not None]
    run.tables.add("labels", ["", "percent"], shares)
    if "truth" in summary:
        rows = [[group, *found.values()] for group, found in summary["truth"].items()]
        run.tables.add("labels-truth", ["objects", *summary["truth"]["all"]], rows)
    columns = ["concept", "kept", "clean", "wrong_name", "mostly_on", "mostly_on_count", "loose", "off_object"]
    for name, lines in (("concepts-most-clean", best), ("concepts-fewest-clean", worst)):
        run.tables.add(name, columns, [[line[column] for column in columns] for line in lines])
    return {"crops": crops, "best": best, "worst": worst, "shares": shares, **_label_plots(run, pool.names)}


def _label_plots(run: Run, pool: Sequence[str]) -> Values:
    """Histograms of scores and objectness, and how many kept labels the concepts have."""
    config = run.config.labels
    counts = count_labels(run.folders["data"], run.folders["labels"], config.splits, len(pool))
    histograms = {"score": (counts.score, SCORES)}
    if run.config.proposals.method == "rpn" and config.source is None:
        histograms["objectness logit"] = counts.objectness, LOGITS
    rows, plots = [], []
    for what, (found, edges) in histograms.items():
        used = np.flatnonzero(found.sum(axis=0))
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(edges) - 1)
        bounds, parts = edges[first : last + 1], {"kept": found[1, first:last], "not kept": found[0, first:last]}
        for use, part in parts.items():
            rows += [
                [what, use, *line]
                for line in zip(bounds[:-1].tolist(), bounds[1:].tolist(), part.tolist(), strict=True)
            ]
        plots.append(
            chart(
                {use: outline(part, bounds) for use, part in parts.items()},
                f"regions by {what}",
                first=bounds[0],
                filled=True,
            )
        )
    run.tables.add("label-histograms", ["what", "use", "from", "to", "regions"], rows)
    order = sorted(range(len(pool)), key=lambda row: (-int(counts.kept_by_concept[row]), pool[row]))
    ranked = [(pool[row], int(counts.kept_by_concept[row])) for row in order]
    run.tables.add("labels-per-concept", ["concept", "kept labels"], ranked)
    some = [(float(rank), float(count)) for rank, (_, count) in enumerate(ranked, start=1) if count]
    if some:
        plots.append(chart({"kept labels": some}, "kept labels per concept, most frequent first", powers=True))
    return {
        "plots": plots,
        "most": [(name, kind_of(name, run.vocabulary), count) for name, count in ranked[:LABELLED] if count],
        "tail": len(some) - LABELLED,
        "tail_count": sum(count for _, count in ranked[LABELLED:]),
        "without": [name for name, count in ranked if not count],
        "shards": (counts.shards, counts.all_shards),
    }


# ---------------------------------------------------------------- stages that train


def finetune(run: Run) -> Values | None:
    """The detectors' curves in common charts."""
    training = run.training("finetune", {title: f"history-{name}.json" for name, title in INITS.items()})
    if training is None:
        return None
    found = run.summary("finetune").get("detectors", {})
    rows = [
        [INITS[name], *(found[name].get(key) for key in ("images", "steps", "loss"))] for name in INITS if name in found
    ]
    run.tables.add("detectors", ["detector", "images", "steps", "last loss"], rows)
    return {**training, "detectors": rows}


def artifacts(run: Run) -> Values:
    """What the page was made from."""
    heads = ["stage", "version", "content", "rows", "files", "bytes"]
    rows = [[s, m.version, m.content_digest, m.rows, m.files, m.bytes] for s, m in run.manifests.items()]
    run.tables.add("artifacts", heads, rows)
    return {"manifests": run.manifests}


SECTIONS: Mapping[str, Callable[[Run], Values | None]] = {
    "origin": origin,
    "results": results,
    "detections": detections,
    "mistakes": mistakes,
    "data": data,
    "concepts": concepts,
    "teacher": lambda run: run.training("teacher"),
    "rpn": lambda run: run.training("rpn"),
    "proposals": proposals,
    "labels": labels,
    "pretrain": lambda run: run.training("pretrain"),
    "finetune": finetune,
    "artifacts": artifacts,
}
"""In the order of the page."""
