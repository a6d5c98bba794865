"""Two finished runs side by side: what differs in their settings, and in what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from regionclip_core.report.ablation import aligned
from regionclip_core.report.csv_tables import CsvTables
from regionclip_core.report.detections import MIN_SCORE, MOST, look_at, read_truth
from regionclip_core.report.origin import distinct, duration, moment
from regionclip_core.report.page import TEMPLATES
from regionclip_core.report.pictures import PictureBook
from regionclip_core.report.results import MARGIN, METRICS, Metrics, groups_of, minus, number, result_rows, shift_rows
from regionclip_core.report.results_sections import BARS, side_by_side, table_of_totals
from regionclip_core.report.run import INITS, Values
from regionclip_core.storage.records import Folder, Manifest, canonical_json

PICTURES = 12
"""Pictures shown, where both runs evaluated the same images."""
SHOWN_CATEGORIES = 5
"""Categories with the largest gains, and with the largest losses, in the text."""
LONGEST = 60
"""Characters of a setting's value in the text."""


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    name: str
    folders: Mapping[str, Folder]
    """The artifacts that its evaluation was made from, by stage, and the evaluation's own; what is deleted is not
    there. Those of rounds before the last have the number of the round in their names (`labels@1`)."""
    manifests: Mapping[str, Manifest]
    """By the same names."""

    @property
    def metrics(self) -> Metrics:
        """The content of `metrics.json`."""
        metrics: Metrics = self.folders["evaluate"].read_json("metrics.json")
        return metrics

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted key, as the manifests of the last round have them."""
        found: dict[str, Any] = {}
        for name, manifest in self.manifests.items():
            if "@" not in name:
                found |= dict(_dotted(manifest.settings))
        return found

    @property
    def facts(self) -> str:
        """Seed, time and code in one line."""
        known = [manifest.provenance for manifest in self.manifests.values()]
        finished = str(self.manifests["evaluate"].provenance.get("finished", ""))
        commits = distinct(one.get("git_commit") for one in known)
        parts = [
            f"seed {self.settings['seed']}" if "seed" in self.settings else "",
            f"evaluated {moment(finished)} UTC" if finished else "",
            f"{duration(sum(one.get('seconds', 0.0) for one in known))} for all stages" if finished else "",
            f"code {', '.join(commit[:12] for commit in commits)}" if commits else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass
class Comparison:
    """What is shown of two runs."""

    a: Side
    b: Side
    settings: list[tuple[str, str, str]]
    """Key and both values as JSON, where they differ; empty: not recorded on that side."""
    stages: list[tuple[str, str, int | None, int | None, float | None, float | None]]
    """Name, whether the content is the same, versions, seconds."""
    groups: tuple[str, ...]
    rows: list[tuple[str, str, dict[tuple[str, str], tuple[float | None, float | None, float | None]]]]
    """Setting, model, and by (metric, group) A, B and B - A."""
    detector: str | None
    """The finetuned detector whose categories and pictures are compared, by its name in the files."""
    categories: list[tuple[str, str, float | None, float | None, float | None]]
    """Name, base or novel, AP50 of A, of B, and B - A; largest gains first, those without a difference last."""
    why_no_pictures: str
    """Empty where there are pictures."""
    pictures: Values = field(default_factory=dict)
    totals: tuple[list[str], list[list[Any]]] | None = None
    book: PictureBook = field(default_factory=PictureBook)

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """The METRICS that both runs have."""
        seen = {key for _, _, values in self.rows for (key, _), value in values.items() if value[2] is not None}
        return [(key, name) for key, name in METRICS if key in seen]


def compare(a: Side, b: Side, pictures: bool = False) -> Comparison:
    """Return two runs side by side; `pictures` reads the detections and images, too.

    Raises:
        ValueError: they were measured by different protocols.
    """
    ours, theirs = a.metrics, b.metrics
    protocols = [metrics.get("protocol", "coco") for metrics in (ours, theirs)]
    if protocols[0] != protocols[1]:
        raise ValueError(
            f"{a.name} was measured by the protocol {protocols[0]} and {b.name} by {protocols[1]}, whose numbers can't "
            "be compared; evaluate one of them again with the other's evaluate.protocol"
        )
    set_a, set_b = a.settings, b.settings
    settings = [
        (key, _json(set_a, key), _json(set_b, key))
        for key in sorted(set_a.keys() | set_b.keys())
        if _json(set_a, key) != _json(set_b, key)
    ]
    stages = [_stage_row(name, a.manifests.get(name), b.manifests.get(name)) for name in {**a.manifests, **b.manifests}]
    groups = groups_of(ours)
    keys = [(metric, group) for metric, _ in METRICS for group in groups]
    measured = []
    for metrics in (ours, theirs):
        rows = {(r.setting, r.model): dict(r.values) for r in result_rows(metrics) if not r.is_difference}
        for name, values in shift_rows(metrics).items():
            if "region features" not in name:  # which are rows above
                rows["top-1 accuracy", name] = {("top1", g): value for g, value in zip(groups, values, strict=True)}
        measured.append(rows)
    both = [
        (
            setting,
            model,
            {key: _three(measured[0][setting, model].get(key), measured[1][setting, model].get(key)) for key in keys},
        )
        for setting, model in measured[0]
        if (setting, model) in measured[1]
    ]
    per_category = [metrics.get("finetuned", {}) for metrics in (ours, theirs)]
    detector = next((n for n in ("regionclip", "clip", "oracle") if all(n in one for one in per_category)), None)
    categories = []
    if detector is not None:
        novel = _novel(a)
        of_a, of_b = (one[detector].get("per_category", {}) for one in per_category)
        for name in of_a.keys() & of_b.keys():
            kind = "" if novel is None else "novel" if name in novel else "base"
            categories.append((name, kind, *_three(of_a[name], of_b[name])))
        categories.sort(key=lambda row: (row[4] is None, -(row[4] or 0), row[0]))
    found = Comparison(a, b, settings, stages, groups, both, detector, categories, _why_no_pictures(a, b, detector))
    if pictures and not found.why_no_pictures:
        split = a.manifests["evaluate"].settings["evaluate"]["split"]
        truth = read_truth(a.folders["data"], split)
        detected = {
            name: look_at(side.folders["evaluate"], str(detector), truth) for name, side in (("A", a), ("B", b))
        }
        found.totals = table_of_totals(truth, detected)
        shown = side_by_side(found.book, a.folders["data"], split, truth, detected, PICTURES)
        found.pictures = {"detectors": ["A", "B"], **shown}
    return found


def _why_no_pictures(a: Side, b: Side, detector: str | None) -> str:
    """Return why the same pictures can't be shown side by side; empty where they can."""
    if detector is None:
        return "no finetuned detector was measured in both runs"
    digests = [side.manifests["evaluate"].inputs.get("data") for side in (a, b)]
    splits = [side.manifests["evaluate"].settings.get("evaluate", {}).get("split") for side in (a, b)]
    if "data" not in a.folders:
        return f"the data of {a.name} is no longer in its workspace"
    if digests[0] != digests[1] or splits[0] != splits[1]:
        return "the runs evaluated different images"
    return ""


