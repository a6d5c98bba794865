"""fit(): one plain training loop for every training job, with schedule, checkpoints and exact resume.

Randomness and data position are functions of the seed, the step and the position in the step's batch, and of nothing
else: a batch is asked for by its step, and `fit` reseeds torch's generator at every step. So a resumed run needs no
generator state and gives the same numbers as an unbroken one, and several processes give those of one.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.storage.records import Folder
from regionclip_core.training.distributed import all_ranks, data_parallel, rank_count, sum_ranks
from regionclip_core.training.image_tally import ImageTally
from regionclip_core.training.optim import clip_gradients, lr_multiplier, make_optimizer, set_lr

Progress = Callable[[int, int, str], None]
_KEEP = 2  # A checkpoint that was cut short must leave an older one to fall back on.
_LOG_EVERY = 10
_DAMAGED = (zipfile.BadZipFile, EOFError, OverflowError, RuntimeError, ValueError, struct.error, zlib.error)
"""What zipfile raises for bytes that are no whole archive; running out of memory is none of them."""
_log = logging.getLogger(__name__)


class Movable(Protocol):
    """A batch, whose tensors `fit` puts beside the model."""

    def to(self, device: torch.device) -> Self:
        """The same batch with all its tensors on `device`."""


Batch = TypeVar("Batch", bound=Movable)


class NonFiniteLoss(ArithmeticError):
    """The total loss, or a weight, became NaN or infinite; the message names the step and each part."""


@dataclass
class FitResult:
    """What a finished training tells."""

    steps: int
    resumed_from: int
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)
    """One row every few steps: `step`, `lr`, `loss` and each named loss, averaged over those steps."""
    tally: ImageTally = field(default_factory=lambda: ImageTally(0))
    """The images that were read, and those that couldn't be; of all ranks."""


def step_seed(seed: int, step: int, position: int = 0) -> int:
    """A 63-bit seed that depends on all three, well mixed. `position`: of a sample in the step's global batch."""
    digest = hashlib.sha256(f"{seed}/{step}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    *,
    optim: OptimConfig,
    steps: int,
    seed: int,
    checkpoints: Folder,
    checkpoint_every: int,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    lr_factors: Mapping[str, float] | None = None,
    tally: ImageTally | None = None,
) -> FitResult:
    """Train `model` in place for `steps` steps, from the newest checkpoint in `checkpoints` if there is one.

    Args:
        model: `model(batch)` returns the named losses (scalars), whose sum is minimised. Frozen parameters are
            neither optimised nor checkpointed.
        batch_at: this rank's batch of a 0-based step, wherever its tensors are. It must draw from the step's number
            alone; beside a GPU it is called ahead of time, in a thread of its own.
        checkpoints: folder of this job's checkpoints; only rank 0 writes.
        world_size: above 1 the process group must be initialised; gradients are averaged over ranks by
            DistributedDataParallel.
        lr_factors: multiplies the rate of single parameters, by name.
        tally: counts the images that `batch_at` reads; it goes with the checkpoints, and ends with those of all ranks.

    Raises:
        ErrorRateExceeded: if too many of the images can't be read. The checkpoints stay: with a higher limit the
            training goes on from there.
        NonFiniteLoss: if the summed loss of a step is not finite, or a weight that would be kept.
        ValueError: if nothing is trainable, or a checkpoint is of another model.
        OSError: if a checkpoint is there and can't be fetched. Whatever else keeps a whole checkpoint from being
            loaded is raised as it is: training without it would throw its steps away.
        RuntimeError: if ranks would go on from different steps.
    """
    started = time.monotonic()
    optimizer = make_optimizer(model, optim, lr_factors)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first, history, window = restore(checkpoints, model, optimizer, trained, tally)
    device = next(iter(trained.values())).device
    _require_one_start(first, device)
    tally = tally or ImageTally(0)
    tally.check(device)
    wrapped = data_parallel(model) if world_size > 1 else model
    for step, batch in _batches(batch_at, first, steps, device, ahead=device.type == "cuda"):
        torch.manual_seed(step_seed(seed, step, rank))
        lr = optim.lr * lr_multiplier(optim, step, steps)
        set_lr(optimizer, lr)
        values = _update(wrapped, batch, optimizer, trained, optim, step)
        window.append({"step": step + 1, "lr": lr, "loss": sum(values.values()), **values})
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == steps:
            history.append(_mean(window))
            window.clear()
            progress(step + 1, steps, f"loss {history[-1]['loss']:.3f}")
            tally.check(device)
        # The last step's checkpoint lets a job of several trainings, cut short later, pass over the finished ones.
        if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            _require_finite(trained, step, optim)  # a bad gradient shows in the next step's loss only
            tally.gather(device)
            if rank == 0:
                _save(checkpoints, step + 1, optimizer, trained, model, (history, window), tally)
    tally.check(device, final=True)
    return FitResult(steps, first, time.monotonic() - started, history, tally)


