"""What a workspace and a device may be called."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest_hint

if TYPE_CHECKING:
    pass


def checked_device(device: str) -> str:
    """The device; ValueError for a name that isn't one."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
        hint = "; nearest: cuda" if "gpu" in device.lower() else nearest_hint(device, ("auto", "cpu", "cuda"))
        raise ValueError(f"expected auto, cpu, cuda or cuda:N (came: {device!r}){hint}")
    return device


def checked_workspace(workspace: str) -> str:
    """The workspace with `~` filled in; ValueError for what is no folder that a run should write into."""
    came = f"(came: {workspace!r})"
    if not workspace.strip():
        raise ValueError(f"expected a folder or URL {came}; write . for the current folder")
    if "::" in workspace:  # one file system through another, which fsspec takes apart
        return workspace
    scheme, colon, rest = workspace.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][\w+.-]+", scheme):
        _check_url(scheme, rest, came)
        if scheme != "file":
            return workspace
    path = os.path.expanduser(workspace)
    if path.startswith("~") and workspace.startswith("~"):
        raise ValueError(f"expected a folder or URL {came}; there is no user {path.split('/')[0][1:]!r} here")
    if not os.path.abspath(path.removeprefix("file://")).strip("/"):
        raise ValueError(f"expected a folder of its own, not the root of the file system {came}")
    return path


def _check_url(scheme: str, rest: str, came: str) -> None:
    from fsspec import available_protocols  # slow to import, and not wanted for plain paths

    known = available_protocols()
    slashes = ":///" if scheme == "file" else "://"
    if not rest.startswith("//"):
        if rest.startswith("/") or scheme in known:
            raise ValueError(f"expected a folder or URL {came}; nearest: {scheme}{slashes}{rest.lstrip('/')}")
        return
    if scheme not in known:
        raise ValueError(f"{scheme}:// is no protocol that fsspec knows {came}{nearest_hint(scheme, known)}")
    if scheme != "file" and not rest.strip("/"):
        raise ValueError(f"expected {scheme}://BUCKET/FOLDER, nothing follows the protocol {came}")
