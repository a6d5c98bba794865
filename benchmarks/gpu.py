"""What a GPU makes of the project, in under eight minutes and without Ray: `python benchmarks/gpu.py`.

In this order, printing as it goes: the tests of tests/gpu; one shard of labels, steps of pretraining and of finetuning
at the paper's sizes (RN50, 800 pixels), in float32 and bf16; the loader by itself. The trainings are the stages' own,
with their loader and optimiser. Writes docs/GPU.md with the card's name. `--tiny` runs all of it on the CPU with small
sizes, and only prints.

A step is timed from the start of the forward pass to the end of the optimiser's; what lies between two steps is
waiting for the loader. The first two steps of each training are left out; in the first one the FLOP are counted. The
peak is that of a large product of two matrices in bf16. float32 is without TF32.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the machine may not have the project installed

import bench_loader
import torch
from made_inputs import TOY, Scale, make_config, write_label_inputs
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from regionclip_core.config.tree import Config
from regionclip_core.detection.finetuning import DetectorTrainer
from regionclip_core.precision import set_precision
from regionclip_core.pretraining.student import RegionPretrainer
from regionclip_core.storage.records import Folder, ShardRecord
from regionclip_core.threads import available_cpus
from stages.base import JobWork, ShardWork, StageContext, load_work

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("float32", "bf16")
UNTIMED = 2
"""Steps at the start of a training."""
TESTS_AT_MOST = 240
"""Seconds."""


@dataclass(frozen=True)
class Row:
    """What one piece of work does in one precision."""

    work: str
    precision: str
    batch: str
    seconds: float
    """Per shard or step."""
    images: int
    flops: float
    memory: int
    """Bytes at the peak, on the card; 0 on a CPU."""
    waiting: float | None = None
    """Seconds per step."""

    def cells(self, peak: float) -> list[str]:
        """Return the row of the table."""
        whole = self.seconds + (self.waiting or 0)
        return [
            self.work,
            self.precision,
            self.batch,
            f"{self.seconds:.3g}",
            f"{self.images / whole:.1f}",
            f"{self.flops / self.seconds / 1e12:.3g}",
            f"{100 * self.flops / self.seconds / peak:.1f}",
            f"{self.memory / 2**30:.1f}" if self.memory else "",
            "" if self.waiting is None else f"{self.waiting:.3f} ({100 * self.waiting / whole:.0f} %)",
        ]


HEAD = (
    *("work", "precision", "batch", "s", "images/s, waiting included", "TFLOP/s", "% of the bf16 peak"),
    *("peak memory, GiB", "waits per step, s"),
)


@dataclass
class Bench:
    """The device, the sizes and the artifacts."""

    device: torch.device
    scale: Scale
    root: Folder
    steps: int
    """Timed steps of a training."""

    def folder(self, name: str) -> Folder:
        """Return an artifact's folder."""
        return self.root.child(name)

    def context(self, config: Config, out: str) -> StageContext:
        """Return what a stage's work gets to see."""
        names = ("data", "proposals", "teacher", "labels", "pairs")
        inputs = {name: self.folder(name) for name in names} | {"pretrain": self.folder("teacher")}
        context = StageContext(config, self.folder(out), inputs, str(self.device))
        context.loader_workers = self.loader_workers
        return context

    @property
    def loader_workers(self) -> int:
        """As many as the engine takes."""
        return min(8, available_cpus()) if self.device.type == "cuda" else 0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """Return the peak since the last call."""
        if self.device.type != "cuda":
            return 0
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


class Enough(Exception):
    """Ends a training whose steps have been timed."""


def say(text: str) -> None:
    """Print now."""
    print(text, flush=True)


# ---------------------------------------------------------------- in order


def run_tests() -> str:
    """Run the set of tests/gpu; return pytest's last line."""
    line = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_AT_MOST)
    except subprocess.TimeoutExpired:
        return f"not done after {TESTS_AT_MOST} s"
    if done.returncode:
        say(done.stdout[-6000:] + done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-500:]


def matmul_peak(bench: Bench) -> float:
    """Return FLOP per second of a large product in bf16."""
    side = 8192 if bench.device.type == "cuda" else 256
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        bench.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            a @ a
        bench.synchronize()
        best = min(best, (time.perf_counter() - start) / 5)
    return 2 * side**3 / best


def label(bench: Bench, config: Config, precision: str) -> Row:
    """Label the shard twice: once to count and to warm up, once against the clock."""
    work, context = load_work("stages.labels:WORK"), bench.context(config, "labels")
    assert isinstance(work, ShardWork)
    set_precision(precision, str(bench.device))
    state = work.setup(context)
    with FlopCounterMode(display=False) as counter:
        work.process(context, state, 0)
    bench.synchronize()
    bench.memory()
    start = time.perf_counter()
    result = work.process(context, state, 0)
    bench.synchronize()
    seconds = time.perf_counter() - start
    batch = f"{result.rows} images, {config.labels.max_regions} regions each"
    return Row("labels", precision, batch, seconds, result.rows, counter.get_total_flops(), bench.memory())


def pack_pairs(bench: Bench, config: Config) -> None:
    """Write the pairs of the shard."""
    work, context = load_work("stages.pairs:WORK"), bench.context(config, "pairs")
    assert isinstance(work, ShardWork)
    result = work.process(context, work.setup(context), 0)
    work.merge(context, [ShardRecord(0, result.rows, result.counts, [], 0.0)])


