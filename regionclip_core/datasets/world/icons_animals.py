"""Icons of animals; see drawing.py for the primitives and palette.py for the roles."""

from __future__ import annotations

from regionclip_core.datasets.world.drawing import Drawing


def cat(d: Drawing) -> None:
    d.poly("main", 14, 8, 44, 28, 16, 52)
    d.poly("main", 86, 8, 56, 28, 84, 52)
    d.poly("blush", 20, 18, 36, 28, 21, 40)
    d.poly("blush", 80, 18, 64, 28, 79, 40)
    d.blob("main", 50, 24, 80, 34, 90, 58, 76, 82, 50, 90, 24, 82, 10, 58, 20, 34)
    d.oval("light", 33, 54, 9, 10)
    d.oval("light", 67, 54, 9, 10)
    d.oval("dark", 34, 55, 4, 8)
    d.oval("dark", 66, 55, 4, 8)
    d.poly("blush", 44, 66, 56, 66, 50, 73)
    d.line("dark", 2.4, 28, 70, 2, 65)
    d.line("dark", 2.4, 28, 76, 4, 80)
    d.line("dark", 2.4, 72, 70, 98, 65)
    d.line("dark", 2.4, 72, 76, 96, 80)


def dog(d: Drawing) -> None:
    d.blob("main", 50, 12, 74, 20, 80, 46, 72, 74, 50, 92, 28, 74, 20, 46, 26, 20)
    d.blob("deep", 28, 14, 14, 18, 4, 44, 8, 68, 18, 70, 26, 48)
    d.blob("deep", 72, 14, 86, 18, 96, 44, 92, 68, 82, 70, 74, 48)
    d.oval("tint", 50, 70, 19, 19)
    d.oval("dark", 37, 42, 5, 6)
    d.oval("dark", 63, 42, 5, 6)
    d.oval("dark", 50, 60, 10, 7)
    d.blob("blush", 43, 79, 57, 79, 56, 92, 50, 97, 44, 92)


def fish(d: Drawing) -> None:
    d.poly("shade", 70, 50, 98, 22, 92, 50, 98, 78)
    d.poly("shade", 36, 30, 56, 12, 64, 34)
    d.poly("shade", 42, 70, 54, 86, 60, 66)
    d.blob("main", 4, 50, 22, 32, 46, 26, 68, 38, 80, 50, 68, 62, 46, 74, 22, 68)
    d.poly("second", 40, 28, 50, 27, 50, 73, 40, 72)
    d.poly("second", 58, 30, 66, 36, 66, 64, 58, 70)
    d.oval("light", 22, 46, 6)
    d.oval("dark", 21, 46, 3)


def whale(d: Drawing) -> None:
    d.curve("glass", 4, 36, 32, 35, 18, 24, 10)
    d.curve("glass", 4, 36, 32, 37, 18, 48, 10)
    d.blob("main", 80, 62, 86, 44, 76, 30, 84, 26, 92, 34, 98, 24, 100, 32, 95, 46, 90, 72, 74, 86, 64, 76)
    d.blob("main", 4, 62, 12, 42, 36, 34, 60, 42, 82, 60, 88, 70, 72, 84, 40, 88, 12, 82)
    d.blob("tint", 6, 70, 24, 74, 52, 74, 62, 82, 42, 88, 14, 82)
    d.poly("shade", 44, 74, 58, 70, 60, 90)
    d.oval("dark", 22, 60, 3.4)


def bird(d: Drawing) -> None:
    d.poly("shade", 60, 52, 98, 36, 96, 50, 88, 60, 66, 68)
    d.poly("beak", 2, 36, 22, 28, 22, 42)
    d.line("dark", 3, 44, 76, 42, 94, 34, 95)
    d.line("dark", 3, 56, 76, 55, 94, 47, 95)
    d.blob("main", 30, 14, 44, 24, 52, 38, 76, 52, 70, 70, 48, 82, 26, 70, 18, 46, 16, 26)
    d.blob("second", 42, 48, 60, 46, 84, 60, 64, 70, 46, 66)
    d.oval("light", 29, 30, 5)
    d.oval("dark", 28, 30, 2.8)


def duck(d: Drawing) -> None:
    d.poly("beak", 2, 34, 22, 24, 24, 40, 8, 42)
    d.oval("main", 32, 28, 19, 18)
    d.blob("main", 24, 40, 40, 42, 54, 54, 78, 54, 98, 40, 94, 72, 76, 88, 40, 88, 18, 74, 16, 56)
    d.blob("shade", 44, 62, 62, 58, 82, 60, 70, 76, 50, 76)
    d.oval("dark", 28, 24, 3.4)


def rabbit(d: Drawing) -> None:
    d.oval("main", 35, 26, 9, 25, -8)
    d.oval("main", 65, 26, 9, 25, 8)
    d.oval("blush", 35, 27, 4.2, 18, -8)
    d.oval("blush", 65, 27, 4.2, 18, 8)
    d.blob("main", 50, 40, 74, 48, 82, 70, 70, 92, 50, 97, 30, 92, 18, 70, 26, 48)
    d.oval("tint", 41, 80, 11, 9)
    d.oval("tint", 59, 80, 11, 9)
    d.oval("dark", 36, 64, 4, 5)
    d.oval("dark", 64, 64, 4, 5)
    d.poly("blush", 45, 71, 55, 71, 50, 77)
    d.box("light", 45, 86, 55, 95, 1)


def turtle(d: Drawing) -> None:
    d.blob("leaf", 78, 60, 84, 42, 96, 42, 99, 54, 90, 64, 82, 72)
    d.oval("leaf", 26, 76, 9, 11)
    d.oval("leaf", 70, 76, 9, 11)
    d.poly("leaf", 14, 66, 0, 76, 16, 74)
    d.chord("main", 48, 68, 38, 42, 180, 360)
    d.box("shade", 8, 64, 88, 73, 4)
    d.poly("second", 40, 36, 56, 36, 62, 50, 48, 60, 34, 50)
    d.poly("second", 20, 50, 28, 42, 30, 56, 20, 62)
    d.poly("second", 76, 50, 68, 42, 66, 56, 76, 62)
    d.oval("dark", 91, 51, 2.6)


def snail(d: Drawing) -> None:
    d.curve("cream", 4, 82, 56, 84, 42, 80, 32)
    d.curve("cream", 4, 88, 56, 94, 42, 96, 34)
    d.blob("cream", 2, 86, 28, 76, 60, 76, 76, 60, 88, 50, 97, 60, 92, 78, 78, 90, 40, 92)
    d.oval("main", 42, 52, 33)
    d.ring("shade", 5, 42, 52, 22)
    d.arc("shade", 5, 42, 54, 11, 11, 30, 300)
    d.oval("dark", 80, 31, 3.6)
    d.oval("dark", 96, 33, 3.6)


def butterfly(d: Drawing) -> None:
    for flip in (1, -1):
        x = [50 + flip * v for v in (4, 18, 44, 48, 36, 6)]
        d.blob("main", x[0], 44, x[1], 18, x[2], 10, x[3], 34, x[4], 54, x[5], 54)
        x = [50 + flip * v for v in (4, 30, 40, 32, 16)]
        d.blob("shade", x[0], 54, x[1], 56, x[2], 72, x[3], 88, x[4], 84)
        d.oval("second", 50 + flip * 30, 31, 9)
        d.oval("second", 50 + flip * 24, 70, 7)
        d.curve("dark", 2.6, 50, 28, 50 + flip * 4, 14, 50 + flip * 13, 6)
    d.oval("dark", 50, 54, 5, 30)
