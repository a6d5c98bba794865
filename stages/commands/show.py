"""Text for the terminal: the status table, and a look into one artifact."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from regionclip_core.config.yaml_text import yaml_text
from regionclip_core.storage.fingerprints import SHORT
from regionclip_core.storage.records import Folder, Manifest, read_records
from stages.engine.plan import PlanLine, latest_manifest

SHOWN_ROWS = 5


def size(n: float) -> str:
    """Bytes for a reader: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def status_table(lines: Sequence[PlanLine], workspace: Folder) -> str:
    """State of every stage, and why. In brackets: numbers and place of the latest result, which is not the current."""
    rows = [("stage", "state", "rows", "size", "seconds", "why", "path")]
    for line in lines:
        state = f"{line.state} {line.done}/{line.total}" if line.state == "partial" and line.total else line.state
        rows.append((line.stage, state, *_numbers(line), line.reason, _shown_path(line, workspace)))
    brackets = "\n(...): of the latest result, which is not the one that this config asks for"
    return table(rows) + (brackets if any(map(_shows_previous, lines)) else "")


def _shows_previous(line: PlanLine) -> bool:
    return line.manifest is None and line.so_far is None and line.previous is not None


def _numbers(line: PlanLine) -> tuple[str, str, str]:
    """Rows, bytes and seconds of what is there."""
    totals = line.totals
    if totals is None:
        return "", "", ""
    least = ">= " if totals.missing else ""
    cells = (f"{least}{totals.rows}", f"{least}{size(totals.bytes)}", f"{least}{totals.seconds:.1f}")
    return (f"({cells[0]})", f"({cells[1]})", f"({cells[2]})") if _shows_previous(line) else cells


def _shown_path(line: PlanLine, workspace: Folder) -> str:
    if _shows_previous(line) and line.previous is not None:
        return f"({_artifact(line.stage, line.previous, workspace).url})"
    return line.path or ""


def _artifact(stage: str, manifest: Manifest, workspace: Folder) -> Folder:
    return workspace.child(stage).child(manifest.fingerprint[:SHORT])


def plan_table(lines: Sequence[PlanLine], forced: Collection[str] = ()) -> str:
    """What a run would do, and why; `forced` are the stages whose results it throws away first."""
    rows = [("stage", "action", "why", "path")]
    again: set[str] = set()
    """Stages that run, and what is up to date only if these come out as they were."""
    for line in lines:
        action, why = line.action, line.reason
        depends = [stage for stage in line.inputs if stage in again]
        if line.stage in forced:
            was = f"{line.state}, {line.reason}" if line.path is not None else line.reason
            action, why = "run", f"--force throws away what is there ({was})"
        elif action == "skip" and depends:
            why = f"up to date, if {', '.join(depends)} come{'s' * (len(depends) == 1)} out as before; else run"
        if line.stage in forced or (action == "skip" and depends):
            again.add(line.stage)
        rows.append((line.stage, action, why, line.path or "(known after what it needs)"))
    return table(rows)


def status_json(lines: Sequence[PlanLine]) -> list[dict[str, Any]]:
    """The status for programs."""
    keys = ("stage", "state", "reason", "fingerprint", "path", "done", "total", "settings", "inputs", "raw_inputs")
    return [
        {key: getattr(line, key) for key in keys}
        | {"action": line.action}
        | {key: asdict(value) if value else None for key, value in _parts(line).items()}
        for line in lines
    ]


def _parts(line: PlanLine) -> dict[str, Any]:
    return {"manifest": line.manifest, "so_far": line.so_far, "previous": line.previous}


def show_stage(line: PlanLine, workspace: Folder) -> str:
    """The manifest of a stage's current artifact (else its latest), its files, and the first rows of a table.

    Raises ValueError when the stage has no finished artifact.
    """
    manifest, note = line.manifest, ""
    if manifest is None:
        manifest = latest_manifest(workspace.child(line.stage))
        note = f"not the current one: {line.state}, {line.reason}\n"
    if manifest is None:
        raise ValueError(f"{line.stage} has no finished result in {workspace.url}: {line.state}, {line.reason}")
    folder = _artifact(line.stage, manifest, workspace)
    return f"{folder.url}\n{note}\n" + "\n\n".join(_sections(manifest, folder))


def _sections(manifest: Manifest, folder: Folder) -> list[str]:
    def block(title: str, value: Any) -> str:
        text = yaml_text(value).rstrip()
        return f"{title}\n" + "\n".join(f"  {row}" for row in text.splitlines())

    overview = {
        key: getattr(manifest, key) for key in ("version", "fingerprint", "content_digest", "shards", "rows", "counts")
    }
    shards, stage_files = read_records(folder)
    files = [f for record in shards for f in record.files] + stage_files
    shown = [("file", "size", "sha256")] + [(f.name, size(f.bytes), f.sha256[:12]) for f in files[:10]]
    more = f"\n... and {len(files) - 10} more" if len(files) > 10 else ""
    sections = [
        block(manifest.stage, overview),
        block("settings", manifest.settings),
        block("inputs", manifest.inputs | manifest.raw_inputs),
        block("provenance", manifest.provenance),
        block("summary", manifest.summary),
        f"{len(files)} files, {size(manifest.bytes)}\n{table(shown)}{more}",
    ]
    tables = [f.name for f in files if f.name.endswith(".parquet")]
    return sections + ([_first_rows(folder, tables[-1])] if tables else [])


def _first_rows(folder: Folder, name: str) -> str:
    """The merged table if there is one (stage files come last), else a shard's."""
    import pyarrow.parquet as pq

    with folder.open(name) as stream, pq.ParquetFile(stream) as file:
        batch = next(file.iter_batches(batch_size=SHOWN_ROWS), None)
        rows = batch.to_pylist() if batch is not None else []
        lines = [f"{name}: {file.metadata.num_rows} rows; the first {len(rows)}"]
    for row in rows:
        lines += [f"  {key}: {_cell(value)}" for key, value in row.items()] + ["  --"]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