def _novel(side: Side) -> set[str] | None:
    """Return the names of the novel categories; None where the data is gone."""
    if "data" not in side.folders:
        return None
    categories = side.folders["data"].read_json("categories.json")
    return set(categories["names"]) - set(categories["base"])


def _stage_row(
    name: str, a: Manifest | None, b: Manifest | None
) -> tuple[str, str, int | None, int | None, float | None, float | None]:
    same = "only in one" if a is None or b is None else "same" if a.content_digest == b.content_digest else "different"
    versions = [None if one is None else one.version for one in (a, b)]
    seconds = [None if one is None else one.provenance.get("seconds") for one in (a, b)]
    return name, same, versions[0], versions[1], seconds[0], seconds[1]


def _three(a: float | None, b: float | None) -> tuple[float | None, float | None, float | None]:
    return a, b, minus(b, a)


def _dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _json(settings: Mapping[str, Any], key: str) -> str:
    return canonical_json(settings[key]).decode().strip() if key in settings else ""


# ---------------------------------------------------------------- as text and as a page


def format_comparison(found: Comparison) -> str:
    """Return the comparison as plain text: settings, results and the categories that changed most."""
    parts = [f"A  {found.a.name}: {found.a.facts}\nB  {found.b.name}: {found.b.facts}"]
    same = [name for name, content, *_ in found.stages if content == "same"]
    other = [name for name, content, *_ in found.stages if content != "same"]
    parts.append(
        f"stages with the same content: {', '.join(same) or 'none'}\nwith another content: {', '.join(other) or 'none'}"
    )
    if found.settings:
        lines = [["settings that differ", "A", "B"]]
        lines += [[key, *(_short(value) for value in values)] for key, *values in found.settings]
        parts.append(aligned(lines))
    else:
        parts.append("no recorded setting differs")
    for metric, name in found.metrics:
        if metric not in ("ap50", "top1"):
            continue
        lines = [[f"{name}, percent", "", *(f"{group} A".rjust(8) + "       B   B - A" for group in found.groups)]]
        for setting, model, values in found.rows:
            cells = [values[metric, group] for group in found.groups]
            if any(cell[2] is not None for cell in cells):
                numbers = (f"{number(x):>8}{number(y):>8}{number(less, True):>8}" for x, y, less in cells)
                lines.append([setting, model, *numbers])
        parts.append(aligned(lines))
    changed = [row for row in found.categories if row[4] is not None]
    if changed:
        best = [row for row in changed if (row[4] or 0) > 0][:SHOWN_CATEGORIES]
        worst = [row for row in reversed(changed) if (row[4] or 0) < 0][:SHOWN_CATEGORIES]
        lines = [[f"AP50, {INITS[str(found.detector)]}", "", "      A       B   B - A"]]
        for title, rows in (("largest gains of B", best), ("largest losses of B", worst)):
            if rows:
                lines.append([title])
                lines += [
                    [f"  {name}", kind, f"{number(x):>7}{number(y):>8}{number(less, True):>8}"]
                    for name, kind, x, y, less in rows
                ]
        parts.append(aligned(lines))
    parts.append(
        "One run has one seed: a difference may be that of two draws. `regionclip ablate` compares over several seeds."
    )
    return "\n\n".join(parts) + "\n"


def _short(value: str) -> str:
    return (value or "-") if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..."


def build_comparison_page(found: Comparison) -> str:
    """Return a page of one file, as the report's, with every table as CSV."""
    tables = CsvTables()
    tables.add("settings", ["setting", "A", "B"], found.settings)
    tables.add("stages", ["stage", "content", "version A", "version B", "seconds A", "seconds B"], found.stages)
    rows = [
        [setting, model, metric, group, *three]
        for setting, model, values in found.rows
        for (metric, group), three in values.items()
        if any(value is not None for value in three)
    ]
    tables.add("results", ["setting", "model", "metric", "group", "A", "B", "B - A"], rows)
    tables.add("ap50-per-category", ["category", "kind", "A", "B", "B - A"], found.categories)
    if found.totals is not None:
        tables.add("detections", *found.totals)
    many = len(found.categories) > BARS
    return TEMPLATES.get_template("compare.html").render(
        found=found,
        tables=tables,
        bars=found.categories[: BARS // 2] + found.categories[-BARS // 2 :] if many else found.categories,
        margin=MARGIN,
        detector=INITS[found.detector] if found.detector is not None else "",
        most=MOST,
        threshold=MIN_SCORE,
        pictures=found.book.pictures,
    )
