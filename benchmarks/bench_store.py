"""The driver over 40,000 shard records in object storage: seconds and requests, at 100 ms per request.

    python benchmarks/bench_store.py [--delay 0.1]

The store is slow_store.py's, in this process; what is measured runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_scale import LEFT, RECORDS, in_process, planner, write_shards
from slow_store import Store, slow_store


def line(store: Store, what: str, task: str, **arguments: Any) -> None:
    """Measure a task and print it."""
    store.requests.clear()
    found = in_process(task, **arguments)
    asked = ", ".join(f"{count} {kind}" for kind, count in sorted(store.requests.items()))
    print(f"{what:<58} {found['seconds']:8.2f} s   {asked}", flush=True)


def bench(store: Store) -> None:
    """Print the driver's times."""
    from regionclip_core.storage.records import Folder

    line(store, "plan of an empty workspace (start of the process)", "plan", workspace="s3://bucket/empty")
    workspace = "s3://bucket/unfinished"
    artifact = Folder(str(planner(workspace).lines()[0].path))
    prefix = artifact.url.removeprefix("s3://bucket/")
    delay, store.delay = store.delay, 0.0
    write_shards(artifact, lambda name, data: store.put(f"{prefix}/{name}", data), RECORDS - 1, RECORDS - LEFT)
    for shard in range(RECORDS - 1):
        store.put(f"{prefix}/index-{shard:05d}.parquet", b"")
        store.put(f"{prefix}/images-{shard:05d}.tar", b"")
    store.delay = delay
    line(store, f"plan, {LEFT} records not rolled up", "plan", workspace=workspace)
    line(store, "regionclip status", "status", workspace=workspace)
    line(store, "a run of the rest, but for the workers' part", "drive", workspace=workspace)
    line(store, "regionclip status of the finished stage", "status", workspace=workspace)
    line(store, "a run with nothing to do", "drive", workspace=workspace)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds before each answer  [default: 0.1]")
    options = parser.parse_args()
    with slow_store(options.delay) as (store, url):
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(keys, AWS_ENDPOINT_URL=url)
        print(f"the driver over {RECORDS} shards in object storage, {1000 * options.delay:g} ms per request")
        bench(store)


if __name__ == "__main__":
    main()
