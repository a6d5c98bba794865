"""The `import` command: published weights into our folders. Not a stage: no workspace is touched."""

from __future__ import annotations


def import_weights(file: str, out: str, names: str | None, model: str | None, kind: str | None) -> None:
    """Import `file` into the new folder `out` and print what became of its tensors; raises as `import_checkpoint`."""
    from regionclip_core.weights.importing import REPORT, import_checkpoint

    report = import_checkpoint(file, out, names=names, model=model, kind=kind)
    print(f"imported into {out}")
    print("\n".join(report.lines()))
    print(f"every tensor by name: {out}/{REPORT}")
