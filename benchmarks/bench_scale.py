"""What grows with the number of shards: the driver's time over 40,000 records, and the memory of every stage.

    python benchmarks/bench_scale.py [driver] [stages] [rows] [concepts] [captions] [evaluation]
                                     [--shards 4] [--shard-size 50] [--times 10]

driver: plan, status and resume of a stage with 40,000 shards (400 million pairs at 10,000 per shard); wall seconds, and
    the peak memory of the process.
stages: peak memory of each stage at `shards` and at `times` as many shards per split, on the embedded world with tiny
    images and untrained models; trainings take two steps.
rows: peak memory of `finetune`'s rows and proposals alone, with COCO's number of boxes and 300 proposals per image.
concepts: seconds and peak memory of the merge of `concepts` alone, at forty times `shards` shards of 10,000 phrases
    and at `times` as many; half of a shard's phrases are in no other.
captions: seconds and peak memory of counting the images of a caption file with 400,000 times `shards` captions, and of
    reading one shard.
evaluation: seconds and peak memory of average precision alone, without a model, of 1,000 times `shards` images and of
    `times` as many, with COCO's number of categories, 7 objects and 100 detections per image, a quarter of them of one
    category.

Every measurement is a process of its own. `peak` is the resident set at its highest (VmHWM); `own` leaves out mapped
files, whose pages the kernel may drop (the highest RssAnon of those read every 10 ms).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import scale_inputs  # noqa: E402 (beside this file)

PARTS = ("driver", "stages", "rows", "concepts", "captions", "evaluation")
RECORDS = 40_000
LEFT = 200
"""Records not rolled up, in the resume."""
STEPS = {"steps": 2, "batch_size": 4, "image_size": 64, "checkpoint_every": 2}
OPTIM = {"steps": 2, "batch_size": 4}
MIB = 2**20


# ---------------------------------------------------------------- measuring a process


def status(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measured(call: Callable[[], object]) -> dict[str, float]:
    """Wall seconds of a call, and the memory of this process, in MiB."""
    own, ended = [status("RssAnon")], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            own.append(status("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return {"seconds": seconds, "peak": status("VmHWM") / MIB, "own": max(own) / MIB}


def in_process(task: str, **arguments: Any) -> dict[str, float]:
    """The measurement of a task of this file in a process of its own."""
    line = [sys.executable, __file__, "--task", json.dumps({"task": task, **arguments})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} {arguments}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---------------------------------------------------------------- the driver over many records


def driver_config(workspace: str) -> Any:
    """A config whose `data` stage has as many shards as there are records."""
    from regionclip_core.config.loading import parse_config

    return parse_config(
        {
            "workspace": workspace,
            "execution": {"backend": "local"},
            "data": {"shard_size": 10_000, "splits": {"train": {"source": "world", "images": 10_000 * RECORDS}}},
            "concepts": {"splits": ["train"]},
            "teacher": {"weights": "random"},
            "proposals": {"splits": ["train"]},
            "labels": {"splits": ["train"]},
            "evaluate": {"split": "train"},
        }
    )


def record(shard: int) -> Any:
    """A record of a realistic size."""
    from regionclip_core.storage.records import FileRecord, ShardRecord

    files = [FileRecord(f"index-{shard:05d}.parquet", 1_234_567, f"{shard:064x}")]
    return ShardRecord(shard, 10_000, {"ok": 9_990, "bad_image": 10}, files, 12.345)


def write_shards(artifact: Any, put: Callable[[str, bytes], None], count: int, rolled: int) -> None:
    """`count` shard records in an artifact's folder, the first `rolled` of them rolled up."""
    from dataclasses import asdict

    from regionclip_core.storage.records import canonical_json, shard_record_name, write_plan, write_records

    write_plan(artifact, range(RECORDS))
    for shard in range(count):
        put(shard_record_name(shard), canonical_json(asdict(record(shard))))
    write_records(artifact, [record(shard) for shard in range(rolled)])


def planner(workspace: str) -> Any:
    """The planner of a driver's workspace."""
    from regionclip_core.storage.records import Folder
    from stages.engine.plan import Planner

    return Planner(driver_config(workspace), Folder(workspace))


