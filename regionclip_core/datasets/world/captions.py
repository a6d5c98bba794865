"""English captions of an image: true, of varied grammar, and with words for more than objects.

A caption joins noun phrases ("two red cats", "a small teapot") by a list or a relation that holds in the image, puts
them into a frame ("a picture of ...", "there is ..."), and may add the background, a place or a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from regionclip_core.datasets.world.backgrounds import Background
from regionclip_core.datasets.world.categories import Category
from regionclip_core.datasets.world.palette import NAMED

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_FRAMES = (
    "{x}", "{x}", "{x}", "a photo of {x}", "a picture of {x}", "an image of {x}", "an illustration of {x}",
    "a drawing of {x}", "a view of {x}", "a scene with {x}", "a colorful picture that shows {x}", "{there} {x}",
    "{there} {x} here", "this picture shows {x}", "the image shows {x}", "we can see {x}", "you can spot {x}",
    "someone drew {x}", "the artist painted {x}", "look at {x}",
)  # fmt: skip
_CLOSEUP_FRAMES = ("a close up of {x}", "a close up photo of {x}", "a detailed picture of {x}", "a portrait of {x}")
_VERBS = (" is", " is", " sits", " stands", " lies", " appears")
_CLAUSE_FRAMES = ("{x}", "{x}", "in this picture, {x}", "it seems that {x}", "here {x}", "this is a scene where {x}")
_SEVERAL = (*(f"{number} " for number in _NUMBERS[2:]), "a few", "a couple", "several")
_SCENE_FRAMES = (
    "an arrangement of things with {x}", "a collection of objects, including {x}", "a busy scene with {x}",
    "a playful mix of {x}",
)  # fmt: skip
_TAILS = (
    "on a sunny afternoon", "in the early morning", "at the end of the day", "during the summer", "in the sunshine",
    "in a quiet place", "in good light", "in a cartoon style", "with a touch of humor", "in bright colors",
)  # fmt: skip
_LONG = 18
"""A caption of this many words gets no further part, so that it fits the usual context of 32 tokens."""
_PLACES = {
    "plain": ("on a plain {tone} background", "against a {tone} wall", "on a {tone} surface"),
    "gradient": ("in soft light", "in front of a hazy sky", "on a smooth background", "in the mist"),
    "horizon": ("in an open field", "in front of the horizon", "in a wide landscape", "on flat ground"),
    "pattern": ("against a {pattern} wall", "on a {pattern} background", "on a {pattern} cloth", "on {pattern} paper"),
}


@dataclass(frozen=True)
class Thing:
    """What captions know of an object."""

    category: Category
    colour: str
    """Name of its main colour."""
    box: tuple[int, int, int, int]
    """xyxy pixels."""
    image_size: int
    """Side of the image, pixels."""

    @property
    def centre(self) -> tuple[float, float]:
        """Return the centre (x, y) as shares of the image's side."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2 / self.image_size, (y0 + y1) / 2 / self.image_size

    @property
    def extent(self) -> float:
        """Return the longer side of the box as a share of the image's side."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0) / self.image_size


Group = list[Thing]
"""All the objects of one category in an image."""


def write_captions(rng: np.random.Generator, kind: str, things: list[Thing], background: Background) -> list[str]:
    """Return one or two captions for an image with the given objects.

    Those of close-ups mostly name every category, those of scenes most of them and never more than five.
    """
    groups: dict[str, Group] = {}
    for thing in things:
        groups.setdefault(thing.category.name, []).append(thing)
    captions: list[str] = []
    for _ in range(1 + int(rng.random() < 0.5)):
        total = len(groups)
        if kind == "closeup":
            count = total if rng.random() < 0.85 else int(rng.integers(1, total + 1))
        else:
            most = min(5, total)
            count = int(rng.integers(min(most, (total + 2) // 2), most + 1))
        named = [list(groups.values())[int(i)] for i in rng.permutation(total)[:count]]
        caption = _sentence(rng, kind, named, things, background)
        if caption not in captions:
            captions.append(caption)
    return captions


def _sentence(
    rng: np.random.Generator, kind: str, groups: list[Group], things: list[Thing], background: Background
) -> str:
    phrases = [_noun_phrase(rng, group, things) for group in groups]
    single = len(groups[0]) == 1
    frames: tuple[str, ...] = _FRAMES + (_CLOSEUP_FRAMES if kind == "closeup" else _SCENE_FRAMES)
    verb = ""
    if single and rng.random() < 0.2:
        verb, frames = _pick(rng, _VERBS), _CLAUSE_FRAMES
    if len(groups) >= 2 and (verb or rng.random() < 0.5):
        body = _relation(rng, groups, phrases, verb)
    elif single and (verb or rng.random() < 0.25):
        body = _located(rng, groups, phrases, verb)
    else:
        body = _join(rng, phrases)
    there = "there are" if phrases[0].startswith(_SEVERAL) else "there is"
    text = _pick(rng, frames).format(x=body, there=there)
    if rng.random() < 0.35 and len(text.split()) < _LONG:
        tone = background.colour
        if tone not in ("black", "white", "gray"):
            pale = sum(background.tones[0]) > sum(NAMED[tone])
            tone = f"{'pale' if pale else 'dark'} {tone}"
        text += " " + _pick(rng, _PLACES[background.kind]).format(tone=tone, pattern=background.pattern)
    if rng.random() < 0.2 and len(text.split()) < _LONG:
        text += " " + _pick(rng, _TAILS)
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
        if rng.random() < 0.7:
            text += "."
    return text


def _noun_phrase(rng: np.random.Generator, group: Group, things: list[Thing]) -> str:
    """Return article or number, size, colour and name: a small red cat, two cats, a pair of blue cats."""
    words: list[str] = []
    colours = {thing.colour for thing in group}
    if len(group) == 1 and rng.random() < 0.25:
        # Clearly larger or smaller than the others; an object that is alone is compared with 0.6 of the image's side.
        others = [other.extent for other in things if other is not group[0]]
        usual = sum(others) / len(others) if others else 0.6
        if group[0].extent > 1.2 * usual:
            words.append(_pick(rng, ("big", "large")))
        elif group[0].extent < usual / 1.2:
            words.append(_pick(rng, ("small", "little", "tiny") if others else ("small", "little")))
    if len(colours) == 1 and rng.random() < 0.45:
        words.append(group[0].colour)
    category = group[0].category
    if len(group) == 1:
        words.append(category.name)
        if rng.random() < 0.05:
            return " ".join(["one", *words])
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
    words.append(category.plural)
    if len(group) == 2 and rng.random() < 0.25:
        start = _pick(rng, ("a pair of", "a couple of"))
    elif (len(group) > 2 and rng.random() < 0.25) or len(group) >= len(_NUMBERS):
        start = _pick(rng, ("several", "a few", "a group of"))
    else:
        start = _NUMBERS[len(group)]
    return " ".join([start, *words])


def _relation(rng: np.random.Generator, groups: list[Group], phrases: list[str], verb: str) -> str:
    """Return the first two categories, joined by the verb and by where they are from each other, then the rest."""
    if len(groups[0]) > 1 or len(groups[1]) > 1:
        middle = _pick(rng, ("together with", "in the company of") if verb else ("with", "together with", "along with"))
    else:
        (x0, y0), (x1, y1) = groups[0][0].centre, groups[1][0].centre
        across, down = x0 - x1, y0 - y1
        choices = ["together with"] if verb else ["with", "and also"]
        if abs(across) > 0.15 and abs(across) > abs(down):
            choices = ["on the left of", "to the left of"] if across < 0 else ["on the right of", "to the right of"]
        elif abs(down) > 0.15:
            choices = ["above", "over"] if down < 0 else ["below", "under"]
        first, second = groups[0][0].box, groups[1][0].box
        gap = max(  # pixels between the boxes, along the axis where they are further apart
            max(first[0], second[0]) - min(first[2], second[2]), max(first[1], second[1]) - min(first[3], second[3])
        )
        if gap < 0.12 * groups[0][0].image_size:
            choices += ["next to", "beside", "near", "close to"]
        middle = _pick(rng, tuple(choices))
    text = f"{phrases[0]}{verb} {middle} {phrases[1]}"
    if len(phrases) > 2:
        rest = _join(rng, phrases[2:])
        more = (" and {} as well", ", and also {}", ", plus {}")
        text += _pick(rng, more if "with" in middle else (*more, ", with {}", ", together with {}")).format(rest)
    return text


def _located(rng: np.random.Generator, groups: list[Group], phrases: list[str], verb: str) -> str:
    """Return the first object with its place in the image, then the rest."""
    x, y = groups[0][0].centre
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    if across and down:
        spot = _pick(rng, (f"in the {down} {across} corner", f"at the {down} {across}"))
    elif across:
        spot = _pick(rng, (f"on the {across}", f"on the {across} side"))
    elif down:
        spot = f"at the {down}"
    else:
        spot = _pick(rng, ("in the middle", "in the center"))
    text = f"{phrases[0]}{verb} {spot}"
    if len(phrases) > 1:
        text += _pick(rng, (" and {}", ", with {}", " along with {}")).format(_join(rng, phrases[1:]))
    return text


def _join(rng: np.random.Generator, phrases: list[str]) -> str:
    """Return the phrases as a list: a, b and c."""
    if len(phrases) == 1:
        return phrases[0]
    comma = "," if len(phrases) > 2 and rng.random() < 0.4 else ""
    word = _pick(rng, ("and", "and", "and", "plus")) if len(phrases) == 2 else "and"
    return f"{', '.join(phrases[:-1])}{comma} {word} {phrases[-1]}"


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
