"""Large inputs for bench_scale.py: phrase counts for the merge of `concepts`, and a folder split's caption file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., dict[str, float]]


# ---------------------------------------------------------------- the merge of concepts


def write_phrases(folder: str, shards: int) -> None:
    """Write many shards' counts, as `concepts` keeps them: 5,000 of 100,000 common phrases, 5,000 in no other shard."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from regionclip_core.storage.records import Folder
    from regionclip_core.storage.tables import PHRASES

    rng, count, out = np.random.default_rng(0), 10_000, Folder(folder)
    for shard in range(shards):
        common = np.unique((100_000 ** rng.random(count)).astype(np.int64))[: count // 2]
        names = [f"common phrase {n}" for n in common] + [f"rare {shard} {n}" for n in range(count - len(common))]
        seen = np.concatenate([rng.integers(1, 20, len(common)), np.ones(count - len(common), np.int64)])
        columns = {
            "phrase": names,
            "head": [name.split()[0] for name in names],
            "n_words": np.full(count, 2, np.int32),
            "n_captions": seen,
            "n_images": seen,
            "n_mentions": seen,
            "surface_forms": [[name, f"{name}s"] for name in names],
            "surface_counts": np.stack([seen, seen], axis=1).tolist(),
            "drop_reason": [None, "abstract"] * (count // 2),
            "example": [f"a photo of a {name} beside a lake in the mountains" for name in names],
        }
        with out.write(f"phrases-{shard:05d}.parquet") as file:
            pq.write_table(pa.table(columns, schema=PHRASES), file, compression="zstd")


def merge_phrases(folder: str, min_count: int) -> None:
    """Merge them as the stage does."""
    import pyarrow.parquet as pq

    from regionclip_core.concepts.pool import build_pool
    from regionclip_core.config.tree import ConceptsConfig
    from regionclip_core.storage.records import Folder

    counts = Folder(folder)
    out = counts.child("merged")
    tables = (pq.read_table(counts.path(name)) for name in counts.names())
    config = ConceptsConfig(splits=("train",), min_count=min_count)
    with out.write("dropped.parquet") as file:
        pool, dropped = build_pool(tables, config, file)
    print(f"{len(pool)} concepts, {dropped} dropped")


def bench_concepts(run: Run, folder: str, shards: int, times: int) -> None:
    """Print the merge's seconds and memory; `run` measures a task in a process of its own."""
    for count in (shards, shards * times):
        run("write_phrases", folder=f"{folder}/phrases-{count}", shards=count)
        found = run("merge_phrases", folder=f"{folder}/phrases-{count}", min_count=100)
        print(
            f"merge of concepts, {count} shards of 10,000 phrases: peak {found['peak']:.0f}, own {found['own']:.0f} "
            f"MiB, {found['seconds']:.1f} s",
            flush=True,
        )


# ---------------------------------------------------------------- the caption file of a folder


def write_captions(path: str, rows: int) -> None:
    """Write a .tsv with one caption per row; in every tenth row the image is one that had a caption before."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("file\tcaption\n")
        for row in range(rows):
            image = row // 2 if row % 10 == 9 else row
            file.write(
                f"{image % 1000:05d}/{image:09d}.jpg\ta photo of a dog beside a lake in the mountains, no. {row}\n"
            )


def _caption_source(path: str, scratch: str) -> Any:
    from regionclip_core.config.tree import FolderSplit
    from regionclip_core.datasets.folder_source import FolderSource
    from regionclip_core.storage.folder import Folder

    return FolderSource("train", FolderSplit(source="folder", images=".", captions=path), Folder(scratch))


def scan_captions(path: str, scratch: str) -> None:
    """Count the images and keep their rows by shard, as the driver does."""
    assert _caption_source(path, scratch).pieces(10_000)


def read_captions(path: str, scratch: str) -> None:
    """Read a shard of 10,000 images near the end of the file, as a worker does."""
    source = _caption_source(path, scratch)
    assert sum(1 for _ in source._documents(source.pieces(10_000)[-2])) == 10_000


def bench_captions(run: Run, folder: str, rows: int, times: int) -> None:
    """Print seconds and memory of both; `run` measures a task in a process of its own."""
    for count in (rows, rows * times):
        where = {"path": f"{folder}/{count}.tsv", "scratch": f"{folder}/captions-{count}"}
        run("write_captions", path=where["path"], rows=count)
        for what, task in (("scanned", "scan_captions"), ("10,000 images read", "read_captions")):
            found = run(task, **where)
            print(
                f"caption file of {count:,} rows, {what}: peak {found['peak']:.0f}, own {found['own']:.0f} MiB, "
                f"{found['seconds']:.1f} s",
                flush=True,
            )


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (write_phrases, merge_phrases, write_captions, scan_captions, read_captions)
}
