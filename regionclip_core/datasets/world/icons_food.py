"""Icons of food and kitchen things; see drawing.py for the primitives and palette.py for the roles."""

from __future__ import annotations

from regionclip_core.datasets.world.drawing import Drawing


def apple(d: Drawing) -> None:
    d.curve("bark", 5, 50, 30, 52, 16, 58, 8)
    d.blob("leaf", 54, 20, 64, 8, 82, 8, 74, 20, 62, 25)
    d.blob("main", 50, 28, 66, 22, 86, 32, 88, 58, 74, 86, 60, 95, 50, 91, 40, 95, 26, 86, 12, 58, 14, 32, 34, 22)
    d.oval("tint", 28, 44, 6, 11, 20)


def pear(d: Drawing) -> None:
    d.curve("bark", 5, 50, 18, 50, 10, 56, 2)
    d.blob("leaf", 54, 12, 66, 4, 80, 8, 70, 16)
    d.blob("main", 50, 12, 62, 20, 66, 42, 82, 62, 76, 88, 50, 97, 24, 88, 18, 62, 34, 42, 38, 20)
    d.oval("tint", 32, 68, 6, 12, 15)


def banana(d: Drawing) -> None:
    d.blob("main", 14, 14, 22, 14, 30, 38, 52, 60, 82, 66, 94, 72, 88, 82, 58, 88, 28, 72, 12, 44)
    d.curve("shade", 3, 18, 24, 24, 50, 46, 72, 80, 76)
    d.poly("bark", 13, 6, 21, 5, 23, 18, 14, 18)
    d.oval("bark", 92, 75, 4, 6, -20)


def strawberry(d: Drawing) -> None:
    d.blob("main", 50, 20, 72, 18, 90, 34, 84, 58, 64, 88, 50, 98, 36, 88, 16, 58, 10, 34, 28, 18)
    for x, y in ((30, 42), (50, 44), (70, 42), (40, 58), (60, 58), (30, 70), (50, 73), (68, 70), (50, 87)):
        d.oval("cream", x if abs(x - 50) < 15 else x + (50 - x) * 0.1, y, 2.4, 3.4)
    d.line("leaf", 5, 50, 18, 54, 4)
    d.poly("leaf", 50, 12, 68, 10, 88, 20, 70, 24, 66, 36, 56, 27, 50, 40, 44, 27, 34, 36, 30, 24, 12, 20, 32, 10)


def carrot(d: Drawing) -> None:
    d.curve("leaf", 7, 50, 30, 40, 18, 28, 8)
    d.curve("leaf", 7, 50, 30, 50, 16, 52, 2)
    d.curve("leaf", 7, 50, 30, 62, 18, 74, 10)
    d.blob("main", 50, 26, 68, 32, 66, 52, 58, 78, 50, 99, 42, 78, 34, 52, 32, 32)
    d.line("shade", 3, 36, 46, 48, 48)
    d.line("shade", 3, 62, 58, 52, 60)
    d.line("shade", 3, 42, 70, 50, 72)


def mushroom(d: Drawing) -> None:
    d.blob("cream", 36, 54, 64, 54, 64, 78, 70, 94, 50, 97, 30, 94, 36, 78)
    d.blob("main", 4, 54, 12, 28, 34, 10, 50, 7, 66, 10, 88, 28, 96, 54, 74, 62, 50, 64, 26, 62)
    d.oval("light", 34, 28, 9, 8)
    d.oval("light", 64, 26, 8, 7)
    d.oval("light", 20, 47, 6, 5)
    d.oval("light", 50, 48, 9, 7)
    d.oval("light", 80, 47, 6, 5)


def cake(d: Drawing) -> None:
    for x in (32, 50, 68):
        d.box("second", x - 2.5, 18, x + 2.5, 40)
        d.oval("flame", x, 12, 3.6, 6)
    d.box("cream", 10, 40, 90, 88, 5)
    d.box("main", 10, 38, 90, 54, 5)
    for x in (20, 40, 60, 80):
        d.oval("main", x, 54, 9, 9 if x % 40 else 13)
    d.box("second", 10, 72, 90, 79)
    d.box("metal", 2, 87, 98, 95, 4)


