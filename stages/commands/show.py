"""Text for the terminal: the status table, and a look into one artifact."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import yaml_text
from regionclip_core.storage.fingerprints import SHORT
from regionclip_core.storage.folder import free_target, whole_or_nothing
from regionclip_core.storage.records import Folder, Manifest, read_records, read_shard_records, size
from regionclip_core.threads import set_usual_threads
from regionclip_core.training.error_budget import PARTLY, first_reasons

from ..engine.plan import PlanLine, latest_manifest
from .finished import finished, folder_of, undisturbed

SHOWN_ROWS = 5
SHOWN_CONCEPTS = 8


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def status_table(lines: Sequence[PlanLine], workspace: Folder) -> str:
    """Return the state of every stage, and why.

    In brackets: numbers and place of the latest result, where that is not the one that the config asks for.
    """
    rows: list[tuple[str, ...]] = [("stage", "state", "rows", "size", "seconds", "why", "path")]
    brackets = ""
    for line in lines:
        state = f"{line.state} {line.done}/{line.total}" if line.state == "partial" and line.total else line.state
        cells, path = ["", "", ""], line.path or ""
        if (totals := line.totals) is not None:
            least = ">= " if totals.missing else ""
            cells = [f"{least}{totals.rows}", f"{least}{size(totals.bytes)}", f"{least}{totals.seconds:.1f}"]
        if line.manifest is None and line.so_far is None and line.previous is not None:
            cells = [f"({cell})" for cell in cells]
            path = f"({_artifact(line.stage, line.previous, workspace).url})"
            brackets = "\n(...): of the latest result, which is not the one that this config asks for"
        rows.append((line.name, state, *cells, line.reason, path))
    return table(rows) + brackets


def _artifact(stage: str, manifest: Manifest, workspace: Folder) -> Folder:
    return workspace.child(stage).child(manifest.fingerprint[:SHORT])


def plan_table(lines: Sequence[PlanLine], forced: Collection[str] = ()) -> str:
    """Return what a run would do, and why; `forced` are the stages whose results it throws away first."""
    rows = [("stage", "action", "why", "path")]
    again: dict[str | None, str] = {}
    """By path, the names of stages that run, and of what is up to date only if these come out as they were."""
    for line in lines:
        action, why = line.action, line.reason
        depends = [again[path] for path in line.upstream.values() if path in again]
        if line.name in forced:
            was = f"{line.state}, {line.reason}" if line.path is not None else line.reason
            action, why = "run", f"--force throws away what is there ({was})"
        elif action == "skip" and depends:
            why = f"up to date, if {', '.join(depends)} come{'s' * (len(depends) == 1)} out as before; else run"
        if line.name in forced or (action == "skip" and depends):
            again[line.path] = line.name
        rows.append((line.name, action, why, line.path or "(known after what it needs)"))
    return table(rows)


def status_json(lines: Sequence[PlanLine]) -> list[dict[str, Any]]:
    """Return the status for programs."""
    keys = ("name", "stage", "round", "state", "action", "reason", "fingerprint", "path", "done", "total", "settings")
    parts = ("manifest", "so_far", "previous")
    return [
        {key: getattr(line, key) for key in (*keys, "inputs", "raw_inputs")}
        | {key: asdict(part) if (part := getattr(line, key)) else None for key in parts}
        for line in lines
    ]


def show_stage(line: PlanLine, workspace: Folder) -> str:
    """Return a stage's current artifact, whole or as far as it got, else its latest: what it is, files, first rows.

    Raises ValueError when nothing of the stage is there.
    """
    import pyarrow.parquet as pq  # `status` needs neither

    manifest, note = line.manifest, ""
    begun = line.path is not None and line.state in ("failed", "partial")
    if manifest is None:
        manifest = None if begun else latest_manifest(workspace.child(line.stage), line.round)
        note = f"not {'finished' if begun else 'the current one'}: {line.state}, {line.reason}\n"
    blocks: dict[str, Any]
    if manifest is not None:
        folder = _artifact(line.stage, manifest, workspace)
        overview = ("version", "fingerprint", "content_digest", "shards", "rows", "counts")
        blocks = {
            manifest.stage: {key: getattr(manifest, key) for key in overview},
            "settings": manifest.settings,
            "inputs": manifest.inputs | manifest.raw_inputs,
            "provenance": manifest.provenance,
            "summary": {key: value for key, value in manifest.summary.items() if key != "by_score"},  # 40 numbers
        }
        shards, stage_files = read_records(folder)
    elif begun:
        folder, stage_files = Folder(str(line.path)), []
        shards = read_shard_records(folder, line.listing.done if line.listing else (), damaged=[])
        counts = sum((Counter(record.counts) for record in shards), Counter[str]())
        blocks = {
            line.stage: {"shards": len(shards), "rows": sum(r.rows for r in shards), "counts": dict(counts)},
            "tracebacks": [folder.path(name) for name in folder.names("failed")],
            "settings": line.settings,
        }
    else:
        raise ValueError(
            f"{line.name} has no finished result in {workspace.url}: {line.state}, {line.reason}. Run "
            f"`regionclip run {line.name}` with the same config first"
        )
    sections = [f"{folder.url}\n{note}".rstrip()]
    for title, value in blocks.items():
        text = yaml_text(value).rstrip()
        sections.append(f"{title}\n" + "\n".join(f"  {row}" for row in text.splitlines()))
    if line.stage == "concepts" and manifest is not None:
        from regionclip_core.pretraining.named_sections import pool_sections

        sections += [section_text(*one) for one in pool_sections(folder)]
    if line.stage == "labels":
        from regionclip_core.pretraining.named_sections import label_sections

        sections += [section_text(*one) for one in label_sections(folder, [record.shard for record in shards])]
        sections += _concepts(folder)
    if first := first_reasons(folder, shards, "bad_", PARTLY):
        sections.append(f"the first that are bad or lost a part\n  {first}")
    files = [f for record in shards for f in record.files] + stage_files
    shown = [("file", "size", "sha256")] + [(f.name, size(f.bytes), f.sha256[:12]) for f in files[:10]]
    more = f"\n... and {len(files) - 10} more" if len(files) > 10 else ""
    sections.append(f"{len(files)} files, {size(sum(f.bytes for f in files))}\n{table(shown)}{more}")
    # The merged table if there is one (a stage's own files come last), else a shard's.
    names = [f.name for f in files if f.name.endswith(".parquet")]
    opened = dict.fromkeys(names[-1:])
    if line.stage == "labels":  # whose own file has the rows of `labels.source` that could not be used
        opened = dict.fromkeys([name for name in names if name.startswith("labels-")][-1:] + names[-1:])
    for name in opened:
        with folder.open(name) as stream, pq.ParquetFile(stream) as file:
            batch = next(file.iter_batches(batch_size=SHOWN_ROWS), None)
            rows = batch.to_pylist() if batch is not None else []
            found = [f"{name}: {file.metadata.num_rows} rows; the first {len(rows)}"]
        for row in rows:
            cells = [(key, str(value)) for key, value in row.items()]
            found += [f"  {key}: {text if len(text) <= 100 else f'{text[:97]}...'}" for key, text in cells] + ["  --"]
        sections.append("\n".join(found))
    return "\n\n".join(sections)


def look_closer(config: Config, against: str | None, concept: str | None) -> str:
    """Return what differs between the run's pool and the one at `against`, or what the labels of one concept are.

    Args:
        against: an artifact of the stage `concepts`, or a workspace, of which the newest one is taken.

    Raises:
        ValueError: the run's stage is not finished, or there is no such pool or concept.
    """
    from regionclip_core.pretraining.named_sections import label_sections, pool_difference

    stage = "concepts" if against is not None else "labels"
    line = finished(config, [stage], purpose=f"this look into {stage}")[stage]
    with undisturbed([line]):
        folder = folder_of(line)
        if against is None:
            sections = label_sections(folder, [record.shard for record in read_records(folder)[0]], concept)
        else:
            other = Folder(against)
            if not other.exists("concepts.parquet"):
                done = latest_manifest(other.child("concepts"), 1)
                if done is None:
                    raise ValueError(
                        f"--against {against}: no pool there; expected a workspace with a finished stage concepts, or "
                        "the folder of its artifact (`path` of `regionclip status`)"
                    )
                other = _artifact("concepts", done, Folder(against))
            sections = pool_difference(folder, other)
    return "\n\n".join(section_text(*section) for section in sections)


def write_pictures(config: Config, concept: str, out: str, most: int) -> None:
    """Write pictures of the regions that are labelled with a concept, and labels.csv, into the new folder `out`.

    The kept ones with the highest scores, these first in the names of the files; at most `most`.

    Raises:
        ValueError: if the pool has no such concept, or no region is labelled with it.
    """
    target = free_target(out)
    lines = finished(config, ["data", "labels"], purpose="show labels --pictures")
    set_usual_threads()  # before torch is imported
    import torch

    from regionclip_core.datasets.images import ImageReader
    from regionclip_core.datasets.index import IndexRow, read_index, split_shards, splits_of_shards
    from regionclip_core.detection.drawing import draw
    from regionclip_core.detection.inference import Detections
    from regionclip_core.pretraining.corrected_exports import LIST, LIST_COLUMNS
    from regionclip_core.pretraining.corrections import box_text
    from regionclip_core.pretraining.kept_labels import best_regions, concept_number, file_name, pool_names

    data, labels = folder_of(lines["data"]), folder_of(lines["labels"])
    with undisturbed(lines.values()):
        names = pool_names(labels)
        found = best_regions(labels, split_shards(data, config.labels.splits), concept_number(names, concept), most)
        if not found:
            raise ValueError(f"no kept label is {concept!r}; `regionclip show labels` has the concepts that are")
        split_of, images = splits_of_shards(data), dict[int, Mapping[int, IndexRow]]()
        for shard in {one.shard for one in found}:
            wanted = {one.row for one in found if one.shard == shard}
            images[shard] = {row: image for row, image in enumerate(read_index(data, shard)) if row in wanted}
        with whole_or_nothing(target) as folder, ImageReader(data) as reader:
            place = Path(folder.url)
            with (place / LIST).open("w", encoding="utf-8", newline="") as listed:
                rows = csv.writer(listed, lineterminator="\n")
                rows.writerow(LIST_COLUMNS)
                for number, one in enumerate(found, start=1):
                    image = images[one.shard][one.row]
                    score, zero = torch.tensor([one.score]), torch.zeros(1, dtype=torch.int64)
                    region = Detections(torch.tensor([one.box]), score, zero, zero)
                    picture = f"{file_name(number, image.key)}.png"
                    draw(reader.read(image), region, [concept], 0).save(place / picture)
                    own = (box_text(one.box), concept, f"{one.score:.6f}", split_of[one.shard], picture)
                    rows.writerow((image.key, *own))
    print(f"{len(found)} pictures of {concept!r}, highest scores first, and {LIST} in {out}")


def section_text(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a title and, indented, a table."""
    return "\n".join([title, *(f"  {one}" for one in (table(rows).splitlines() if rows else ()))])


def _concepts(labels: Folder) -> list[str]:
    """Return the first and the last lines of the table of concepts; nothing where nothing is annotated."""
    from regionclip_core.pretraining.concept_truth import best_and_worst, truth_folder  # `status` needs no Arrow

    best, worst = best_and_worst(labels, SHOWN_CONCEPTS)
    if not best:
        return []
    rows = [("concept", "kept", "clean", "wrong name", "mostly on", "loose", "off object")]
    for row in [*best, *reversed(worst)]:
        mostly = f"{row['mostly_on']} {row['mostly_on_count']}" if row["mostly_on"] else ""
        counts = [str(row[key]) for key in ("kept", "clean", "wrong_name", "loose", "off_object")]
        rows.append((row["concept"], *counts[:3], mostly, *counts[3:]))
    lines = table(rows).splitlines()
    if worst:
        lines.insert(1 + len(best), "...")
    where = truth_folder(labels).path("concepts.parquet")
    return [
        "\n".join([f"kept labels by concept, most clean ones first (all: {where})", *(f"  {one}" for one in lines)])
    ]
