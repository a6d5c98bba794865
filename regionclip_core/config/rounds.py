"""Rounds of labels, pairs and pretraining, in which the student of one round labels and starts the next."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config

OF_A_ROUND = ("labels", "pairs", "pretrain")
"""The stages that every round does, in their order."""
_STUDENT = "student of round "
"""Begins the value of `labels.weights` and `pretrain.init` in the config of a later round; nobody can set it."""


def is_student(weights: str) -> bool:
    """Return whether a value of `labels.weights` or `pretrain.init` is the student of an earlier round."""
    return weights.startswith(_STUDENT)


def in_round(config: Config, number: int) -> Config:
    """Return the config of the stages of round `number`, from 1: the first has the given one.

    In a later round the student of the round before labels, by `labels.later_rounds`, and starts the training.
    """
    if number == 1:
        return config
    student, later = f"{_STUDENT}{number - 1}", config.labels.later_rounds
    labels: dict[str, Any] = {"weights": student, "mode": later.mode}
    if later.threshold is not None:
        labels["threshold"] = later.threshold
    sections = {
        "labels": config.labels.model_copy(update=labels),
        "pretrain": config.pretrain.model_copy(update={"init": student}),
    }
    return config.model_copy(update=sections)