def pizza(d: Drawing) -> None:
    d.blob("crust", 4, 22, 26, 8, 50, 4, 74, 8, 96, 22, 92, 32, 50, 22, 8, 32)
    d.poly("main", 10, 30, 30, 22, 50, 19, 70, 22, 90, 30, 50, 98)
    d.oval("second", 34, 36, 9)
    d.oval("second", 64, 38, 9)
    d.oval("second", 50, 62, 9)
    d.oval("leaf", 48, 30, 4, 3)
    d.oval("leaf", 60, 54, 4, 3, 40)
    d.oval("leaf", 40, 52, 4, 3, -40)


def cup(d: Drawing) -> None:
    d.ring("shade", 6, 80, 46, 11)
    d.oval("shade", 46, 88, 44, 7)
    d.chord("main", 46, 32, 36, 54, 0, 180)
    d.oval("tint", 46, 32, 36, 8)
    d.oval("bark", 46, 33, 30, 5.5)
    d.oval("tint", 46, 86, 40, 4)
    d.chord("shade", 46, 80, 16, 8, 0, 180)


def mug(d: Drawing) -> None:
    d.ring("shade", 9, 70, 52, 19)
    d.box("main", 12, 12, 70, 92, 7)
    d.oval("shade", 41, 15, 29, 6)
    d.oval("bark", 41, 16, 24, 4)
    d.box("second", 12, 42, 70, 56)


def teapot(d: Drawing) -> None:
    d.arc("shade", 7, 80, 54, 15, 19, -110, 110)
    d.poly("main", 26, 52, 10, 46, 4, 28, 12, 26, 20, 40, 34, 70)
    d.blob("main", 52, 30, 72, 36, 82, 58, 74, 82, 52, 88, 30, 82, 22, 58, 32, 36)
    d.chord("shade", 52, 34, 20, 13, 180, 360)
    d.oval("second", 52, 18, 5.5)
    d.box("shade", 36, 85, 68, 91, 2)
    d.blob("second", 25, 56, 52, 61, 80, 56, 79, 68, 52, 73, 26, 68)


def wine_glass(d: Drawing) -> None:
    d.box("metal", 47, 52, 53, 92)
    d.oval("metal", 50, 93, 21, 5)
    d.blob("glass", 26, 4, 50, 3, 74, 4, 78, 30, 68, 50, 50, 58, 32, 50, 22, 30)
    d.blob("main", 25, 26, 50, 25, 75, 26, 75, 35, 66, 48, 50, 54, 34, 48, 25, 35)
    d.oval("tint", 50, 26, 25, 3)


def bottle(d: Drawing) -> None:
    d.box("bark", 43, 1, 57, 12, 2)
    d.poly("main", 42, 10, 58, 10, 58, 30, 70, 44, 70, 54, 30, 54, 30, 44, 42, 30)
    d.box("main", 30, 44, 70, 99, 6)
    d.box("light", 30, 56, 70, 80)
    d.box("second", 36, 64, 64, 72)
    d.box("tint", 34, 46, 38, 54, 1)


def fork(d: Drawing) -> None:
    for x in (35, 45, 55, 65):
        d.line("metal", 4.4, x, 4, x, 34)
    d.blob("metal", 33, 30, 67, 30, 66, 42, 56, 52, 44, 52, 34, 42)
    d.box("metal", 46, 44, 54, 62)
    d.box("main", 44, 56, 56, 99, 5)


def spoon(d: Drawing) -> None:
    d.oval("metal", 50, 22, 16, 21)
    d.oval("steel", 50, 22, 10, 15)
    d.box("metal", 46.5, 40, 53.5, 60)
    d.box("main", 44, 56, 56, 99, 5)
