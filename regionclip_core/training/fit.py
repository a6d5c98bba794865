"""fit(): the one training loop of every training job, with schedule, checkpoints and exact resume.

All randomness is a function of the seed, the step and the position in the step's batch: a batch is read by the number
of its step, and torch's generator is seeded at every step. So a resumed training needs no generator state and gives the
same numbers as an unbroken one, and several processes give the same as one.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.precision import networks
from regionclip_core.storage.records import Folder
from regionclip_core.training.distributed import all_ranks, data_parallel, rank_count, sum_ranks
from regionclip_core.training.loader import read_batches
from regionclip_core.training.optim import clip_gradients, lr_multiplier, make_optimizer
from regionclip_core.training.unreadable_images import UnreadableImages

Progress = Callable[[int, int, str, Mapping[str, float]], None]
"""progress(steps done, all steps, note, row): the row of the history that has just been added, with the samples per
second over its steps, `samples_per_second`."""
Rows = list[dict[str, float]]
_KEEP = 2  # checkpoints: if the newest is damaged, the one before it is used
_LOG_EVERY = 10
_log = logging.getLogger(__name__)


class NonFiniteLoss(ArithmeticError):
    """The total loss, or a weight, became NaN or infinite; the message names the step and each part."""


@dataclass(frozen=True)
class FitResult:
    """What a finished training reports."""

    steps: int
    resumed_from: int
    history: Rows
    """One row every few steps: `step`, `lr`, `loss` and each named loss, averaged over those steps."""


def step_seed(seed: int, step: int, position: int = 0) -> int:
    """Return a well-mixed 63-bit seed from all three. `position`: of a sample in the step's global batch."""
    digest = hashlib.sha256(f"{seed}/{step}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fit(
    model: nn.Module,
    batch_at: Callable[[int], Any],
    *,
    optim: OptimConfig,
    steps: int,
    seed: int,
    checkpoints: Folder,
    checkpoint_every: int,
    progress: Progress,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    lr_factors: Mapping[str, float] | None = None,
    loader_workers: int = 0,
    unreadable: UnreadableImages | None = None,
) -> FitResult:
    """Train `model` in place for `steps` steps, from the newest checkpoint in `checkpoints` if there is one.

    Args:
        model: `model(batch)` returns the named losses (scalars), whose sum is minimised. Frozen parameters are
            neither optimised nor checkpointed. It runs in the precision of the process: losses must be `in_float32`.
        batch_at: this rank's batch of a 0-based step, whose `to(device)` moves its tensors. It must depend on the
            step's number alone, and survive pickling where there are `loader_workers`.
        checkpoints: folder of this job's checkpoints; only rank 0 writes.
        batch_size: samples of a step, of all ranks together; only for the rate that is shown.
        world_size: above 1 the process group must be initialised; DistributedDataParallel averages the gradients.
        lr_factors: multiplies the rate of single parameters, by name.
        loader_workers: processes of this rank that read batches ahead; 0 reads them in this one. See `read_batches`.
        unreadable: the object with which `batch_at` counts unreadable images.

    Raises:
        NonFiniteLoss: if the summed loss of a step is not finite, or a weight that would be kept.
        ValueError: if nothing is trainable, or a checkpoint is of another model.
        OSError: if there is a checkpoint that can't be read. Other errors in loading an undamaged checkpoint are raised
            too: training without it would lose its steps.
        RuntimeError: if ranks would go on from different steps.
    """
    optimizer = make_optimizer(model, optim, lr_factors)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(trained.values())).device
    first, history, window = restore_checkpoint(checkpoints, model, optimizer, trained)
    starts = all_ranks(torch.tensor([first], device=device)).tolist()
    if len(set(starts)) > 1:  # they would average gradients of different steps
        raise RuntimeError(
            f"the ranks would go on from different steps {starts}: every one has to see the same checkpoints; use a "
            "workspace that all nodes share, and run again"
        )
    wrapped = data_parallel(model) if world_size > 1 else model
    clock, clocked = time.perf_counter(), first
    # `device` is the parameters' own, with its index: a plain "cuda" could be another GPU.
    for step, batch in read_batches(batch_at, first, steps, device, loader_workers, unreadable):
        # For dropout; batches and losses have generators of their own, seeded by step and position.
        torch.manual_seed(step_seed(seed, step, rank))
        lr = optim.lr * lr_multiplier(optim, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]

        with networks(device):
            losses: Mapping[str, Tensor] = wrapped(batch)
        # The mean over ranks is the loss of the global batch. Every rank has it, so all stop at one that isn't finite.
        means = sum_ranks(torch.stack([value.detach().double() for value in losses.values()])) / rank_count()
        values = dict(zip(losses, means.tolist(), strict=True))
        if not math.isfinite(sum(values.values())):
            raise NonFiniteLoss(
                f"the loss is not finite at step {step}: {values}; lower the learning rate ({optim.lr:g})"
            )

        optimizer.zero_grad(set_to_none=True)
        # Backward also averages the gradients over ranks, so clipping sees those of the global batch.
        torch.stack([value.float() for value in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        clip_gradients(trained.values(), optim)
        optimizer.step()

        window.append({"step": step + 1, "lr": lr, "loss": sum(values.values()), **values})
        last = step + 1 == steps
        if (step + 1) % _LOG_EVERY == 0 or last:
            means_of_window = {name: sum(r[name] for r in window) / len(window) for name in sorted({"loss", *values})}
            history.append({"step": step + 1, "lr": lr, **means_of_window})
            window.clear()
            now = time.perf_counter()
            rate = (step + 1 - clocked) * batch_size / (now - clock)
            clock, clocked = now, step + 1
            note = f"{rate:.3g} images/s, {losses_in_words(history[-1])}"
            progress(step + 1, steps, note, {**history[-1], "samples_per_second": round(rate, 2)})
        # The last step has a checkpoint too: an interrupted job of several trainings then skips the finished ones.
        if (step + 1) % checkpoint_every == 0 or last:
            # A gradient that isn't finite would show only in the loss of the next step, after the checkpoint. Weights
            # are the same on all ranks, and so is the outcome of this check.
            bad = [name for name, p in trained.items() if not bool(torch.isfinite(p).all())]
            if bad:
                raise NonFiniteLoss(
                    f"{len(bad)} weights are not finite after step {step}, {bad[0]} among them, and no checkpoint of "
                    f"them was written; lower the learning rate ({optim.lr:g})"
                )
            if rank == 0:
                save_checkpoint(checkpoints, step + 1, model, optimizer, trained, history, window)
    return FitResult(steps, first, history)


def losses_in_words(row: Mapping[str, float]) -> str:
    """Return "loss 0.71 (distill 0.25, image text 0.46)" for a row of the history; parts only if there are several."""
    parts = {name: value for name, value in row.items() if name not in ("step", "lr", "loss")}
    named = ", ".join(f"{name.removeprefix('loss_').replace('_', ' ')} {value:.3g}" for name, value in parts.items())
    return f"loss {row['loss']:.3f}" + (f" ({named})" if len(parts) > 1 else "")


def save_checkpoint(
    folder: Folder,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    history: Rows,
    window: Rows,
) -> None:
    """Write `step-<step>.pt` after `step` steps and remove all but the newest checkpoints.

    `window`: rows that are not averaged into the history yet.
    """
    payload = {
        "step": step,
        "parameters": {name: p.detach() for name, p in trained.items()},
        "buffers": _moving_buffers(model),
        "optimizer": optimizer.state_dict(),
        "history": history,
        "window": window,
    }
    now = f"step-{step:08d}.pt"
    with folder.write(now) as file:
        try:
            torch.save(payload, file)
        except RuntimeError as error:  # torch's own complaint hides what the file said, such as that the disk is full
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    # Newer files couldn't be read when this training began. They don't count: this checkpoint must not be removed.
    for old in [name for name in _newest_first(folder) if name <= now][_KEEP:]:
        folder.remove(old)


def restore_checkpoint(
    folder: Folder, model: nn.Module, optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> tuple[int, Rows, Rows]:
    """Load the newest whole checkpoint; return the steps done, the history and the rows not averaged into it yet.

    Raises:
        ValueError: if the checkpoint's parameters are not the model's.
        Exception: any error that keeps a whole one from being loaded.
    """
    for name in _newest_first(folder):
        data = folder.read_bytes(name)  # an unreachable store is an error: going on without it would lose steps
        # torch.save makes a zip archive with a checksum per entry. Checking these, and not whether torch.load succeeds,
        # tells a damaged file from one that can't be loaded because memory is short or torch has another version.
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                bad = archive.testzip()
            damage = f"{bad} has another checksum" if bad else ""
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises most built-in exceptions for bytes that are not a whole archive
            damage = str(error) or type(error).__name__
        if damage:
            _log.warning("checkpoint %s is damaged (%s); going back to the one before", folder.path(name), damage)
            continue
        # To the CPU: a checkpoint from a GPU must load without one, too, and in ranks that each have another.
        try:
            payload: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            error.add_note(f"The checkpoint {folder.path(name)} is whole; to train from the one before, remove it.")
            raise
        if payload["parameters"].keys() != trained.keys():
            raise ValueError(f"checkpoint {folder.path(name)} is of another model; remove that folder to start over")
        buffers = _moving_buffers(model)
        with torch.no_grad():
            for key, value in payload["parameters"].items():
                trained[key].copy_(value)
            for key, value in payload["buffers"].items():
                buffers[key].copy_(value)
        optimizer.load_state_dict(payload["optimizer"])
        return int(payload["step"]), list(payload["history"]), list(payload["window"])
    return 0, [], []


def _newest_first(folder: Folder) -> list[str]:
    return sorted((n for n in folder.names() if n.startswith("step-") and n.endswith(".pt")), reverse=True)


def _moving_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes without a gradient, such as a batch norm's statistics."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