def _batches(
    batch_at: Callable[[int], Batch], first: int, steps: int, device: torch.device, ahead: bool
) -> Iterator[tuple[int, Batch]]:
    """Batches in order, on `device`. `ahead`: the next one is read while the last is trained on.

    Worth it beside a GPU only: where the training has every CPU, a reading thread makes all of torch's threads wait
    for the one whose turn it takes (measured: 0.16 s a step of the embedded teacher, 0.13 s without).

    `device` is the parameters' own, with its index: "cuda" would be the first GPU in the reading thread, whatever the
    training's thread has chosen.
    """

    def read(step: int) -> Batch:
        return batch_at(step).to(device)

    if not ahead:
        yield from ((step, read(step)) for step in range(first, steps))
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        upcoming = reader.submit(read, first) if first < steps else None
        for step in range(first, steps):
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = reader.submit(read, step + 1) if step + 1 < steps else None
            yield step, batch


def _update(
    model: nn.Module,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    optim: OptimConfig,
    step: int,
) -> dict[str, float]:
    losses: Mapping[str, Tensor] = model(batch)
    # The mean over ranks is the loss of the global batch. It makes every rank stop at a loss that isn't finite, too.
    means = sum_ranks(torch.stack([value.detach().double() for value in losses.values()])) / rank_count()
    values = dict(zip(losses, means.tolist(), strict=True))
    if not math.isfinite(sum(values.values())):
        raise NonFiniteLoss(f"the loss is not finite at step {step}: {values}; lower the learning rate ({optim.lr:g})")
    optimizer.zero_grad(set_to_none=True)
    torch.stack([value.float() for value in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    clip_gradients(trained.values(), optim)
    optimizer.step()
    return values


def _require_finite(trained: Mapping[str, nn.Parameter], step: int, optim: OptimConfig) -> None:
    """Alike on every rank, since their weights are."""
    bad = [name for name, p in trained.items() if not bool(torch.isfinite(p).all())]
    if bad:
        raise NonFiniteLoss(
            f"{len(bad)} weights are not finite after step {step}, {bad[0]} among them, and no checkpoint of them was "
            f"written; lower the learning rate ({optim.lr:g})"
        )


def _require_one_start(first: int, device: torch.device) -> None:
    """Ranks that went on from different checkpoints would train on, out of step."""
    starts = all_ranks(torch.tensor([first], device=device)).tolist()
    if len(set(starts)) > 1:
        raise RuntimeError(
            f"the ranks would go on from different steps {starts}: every one has to see the same checkpoints; use a "
            "workspace that all nodes share, and run again"
        )


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    names = rows[-1].keys() - {"step", "lr"}
    means = {name: sum(r[name] for r in rows) / len(rows) for name in sorted(names)}
    return {"step": rows[-1]["step"], "lr": rows[-1]["lr"], **means}


def _state_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Batch statistics and the like: state that training moves without a gradient."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _save(
    folder: Folder,
    step: int,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    model: nn.Module,
    log: tuple[list[dict[str, float]], list[dict[str, float]]],
    tally: ImageTally,
) -> None:
    payload = {
        "step": step,
        "parameters": {name: p.detach() for name, p in trained.items()},
        "buffers": _state_buffers(model),
        "optimizer": optimizer.state_dict(),
        "history": log[0],
        "window": log[1],  # rows not averaged into the history yet
        "images": tally.state(),
    }
    now = f"step-{step:08d}.pt"
    with folder.write(now) as file:
        torch.save(payload, file)
    # One beyond this step could not be read when the training began: it must not push out what is written now.
    for old in [name for name in _newest_first(folder) if name <= now][_KEEP:]:
        folder.remove(old)


def _newest_first(folder: Folder) -> list[str]:
    return sorted((n for n in folder.names() if n.startswith("step-") and n.endswith(".pt")), reverse=True)


def restore(
    folder: Folder,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    tally: ImageTally | None = None,
) -> tuple[int, list[dict[str, float]], list[dict[str, float]]]:
    """Load the newest whole checkpoint; returns the step to go on from, the history and its open window.

    Raises:
        ValueError: if the checkpoint's parameters are not the model's.
        Exception: whatever keeps a whole one from being loaded.
    """
    for name in _newest_first(folder):
        data = folder.read_bytes(name)  # a store that is away must not cost the steps done so far
        if (damage := _damage(data)) is not None:
            _log.warning("checkpoint %s/%s is damaged (%s); going back to the one before", folder.url, name, damage)
            continue
        # A GPU's checkpoint must go on elsewhere too: on a CPU, or as many ranks with a GPU each.
        try:
            payload: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            error.add_note(f"The checkpoint {folder.path(name)} is whole; to train from the one before, remove it.")
            raise
        if payload["parameters"].keys() != trained.keys():
            raise ValueError(f"checkpoint {folder.url}/{name} is of another model; remove that folder to start anew")
        with torch.no_grad():
            for key, value in payload["parameters"].items():
                trained[key].copy_(value)
            buffers = _state_buffers(model)
            for key, value in payload["buffers"].items():
                buffers[key].copy_(value)
        optimizer.load_state_dict(payload["optimizer"])
        if tally is not None and "images" in payload:
            tally.add_state(payload["images"], f"checkpoint {folder.url}/{name}")
        elif tally is not None:
            _log.warning("checkpoint %s/%s is an older version's: its images are not counted", folder.url, name)
        return int(payload["step"]), list(payload["history"]), list(payload["window"])
    return 0, [], []


def _damage(data: bytes) -> str | None:
    """What is wrong with a checkpoint's bytes, None if they are those that were written.

    torch.save makes a zip archive, which has a checksum of every entry. Asking it, and not torch.load, tells a damaged
    file from one that can't be loaded for want of memory, or by another version of torch.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
    except _DAMAGED as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"{bad} has another checksum"
