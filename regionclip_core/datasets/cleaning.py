"""Checks of raw captions, boxes and file names: what is kept, and why the rest is not."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

MAX_CAPTION = 10_000
"""Longest caption kept, in characters: longer ones are pages or markup, never a caption."""
_UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})  # Unicode's control, format and separator characters


def clean_captions(raw: Iterable[object]) -> tuple[list[str], list[str]]:
    """Return the captions kept, as stripped and valid Unicode without a byte-order mark, and why others were dropped.

    Dropped are those that are not text or not UTF-8, have no visible character, or have more than MAX_CAPTION.
    """
    kept, dropped = [], []
    for one in raw:
        try:
            text = one.decode("utf-8") if isinstance(one, bytes) else one
            if not isinstance(text, str):
                dropped.append(f"caption is a {type(one).__name__}, expected text")
                continue
            text.encode("utf-8")  # a str may hold lone surrogates, from an escape in JSON or an undecodable byte
        except UnicodeDecodeError as error:
            dropped.append(f"caption is not UTF-8 (byte {error.start})")
            continue
        except UnicodeEncodeError as error:
            dropped.append(f"caption is not valid Unicode (character {error.start})")
            continue
        text = text.removeprefix("\ufeff").strip()
        if not any(unicodedata.category(character) not in _UNSEEN for character in text):
            dropped.append("caption is empty")
        elif len(text) > MAX_CAPTION:
            dropped.append(f"caption of {len(text)} characters, at most {MAX_CAPTION}")
        else:
            kept.append(text)
    return kept, dropped


def clean_box(xyxy: npt.ArrayLike, width: int, height: int) -> tuple[npt.NDArray[np.float32] | None, str | None]:
    """Return (the box clipped to the image, None), or (None, why it is dropped).

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
    """Return one line for the reason column, equal reasons counted; None if there are none."""
    counted = Counter(texts)
    return "; ".join(text if n == 1 else f"{n} x {text}" for text, n in counted.items())[:1000] or None