def resume(artifact: str) -> None:
    """What a resumed run reads before its first shard."""
    from regionclip_core.storage.records import Folder, done_shards, read_shard_records

    folder = Folder(artifact)
    assert len(read_shard_records(folder, done_shards(folder.names()))) >= RECORDS - 1


class Instant:
    """A backend whose shards take no time: what is left is the driver's own work."""

    def process(self, task: Any, shards: Sequence[int]) -> Generator[Any, None, None]:
        """Yield a record for each."""
        for shard in shards:
            yield record(shard)

    def call(self, task: Any, call: str, watch: object = None) -> Any:
        """Name the shards; nothing to prepare and to merge."""
        from stages.engine.work import StageOutcome

        return list(range(RECORDS)) if call == "shards" else StageOutcome([], {})

    def close(self) -> None:
        """Do nothing."""


def drive(workspace: str) -> None:
    """A whole stage of 40,000 shards, or what is left of it, but for what the workers do."""
    from stages.engine import runner
    from stages.engine.progress import Reporter

    runner.LocalBackend = Instant  # type: ignore[assignment,misc]
    result = runner.Pipeline(driver_config(workspace), Reporter()).run(["data"])
    assert result.ok and result.outcomes.keys() == {"data"}, result.messages


def bench_driver(folder: str) -> None:
    """Print the driver's times."""
    print(f"{'the driver, over 40,000 shards':<58} {'seconds':>8} {'peak MiB':>9}")

    def line(what: str, task: str, **arguments: Any) -> None:
        found = in_process(task, **arguments)
        print(f"{what:<58} {found['seconds']:8.2f} {found['peak']:9.0f}", flush=True)

    line("plan of an empty workspace (start of the process)", "plan", workspace=f"{folder}/empty")
    for name, rolled in (("all rolled up", RECORDS), (f"{LEFT} not rolled up", RECORDS - LEFT), ("none rolled up", 0)):
        workspace = f"{folder}/{name.replace(' ', '-')}"
        artifact = planner(workspace).workspace.__class__(str(planner(workspace).lines()[0].path))
        write_shards(artifact, lambda n, data, at=artifact.url: Path(at, n).write_bytes(data), RECORDS - 1, rolled)
        if rolled == RECORDS:
            line(f"plan, {name}", "plan", workspace=workspace)
            line(f"regionclip status, {name}", "status", workspace=workspace)
        line(f"reading the records to resume, {name}", "resume", artifact=artifact.url)
    line("a run of all shards, but for the workers' part", "drive", workspace=f"{folder}/drive")
    line("regionclip status of the finished stage", "status", workspace=f"{folder}/drive")


# ---------------------------------------------------------------- memory of each stage


def stage_tree(workspace: str, images: int, shard_size: int) -> dict[str, Any]:
    """A config that goes through every stage with tiny images."""
    architecture = {
        "embed_dim": 16, "image_size": 32, "vision_width": 8, "text_width": 16, "text_heads": 2, "context_length": 16,
    }  # fmt: skip
    splits = {name: {"source": "world", "images": images, "image_size": 80} for name in ("train", "val")}
    return {
        "workspace": workspace,
        "seed": 3,
        "execution": {"backend": "local", "threads": 1},
        "data": {"shard_size": shard_size, "splits": splits},
        "concepts": {"splits": ["train"], "min_count": 1, "parser": "rules"},
        "teacher": {
            "architecture": architecture,
            "prompts": "single",
            "training": {"splits": ["train"], "checkpoint_every": 2, **OPTIM},
        },
        "rpn": {"width": 4, "image_size": 64, "anchor_sizes": [8, 16], **OPTIM},
        "proposals": {"splits": ["train", "val"], "method": "rpn", "max_regions": 50},
        "labels": {"splits": ["train"], "image_size": 64, "threshold": 0.0, "max_regions": 8, "top_k": 3},
        "pretrain": {**STEPS, "regions_per_image": 3},
        "finetune": {**STEPS, "regions_per_image": 8},
        "evaluate": {"split": "val", "image_size": 64, "batch_size": 8},
        "report": {"images": 1},
    }


def run_stage(workspace: str, stage: str, images: int, shard_size: int) -> None:
    """One stage in this process; what it needs is done."""
    from regionclip_core.config.loading import parse_config
    from stages.engine.progress import Reporter
    from stages.engine.runner import Pipeline

    result = Pipeline(parse_config(stage_tree(workspace, images, shard_size)), Reporter()).run([stage])
    assert result.outcomes[stage] == "done", result.messages


