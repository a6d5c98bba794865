"""The model that a command was asked for: checked before torch is loaded, then opened."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from regionclip_core.config.tree import Config, ExecutionConfig
from regionclip_core.detection.given_parts import check_model, check_parts
from regionclip_core.threads import set_threads, set_usual_threads

from ..engine.plan import PlanLine
from ..engine.work import resolve_device
from .workspace_models import detector_stages, workspace_detector

if TYPE_CHECKING:
    from regionclip_core.detection.region_model import RegionModel

NO_PARTS: dict[str, str | None] = {"rpn": None, "text": None, "prompts": None, "embeddings": None}
"""A model as it is."""


@dataclass(frozen=True)
class ModelChoice:
    """A model that is there and whole, as far as that can be said without loading it. `choose_model` makes one."""

    source: Config | str
    name: str
    parts: Mapping[str, str | None]
    device: str
    precision: str | None
    lines: Mapping[str, PlanLine]
    """The finished stages that it is made of; none for a folder."""

    def open(self, with_text: bool = True) -> RegionModel:
        """Load the model onto its device, and set the precision. `with_text`: see `open_model`.

        Raises:
            ValueError: if its parts don't fit each other, or there is no such device.
        """
        print("loading the model ...", file=sys.stderr, flush=True)
        device = resolve_device(self.device, "--device")
        from regionclip_core.detection.assembly import open_model, with_parts
        from regionclip_core.precision import set_precision

        usual = "auto" if isinstance(self.source, str) else self.source.execution.precision
        option = "--precision" if self.precision else "execution.precision"
        set_precision(self.precision or usual, device, option)
        if isinstance(self.source, str):
            return open_model(self.source, **self.parts, device=device, with_text=with_text)
        return with_parts(workspace_detector(self.source, self.name, dict(self.lines)), **self.parts).to(device)


def choose_model(
    source: Config | str,
    name: str,
    parts: Mapping[str, str | None],
    device: str,
    precision: str | None,
    purpose: str,
    names: bool | None = None,
) -> ModelChoice:
    """Check what was asked for, and set the threads.

    Args:
        source: the config of a workspace, or a model's folder.
        name: which of the workspace's detectors, or its student or teacher, not finetuned.
        parts: rpn, text, prompts and embeddings of `with_parts`.
        precision: as `execution.precision`; None: the config's, or `auto`.
        purpose: the command, for messages.
        names: for a command that detects, whether names are given; None for others, which need no proposal network.

    Raises:
        ValueError: if there is no such model, or a part of it is missing.
        FileNotFoundError: if something that is named is not there.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    known = get_args(ExecutionConfig.model_fields["precision"].annotation)
    if precision not in (None, *known):
        raise ValueError(f"--precision {precision}: expected one of {', '.join(known)}")
    check_parts(**parts)
    if names is False and (parts["text"] or parts["prompts"]):
        raise ValueError("--text and --prompts are for the names of --classes: give these too, or leave them out")
    detects = names is not None
    lines: dict[str, PlanLine] = {}
    set_usual_threads()
    if isinstance(source, str):
        has_names = not detects or bool(names or parts["embeddings"])
        check_model(source, has_names, has_rpn=not detects or parts["rpn"] is not None)
    else:
        lines = detector_stages(source, name, purpose, zero_shot=True)
        if detects and parts["rpn"] is None and source.proposals.method != "rpn":
            raise ValueError(f"proposals.method is {source.proposals.method}: give a proposal network with --rpn")
        if source.execution.threads:
            set_threads(source.execution.threads)
    return ModelChoice(source, name, parts, device, precision, lines)


def with_second(
    model: RegionModel,
    second: RegionModel,
    source: Config | str,
    crops: bool,
    base: float | None = None,
    novel: float | None = None,
) -> RegionModel:
    """Return the model with a CLIP model in its scores, see `RegionModel.fused`.

    Args:
        source: the config of a workspace, whose `evaluate.fusion` says how; of a model's folder: the defaults.
        crops: whether `second` sees crops, with the context of the config's labels, instead of region features.
        base, novel: exponents; None: the config's.
    """
    config = Config() if isinstance(source, str) else source
    own = config.evaluate.fusion
    if own.temperature is not None:
        second = replace(second, detector=copy(second.detector))  # `second` may be in use by itself
        second.detector.temperature = own.temperature
    exponents = own.base if base is None else base, own.novel if novel is None else novel
    return model.fused(second, *exponents, config.labels.context if crops else None)
