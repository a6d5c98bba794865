"""Images that are named on the command line: files, folders, globs and URLs; some are read ahead of their use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest
from regionclip_core.datasets.images import BadImage, check_image, decode_image, read_image_file
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import is_model_folder
from regionclip_core.storage.locations import list_files, printable, remote

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from regionclip_core.detection.region_model import RegionModel

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def usual_batch(model: RegionModel) -> int:
    """Return how many images are computed at once: a CPU has no use for several, which take more memory."""
    return 1 if model.device.type == "cpu" else 4


def read_ahead(
    files: Sequence[str], batch: int
) -> Iterator[tuple[Sequence[str], list[npt.NDArray[np.uint8] | Exception]]]:
    """Yield `batch` files at a time with their pixels, uint8[H, W, 3] RGB, or what made one unreadable.

    A thread reads the next ones while the caller works with these, so pixels of twice as many are in memory.
    """
    groups = [files[start : start + batch] for start in range(0, len(files), batch)]
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(_read, group) for group in groups[:1]]
        for number, group in enumerate(groups):
            pixels = ahead.pop().result()
            ahead += [reader.submit(_read, following) for following in groups[number + 1 : number + 2]]
            yield group, pixels


def _read(files: Sequence[str]) -> list[npt.NDArray[np.uint8] | Exception]:
    found: list[npt.NDArray[np.uint8] | Exception] = []
    for file in files:
        try:
            found.append(decode_image(read_image_file(file)))
        except Exception as error:  # whatever it is, the other images go on
            found.append(error)
    return found


def reason_of(error: Exception) -> str:
    """Return what an image failed with, in words."""
    return str(error) if isinstance(error, BadImage) else f"{type(error).__name__}: {error}"


def any_readable(files: Sequence[str]) -> bool:
    """Return whether one of the images can be read; prints the reasons if not. Looks up to the first good one.

    Raises:
        OSError: none can be read, and of one the store could not be reached.
    """
    failures: list[OSError] = []
    reasons: list[str] = []
    for file in files:
        try:
            check_image(read_image_file(file))
            return True
        except BadImage as error:
            reasons.append(printable(f"{file}: not read: {error}"))
        except OSError as error:
            failures.append(error)
    for reason in reasons:
        print(reason)
    if failures:
        raise failures[0]
    return False


def image_files(arguments: Sequence[str]) -> list[str]:
    """Return the files, the images inside folders, and what globs match, in order, each once.

    Raises:
        ValueError: for a folder without images.
        FileNotFoundError: where a named file is not there, or a glob matches nothing.
    """
    found: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            inside = sorted(p for p in Path(argument).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                advice = "a model is given with --model" if is_model_folder(Folder(argument)) else "name another"
                others = Counter(p.suffix.lower() or "others" for p in Path(argument).rglob("*") if p.is_file())
                came = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(5)) or "no file"
                if others.keys() & {".heic", ".heif", ".avif", ".dng", ".cr2", ".nef", ".arw", ".jxl"}:
                    advice = "convert them to JPEG or PNG"
                raise ValueError(
                    f"{argument} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) but {came}; {advice}"
                )
            found += map(str, inside)
        elif os.path.exists(argument) or argument.startswith(("http://", "https://")):  # a web server's ? is no glob
            found.append(argument)
        elif any(c in argument for c in "*?["):
            found += [url for url, _ in list_files(argument)]
        elif "://" in argument:
            with remote(argument):  # refuses an unknown protocol
                found.append(argument)
        else:
            raise FileNotFoundError(
                f"no file {printable(argument)}, looked for in {os.getcwd()}; {_what_was_meant(argument)}"
            )
    return list(dict.fromkeys(found))


def _what_was_meant(argument: str) -> str:
    folder, name = os.path.split(argument.replace("\\", "/"))
    near = nearest(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    hint = "check its folder and ending" if folder or "." in name else "names to look for go into --classes"
    return f"nearest: {printable(os.path.join(folder, near[0]))}" if near else hint
