"""Icons of vehicles; see drawing.py for the primitives and palette.py for the roles."""

from __future__ import annotations

from regionclip_core.datasets.world.drawing import Drawing


def _wheel(d: Drawing, x: float, y: float, radius: float) -> None:
    d.oval("dark", x, y, radius)
    d.oval("metal", x, y, radius * 0.5)


def car(d: Drawing) -> None:
    d.poly("main", 22, 50, 36, 28, 68, 28, 84, 50)
    d.box("main", 4, 46, 97, 70, 9)
    d.poly("glass", 30, 48, 39, 33, 50, 33, 50, 48)
    d.poly("glass", 55, 48, 55, 33, 65, 33, 76, 48)
    d.oval("flame", 92, 55, 3.6, 4)
    d.box("shade", 4, 62, 97, 67)
    _wheel(d, 26, 70, 12)
    _wheel(d, 76, 70, 12)


def bus(d: Drawing) -> None:
    d.box("main", 3, 20, 97, 76, 7)
    for x in (9, 27, 45):
        d.box("glass", x, 28, x + 14, 46, 2)
    d.box("glass", 84, 28, 97, 50, 2)
    d.box("shade", 65, 28, 79, 76, 2)
    d.box("glass", 67.5, 31, 76.5, 60, 1)
    d.box("second", 3, 53, 63, 60)
    _wheel(d, 24, 77, 11)
    _wheel(d, 82, 77, 10)


def truck(d: Drawing) -> None:
    d.box("main", 2, 20, 60, 68, 2)
    d.box("shade", 2, 60, 60, 68)
    d.poly("second", 63, 34, 82, 34, 97, 52, 97, 72, 63, 72)
    d.poly("glass", 68, 39, 80, 39, 90, 53, 68, 53)
    d.box("steel", 2, 68, 97, 75)
    d.oval("flame", 94, 62, 3)
    _wheel(d, 20, 76, 11)
    _wheel(d, 46, 76, 11)
    _wheel(d, 80, 76, 11)


def train(d: Drawing) -> None:
    d.poly("deep", 74, 14, 92, 14, 88, 24, 88, 40, 78, 40, 78, 24)
    d.box("main", 36, 36, 92, 66, 12)
    d.box("main", 6, 18, 44, 66, 2)
    d.box("shade", 2, 12, 48, 20, 3)
    d.box("glass", 13, 27, 37, 44, 2)
    d.oval("second", 58, 36, 7, 7)
    d.box("steel", 4, 64, 94, 72, 2)
    d.poly("second", 86, 66, 100, 86, 82, 86)
    _wheel(d, 22, 76, 13)
    _wheel(d, 52, 79, 9)
    _wheel(d, 74, 79, 9)


def bicycle(d: Drawing) -> None:
    for x in (22, 78):
        d.ring("dark", 5, x, 66, 19)
        d.oval("steel", x, 66, 3)
    d.line("main", 5, 22, 66, 36, 40, 66, 40, 50, 68, 22, 66)
    d.line("main", 5, 34, 34, 50, 68)
    d.line("main", 5, 78, 66, 64, 28)
    d.line("dark", 5, 64, 28, 72, 22, 80, 26)
    d.line("dark", 6, 26, 33, 42, 33)
    d.oval("metal", 50, 68, 6)


def boat(d: Drawing) -> None:
    d.line("wood", 4, 48, 10, 48, 72)
    d.poly("second", 52, 8, 92, 62, 52, 62)
    d.poly("light", 44, 20, 44, 62, 14, 62)
    d.poly("main", 4, 68, 97, 68, 82, 92, 20, 92)
    d.poly("shade", 12, 80, 89.5, 80, 82, 92, 20, 92)


def airplane(d: Drawing) -> None:
    d.poly("shade", 46, 44, 66, 8, 76, 8, 66, 46)
    d.poly("main", 4, 20, 14, 20, 28, 46, 8, 46)
    d.blob("main", 4, 48, 20, 42, 70, 40, 94, 46, 98, 54, 84, 60, 40, 62, 14, 58)
    d.poly("shade", 40, 52, 64, 52, 42, 92, 30, 92)
    d.poly("shade", 4, 50, 20, 50, 8, 64, 0, 64)
    for x in (38, 48, 58, 68):
        d.oval("glass", x, 48, 2.6)
    d.poly("glass", 80, 45, 90, 46, 92, 51, 80, 50)


def rocket(d: Drawing) -> None:
    d.blob("flame", 38, 78, 62, 78, 58, 90, 50, 100, 42, 90)
    d.poly("second", 34, 50, 12, 80, 34, 76)
    d.poly("second", 66, 50, 88, 80, 66, 76)
    d.blob("main", 50, 0, 64, 18, 70, 44, 64, 80, 50, 82, 36, 80, 30, 44, 36, 18)
    d.poly("second", 50, 0, 59, 9, 64, 20, 36, 20, 41, 9)
    d.oval("steel", 50, 40, 11)
    d.oval("glass", 50, 40, 7.5)
    d.poly("second_shade", 47, 58, 53, 58, 52, 86, 48, 86)


def hot_air_balloon(d: Drawing) -> None:
    d.line("bark", 2, 34, 60, 42, 84)
    d.line("bark", 2, 66, 60, 58, 84)
    d.blob("main", 50, 2, 78, 12, 86, 36, 72, 58, 58, 72, 42, 72, 28, 58, 14, 36, 22, 12)
    d.blob("second", 50, 2, 62, 14, 66, 38, 60, 60, 54, 72, 46, 72, 40, 60, 34, 38, 38, 14)
    d.blob("main", 50, 3, 54, 16, 56, 38, 54, 58, 51, 72, 49, 72, 46, 58, 44, 38, 46, 16)
    d.box("wood", 39, 82, 61, 98, 3)
    d.box("bark", 37, 81, 63, 86, 2)
