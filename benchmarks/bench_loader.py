"""How fast a training's batches come from 0, 1, 2 and 4 worker processes, and how long a GPU would wait for them.

`python benchmarks/bench_loader.py [--images 960] [--rounds 3] [--quick]` packs images as pairs with 20 regions each and
reads them as `pretrain` does. Two kinds:

small: drawn noise of 128 x 128 pixels, PNG, not resized, batches of 96. Images/s: batches taken as fast as they come.
Waiting: share of the time that a step waits for its batch, where the step takes 0.35 s (a sleep in place of a GPU).

JPEG: 640 x 480 and 640 x 427 pixels with files as large as a photo's, resized to 800 pixels, batches of 8. CPU
time per image is that of all processes, with the way through shared memory where there are workers.

The bytes are not normalised here, nor moved (torch's device `meta`): on a GPU its own kernels do that.

The first batch, for which the workers start, has a column of its own and is not counted in the others. Medians over
rounds, least and most in brackets; the numbers of workers alternate within a round.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from regionclip_core.config.tree import PairsConfig, PretrainConfig
from regionclip_core.datasets.index import IndexRow, index_name, write_index
from regionclip_core.ops.image_batch import Batch
from regionclip_core.pretraining.pairs import RegionPairs, write_meta, write_pairs
from regionclip_core.pretraining.region_batches import RegionBatch, RegionBatches
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import LABELS
from regionclip_core.storage.tars import TarWriter
from regionclip_core.threads import available_cpus
from regionclip_core.training.loader import read_batches

STEP, BATCH = 0.35, 96
SHARD = 240
TOP_K = 20


@dataclass(frozen=True)
class TimedBatch(Batch):
    batch: RegionBatch
    process: int
    cpu: float
    """CPU seconds that the process has used so far."""


@dataclass(frozen=True)
class Timed:
    """Batches with the CPU time of the process that reads them."""

    batches: RegionBatches

    def __call__(self, step: int) -> TimedBatch:
        return TimedBatch(self.batches(step), os.getpid(), time.process_time())


def picture(rng: np.random.Generator, width: int, height: int, kind: str) -> bytes:
    """A picture whose file is about as large as a real one's: smooth, with some noise."""
    small = Image.fromarray(rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()


def pack(root: Path, images: int, width: int, heights: tuple[int, ...], kind: str) -> Folder:
    """Pairs of `images` pictures, written by the pairs stage's own function."""
    data, labels, pairs = (Folder(str(root / name)) for name in ("data", "labels", "pairs"))
    rng, written = np.random.default_rng(0), []
    for shard, start in enumerate(range(0, images, SHARD)):
        rows, labelled = [], []
        with data.write(f"images-{shard:05d}.tar") as file, TarWriter(file) as tar:
            for number in range(start, min(images, start + SHARD)):
                height = heights[number % len(heights)]
                content, key = picture(rng, width, height, kind), str(number)
                offset = tar.add(f"{number}.{kind.lower()}", content)
                rows.append(
                    IndexRow(key, number, f"images-{shard:05d}.tar", offset, len(content), width, height, ["a dog"])
                )
                corners = np.sort(rng.uniform(0, min(width, height), (20, 2, 2)), axis=1).reshape(20, 4)
                top = np.full((20, TOP_K), 1 / (TOP_K + 1), np.float32)
                labelled.append(
                    {
                        "key": key,
                        "status": "ok",
                        "reason": None,
                        "boxes": corners.astype(np.float32).tolist(),
                        "objectness_logit": [0.0] * 20,
                        "concept_id": [0] * 20,
                        "score": top[:, 0].tolist(),
                        "kept": [True] * 20,
                        "top_concepts": [list(range(TOP_K))] * 20,
                        "top_probabilities": top.tolist(),
                        "residual_mass": [1 / (TOP_K + 1)] * 20,
                    }
                )
        with data.write(index_name(shard)) as file:
            write_index(file, rows, "categories")
        with labels.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(labelled, LABELS.with_metadata({"vocabulary": "d" * 64})), file)
        outcomes, _ = write_pairs(pairs, data, labels, shard, PairsConfig(max_regions=20))
        written.append((shard, outcomes["ok"]))
    write_meta(pairs, written, TOP_K, "d" * 64)
    return pairs


def run(pairs: Folder, batch: int, side: int, workers: int, steps: int, sleep: float) -> dict[str, float]:
    """Take `steps` batches after the first; seconds."""
    settings = PretrainConfig(batch_size=batch, image_size=side, max_size=1333, regions_per_image=20)
    samples = RegionPairs(pairs, 0)
    at = Timed(RegionBatches(samples, settings, (0.5,) * 3, (0.25,) * 3, 0))
    start = time.perf_counter()
    batches = read_batches(at, 0, steps + 1, torch.device("meta"), workers, samples.unreadable)
    next(batches)
    first = time.perf_counter() - start
    cpu, waited, start = time.process_time(), 0.0, time.perf_counter()
    times: dict[int, list[float]] = {}
    for _ in range(steps):
        time.sleep(sleep)
        asked = time.perf_counter()
        found = next(batches)[1]
        waited += time.perf_counter() - asked
        times.setdefault(found.process, []).append(found.cpu)
    seconds = time.perf_counter() - start
    cpu = (time.process_time() - cpu) / steps
    if workers:
        cpu += sum(many[-1] - many[0] for many in times.values()) / sum(len(many) - 1 for many in times.values())
    return {"first": first, "rate": steps * batch / seconds, "waiting": waited / seconds, "cpu": cpu / batch}


def spread(values: list[float], scale: float = 1, digits: int = 0) -> str:
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that everything runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts, batch, steps = (0, 1, 2, 4), BATCH, (30, 15, 12)
    if arguments.quick:
        arguments.images, arguments.rounds, counts, batch, steps = 8, 1, (0, 1), 2, (2, 2, 2)
    with tempfile.TemporaryDirectory() as folder:
        world = pack(Path(folder) / "world", arguments.images, 128, (128,), "PNG")
        photos = pack(Path(folder) / "photos", arguments.images // 4, 640, (480, 427), "JPEG")
        found: dict[tuple[int, str], list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for workers in counts:
                for name, values in {
                    "fast": (world, batch, 128, workers, steps[0], 0.0),
                    "step": (world, batch, 128, workers, steps[1], STEP),
                    "jpeg": (photos, min(8, batch), 800, workers, steps[2], 0.0),
                }.items():
                    found.setdefault((workers, name), []).append(run(*values))
    print(f"{available_cpus()} CPUs, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds")
    print("workers  small images/s     waiting, %        JPEG images/s      JPEG CPU ms/image  first batch, s")
    for workers in counts:
        fast, step, jpeg = (found[workers, name] for name in ("fast", "step", "jpeg"))
        cells = [
            spread([v["rate"] for v in fast]),
            spread([v["waiting"] for v in step], 100, 1),
            spread([v["rate"] for v in jpeg], digits=1),
            spread([v["cpu"] for v in jpeg], 1000, 1),
            spread([v["first"] for v in fast], digits=2),
        ]
        print(f"{workers:7}  " + "  ".join(f"{cell:17}" for cell in cells).rstrip())
    for name, what in (("fast", "small images"), ("jpeg", "JPEGs at 800 pixels")):
        cost = statistics.median(v["cpu"] for v in found[1, name])
        cores = cost * BATCH / STEP
        print(
            f"{what}: {1000 * cost:.1f} CPU ms each with one worker; {BATCH} of them in {STEP} s take {cores:.1f} cores"
        )


if __name__ == "__main__":
    main()
