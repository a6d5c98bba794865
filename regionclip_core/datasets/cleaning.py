"""Checks of raw captions, boxes and file names: what is kept, and why the rest is not."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

MAX_CAPTION = 10_000
"""Longest caption kept, in characters: longer ones are pages or markup, never a caption."""
_UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})  # Unicode's control, format and separator characters


class BadCaption(ValueError):
    """A caption that can't be used; the message is the reason."""


def clean_caption(raw: str | bytes) -> str:
    """A caption as stripped, valid Unicode, without a byte-order mark.

    Raises:
        BadCaption: not UTF-8, empty, nothing to be seen, or longer than MAX_CAPTION characters.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        text.encode("utf-8")  # a str may hold lone surrogates, from an escape in JSON or an undecodable byte
    except UnicodeDecodeError as error:
        raise BadCaption(f"caption is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise BadCaption(f"caption is not valid Unicode (character {error.start})") from error
    text = text.removeprefix("\ufeff").strip()
    if not any(unicodedata.category(character) not in _UNSEEN for character in text):
        raise BadCaption("caption is empty")
    if len(text) > MAX_CAPTION:
        raise BadCaption(f"caption of {len(text)} characters, at most {MAX_CAPTION}")
    return text


def clean_captions(raw: Iterable[object]) -> tuple[list[str], list[str]]:
    """(captions kept, reasons why others were dropped)."""
    kept, dropped = [], []
    for one in raw:
        try:
            if not isinstance(one, (str, bytes)):
                raise BadCaption(f"caption is a {type(one).__name__}, expected text")
            kept.append(clean_caption(one))
        except BadCaption as error:
            dropped.append(str(error))
    return kept, dropped


def clean_box(xyxy: npt.ArrayLike, width: int, height: int) -> tuple[npt.NDArray[np.float32] | None, str | None]:
    """(the box clipped to the image, None), or (None, why it is dropped).

    Args:
        xyxy: absolute corner coordinates in pixels.
        width, height: of the image, pixels.
    """
    box = np.asarray(xyxy, np.float64)
    if not np.isfinite(box).all():
        return None, "a coordinate is not finite"
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return None, f"zero area ({x2 - x1:g} x {y2 - y1:g})"
    # Rounded first: what is left in float32, as it is stored, must still have an area.
    clipped = np.clip(box, 0, [width, height, width, height]).astype(np.float32)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, f"outside the {width} x {height} image"
    return clipped, None


def reasons(texts: Iterable[str]) -> str | None:
    """One line for the reason column: equal reasons counted, None if there are none."""
    counted: dict[str, int] = {}
    for text in texts:
        counted[text] = counted.get(text, 0) + 1
    parts = [text if n == 1 else f"{n} x {text}" for text, n in counted.items()]
    return "; ".join(parts)[:1000] or None


def stem(path: str) -> str:
    """File name without folder and extension."""
    return posixpath.basename(path).rsplit(".", 1)[0]
