"""The base class of every section of the configuration, and the types that many settings share.

Values are taken as they are written: true is no number, quoted text is no number, and there is no infinity. A whole
number is accepted for a fraction. Upper bounds are far above any useful value: they catch typing mistakes before these
fill a machine's memory or overflow deep inside a stage.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, the docstring under a setting is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


T = TypeVar("T")
Listed = Annotated[T, Field(strict=False)]
"""A tuple, which YAML writes as a list."""

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Side = Annotated[int, Field(ge=1, le=2**14)]
"""Pixels."""
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Temperature = Annotated[float, Field(ge=1e-4, le=100)]
"""Divides cosine similarities; with a smaller one float32 overflows."""

# Types whose description serves every setting that has them.
Steps = Annotated[Count, Field(description="Optimiser steps of the training.")]
ImagesPerStep = Annotated[BatchSize, Field(description="Images per step, over all workers together.")]
CheckpointEvery = Annotated[Count, Field(description="Steps between two checkpoints, from which a training resumes.")]
Flip = Annotated[Share, Field(description="Probability that a training image is mirrored left to right.")]
ShorterSide = Annotated[Side, Field(description="Shorter side of the resized image, in pixels.")]
LongerSide = Annotated[Side, Field(description="Upper limit of the resized image's longer side, in pixels.")]
