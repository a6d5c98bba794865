"""Settings of where and with what a run executes, and what a workspace may be called."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import Field, field_validator

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.section import Section, Share


class ExecutionConfig(Section):
    """Where and with what the run executes. It is no part of a fingerprint, with one exception: `train_workers` where
    `pretrain.gather_regions` is false."""

    backend: Literal["ray", "local"] = "ray"
    """`ray`: workers that live through the run. `local`: everything in this process, for a debugger."""
    address: str | None = None
    """Ray cluster address; null starts Ray on this machine."""
    dashboard: bool = False
    """Start Ray's dashboard on this machine and print its link: 1 s and 200 MiB more. A cluster has its own."""
    workers: int | None = Field(None, ge=1, le=10**5)
    """Shard workers; null takes one per available CPU (or per GPU for stages that use one), also of machines that join
    a cluster during the run. A number is what the run asks a cluster for, whatever it has now: set it to make an
    autoscaler add machines."""
    train_workers: int = Field(1, ge=1, le=10**5)
    """Processes per training; more than one goes through Ray Train (DDP)."""
    threads: int | None = Field(None, ge=1, le=4096)
    """Torch threads of a training; null takes every available CPU."""
    device: str = "auto"
    """`auto` (cuda if there is one), `cpu`, `cuda`, `cuda:1`."""
    gpus_per_worker: float = Field(0.0, ge=0, le=1000)
    """GPUs that one worker of a stage with a model asks Ray for."""
    shard_retries: int = Field(2, ge=0, le=1000)
    """How often a shard or a training is repeated because a worker died (not because it raised an error)."""
    max_error_rate: Share = 0.1
    """A stage stops when more than this share of its samples is bad; a sample that lost a box or caption is not bad."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
            hint = "; nearest: cuda" if "gpu" in device.lower() else nearest_hint(device, ("auto", "cpu", "cuda"))
            raise ValueError(f"expected auto, cpu, cuda or cuda:N (came: {device!r}){hint}")
        return device

    @field_validator("gpus_per_worker")
    @classmethod
    def _shares_ray_can_count(cls, gpus: float) -> float:
        if gpus != int(gpus) and not 0.01 <= gpus < 1:
            raise ValueError(f"expected a whole number or a share from 0.01 to 1 (came: {gpus})")
        return gpus


def checked_workspace(workspace: str) -> str:
    """Return the workspace with `~` filled in. Raises ValueError for anything that is no folder of its own."""
    came = f"(came: {workspace!r})"
    if not workspace.strip():
        raise ValueError(f"expected a folder or URL {came}; write . for the current folder")
    if "::" in workspace:  # one file system through another, which fsspec takes apart
        return workspace
    scheme, colon, rest = workspace.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][\w+.-]+", scheme):
        from fsspec import available_protocols  # slow to import, and a plain path does without

        known = available_protocols()
        if not rest.startswith("//"):
            if rest.startswith("/") or scheme in known:
                slashes = ":///" if scheme == "file" else "://"
                raise ValueError(f"expected a folder or URL {came}; nearest: {scheme}{slashes}{rest.lstrip('/')}")
        elif scheme not in known:
            raise ValueError(f"{scheme}:// is no protocol that fsspec knows {came}{nearest_hint(scheme, known)}")
        elif scheme != "file" and not rest.strip("/"):
            raise ValueError(f"expected {scheme}://BUCKET/FOLDER, nothing follows the protocol {came}")
        if scheme != "file":
            return workspace
    path = os.path.expanduser(workspace)
    if path.startswith("~"):
        raise ValueError(f"expected a folder or URL {came}; there is no user {path.split('/')[0][1:]!r} here")
    if not os.path.abspath(path.removeprefix("file://")).strip("/"):
        raise ValueError(f"expected a folder of its own, not the root of the file system {came}")
    return path
