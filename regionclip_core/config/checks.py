"""What the sections of a configuration ask of each other, and what a workspace and a device may be called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regionclip_core.config.nearest import nearest_hint

if TYPE_CHECKING:
    from regionclip_core.config.tree import Config


def check_sections(config: Config) -> None:
    """ValueError with a line for each setting that doesn't fit another one."""
    # The second look would repeat what the first one found.
    problems = list(_unknown_splits(config)) or [*_without_proposals(config), *_crossed(config)]
    if problems:
        raise ValueError("\n".join(problems))


def _unknown_splits(config: Config) -> Iterator[str]:
    wanted: list[tuple[str, Sequence[str]]] = [
        ("concepts.splits", config.concepts.splits),
        ("proposals.splits", config.proposals.splits),
        ("labels.splits", config.labels.splits),
        ("rpn.split", (config.rpn.split,)),
        ("finetune.split", (config.finetune.split,)),
        ("evaluate.split", (config.evaluate.split,)),
    ]
    if config.evaluate.whole_image_split is not None:
        wanted.append(("evaluate.whole_image_split", (config.evaluate.whole_image_split,)))
    if config.teacher.training is not None:
        wanted.append(("teacher.training.splits", config.teacher.training.splits))
    known = sorted(config.data.splits)
    for path, names in wanted:
        if not names:
            yield f"{path}: expected at least one split of data.splits, which has {known} (came: [])"
        for name in dict.fromkeys(names):
            if name not in known:
                yield (
                    f"{path}: expected a split of data.splits, which has {known} (came: {name!r})"
                    f"{nearest_hint(name, known)}"
                )
            elif names.count(name) > 1:
                yield f"{path}: expected each split once (came: {list(names)})"


def _without_proposals(config: Config) -> Iterator[str]:
    for path, names in [
        ("labels.splits", config.labels.splits),
        ("finetune.split", (config.finetune.split,)),
        ("evaluate.split", (config.evaluate.split,)),
    ]:
        for name in names:
            if name not in config.proposals.splits:
                yield f"{path}: split {name!r} has no proposals; add it to proposals.splits"


def _crossed(config: Config) -> Iterator[str]:
    """Limits that others pass."""
    sizes = {
        "rpn": (config.rpn.image_size, config.rpn.max_size),
        "pretrain": (config.pretrain.image_size, config.pretrain.max_size),
        "finetune": (config.finetune.image_size, config.finetune.max_size),
        "evaluate": (config.evaluate.image_size, config.evaluate.max_size),
    }
    if config.labels.mode == "roi":  # which alone reads them
        sizes["labels"] = (config.labels.image_size, config.labels.max_size)
    for name, (shorter, longer) in sizes.items():
        if longer < shorter:
            yield f"{name}.max_size: expected at least {name}.image_size, which is {shorter} (came: {longer})"
    for name, split in config.data.splits.items():
        if split.source == "world" and split.kind == "scene" and split.object_size[0] * split.image_size < 8:
            yield (
                f"data.splits.{name}.object_size: expected objects of at least 8 pixels, a share of "
                f"{8 / split.image_size:.3g} of image_size {split.image_size} (came: {list(split.object_size)})"
            )
    drawn = [side for side in config.finetune.train_sizes if side > config.finetune.max_size]
    if drawn:
        yield f"finetune.train_sizes: expected at most finetune.max_size, {config.finetune.max_size} (came: {drawn[0]})"
    weights = (config.pretrain.contrastive_weight, config.pretrain.distill_weight, config.pretrain.image_text_weight)
    if not any(weights):
        yield (
            "pretrain.contrastive_weight: expected one of contrastive_weight, distill_weight and image_text_weight "
            f"above 0 (came: {list(weights)})"
        )
    if config.pairs.min_regions > config.pairs.max_regions:
        yield (
            f"pairs.min_regions: expected at most pairs.max_regions, which is {config.pairs.max_regions} "
            f"(came: {config.pairs.min_regions})"
        )


# ---------------------------------------------------------------- places and devices


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
