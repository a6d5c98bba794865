"""A toy pipeline for the frame's tests: numbers -> scaled -> total, and lonely, which needs none and which none needs.

Faults are files in the folder `faults` beside the workspace, so that every backend sees them:
`raise-<stage>-<shard>` raises, `die-...` kills the process once, `kill-...` each time, `interrupt-...` interrupts,
`hang-...` waits for a minute, once; `hold-...` waits for as long as the file is there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import ShardRecord
from stages.base import JobStage, JobWork, ShardResult, ShardStage, ShardWork, Stage, StageContext

SHARDS = 4

CONFIG = """
data: {splits: {train: {source: world, images: 8}}}
concepts: {splits: [train]}
teacher: {weights: random}
proposals: {splits: [train]}
labels: {splits: [train], threshold: 0.1}
evaluate: {split: train}
execution: {backend: local}
"""


def folder(config: Config, name: str) -> Path:
    """A folder beside the workspace."""
    path = Path(config.workspace).parent / name
    path.mkdir(exist_ok=True)
    return path


def called(config: Config, what: str) -> None:
    """Log a call; then obey the faults."""
    with (folder(config, "log") / "calls").open("a") as f:
        f.write(f"{what}\n")
    faults = folder(config, "faults")
    if (die := faults / f"die-{what}").exists():
        die.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (faults / f"kill-{what}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if (faults / f"raise-{what}").exists():
        raise RuntimeError(f"made to fail at {what}")
    if (faults / f"interrupt-{what}").exists():
        raise KeyboardInterrupt
    if (hang := faults / f"hang-{what}").exists():
        hang.unlink()
        time.sleep(60)
    while (faults / f"hold-{what}").exists():
        time.sleep(0.05)


class Numbers(ShardStage):
    """Nothing is needed."""

    name, version, work = "numbers", 1, "toy_stages:NUMBERS"

    def settings(self, config: Config) -> dict[str, Any]:
        return {"numbers": {"shard_size": config.data.shard_size}}

    def raw_inputs(self, config: Config) -> list[str]:
        return [] if config.evaluate.split == "train" else [config.evaluate.split]


class NumbersWork(ShardWork):
    """Shard s holds the numbers 10 s .. 10 s + shard_size - 1; nine is a bad number."""

    def shards(self, ctx: StageContext) -> list[int]:
        return list(range(SHARDS))

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        called(ctx.config, f"numbers-{shard}")
        size = min(ctx.config.data.shard_size, 10)
        numbers = [10 * shard + i for i in range(size)]
        ctx.out.write_bytes(f"numbers-{shard:05d}.txt", "\n".join(map(str, numbers)).encode())
        bad = sum(n % 10 == 9 for n in numbers)
        return ShardResult(size, {"ok": size - bad, "bad_nine": bad})


class Scaled(ShardStage):
    """Needs the numbers."""

    name, version, work = "scaled", 1, "toy_stages:SCALED"

    def needs(self, config: Config) -> tuple[str, ...]:
        return ("numbers",)

    def settings(self, config: Config) -> dict[str, Any]:
        return {"labels": {"threshold": config.labels.threshold, "top_k": config.labels.top_k}}


class ScaledWork(ShardWork):
    """Numbers times tenths of the threshold: 0.1 and 0.15 give the same."""

    def shards(self, ctx: StageContext) -> list[int]:
        return [int(n[8:13]) for n in ctx.inputs["numbers"].names() if n.startswith("numbers-")]

    def setup(self, ctx: StageContext) -> int:
        called(ctx.config, "scaled-setup")
        return int(ctx.config.labels.threshold * 10)

    def process(self, ctx: StageContext, state: int, shard: int) -> ShardResult:
        called(ctx.config, f"scaled-{shard}")
        numbers = ctx.inputs["numbers"].read_bytes(f"numbers-{shard:05d}.txt").decode().split()
        with ctx.out.write(f"scaled-{shard:05d}.txt") as f:
            f.write(b"".join(b"%d\n" % (int(n) * state) for n in numbers))
        return ShardResult(len(numbers), {"ok": len(numbers)})

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        called(ctx.config, "scaled-merge")
        ctx.out.write_json("sizes.json", {f"{r.shard}": r.rows for r in records})
        return {"shards": len(records)}


class Total(JobStage):
    """Needs the scaled numbers."""

    name, version, work = "total", 1, "toy_stages:TOTAL"

    def needs(self, config: Config) -> tuple[str, ...]:
        return ("scaled",)

    def settings(self, config: Config) -> dict[str, Any]:
        return {"pretrain": {"steps": config.pretrain.steps}}


class TotalWork(JobWork):
    """The sum of all scaled numbers."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        called(ctx.config, "total")
        names = [n for n in ctx.inputs["scaled"].names() if n.startswith("scaled-")]
        total = 0
        for i, name in enumerate(names):
            total += sum(map(int, ctx.inputs["scaled"].read_bytes(name).split()))
            ctx.progress(i + 1, len(names), f"sum {total}")
        ctx.out.child("checkpoints").write_json("last.json", total)
        ctx.out.write_json("total.json", {"total": total, "steps": ctx.config.pretrain.steps})
        return {"total": total, "torch_imported": "torch" in sys.modules}


class Lonely(JobStage):
    """Needs no other stage; can run in several processes."""

    name, version, work = "lonely", 1, "toy_stages:LONELY"
    distributed = True

    def settings(self, config: Config) -> dict[str, Any]:
        return {"finetune": {"steps": config.finetune.steps}}


class LonelyWork(JobWork):
    """With several processes it sums the ranks by torch.distributed."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        called(ctx.config, f"lonely-{ctx.rank}")
        summary = {"world_size": ctx.world_size}
        if ctx.world_size > 1:
            import torch

            ranks = torch.tensor([ctx.rank + 1])
            torch.distributed.all_reduce(ranks)
            summary["sum"] = int(ranks)
        ctx.progress(1, 1, "")
        if ctx.rank == 0:
            ctx.out.write_json("lonely.json", {"steps": ctx.config.finetune.steps})
        return summary


class Model(JobStage):
    """Part of the pipeline only where a test adds it."""

    name, version, work, uses_gpu = "model", 1, "toy_stages:MODEL", True

    def settings(self, config: Config) -> dict[str, Any]:
        return {}


class ModelWork(JobWork):
    """Uses torch."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        import torch

        return {"torch_threads": torch.get_num_threads(), "device": ctx.device}


NUMBERS, SCALED, TOTAL, LONELY, MODEL = NumbersWork(), ScaledWork(), TotalWork(), LonelyWork(), ModelWork()
STAGES: dict[str, Stage] = {stage.name: stage for stage in (Numbers(), Scaled(), Total(), Lonely())}
