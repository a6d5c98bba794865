"""What the stages that train did: teacher, rpn, pretrain, finetune; their summaries and loss curves."""

from __future__ import annotations

from typing import Any

from regionclip_core.report.curves import Rows, curve_grid, legend
from regionclip_core.report.data_sections import Sources
from regionclip_core.report.markup import escape, facts, section, table
from regionclip_core.storage.records import Folder


def teacher_section(sources: Sources) -> str:
    """The CLIP that everything starts from."""
    weights = sources.config.teacher.weights
    how = {
        "train": "trained here from nothing on the captioned splits",
        "random": "with random weights: good for trying the pipeline out, never for results",
    }.get(weights, f"with the weights {weights}")
    return section(
        "teacher",
        "Teacher",
        f"<p>The CLIP whose knowledge of whole images is carried to regions, {escape(how)}.</p>",
        facts(sources.summary("teacher")),
        _curves({"teacher": _history(sources.folders["teacher"])}, "The teacher was not trained in this run."),
    )


def rpn_section(sources: Sources) -> str:
    """The proposal network; empty where proposals come from elsewhere."""
    if "rpn" not in sources.folders or "unused" in sources.summary("rpn"):
        return ""
    return section(
        "rpn",
        "Proposal network",
        "<p>A class-agnostic region proposal network. Where it is trained here, it sees the boxes of base categories "
        "only.</p>",
        facts(sources.summary("rpn")),
        _curves({"rpn": _history(sources.folders["rpn"])}, "The network was not trained in this run."),
    )


def pretrain_section(sources: Sources) -> str:
    """The student's three losses."""
    return section(
        "pretrain",
        "Region-text pretraining",
        "<p>The student starts as the teacher's visual encoder and learns to name regions, by three losses: a "
        "contrastive one against the pseudo labels, a distillation of the teacher's probabilities over the pool, and "
        "a contrastive one of whole images and captions.</p>",
        facts(sources.summary("pretrain")),
        _curves({"pretrain": _history(sources.folders["pretrain"])}, _untrained(sources.config.pretrain.weights)),
    )


def finetune_section(sources: Sources) -> str:
    """The detectors, their curves in common charts."""
    folder = sources.folders["finetune"]
    summary: dict[str, Any] = sources.summary("finetune").get("detectors", {})
    names = [n for n in ("clip", "regionclip", "oracle") if n in summary or folder.exists(f"history-{n}.json")]
    titles = {
        "clip": "CLIP init, base boxes",
        "regionclip": "RegionCLIP init, base boxes",
        "oracle": "RegionCLIP init, all boxes (oracle)",
    }
    rows = [[titles[n], *(_cell(summary.get(n, {}).get(key)) for key in ("images", "steps", "loss"))] for n in names]
    histories = {titles[n]: _history(folder, f"history-{n}.json") for n in names}
    return section(
        "finetune",
        "Finetuning",
        "<p>Open-vocabulary detectors from the same data, seed and settings; only where the visual encoder starts from "
        "differs, and for the oracle which boxes it sees.</p>",
        table(["detector", "images", "steps", "last loss"], rows) if rows else "",
        legend([title for title, history in histories.items() if history]) if len(names) > 1 else "",
        _curves(histories, _untrained(sources.config.finetune.weights)),
    )


def artifacts_section(sources: Sources) -> str:
    """What the page was made from, by content."""
    rows = [
        [stage, str(m.version), m.content_digest[:12], f"{m.rows:,}", f"{m.files:,}", _size(m.bytes)]
        for stage, m in sources.manifests.items()
    ]
    return section(
        "artifacts",
        "Artifacts",
        "<p>What this page was made from. The digest is over the content of a stage's files: equal digests are equal "
        "results, on whatever machine.</p>",
        table(["stage", "version", "content", "rows", "files", "size"], rows),
    )


def _history(folder: Folder, name: str = "history.json") -> Rows:
    rows: Rows = folder.read_json(name) if folder.exists(name) else []
    return rows


def _curves(histories: dict[str, Rows], otherwise: str) -> str:
    trained = {name: rows for name, rows in histories.items() if rows}
    return curve_grid(trained) if trained else f"<p class='note'>{escape(otherwise)}</p>"


def _untrained(weights: str) -> str:
    if weights == "train":
        return "No history was written."
    return f"Nothing was trained in this run: the weights are those of {weights}."


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