def bench_stages(folder: str, shards: int, shard_size: int, times: int) -> None:
    """Print a table: peak memory of each stage at few and at many shards."""
    from regionclip_core.config.tree import STAGE_NAMES

    few, many = shards, shards * times
    print(
        f"{'stage':<10} {f'{few} shards: peak':>18} {'own':>6} {f'{many} shards: peak':>20} {'own':>6} MiB   ratio, own"
    )
    for stage in STAGE_NAMES:
        one, other = (
            in_process(
                "stage", workspace=f"{folder}/{n}", stage=stage, images=n * shard_size, shard_size=shard_size
            )
            for n in (few, many)
        )  # fmt: skip
        print(
            f"{stage:<10} {one['peak']:18.0f} {one['own']:6.0f} {other['peak']:20.0f} {other['own']:6.0f} "
            f"{other['own'] / one['own']:14.2f}   ({one['seconds']:.0f} and {other['seconds']:.0f} s)",
            flush=True,
        )


# ---------------------------------------------------------------- the rows of a training


def write_rows(folder: str, shards: int, shard_size: int, proposals: int) -> None:
    """A data and a proposals artifact of one split, without any image."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from regionclip_core.datasets.index import IndexRow, index_name, ragged_column, write_index
    from regionclip_core.datasets.vocabulary import Vocabulary
    from regionclip_core.storage.records import Folder
    from regionclip_core.storage.tables import PROPOSALS

    vocabulary, rng = Vocabulary(tuple(f"class {n}" for n in range(80))), np.random.default_rng(0)
    data, proposed = Folder(f"{folder}/data"), Folder(f"{folder}/proposals")
    data.write_json("categories.json", vocabulary.to_json())
    data.write_json("splits.json", {"train": {"shards": list(range(shards)), "images": shards * shard_size}})
    for shard in range(shards):
        keys = [f"train/{shard * shard_size + n:012d}" for n in range(shard_size)]
        rows = [
            IndexRow(
                key, n, f"/images/{key}.jpg", 0, -1, 640, 480,
                captions=["a man on a wave on top of a surfboard"] * 5,
                boxes=rng.uniform(0, 400, (7, 4)).astype(np.float32),
                box_labels=rng.integers(0, 80, 7).astype(np.int32),
                box_crowd=np.zeros(7, np.bool_),
                box_area=np.ones(7, np.float32),
            )
            for n, key in enumerate(keys)
        ]  # fmt: skip
        with data.write(index_name(shard)) as file:
            write_index(file, rows, vocabulary.digest)
        boxes = [rng.uniform(0, 400, (proposals, 4)).astype(np.float32) for _ in keys]
        columns = {
            "key": keys,
            "status": ["ok"] * shard_size,
            "reason": [None] * shard_size,
            "boxes": ragged_column(boxes, PROPOSALS.field("boxes").type),
            "objectness_logit": ragged_column(
                [np.zeros(proposals, np.float32)] * shard_size,
                PROPOSALS.field("objectness_logit").type,
            ),
        }
        with proposed.write(f"proposals-{shard:05d}.parquet") as file:
            pq.write_table(pa.table(columns, schema=PROPOSALS), file)


def draw_rows(folder: str) -> None:
    """What finetune does with its rows: read the split, compute repeat factors, draw 2,000 images."""
    from regionclip_core.storage.records import Folder
    from regionclip_core.training.boxed_images import boxed_images
    from regionclip_core.training.sampling import RepeatOrder, repeat_factors

    images = boxed_images(Folder(f"{folder}/data"), "train", range(80), False, Folder(f"{folder}/proposals"))
    order = RepeatOrder(repeat_factors(images.labels, 0.5), 0)
    assert all(len(images[order[position]].extra) for position in range(2000))


def sum_recall(folder: str) -> None:
    """The merge of proposals."""
    from regionclip_core.proposals.recall import recall_of_splits
    from regionclip_core.storage.records import Folder

    assert recall_of_splits(Folder(f"{folder}/data"), Folder(f"{folder}/proposals"), ("train",))


def bench_rows(folder: str, shards: int, shard_size: int, times: int) -> None:
    """Print the memory of finetune's rows, and of the recall."""
    for count in (shards, shards * times):
        in_process("write_rows", folder=f"{folder}/rows-{count}", shards=count, shard_size=shard_size, proposals=300)
        for what, task in (("finetune's rows", "draw_rows"), ("recall of proposals", "sum_recall")):
            found = in_process(task, folder=f"{folder}/rows-{count}")
            print(
                f"{what}, {count} shards of {shard_size} images: peak {found['peak']:.0f}, own {found['own']:.0f} MiB, "
                f"{found['seconds']:.1f} s",
                flush=True,
            )


