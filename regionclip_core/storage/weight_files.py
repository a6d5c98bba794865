"""Files of weights before their tensors are read: which layout they have, or why they can't be read. Without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

Layout = Literal["safetensors", "torch", "torchscript"]


def weight_layout(path: Path) -> Layout:
    """Return what a file of weights is, by its content.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is cut short, damaged or no file of weights; the message says what it is instead.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected a file of weights (.pth, .pt, .safetensors)")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected a file of weights (.pth, .pt, .safetensors)")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head[8:9] == b"{":
        try:
            with safe_open(path, "np"):  # reads the header, which says how long the file is
                return "safetensors"
        except (SafetensorError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); download or copy it again") from None
    if head[:1] == b"\x80":
        return "torch"
    if head[:2] != b"PK":
        raise ValueError(f"{path} is no file of weights: {_guess(head)}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            check_claim(path, sum(entry.file_size for entry in archive.infolist()))
    except zipfile.BadZipFile as error:
        # The table of contents of a zip is at its end, so a download that broke off has none.
        raise ValueError(f"{path} is cut short or damaged ({error}); download or copy it again") from None
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "torchscript"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    raise ValueError(f"{path} is a zip archive without weights in it (it holds {names[:3]}); unpack it first")


def names_tensor(path: Path, layout: Layout, part: str) -> bool:
    """Return whether a tensor's name holds `part`; True also where only reading the whole file would show it."""
    if layout == "safetensors":
        with safe_open(path, "np") as file:
            return any(part in name for name in file.keys())  # noqa: SIM118 (no mapping)
    if layout == "torch" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(part.encode() in archive.read(one) for one in archive.namelist() if one.endswith("data.pkl"))
    return True


def check_claim(path: Path, claimed: int) -> None:
    """Raise ValueError if what a file unpacks to is far more than it can hold, shared and compressed parts counted."""
    if claimed > 8 * (size := path.stat().st_size) + 2**20:
        raise ValueError(
            f"{path} is a damaged or hostile file: its tensors claim {claimed:,} bytes, and it has {size:,}; download "
            "it again, from where it was published"
        )


def _guess(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as a download link gives that asks for a click or a login; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run `git lfs pull` to get the file itself"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it first"
    if head.startswith(b"\x93NUMPY"):
        return "it is a numpy array; write torch.save(torch.from_numpy(numpy.load(...)), ...) of it"
    return f"it starts with {head[:8]!r}; expected a torch file or .safetensors"
