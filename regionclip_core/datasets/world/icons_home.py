"""Icons of things of the house; see drawing.py for the primitives and palette.py for the roles."""

from __future__ import annotations

from regionclip_core.datasets.world.drawing import Drawing


def lamp(d: Drawing) -> None:
    d.chord("flame", 50, 46, 10, 12, 0, 180)
    d.box("metal", 47, 46, 53, 90)
    d.oval("steel", 50, 92, 24, 6)
    d.poly("main", 32, 6, 68, 6, 90, 48, 10, 48)
    d.poly("shade", 11, 44, 89, 44, 91, 50, 9, 50)
    d.line("second", 2, 66, 50, 66, 68)
    d.oval("second", 66, 69, 3)


def candle(d: Drawing) -> None:
    d.blob("flame", 50, 1, 58, 14, 56, 24, 50, 27, 44, 24, 42, 14)
    d.line("dark", 2.4, 50, 24, 50, 34)
    d.box("main", 38, 32, 62, 88, 3)
    d.blob("tint", 38, 33, 50, 31, 62, 33, 61, 50, 57, 44, 53, 40, 48, 60, 44, 42, 39, 44)
    d.ring("metal", 5, 82, 84, 10)
    d.blob("metal", 14, 82, 50, 85, 86, 82, 76, 97, 50, 99, 24, 97)


def vase(d: Drawing) -> None:
    d.poly("main", 34, 4, 66, 4, 60, 12, 40, 12)
    d.blob("main", 42, 8, 58, 8, 60, 26, 80, 42, 80, 62, 64, 94, 50, 96, 36, 94, 20, 62, 20, 42, 40, 26)
    d.box("second", 40, 20, 60, 26, 2)
    d.poly("second", 19, 50, 30, 58, 40, 50, 50, 58, 60, 50, 70, 58, 81, 50, 80, 58, 70, 66, 60, 58, 50, 66, 40, 58,
           30, 66, 20, 58)  # fmt: skip
    d.box("shade", 35, 91, 65, 98, 2)


def chair(d: Drawing) -> None:
    d.box("main", 22, 2, 32, 98, 3)
    d.box("shade", 66, 56, 74, 94, 2)
    d.box("main", 22, 50, 82, 60, 3)
    d.box("main", 74, 56, 83, 98, 3)
    d.box("shade", 36, 58, 43, 92, 2)
    d.box("second", 30, 43, 82, 52, 4)
    d.box("tint", 30, 10, 36, 40, 2)


def bench(d: Drawing) -> None:
    d.box("steel", 12, 22, 18, 88, 2)
    d.box("steel", 82, 22, 88, 88, 2)
    d.box("main", 3, 22, 97, 31, 3)
    d.box("main", 3, 36, 97, 45, 3)
    d.box("shade", 1, 56, 99, 66, 3)
    d.line("steel", 5, 15, 66, 8, 88)
    d.line("steel", 5, 85, 66, 92, 88)


def clock(d: Drawing) -> None:
    d.line("shade", 6, 28, 82, 18, 96)
    d.line("shade", 6, 72, 82, 82, 96)
    d.chord("second", 24, 18, 17, 14, 140, 320)
    d.chord("second", 76, 18, 17, 14, 220, 400)
    d.oval("main", 50, 52, 40)
    d.oval("light", 50, 52, 31)
    d.line("dark", 4, 50, 52, 50, 32)
    d.line("dark", 4, 50, 52, 63, 60)
    for x, y in ((50, 26), (76, 52), (50, 78), (24, 52)):
        d.oval("dark", x, y, 2.6)


def key(d: Drawing) -> None:
    d.ring("main", 10, 24, 50, 17)
    d.box("main", 40, 45.5, 97, 54.5, 3)
    d.box("main", 74, 52, 81, 70, 1)
    d.box("main", 87, 52, 95, 74, 1)
    d.box("shade", 42, 43, 47, 57, 1)


