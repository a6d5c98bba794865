"""Colours of the world: names that captions use, and the colour of every role in a drawing."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

Colour = tuple[int, int, int]

NAMED: dict[str, Colour] = {
    "red": (212, 50, 48),
    "orange": (240, 138, 38),
    "yellow": (246, 205, 62),
    "green": (70, 160, 84),
    "blue": (54, 112, 204),
    "purple": (132, 82, 176),
    "pink": (242, 134, 172),
    "brown": (134, 88, 52),
    "black": (58, 58, 66),
    "white": (246, 245, 240),
    "gray": (146, 152, 158),
}

FIXED: dict[str, Colour] = {
    "dark": (34, 34, 40),
    "light": (250, 249, 244),
    "metal": (176, 184, 192),
    "steel": (120, 128, 138),
    "wood": (150, 102, 60),
    "bark": (108, 74, 46),
    "glass": (176, 220, 240),
    "leaf": (84, 158, 70),
    "flame": (250, 186, 50),
    "beak": (244, 150, 44),
    "blush": (244, 170, 180),
    "cream": (252, 228, 186),
    "crust": (214, 158, 90),
    "lamp_red": (232, 58, 52),
    "lamp_amber": (250, 190, 60),
    "lamp_green": (76, 196, 96),
}
"""Colours that belong to a part, whatever the object's own colour is."""


def vary(rng: np.random.Generator, colour: Colour, amount: int = 14) -> Colour:
    """Return the colour with up to `amount` added to or taken from each channel, still the same colour by name.

    A grey, black or white gets no tint: two thirds of the change are the same for all channels.
    """
    return vary_all(rng, [colour], amount)[0]


def vary_all(rng: np.random.Generator, colours: Collection[Colour], amount: int) -> list[Colour]:
    """Return `vary` of each, from the random numbers that calls one after another would take."""
    limits: list[int] = []  # of each colour's change: common to all channels, and of each channel
    for colour in colours:
        own = amount // 3 if max(colour) - min(colour) < 16 else amount
        limits += (amount - own, own, own, own)
    highest = np.array(limits)
    changes = iter(rng.integers(-highest, highest + 1).tolist())
    varied: list[Colour] = []
    for red, green, blue in colours:
        common = next(changes)
        channels = [min(255, max(0, channel + next(changes) + common)) for channel in (red, green, blue)]
        varied.append((channels[0], channels[1], channels[2]))
    return varied


def mix(first: Colour, second: Colour, share: int) -> Colour:
    """Return the first colour with `share` percent of the second, by integer arithmetic."""
    red, green, blue = ((a * (100 - share) + b * share + 50) // 100 for a, b in zip(first, second, strict=True))
    return red, green, blue


def shade(colour: Colour) -> Colour:
    """Return a darker kind of the colour; yellow goes towards amber, since with black it would turn olive."""
    if colour[0] > 200 and colour[1] > 150 and colour[2] < 130:
        return mix(colour, (200, 100, 24), 45)
    return mix(colour, (20, 20, 26), 28)


def distance(first: Colour, second: Colour) -> int:
    """Return the sum of the absolute channel differences, 0 to 765."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def role_colours(rng: np.random.Generator, main: Colour, second: Colour) -> dict[str, Colour]:
    """Return the colour of each role for one object.

    Fixed parts vary a little; shades follow the main and the second colour.
    """
    roles = dict(zip(FIXED, vary_all(rng, FIXED.values(), 8), strict=True))
    black = (20, 20, 26)
    white = (255, 255, 255)
    roles["main"] = main
    roles["shade"] = shade(main)
    roles["deep"] = mix(shade(main), black, 32)
    roles["tint"] = mix(main, white, 42)
    roles["second"] = second
    roles["second_shade"] = shade(second)
    return roles
