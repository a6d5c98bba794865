"""Icons of clothes, music, play and plants; see drawing.py for the primitives and palette.py for the roles."""

from __future__ import annotations

from regionclip_core.datasets.world.drawing import Drawing


def hat(d: Drawing) -> None:
    d.oval("shade", 50, 74, 48, 13)
    d.blob("main", 26, 74, 27, 40, 32, 22, 50, 26, 68, 22, 73, 40, 74, 74, 50, 80)
    d.blob("second", 26, 58, 50, 64, 74, 58, 74, 72, 50, 79, 26, 72)


def crown(d: Drawing) -> None:
    d.poly("main", 6, 28, 28, 54, 50, 14, 72, 54, 94, 28, 86, 84, 14, 84)
    d.box("shade", 13, 74, 87, 87, 3)
    for x, y in ((6, 26), (50, 13), (94, 26)):
        d.oval("second", x, y, 6)
    for x in (30, 50, 70):
        d.oval("second", x, 66, 5)


def shirt(d: Drawing) -> None:
    d.poly("main", 30, 10, 70, 10, 98, 30, 86, 52, 74, 44, 74, 94, 26, 94, 26, 44, 14, 52, 2, 30)
    d.chord("shade", 50, 9, 16, 15, 0, 180)
    d.box("second", 26, 56, 74, 66)
    d.box("second", 26, 74, 74, 84)


def dress(d: Drawing) -> None:
    d.box("main", 34, 2, 40, 18, 2)
    d.box("main", 60, 2, 66, 18, 2)
    d.poly("main", 34, 10, 41, 20, 59, 20, 66, 10, 66, 46, 34, 46)
    d.blob("main", 36, 44, 64, 44, 76, 68, 90, 94, 50, 99, 10, 94, 24, 68)
    d.box("second", 33, 42, 67, 51, 2)
    d.blob("shade", 14, 88, 50, 92, 86, 88, 90, 95, 50, 99, 10, 95)


def sock(d: Drawing) -> None:
    d.blob("main", 32, 8, 50, 8, 66, 8, 66, 40, 64, 58, 78, 66, 94, 76, 90, 92, 66, 94, 42, 86, 32, 64, 33, 36)
    d.box("second", 29, 4, 69, 18, 3)
    d.box("second", 33, 28, 66, 35)
    d.box("second", 33, 42, 66, 49)
    d.blob("shade", 78, 66, 94, 75, 92, 92, 76, 94, 72, 80)


def shoe(d: Drawing) -> None:
    d.blob("main", 8, 30, 20, 36, 36, 30, 44, 34, 62, 54, 88, 60, 97, 74, 60, 80, 8, 80, 5, 56)
    d.box("light", 3, 74, 98, 86, 5)
    d.line("light", 4, 44, 48, 54, 38)
    d.line("light", 4, 52, 55, 62, 45)
    d.blob("second", 10, 54, 28, 54, 48, 66, 36, 72, 10, 70)


def flower(d: Drawing) -> None:
    d.curve("leaf", 5, 50, 40, 51, 70, 48, 97)
    d.blob("leaf", 50, 82, 62, 64, 84, 62, 74, 80)
    d.blob("leaf", 49, 90, 38, 74, 18, 72, 26, 88)
    for x, y in ((50, 14), (71, 27), (66, 50), (34, 50), (29, 27)):
        d.oval("main", x, y, 14.5)
    d.oval("second", 50, 34, 11)


def tree(d: Drawing) -> None:
    d.poly("bark", 44, 58, 56, 58, 61, 98, 39, 98)
    d.line("bark", 5, 50, 72, 66, 58)
    for x, y, radius in ((26, 50, 19), (74, 50, 19), (50, 54, 18)):
        d.oval("shade", x, y, radius)
    for x, y, radius in ((32, 32, 20), (68, 32, 20), (50, 20, 18), (50, 40, 20)):
        d.oval("main", x, y, radius)
    d.arc("tint", 4, 36, 30, 12, 12, 180, 270)
    d.arc("tint", 4, 66, 36, 10, 10, 200, 280)


def cactus(d: Drawing) -> None:
    d.curve("main", 13, 50, 56, 26, 55, 20, 46, 20, 30)
    d.curve("main", 13, 50, 48, 72, 47, 80, 38, 80, 18)
    d.box("main", 39, 4, 61, 80, 11)
    d.line("tint", 2.4, 46, 14, 46, 70)
    d.line("tint", 2.4, 54, 14, 54, 70)
    d.poly("second", 30, 76, 70, 76, 64, 99, 36, 99)
    d.box("second_shade", 26, 72, 74, 81, 2)


