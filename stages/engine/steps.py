"""The steps of a config: its stages, some of them once per round. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regionclip_core.config.rounds import OF_A_ROUND, in_round
from regionclip_core.config.tree import Config

from .. import declarations
from ..base import Stage


@dataclass(frozen=True)
class Step:
    """A stage with the config that it gets."""

    stage: Stage
    config: Config
    round: int
    """From 1, and 1 for stages that no round repeats."""
    last: bool
    """False in rounds before the last."""
    needs: Mapping[str, str]
    """The step behind each artifact that the stage reads, by the name under which it reads it."""


def step_name(stage: str, number: int, last: bool) -> str:
    """Return what a stage of a round is called: "labels@1", in the last round "labels"."""
    return stage if last else f"{stage}@{number}"


def steps(config: Config) -> dict[str, Step]:
    """Return the steps by name, in the order in which they run: a step comes after all that it needs."""
    rounds = config.rounds
    order = [(name, rounds) for name in declarations.STAGES]
    if rounds > 1:
        at = list(declarations.STAGES).index(OF_A_ROUND[0])
        order[at:at] = [(name, number) for number in range(1, rounds) for name in OF_A_ROUND]
    found = {}
    for name, number in order:
        stage, own, last = declarations.STAGES[name], in_round(config, number), number == rounds
        needs = {need: step_name(need, number, last or need not in OF_A_ROUND) for need in stage.needs(own)}
        if "student" in needs:
            needs["student"] = step_name("pretrain", number - 1, last=False)
        found[step_name(name, number, last)] = Step(stage, own, number if name in OF_A_ROUND else 1, last, needs)
    return found
