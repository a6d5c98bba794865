"""The models of a workspace, for the commands `detect` and `export`: which artifacts they are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.tree import DETECTORS, Config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import Vocabulary

from ..engine.plan import PlanLine
from .finished import finished, folder_of, undisturbed

if TYPE_CHECKING:
    from regionclip_core.detection.region_model import RegionModel

USEFUL = ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs", "pretrain", "evaluate")
"""Stages that say something about a model, where they are done."""
ZERO_SHOT = {"student": "pretrain", "teacher": "teacher"}
"""CLIP models of a workspace that detect without having been finetuned, and their stages."""


def detector_stages(config: Config, name: str, purpose: str, zero_shot: bool = False) -> dict[str, PlanLine]:
    """Return the finished stages behind the workspace's detector `name`; loads nothing slow.

    `zero_shot`: take the names in ZERO_SHOT too.

    Raises:
        ValueError: if a stage that it needs is not finished (`purpose` begins the message), or has no such detector.
    """
    known = DETECTORS | (ZERO_SHOT if zero_shot else {})
    if name not in known:
        raise ValueError(f"--name {name}: expected one of {', '.join(known)}{nearest_hint(name, known)}")
    network = ["rpn"] if config.proposals.method == "rpn" else []
    if name in ZERO_SHOT:
        return finished(config, [ZERO_SHOT[name], *network], USEFUL, purpose)
    lines = finished(config, ["finetune", DETECTORS[name], *network], USEFUL, purpose)
    there = [known for known in DETECTORS if folder_of(lines["finetune"]).exists(f"{known}.json")]
    if name not in there:
        raise ValueError(f"this run has no detector {name!r}, only {there}; choose one with --name")
    return lines


def workspace_detector(config: Config, name: str, lines: dict[str, PlanLine]) -> RegionModel:
    """Load the detector `name`, with its proposal network where it has one; `lines`: as `detector_stages`."""
    from regionclip_core.detection.assembly import model_of_run, zero_shot_of_run
    from regionclip_core.detection.drawings import knows_drawings_only
    from regionclip_core.models.clip import load_clip

    with undisturbed(lines.values()):
        clip = load_clip(folder_of(lines[(DETECTORS | ZERO_SHOT)[name]]))
        rpn = folder_of(lines["rpn"]) if config.proposals.method == "rpn" else None
        vocabulary = run_vocabulary(config, lines)
        if name in ZERO_SHOT:
            drawings_only = knows_drawings_only(config, "student" if name == "student" else "teacher")
            return replace(zero_shot_of_run(config, clip, rpn, vocabulary), drawings_only=drawings_only)
        return model_of_run(config, folder_of(lines["finetune"]), clip, rpn, vocabulary, name)


def run_vocabulary(config: Config, lines: dict[str, PlanLine]) -> Vocabulary:
    """Return the run's categories: as its data stage wrote them, or from the config where it has not run."""
    if "data" in lines:
        return Vocabulary.from_json(folder_of(lines["data"]).read_json("categories.json"))
    return load_categories(config.data.categories)