@contextmanager
def step_times(bench: Bench, counter: FlopCounterMode) -> Iterator[tuple[list[float], list[float]]]:
    """Yield two lists that fill with the times at which steps begin and end; the counter counts the first step."""
    begun: list[float] = []
    ended: list[float] = []

    def begin(module: nn.Module, _: Any) -> None:
        if isinstance(module, (RegionPretrainer, DetectorTrainer)):
            begun.append(time.perf_counter())
            if len(begun) == 1:
                counter.__enter__()

    def end(*_: Any) -> None:
        bench.synchronize()
        if not ended:
            counter.__exit__(None, None, None)
        ended.append(time.perf_counter())
        if len(ended) == UNTIMED + bench.steps:
            raise Enough

    hooks = [register_module_forward_pre_hook(begin), register_optimizer_step_post_hook(end)]
    try:
        yield begun, ended
    finally:
        if begun and not ended:
            counter.__exit__(None, None, None)
        for hook in hooks:
            hook.remove()


def train(bench: Bench, config: Config, stage: str, precision: str) -> Row:
    """Run a training stage for a few steps, with as large a share of its batch as the device has memory for."""
    section = getattr(config, stage)
    batch = section.batch_size
    while True:
        changed = section.model_copy(update={"batch_size": batch})
        work = load_work(f"stages.{stage}:WORK")
        assert isinstance(work, JobWork)
        counter = FlopCounterMode(display=False)
        with tempfile.TemporaryDirectory() as out, step_times(bench, counter) as (begun, ended):
            context = bench.context(config.model_copy(update={stage: changed}), out)
            bench.memory()
            try:
                set_precision(precision, str(bench.device))
                work.run(context)
            except Enough:
                break
            except torch.OutOfMemoryError:
                say(f"{stage}, {precision}: a batch of {batch} does not fit")
                if batch == 1:
                    raise
        batch //= 2
        gc.collect()
        torch.cuda.empty_cache()
    took = [end - start for start, end in zip(begun, ended, strict=True)][UNTIMED:]
    waits = [start - end for start, end in zip(begun[1:], ended, strict=False)][UNTIMED - 1 :]
    text = f"{batch} of {section.batch_size}, {section.regions_per_image} regions each"
    flops, memory = counter.get_total_flops(), bench.memory()
    return Row(stage, precision, text, statistics.median(took), batch, flops, memory, statistics.median(waits))


def loader_rates(bench: Bench, batch: int) -> dict[int, float]:
    """Return images/s of pretraining's batches by the number of workers, with nothing else going on."""
    counts = sorted({1, 2, 4, available_cpus()}) if bench.device.type == "cuda" else [1]
    side, steps = min(bench.scale.height, bench.scale.width), 8
    return {n: bench_loader.run(bench.folder("pairs"), batch, side, n, steps, 0.0)["rate"] for n in counts}


# ---------------------------------------------------------------- the page


def page(card: str, tests: str, peak: float, rows: list[Row], loader: dict[int, float], minutes: float) -> str:
    """Return the table as Markdown."""
    workers = ", ".join(f"{count}: {rate:.0f}" for count, rate in loader.items())
    lines = [
        f"# On a GPU: {card}\n",
        f"Written by `python benchmarks/gpu.py` in {minutes:.1f} minutes, with torch {torch.__version__} and "
        f"{available_cpus()} CPU cores; its docstring says how things are measured. RN50, 800 x 1216 pixels from JPEGs "
        "of 600 x 912; random weights.\n",
        f"tests/gpu: {tests}\n",
        f"Peak of a product in bf16: {peak / 1e12:.3g} TFLOP/s.\n",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(row.cells(peak))} |" for row in rows),
        f"\nThe loader by itself, images/s by its workers: {workers}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with small sizes; writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "GPU.md")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --tiny runs on the CPU")
    begun = time.perf_counter()
    device = torch.device("cpu" if options.tiny else "cuda:0")
    card = "CPU, toy sizes" if options.tiny else torch.cuda.get_device_name(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    say(f"{card}\ntests/gpu ...")
    tests = "not run at toy sizes" if options.tiny else run_tests()
    say(tests)
    scale = TOY if options.tiny else Scale()
    images, batches, regions = (4, (2, 2), 8) if options.tiny else (96, (96, 16), 512)
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(device, scale, Folder(place), 2 if options.tiny else 5)
        peak = matmul_peak(bench)
        say(f"peak {peak / 1e12:.3g} TFLOP/s; making {images} images ...")
        write_label_inputs(bench.root, images, scale)
        finetune = {"batch_size": batches[1], "regions_per_image": regions}
        config = make_config(scale, pretrain={"batch_size": batches[0]}, finetune=finetune)
        work: list[Callable[[str], Row]] = [
            lambda precision: label(bench, config, precision),
            lambda precision: train(bench, config, "pretrain", precision),
            lambda precision: train(bench, config, "finetune", precision),
        ]
        rows, failed = [], False
        for number, one in enumerate(work):
            for precision in PRECISIONS:
                try:
                    rows.append(one(precision))
                except Exception:  # a machine with a GPU is lent for minutes: the rest goes on
                    failed = True
                    say(traceback.format_exc())
                    continue
                cells = zip(HEAD, rows[-1].cells(peak), strict=True)
                shown = ", ".join(f"{name} {cell}" for name, cell in cells if cell)
                say(f"{time.perf_counter() - begun:.0f} s: {shown}")
            if number == 0:
                pack_pairs(bench, config)
        loader = loader_rates(bench, min(24, images))
    text = page(card, tests, peak, rows, loader, (time.perf_counter() - begun) / 60)
    say(text)
    if not options.tiny:
        options.out.write_text(text, encoding="utf-8")
    if failed or not (options.tiny or (" passed" in tests and "failed" not in tests)):
        sys.exit("something of this failed: see above")


if __name__ == "__main__":
    main()
