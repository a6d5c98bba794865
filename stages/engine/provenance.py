"""Where an artifact came from: for the reader, never part of a fingerprint."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("regionclip", "torch", "torchvision", "open_clip_torch", "numpy", "pyarrow", "pillow", "spacy", "ray"),
    "webdataset",
)
"""Packages whose versions may show in an artifact."""


def provenance(started: datetime, seconds: float, number: int = 1) -> dict[str, Any]:
    """Return git commit, package versions, host and what it is, times (UTC, ISO 8601) and seconds of a stage that ends
    now, and the number of its round, if not the first."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "git_commit": git_commit(),
        "packages": versions,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "started": started.isoformat(timespec="milliseconds"),
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": seconds,
        **({"round": number} if number > 1 else {}),
    }


@cache
def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, with "+changes" when files differ; None without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return None
