"""The sections of the page about results: numbers, pictures of detections, curves and mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from regionclip_core.datasets.index import read_index
from regionclip_core.report.curves import chart
from regionclip_core.report.detections import MIN_SCORE, MOST, Detections, Truth, choose, totals
from regionclip_core.report.pictures import Drawn, PictureBook, true_boxes
from regionclip_core.report.precision_recall import RECALL
from regionclip_core.report.results import (
    MARGIN,
    MASKS,
    METRICS,
    ONE_GROUP,
    groups_of,
    judge,
    metrics_in,
    minus,
    result_rows,
    shift_rows,
)
from regionclip_core.report.run import INITS, Run, Values
from regionclip_core.report.samples import Sample, kind_of, read_samples
from regionclip_core.storage.records import Folder

BARS = 80
"""Categories whose AP is shown as bars; of more, the first and the last BARS / 2."""
INSTEAD = 3
"""Most frequent wrong names shown per category."""


def results(run: Run) -> Values:
    """Verdicts on the paper's claims, the table of APs, the domain shift, single categories."""
    metrics = run.folders["evaluate"].read_json("metrics.json")
    rows, groups = result_rows(metrics), groups_of(metrics)
    rules = "LVIS" if metrics.get("protocol") == "lvis" else "COCO"
    columns = [(metric, group) for metric, _ in METRICS for group in groups]
    run.tables.add(
        "results",
        ["setting", "model", *(f"{metric} {group}" for metric, group in columns)],
        [[row.setting, row.model, *(row.values[column] for column in columns)] for row in rows],
    )
    shift = shift_rows(metrics)
    run.tables.add("domain-shift", ["top-1 accuracy", *groups], [[name, *values] for name, values in shift.items()])

    # The protocol's numbers (12 of COCO, 13 of LVIS) of everything that was measured with all names.
    titles = {"zero_shot_gt": "given boxes", "zero_shot_rpn": "proposals", "finetuned": "finetuned"}
    standard = [
        (title, model, kind, part[rules.lower()])
        for setting, title in titles.items()
        for model, scores in metrics.get(setting, {}).items()
        for kind, part in (("boxes", scores), ("masks", scores.get("segm", {})))
        if rules.lower() in part
    ]
    if standard:
        run.tables.add(
            rules.lower(),
            ["setting", "model", "of", *standard[0][3]],
            [[*first, *numbers.values()] for *first, numbers in standard],
        )

    # AP50 per category: novel ones first, each kind by what RegionCLIP gains, those without a difference last.
    finetuned = {name: scores.get("per_category", {}) for name, scores in metrics.get("finetuned", {}).items()}
    finetuned = {name: finetuned[name] for name in INITS if name in finetuned}
    frequency = {name: group for group, names in run.vocabulary.groups for name in names}
    categories = []
    for name in run.vocabulary.names:
        values = {model: scores.get(name) for model, scores in finetuned.items()}
        gain = minus(values.get("regionclip"), values.get("clip"))
        kind = kind_of(name, run.vocabulary)
        categories.append((name, kind, frequency.get(name, kind), values, gain))
    categories.sort(key=lambda row: (row[0] in run.vocabulary.base, row[4] is None, -(row[4] or 0), row[0]))
    run.tables.add(
        "ap50-per-category",
        ["category", "kind", *(f"finetuned, {INITS[name]}" for name in finetuned), "difference"],
        [[name, group, *values.values(), gain] for name, _, group, values, gain in categories],
    )
    return {
        "claims": judge(metrics),
        "margin": MARGIN,
        "images": metrics.get("images"),
        "rows": rows,
        "groups": groups,
        "metrics": metrics_in(rows),
        "one_group": any(row.setting in ONE_GROUP for row in rows),
        "fused": any(", fused" in row.setting for row in rows),
        "masks": any(row.setting.endswith(MASKS) for row in rows),
        "shift": shift,
        "rules": rules,
        "standard": standard,
        "finetuned": {name: INITS[name] for name in finetuned},
        "categories": categories,
        "bars": categories if len(categories) <= BARS else categories[: BARS // 2] + categories[-BARS // 2 :],
    }


# ---------------------------------------------------------------- pictures


def detections(run: Run) -> Values | None:
    """What the detectors found in all images, and pictures: the largest gains, the middle, the largest losses."""
    found, _ = run.detected
    compared = {title: one for title, one in found.items() if title != INITS["oracle"]} or found
    if not compared:
        return None
    sums = table_of_totals(run.truth, found)
    run.tables.add("detections", *sums)
    count = run.config.report.images
    pictures = side_by_side(run.book, run.folders["data"], run.config.evaluate.split, run.truth, compared, count)
    return {"totals": sums, "most": MOST, "threshold": MIN_SCORE, "detectors": list(compared), **pictures}


def table_of_totals(truth: Truth, found: Mapping[str, Detections]) -> tuple[list[str], list[list[Any]]]:
    """Return the heads and lines of a table of what was found in all images of the split."""
    objects, novel = truth.count(), truth.count(truth.novel)
    heads = ["detector", "objects", "found", "novel objects", "novel found", "wrong boxes"]
    return heads, [
        [name, objects, right, novel, right_novel, wrong] for name, right, right_novel, wrong in totals(truth, found)
    ]


def side_by_side(
    book: PictureBook, data: Folder, split: str, truth: Truth, found: Mapping[str, Detections], count: int
) -> Values:
    """Return `count` pictures with the detections of each detector, chosen by what the last one has over the first.

    That is objects found more and then wrong boxes fewer; of one detector, objects found less wrong boxes.
    `pictures` are by kind (see `choose`); `better`, `same` and `worse` count all images of the split.
    """
    first, last = next(iter(found.values())), list(found.values())[-1]

    def worth(image: int) -> tuple[int, int]:
        one, other = first.at(image), last.at(image)
        if len(found) == 1:
            return other.n_right - other.n_wrong, 0
        return other.n_right - one.n_right, one.n_wrong - other.n_wrong

    # A picture without objects and detections has nothing to show.
    images = [image for image in truth.rows if truth.objects[image] or first.at(image).drawn or last.at(image).drawn]
    chosen = choose(images, worth, count)
    shards = {truth.rows[image][0] for kind in chosen.values() for image in kind}
    whole = {row.image_id: (shard, row) for shard in shards for row in read_index(data, shard)}
    samples = read_samples(data, split, (whole[image] for kind in chosen.values() for image in kind))
    read = {sample.row.image_id: sample for sample in samples}
    gains = Counter((gain > 0) - (gain < 0) for gain in (worth(image)[0] for image in truth.rows))
    return {
        "pictures": {
            kind: [_views(book, read[image], truth, found) for image in ids if image in read]
            for kind, ids in chosen.items()
        },
        "better": gains[1],
        "same": gains[0],
        "worse": gains[-1],
    }


def _views(
    book: PictureBook, sample: Sample, truth: Truth, found: Mapping[str, Detections]
) -> tuple[Values, list[Values]]:
    """Return the ground truth and each detector's view of an image, with counts."""
    names, key = truth.vocabulary.names, sample.row.key
    objects = {
        "view": book.whole(sample, true_boxes(sample, truth.vocabulary), f"ground truth of {key}"),
        "objects": len(sample.objects),
        "novel": sum(label in truth.novel for _, label in sample.objects),
    }
    views = []
    for title, detections in found.items():
        one, drawn = detections.at(sample.row.image_id), []
        for box, hit in zip(one.drawn, one.right, strict=True):
            text, kind = f"{names[box.label]} {box.score:.2f}", kind_of(names[box.label], truth.vocabulary)
            drawn.append(Drawn(box.box, text, kind, not hit, f"{text}: {'right' if hit else 'wrong'}"))
        view = {
            "title": title,
            "view": book.whole(sample, drawn, f"{title}, {key}"),
            "right": one.n_right,
            "right_novel": one.right_novel,
            "wrong": one.n_wrong,
        }
        views.append(view)
    return objects, views


# ---------------------------------------------------------------- curves and mistakes


def mistakes(run: Run) -> Values | None:
    """Precision against recall of each detector, and the names that novel objects got."""
    found, curves = run.detected
    if not found:
        return None
    groups = [group for group in ("novel", "base") if any(group in one for one in curves.values())]
    rows = [
        [title, group, recall, precision]
        for title, by_group in curves.items()
        for group in groups
        for recall, precision in zip(RECALL.tolist(), by_group[group].tolist(), strict=True)
    ]
    run.tables.add("precision-recall", ["detector", "group", "recall", "precision"], rows)
    shown = [
        chart(
            {
                title: list(zip(RECALL.tolist(), by_group[group].tolist(), strict=True))
                for title, by_group in curves.items()
            },
            f"{group} categories: precision against recall, percent",
            top=100,
        )
        for group in groups
    ]
    title = next((INITS[name] for name in ("regionclip", "clip", "oracle") if INITS[name] in found), "")
    names, of = run.vocabulary.names, found[title].names
    counts, pairs = [], []
    for label in run.vocabulary.novel_ids:
        got = Counter({given: n for (own, given), n in of.items() if own == label})
        total = got.total()
        if not total:
            continue
        given = [(names[one] if one is not None else None, n) for one, n in sorted(got.items(), key=_by_count)]
        pairs += [[names[label], name or "(no box)", n, total] for name, n in given]
        right, none = got[label], got[None]
        others = [(name, n, kind_of(name, run.vocabulary)) for name, n in given if name not in (None, names[label])]
        counts.append((names[label], total, right, total - right - none, none, others[:INSTEAD]))
    run.tables.add("names-of-novel-objects", ["category", "name given", "objects", "of"], pairs)
    return {
        "charts": shown,
        "runs": list(curves),
        "title": title,
        "names": sorted(counts, key=lambda row: (-row[2] / row[1], row[0])),
    }


def _by_count(item: tuple[int | None, int]) -> tuple[int, int]:
    """Order of the given names: most frequent first, then by label; no box last among equals."""
    label, count = item
    return -count, label if label is not None else 10**9
