"""Models of a workspace, for the commands `detect` and `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regionclip_core.config.tree import Config
from stages.commands.finished import finished, folder_of, undisturbed
from stages.engine.plan import PlanLine

if TYPE_CHECKING:
    from regionclip_core.datasets.vocabulary import Vocabulary
    from regionclip_core.detection.model_folder import LoadedModel

DETECTOR_STAGES = ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs", "pretrain", "evaluate")


def workspace_detector(config: Config, name: str, purpose: str) -> tuple[LoadedModel, dict[str, PlanLine]]:
    """The workspace's detector `name`, with its proposal network where it has one, and the stages behind it.

    Raises:
        ValueError: if a stage that it needs is not finished, or there is no such detector.
    """
    from regionclip_core.detection.run_model import DETECTORS, detector_of_run
    from regionclip_core.models.clip import load_clip

    if name not in DETECTORS:
        raise ValueError(f"--name {name}: expected one of {', '.join(DETECTORS)}")
    has_network = config.proposals.method == "rpn"
    init = DETECTORS[name]
    needed = ["finetune", init, *(["rpn"] if has_network else [])]
    lines = finished(config, needed, DETECTOR_STAGES, purpose)
    rpn = folder_of(lines["rpn"]) if has_network else None
    with undisturbed(lines.values()):
        clip = load_clip(folder_of(lines[init]))
        vocabulary = run_vocabulary(config, lines)
        return detector_of_run(config, folder_of(lines["finetune"]), clip, rpn, vocabulary, name), lines


def run_vocabulary(config: Config, lines: dict[str, PlanLine]) -> Vocabulary:
    """The run's categories: as its data stage wrote them, or from the config where it has not run."""
    from regionclip_core.datasets.categories import load_categories
    from regionclip_core.datasets.vocabulary import Vocabulary

    if "data" in lines:
        return Vocabulary.from_json(folder_of(lines["data"]).read_json("categories.json"))
    return load_categories(config.data.categories)
