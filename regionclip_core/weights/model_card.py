"""Model cards: README.md beside exported and imported weights, in Hugging Face's format. Its text is in model_card.md.

Numbers are percent. Nothing private gets into a card: no paths beyond a file's name, no hosts, no `workspace`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import yaml_text
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.drawings import Trained, drawn_splits, knows_drawings_only, training_splits
from regionclip_core.detection.model_folder import config_of
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.evaluation.paper_tables import paper_numbers
from regionclip_core.models.clip import ClipModel
from regionclip_core.weights.import_report import ImportReport

TEMPLATE = Path(__file__).with_name("model_card.md")
_DETECTION = "open-vocabulary-detection"
_CLIP = ("apache-2.0", "open_clip", "zero-shot-image-classification", "clip", "open-vocabulary")
_METADATA = {
    "student": _CLIP,
    "teacher": _CLIP,
    "detector": ("apache-2.0", "regionclip", "zero-shot-object-detection", "object-detection", _DETECTION),
    "imported": ("other", "regionclip", "object-detection", _DETECTION),
}
"""Licence (an imported model has its publisher's), library, task and further tags, by kind of card."""
_TRAINED_BY = {
    "teacher": ("seed", "teacher"),
    "student": ("seed", "concepts", "teacher", "labels", "pretrain"),
    "detector": ("seed", "concepts", "teacher", "rpn", "proposals", "labels", "pretrain", "finetune", "evaluate"),
}
"""Keys of the config that shape each kind of model, beside the data."""


@dataclass(frozen=True)
class RunFacts:
    """What a model card says about the run that the model comes from."""

    config: Config
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Manifests of the finished stages behind the model, as JSON, in pipeline order."""
    metrics: Mapping[str, Any] | None = None
    """metrics.json of the evaluate stage, where it has run."""
    vocabulary: Vocabulary | None = None


def clip_card(clip: ClipModel, kind: str, facts: RunFacts | None) -> ModelCard:
    """Return the card of a `student` or `teacher`; `facts` of the run that it comes from."""
    model = "clip" if kind == "teacher" else "regionclip"
    return _render(kind, f"RegionCLIP {kind} {clip.name}", facts, model, "zero-shot", clip=clip)


def detector_card(model: RegionModel, name: str, facts: RunFacts | None) -> ModelCard:
    """Return the card of a detector; `name` is its name in the run."""
    title = f"RegionCLIP detector {model.clip_name}"
    values = {"config": config_of(model), "vocabulary": model.vocabulary, "has_text": model.text is not None}
    return _render("detector", title, facts, name, "open-vocabulary", name=name, **values)


def imported_card(config: Mapping[str, Any], has_text: bool, report: ImportReport) -> ModelCard:
    """Return the card of an imported detector: what it is and where it came from; `config` is its config.json."""
    title = f"RegionCLIP detector from {report.file}"
    return _render("imported", title, None, config=config, has_text=has_text, report=report)


def _render(
    kind: str, title: str, facts: RunFacts | None, model: str = "", tables: str = "", **values: Any
) -> ModelCard:
    """Fill the template; `model`'s numbers in the tables whose titles begin with `tables` go into the metadata."""
    licence, library, task, *tags = _METADATA[kind]
    data = ModelCardData(license=licence, library_name=library, pipeline_tag=task, tags=["regionclip", *tags])
    if facts is not None:
        config = facts.config.model_dump(mode="json")
        images = facts.stages["data"]["summary"]["images"] if "data" in facts.stages else {}
        made = [manifest.get("provenance", {}) for manifest in facts.stages.values()]
        packages = {name: version for one in made for name, version in one.get("packages", {}).items()}
        results = {} if facts.metrics is None else paper_numbers(facts.metrics)
        settings = _without_places({key: config[key] for key in _TRAINED_BY[kind]})
        trained = cast(Trained, kind)
        drawn = drawn_splits(facts.config, trained)
        values |= {
            "splits": _without_places(config["data"]["splits"]),
            "drawn": drawn,
            "only_drawn": knows_drawings_only(facts.config, trained),
            "trainings": _trainings(facts.config, trained),
            "images": images,
            "settings": yaml_text(settings, 110, short_lists_in_a_line=True),
            "results": results,
            "commits": sorted({one.get("git_commit") or "unknown" for one in made}),
            "packages": [f"{name} {version}" for name, version in sorted(packages.items())],
        }
        found = []
        where = f"{_without_places(config['data']['categories'])}, split {config['evaluate']['split']}"
        for table, models in results.items():
            setting, _, metric = table.rpartition(", ")
            for column, value in models.get(model, {}).items():
                if value is not None and table.startswith(tables):
                    name = column if column.startswith("AP") else f"{metric} {column}"
                    found.append((f"{where}: {setting}", name, round(value, 2)))
        if found:
            data.model_name = title
            data.metrics = sorted({name.split()[0] for _, name, _ in found})
            data.eval_results = [
                EvalResult(
                    task_type=task,
                    dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-"),
                    dataset_name=dataset,
                    metric_type=name.split()[0],
                    metric_name=name,
                    metric_value=value,
                )
                for dataset, name, value in found
            ]
    card: ModelCard = ModelCard.from_template(data, str(TEMPLATE), kind=kind, title=title, facts=facts, **values)
    return card


def _trainings(config: Config, kind: Trained) -> list[tuple[str, str]]:
    """Return what was trained on what, up to a model of the kind, in the order of the run."""
    given = {"teacher": config.teacher.weights, "student": config.pretrain.weights, "detector": config.finetune.weights}
    rows = []
    for name in get_args(Trained)[: get_args(Trained).index(kind) + 1]:
        images = "; ".join(_images_of(config, split) for split in training_splits(config, name))
        rows.append((name, images or _not_in_this_run(given[name])))
    if kind == "detector" and config.proposals.method == "rpn":
        images = _images_of(config, config.rpn.split)
        rows.insert(1, ("proposals", images if config.rpn.weights == "train" else _not_in_this_run(config.rpn.weights)))
    return rows


def _not_in_this_run(weights: str) -> str:
    return f"not in this run: weights `{_without_places(weights)}`"


def _images_of(config: Config, split: str) -> str:
    source = config.data.splits[split].source
    return f"`{split}`, {'drawings of the embedded world' if source == 'world' else f'images of the source {source}'}"


def _without_places(value: Any) -> Any:
    """Return the value with all paths and URLs in it, also nested ones, cut to their last part."""
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
