"""The detector of a workspace, for the commands `detect` and `export`: which artifacts it is made of."""

from __future__ import annotations

from regionclip_core.config.tree import Config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.assembly import DETECTORS, model_of_run
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.models.clip import load_clip
from stages.commands.finished import finished, folder_of, undisturbed
from stages.engine.plan import PlanLine

USEFUL = ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs", "pretrain", "evaluate")
"""Stages that say something about a model, where they are done."""


def workspace_detector(config: Config, name: str, purpose: str) -> tuple[RegionModel, dict[str, PlanLine]]:
    """Return the workspace's detector `name`, with its proposal network where it has one, and the stages behind it.

    Raises:
        ValueError: if a stage that it needs is not finished (`purpose` begins the message), or has no such detector.
    """
    if name not in DETECTORS:
        raise ValueError(f"--name {name}: expected one of {', '.join(DETECTORS)}")
    has_network = config.proposals.method == "rpn"
    init = DETECTORS[name]
    lines = finished(config, ["finetune", init, *(["rpn"] if has_network else [])], USEFUL, purpose)
    with undisturbed(lines.values()):
        clip, rpn = load_clip(folder_of(lines[init])), folder_of(lines["rpn"]) if has_network else None
        vocabulary = run_vocabulary(config, lines)
        return model_of_run(config, folder_of(lines["finetune"]), clip, rpn, vocabulary, name), lines


def run_vocabulary(config: Config, lines: dict[str, PlanLine]) -> Vocabulary:
    """Return the run's categories: as its data stage wrote them, or from the config where it has not run."""
    if "data" in lines:
        return Vocabulary.from_json(folder_of(lines["data"]).read_json("categories.json"))
    return load_categories(config.data.categories)
