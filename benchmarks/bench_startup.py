"""How fast the command line answers, Ray starts, and 40,000 shards are planned.

    python benchmarks/bench_startup.py [--skip-ray] [--shards 40000] [--rounds 5]

Prints one line per measurement with its target; medians, wall seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = """
data: {splits: {train: {source: world, images: 8}}}
concepts: {splits: [train]}
teacher: {weights: random}
proposals: {splits: [train]}
labels: {splits: [train]}
evaluate: {split: train}
"""


def median(call: Callable[[], object], rounds: int) -> float:
    """Median wall seconds of a call."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def command(*arguments: str) -> Callable[[], object]:
    """Runs `regionclip ...` as a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "stages.cli", *arguments]
    return lambda: subprocess.run(line, env=environment, capture_output=True, check=True)


def report(what: str, seconds: float, target: float) -> None:
    """One line."""
    print(f"{what:<52} {seconds:7.2f} s   target {target:g} s   {'ok' if seconds <= target else 'MISSED'}", flush=True)


def many_shards(folder: str, shards: int) -> Callable[[], object]:
    """A workspace whose first stage has many shard records; returns what plans it."""
    from regionclip_core.config.loading import load_config
    from regionclip_core.storage.records import PLAN, FileRecord, Folder, ShardRecord, shard_record_name, write_records
    from stages.engine.plan import Planner

    config = load_config(f"{folder}/c.yaml", [f"workspace={folder}/many"])
    workspace = Folder(config.workspace)
    artifact = Folder(str(Planner(config, workspace).lines()[0].path))
    artifact.write_json(PLAN, {"total": shards})
    for shard in range(shards - 1):  # plain writes: only the listing is measured
        (Path(artifact.url) / shard_record_name(shard)).write_bytes(b"{}")
    files = [FileRecord("index-00000.parquet", 100, "0" * 64)]
    write_records(artifact, [ShardRecord(s, 10_000, {"ok": 10_000}, files, 1.0) for s in range(shards - 1)])
    return lambda: Planner(config, workspace).lines()


def resume(folder: str) -> Callable[[], object]:
    """What a resumed run reads before its first shard."""
    from regionclip_core.storage.records import Folder, done_shards, read_shard_records

    [artifact] = (Path(folder) / "many" / "data").iterdir()
    return lambda: read_shard_records(Folder(str(artifact)), done_shards(Folder(str(artifact)).names()))


def bench_ray() -> None:
    """From nothing to workers that answer, and down again."""
    start = time.perf_counter()
    from regionclip_core.config.tree import ExecutionConfig
    from stages.engine.ray_backend import RayBackend, ray

    imported = time.perf_counter()
    backend = RayBackend(ExecutionConfig())
    begun = time.perf_counter()
    ray.get([ray.remote(lambda: None).remote() for _ in range(backend.cpus)])
    ready = time.perf_counter()
    backend.close()
    down = time.perf_counter()
    print(f"ray: import {imported - start:.1f}, init {begun - imported:.1f}, workers {ready - begun:.1f}, "
          f"shutdown {down - ready:.1f} s")  # fmt: skip
    report("ray, start and end together", down - start, 15)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-ray", action="store_true")
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "c.yaml").write_text(CONFIG)
        common = ["--config", f"{folder}/c.yaml", "--workspace", f"{folder}/ws"]
        rounds, shards = options.rounds, options.shards
        report("regionclip --help", median(command("--help"), rounds), 0.7)
        report("regionclip status", median(command("status", *common), rounds), 0.7)
        report("regionclip run --dry-run", median(command("run", "--dry-run", *common), rounds), 0.7)
        plan = many_shards(folder, shards)
        report(f"plan over {shards} shard records", median(plan, rounds), 2)
        report(f"reading {shards} rolled-up records to resume", median(resume(folder), rounds), 5)
    if not options.skip_ray:
        bench_ray()


if __name__ == "__main__":
    main()
