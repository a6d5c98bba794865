"""The base of every section of the configuration, and the ranges that many settings share.

Values are taken as they are written: no number for a truth value, no quoted text for a number, no infinity. A whole
number passes where a fraction may stand. Upper bounds are far above sense: they catch slips of the keyboard before they
fill a machine's memory or overflow somewhere deep in a stage.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def _tuple_of_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


T = TypeVar("T")
Listed = Annotated[T, BeforeValidator(_tuple_of_list)]
"""A tuple, which YAML writes as a list."""

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Side = Annotated[int, Field(ge=1, le=2**14)]
"""Pixels."""
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000)]
"""Of a part of a loss."""
Temperature = Annotated[float, Field(ge=1e-4, le=100)]
"""Divides cosines: below this, float32 overflows."""