# ---------------------------------------------------------------- average precision


def scored_image(number: int) -> tuple[Any, Any]:
    """An image of COCO's kind: 7 objects, and 100 detections near them and anywhere."""
    import numpy as np

    from regionclip_core.evaluation.image_boxes import ImageDetections, ImageTruth, xywh

    rng = np.random.default_rng(number)
    corners, sides = rng.uniform(0, 400, (93, 2)), np.exp(rng.uniform(2, 5.5, (93, 2)))
    boxes = np.concatenate((corners, corners + sides), axis=1)
    labels = rng.choice(80, 93, p=np.array([0.25, *[0.75 / 79] * 79]))
    found = np.concatenate((boxes[:7], boxes + rng.uniform(0, 3, (93, 4))))
    scores = rng.random(100).astype(np.float32).astype(np.float64)
    area = np.prod(sides[:7], axis=1)
    return (
        ImageTruth(number, 640, 640, boxes[:7], labels[:7], area=area),
        ImageDetections(number, xywh(found), scores, np.concatenate((labels[:7], labels))),
    )


def evaluate_boxes(images: int) -> None:
    """Average precision of random boxes near the objects and anywhere."""
    from regionclip_core.datasets.vocabulary import Vocabulary
    from regionclip_core.evaluation.average_precision import Evaluator
    from regionclip_core.evaluation.image_boxes import CategoryRows

    evaluator, detections = Evaluator(Vocabulary(tuple(f"class {n}" for n in range(80))), "coco"), CategoryRows()
    for number in range(images):
        evaluator.add_truth(scored_image(number)[0])
    for number in range(images):
        evaluator.add(detections, scored_image(number)[1])
    assert evaluator.evaluate(detections)["all"]["boxes"] == 7 * images


def bench_evaluation(shards: int, shard_size: int, times: int) -> None:
    """Print the memory of average precision at few and at many images."""
    for images in (shards * shard_size, shards * shard_size * times):
        found = in_process("evaluate_boxes", images=images)
        print(
            f"average precision of {images} images: peak {found['peak']:.0f}, own {found['own']:.0f} MiB, "
            f"{found['seconds']:.1f} s",
            flush=True,
        )


# ---------------------------------------------------------------- command line


def do(task: str, **arguments: Any) -> None:
    """A task of a measured process."""
    if task == "plan":
        planner(arguments["workspace"]).lines()
    elif task == "status":
        from stages.commands.show import status_table

        print(status_table((one := planner(arguments["workspace"])).lines(), one.workspace))
    else:
        tasks: dict[str, Callable[..., None]] = {
            "resume": resume,
            "drive": drive,
            "stage": run_stage,
            "write_rows": write_rows,
            "draw_rows": draw_rows,
            "sum_recall": sum_recall,
            **scale_inputs.TASKS,
            "evaluate_boxes": evaluate_boxes,
        }
        tasks[task](**arguments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if options.task:
        print(json.dumps(measured(lambda: do(**json.loads(options.task)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if "driver" in parts:
            bench_driver(folder)
        if "stages" in parts:
            bench_stages(folder, options.shards, options.shard_size, options.times)
        if "rows" in parts:
            bench_rows(folder, options.shards, 1000, options.times)
        if "concepts" in parts:
            scale_inputs.bench_concepts(in_process, folder, 40 * options.shards, options.times)
        if "captions" in parts:
            scale_inputs.bench_captions(in_process, folder, 400_000 * options.shards, options.times)
        if "evaluation" in parts:
            bench_evaluation(options.shards, 1000, options.times)


if __name__ == "__main__":
    main()
