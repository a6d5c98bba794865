"""Vector primitives that the icons of the world are drawn with.

An icon is a list of filled polygons in a square of 100 x 100 units, x to the right, y down. Every primitive, strokes
and curves included, becomes a polygon here, so that one affine transform moves them all. Points are rounded to 1/64
unit: the last bits of sin and cos differ between machines, the polygons must not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

_GRID = 64.0
_CURVE_STEPS = 6


@dataclass
class Drawing:
    """Collects the polygons of one icon, painted in the order in which they are added.

    A role names a colour by its use ("main", "second", "dark", ...); `palette.py` turns roles into colours.
    Angles are degrees, 0 to the right and 90 downwards.
    """

    roles: list[str] = field(default_factory=list)
    polygons: list[Points] = field(default_factory=list)

    def poly(self, role: str, *xy: float) -> None:
        """Add a polygon through the corners x0, y0, x1, y1, ..."""
        self._add(role, _pairs(xy))

    def blob(self, role: str, *xy: float) -> None:
        """Add a closed smooth curve through the given points, filled."""
        self._add(role, _smooth(_pairs(xy), closed=True))

    def oval(self, role: str, cx: float, cy: float, rx: float, ry: float | None = None, turn: float = 0.0) -> None:
        """Add an ellipse around (cx, cy), turned by `turn` degrees; a circle without `ry`."""
        points = _arc_points(0.0, 0.0, rx, rx if ry is None else ry, 0.0, 360.0)[:-1]
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        x = points[:, 0] * cos - points[:, 1] * sin + cx
        y = points[:, 0] * sin + points[:, 1] * cos + cy
        self._add(role, np.stack([x, y], axis=1))

    def box(self, role: str, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> None:
        """Add an axis-aligned rectangle, with round corners where `radius` is given."""
        if radius <= 0:
            self._add(role, _pairs((x0, y0, x1, y0, x1, y1, x0, y1)))
            return
        corners = [
            (x1 - radius, y0 + radius, -90),
            (x1 - radius, y1 - radius, 0),
            (x0 + radius, y1 - radius, 90),
            (x0 + radius, y0 + radius, 180),
        ]
        parts = [_arc_points(x, y, radius, radius, start, start + 90, steps=5) for x, y, start in corners]
        self._add(role, np.concatenate(parts))

    def chord(self, role: str, cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> None:
        """Add a filled piece of an ellipse between two angles, closed by a straight line."""
        self._add(role, _arc_points(cx, cy, rx, ry, start, stop))

    def line(self, role: str, width: float, *xy: float) -> None:
        """Add straight strokes from point to point, with round ends and joints."""
        points = _pairs(xy)
        for start, stop in itertools.pairwise(points):
            self._add(role, _ribbon(np.stack([start, stop]), width))

    def curve(self, role: str, width: float, *xy: float) -> None:
        """Add a smooth stroke through the given points, with round ends."""
        self._add(role, _ribbon(_smooth(_pairs(xy), closed=False), width))

    def arc(
        self, role: str, width: float, cx: float, cy: float, rx: float, ry: float, start: float, stop: float
    ) -> None:
        """Add a stroke along an ellipse between two angles."""
        self._add(role, _ribbon(_arc_points(cx, cy, rx, ry, start, stop), width))

    def ring(self, role: str, width: float, cx: float, cy: float, radius: float) -> None:
        """Add a circle line of the given width."""
        outer = _arc_points(cx, cy, radius + width / 2, radius + width / 2, 0.0, 360.0)
        inner = _arc_points(cx, cy, radius - width / 2, radius - width / 2, 360.0, 0.0)
        self._add(role, np.concatenate([outer, inner]))

    def _add(self, role: str, points: Points) -> None:
        self.roles.append(role)
        self.polygons.append(np.floor(points * _GRID + 0.5) / _GRID)


def _pairs(xy: tuple[float, ...]) -> Points:
    return np.asarray(xy, dtype=np.float64).reshape(-1, 2)


def _arc_points(
    cx: float, cy: float, rx: float, ry: float, start: float, stop: float, steps: int | None = None
) -> Points:
    if steps is None:
        steps = max(4, int(abs(stop - start) / (12 if max(rx, ry) > 12 else 20)))
    angle = np.deg2rad(np.linspace(start, stop, steps + 1))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _smooth(points: Points, closed: bool) -> Points:
    """Return a Catmull-Rom curve through the points."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.arange(_CURVE_STEPS)[:, None] / _CURVE_STEPS
    parts = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    if not closed:
        parts.append(points[-1:])
    return np.concatenate(parts)


def _ribbon(points: Points, width: float) -> Points:
    """Return the outline of a stroke of the given width along the points, with round ends."""
    step = np.gradient(points, axis=0)
    step /= np.maximum(np.hypot(step[:, 0], step[:, 1]), 1e-9)[:, None]
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) * (width / 2)
    first, last = points[0], points[-1]
    toward = np.rad2deg(np.arctan2(step[-1, 1], step[-1, 0]))
    back = np.rad2deg(np.arctan2(step[0, 1], step[0, 0]))
    half = width / 2
    end_cap = _arc_points(last[0], last[1], half, half, toward + 90, toward - 90, steps=6)
    start_cap = _arc_points(first[0], first[1], half, half, back - 90, back - 270, steps=6)
    return np.concatenate([points + normal, end_cap, (points - normal)[::-1], start_cap])