def guitar(d: Drawing) -> None:
    d.box("dark", 41, 0, 59, 14, 3)
    d.box("bark", 45.5, 8, 54.5, 62)
    d.blob("main", 50, 42, 66, 41, 73, 52, 68, 63, 80, 75, 79, 91, 66, 98,
           50, 99, 34, 98, 21, 91, 20, 75, 32, 63, 27, 52, 34, 41)  # fmt: skip
    d.box("bark", 45.5, 8, 54.5, 62)
    d.oval("dark", 50, 66, 9.5)
    d.box("bark", 38, 83, 62, 88, 1)
    d.line("light", 1.6, 50, 8, 50, 84)
    for y in (3, 10):
        d.oval("metal", 39, y, 3)
        d.oval("metal", 61, y, 3)


def violin(d: Drawing) -> None:
    d.line("wood", 3, 80, 4, 92, 96)
    d.line("light", 1.6, 84, 6, 96, 92)
    d.oval("bark", 42, 5, 5.5)
    d.box("dark", 39, 6, 45, 60)
    d.blob("main", 42, 38, 60, 40, 64, 54, 55, 63, 57, 71, 69, 82, 64, 97,
           42, 99, 20, 97, 15, 82, 27, 71, 29, 63, 20, 54, 24, 40)  # fmt: skip
    d.box("dark", 38, 36, 46, 70, 1)
    d.curve("dark", 2.6, 29, 62, 32, 70, 28, 80)
    d.curve("dark", 2.6, 55, 62, 52, 70, 56, 80)
    d.box("light", 34, 75, 50, 78, 1)
    d.poly("dark", 38, 82, 46, 82, 44, 97, 40, 97)


def drum(d: Drawing) -> None:
    d.line("wood", 5, 20, 4, 52, 30)
    d.line("wood", 5, 86, 2, 56, 28)
    d.poly("main", 8, 36, 92, 36, 92, 82, 8, 82)
    d.chord("main", 50, 82, 42, 13, 0, 180)
    d.line("second", 4, 10, 46, 30, 88, 50, 50, 70, 88, 90, 46)
    d.oval("second", 50, 36, 44, 14)
    d.oval("light", 50, 35, 38, 10)


def bell(d: Drawing) -> None:
    d.ring("shade", 6, 50, 10, 7)
    d.oval("deep", 50, 88, 10)
    d.blob("main", 50, 14, 66, 20, 74, 42, 78, 66, 90, 84, 50, 86, 10, 84, 22, 66, 26, 42, 34, 20)
    d.box("shade", 8, 78, 92, 87, 4)
    d.oval("tint", 36, 42, 4, 14, 12)


def kite(d: Drawing) -> None:
    d.curve("wood", 3, 54, 68, 46, 78, 58, 86, 50, 98)
    d.poly("main", 50, 2, 86, 30, 54, 70, 14, 30)
    d.poly("second", 50, 2, 51, 30, 14, 30)
    d.poly("second", 86, 30, 54, 70, 51, 30)
    d.poly("main", 46, 78, 36, 72, 38, 84)
    d.poly("main", 46, 78, 56, 73, 55, 84)
    d.poly("second", 56, 87, 46, 84, 48, 94)
    d.poly("second", 56, 87, 66, 82, 66, 93)


def tent(d: Drawing) -> None:
    d.poly("shade", 50, 12, 98, 88, 40, 88)
    d.poly("main", 46, 12, 76, 88, 4, 88)
    d.poly("dark", 44, 42, 58, 88, 26, 88)
    d.poly("second", 44, 42, 34, 88, 22, 88)
    d.line("wood", 3, 47, 4, 47, 20)
    d.line("wood", 3, 6, 86, 0, 93)
    d.line("wood", 3, 96, 86, 100, 93)


def traffic_light(d: Drawing) -> None:
    d.box("steel", 45, 76, 55, 99)
    for y in (12, 36, 60):
        d.poly("shade", 18, y, 82, y, 66, y + 16, 34, y + 16)
    d.box("main", 28, 2, 72, 80, 7)
    d.oval("lamp_red", 50, 16, 10.5)
    d.oval("lamp_amber", 50, 41, 10.5)
    d.oval("lamp_green", 50, 66, 10.5)