def book(d: Drawing) -> None:
    d.poly("main", 2, 20, 50, 28, 98, 20, 98, 86, 50, 94, 2, 86)
    d.blob("light", 8, 18, 30, 14, 49, 24, 49, 84, 30, 78, 8, 80)
    d.blob("light", 92, 18, 70, 14, 51, 24, 51, 84, 70, 78, 92, 80)
    d.line("shade", 3, 50, 24, 50, 88)
    for y in (32, 44, 56):
        d.line("steel", 2.4, 16, y, 40, y + 3)
        d.line("steel", 2.4, 84, y, 60, y + 3)


def laptop(d: Drawing) -> None:
    d.box("main", 14, 12, 86, 68, 5)
    d.box("dark", 20, 18, 80, 62, 2)
    d.box("second", 20, 18, 80, 62, 2)
    d.poly("light", 24, 22, 42, 22, 30, 44, 24, 44)
    d.poly("shade", 12, 70, 88, 70, 99, 88, 1, 88)
    d.poly("tint", 38, 80, 62, 80, 64, 86, 36, 86)
    d.poly("dark", 18, 72, 82, 72, 85, 78, 15, 78)


def camera(d: Drawing) -> None:
    d.poly("shade", 32, 30, 40, 16, 62, 16, 70, 30)
    d.box("second", 12, 20, 26, 32, 2)
    d.box("main", 3, 28, 97, 86, 8)
    d.box("shade", 3, 38, 97, 44)
    d.oval("dark", 50, 58, 23)
    d.oval("steel", 50, 58, 17)
    d.oval("glass", 50, 58, 11)
    d.oval("light", 46, 54, 4)
    d.oval("flame", 84, 36, 4)


def umbrella(d: Drawing) -> None:
    d.line("wood", 5, 50, 8, 50, 82)
    d.arc("wood", 5, 59, 84, 9, 11, 0, 180)
    d.chord("main", 50, 52, 47, 43, 180, 360)
    d.poly("second", 50, 9, 66, 30, 67, 53, 33, 53, 34, 30)
    for x in (18.5, 50, 81.5):
        d.chord("shade" if x == 50 else "deep", x, 54, 15.6, 7, 180, 360)
    d.oval("main", 50, 7, 3)


def hammer(d: Drawing) -> None:
    d.box("main", 43, 30, 56, 99, 4)
    d.box("steel", 22, 8, 72, 32, 3)
    d.box("metal", 12, 4, 26, 36, 3)
    d.poly("steel", 70, 10, 94, 16, 98, 30, 70, 30)


def ladder(d: Drawing) -> None:
    for y in (16, 34, 52, 70, 88):
        d.line("shade", 6, 30, y, 70, y)
    d.line("main", 8, 30, 4, 24, 96)
    d.line("main", 8, 70, 4, 76, 96)


def house(d: Drawing) -> None:
    d.box("second_shade", 70, 12, 82, 38)
    d.box("main", 14, 44, 86, 94)
    d.poly("second", 50, 6, 98, 50, 2, 50)
    d.box("bark", 42, 64, 60, 94, 2)
    d.box("glass", 20, 60, 36, 76, 1)
    d.box("glass", 66, 60, 80, 76, 1)
    d.oval("glass", 50, 34, 7)


def castle(d: Drawing) -> None:
    for x in (4, 72):
        d.box("main", x, 30, x + 24, 96)
        for step in (0, 9, 18):
            d.box("main", x - 1 + step, 20, x + 6 + step, 34)
        d.box("deep", x + 9, 44, x + 15, 58, 3)
    d.box("shade", 26, 46, 74, 96)
    for x in (29, 41, 53, 65):
        d.box("shade", x, 38, x + 7, 50)
    d.chord("dark", 50, 74, 13, 15, 180, 360)
    d.box("dark", 37, 73, 63, 96)
    d.poly("second", 16, 2, 36, 8, 16, 14)
    d.line("wood", 2.6, 16, 2, 16, 24)
