"""Finds the two runs that `compare` puts side by side: each by its evaluation, which names what it was made from."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from regionclip_core.config.loading import load_config, parse_config
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.report.comparison import Comparison, Side, build_comparison_page, compare
from regionclip_core.storage.fingerprints import SHORT
from regionclip_core.storage.records import MANIFEST, Folder, Manifest, read_manifest

from ...declarations import STAGES
from ...engine.plan import latest_manifest
from ..finished import finished, folder_of
from ..gc import ABLATION
from ..verify import artifacts

_CELL = re.compile(rf"(?P<file>.*{re.escape(ABLATION)})(:(?P<variant>[^:]+))?(:(?P<seed>\d+))?")
WHAT = (
    "a workspace, an artifact of evaluate (WORKSPACE/evaluate/...), a config file (.yaml), or a cell of an ablation "
    f"(NAME{ABLATION}:VARIANT:SEED)"
)


def compare_runs(a: str, b: str, out: str | None) -> Comparison:
    """Return two runs side by side; with `out`, write the page with pictures there.

    Raises ValueError for what is no finished run, and for an `out` that is no HTML file.
    """
    if out is not None and not out.endswith((".html", ".htm")):
        raise ValueError(f"--out: expected a file that ends in .html (came: {out!r})")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise ValueError(f"--out: {Path(out).parent} is no folder; make it first, or give another file")
    found = compare(find_run(a), find_run(b), pictures=out is not None)
    if out is not None:
        Path(out).write_text(build_comparison_page(found), encoding="utf-8")
    return found


def find_run(given: str) -> Side:
    """Return the run that a text on the command line means: one of WHAT, or else ValueError."""
    if (cell := _CELL.fullmatch(given)) is not None:
        return _cell(given, cell["file"], cell["variant"], cell["seed"])
    if given.endswith((".yaml", ".yml")):
        line = finished(load_config(given), ["evaluate"], purpose=f"comparing {given}")["evaluate"]
        return side_of(folder_of(line), given)
    if Path(given).is_file():
        raise ValueError(f"{given}: expected {WHAT}, but it is a file")
    folder = Folder(given.rstrip("/") or given)
    if folder.exists(MANIFEST):
        return side_of(folder, given)
    latest = latest_manifest(folder.child("evaluate"), 1)
    if latest is None:
        raise ValueError(
            f"{given}: expected {WHAT}, but there is no finished evaluation; run `regionclip run evaluate` in that "
            "workspace first"
        )
    return side_of(folder.child("evaluate").child(latest.fingerprint[:SHORT]), given)


def _cell(given: str, file: str, variant: str | None, seed: str | None) -> Side:
    """Return the run of one cell of an ablation; what is not named is chosen where there is only one."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {file}; expected {WHAT}")
    cells = Folder(str(path.parent)).read_json(path.name)["cells"]
    variants = list(dict.fromkeys(str(one["variant"]) for one in cells))
    if variant is not None and variant not in variants:
        raise ValueError(
            f"{file}: no variant {variant!r}; variants: {', '.join(variants)}{nearest_hint(variant, variants)}"
        )
    chosen = [one for one in cells if variant in (None, one["variant"]) and seed in (None, str(one["seed"]))]
    if len(chosen) != 1:
        every = ", ".join(f"{one['variant']}:{one['seed']}" for one in cells)
        raise ValueError(f"{given}: expected one cell of the ablation, as {file}:VARIANT:SEED; its cells: {every}")
    name = f"{chosen[0]['variant']}, seed {chosen[0]['seed']}"
    config = parse_config(parse_yaml(chosen[0]["config"], file), file)
    config = config.model_copy(update={"workspace": str(path.parent)})  # where the file is, so also after a move
    line = finished(config, ["evaluate"], purpose=f"comparing {name} of {file}")["evaluate"]
    return side_of(folder_of(line), name)


def side_of(evaluate: Folder, name: str) -> Side:
    """Return an evaluation with all artifacts that it was made from, as far as the workspace still has them.

    A manifest names its inputs by their content. Where several artifacts have the same content, the latest is taken.

    Raises ValueError if the folder is no artifact of `evaluate`.
    """
    manifest = read_manifest(evaluate)
    if manifest is None or manifest.stage != "evaluate":
        what = "nothing finished" if manifest is None else f"an artifact of {manifest.stage}"
        raise ValueError(f"{name}: expected {WHAT}, but it is {what}")
    workspace = Folder(evaluate.url.rstrip("/").rsplit("/", 2)[0])
    known: dict[tuple[str, str], tuple[Folder, Manifest]] = {}
    for stage, folder in artifacts(workspace):
        if (one := read_manifest(folder)) is not None:
            earlier = known.get((stage, one.content_digest))
            if earlier is None or _finished(earlier[1]) < _finished(one):
                known[stage, one.content_digest] = folder, one
    folders, manifests = {"evaluate": evaluate}, {"evaluate": manifest}
    todo, seen = deque([manifest]), set[tuple[str, str]]()
    while todo:  # breadth first: the last round's stages come before those that their student was made from
        for need, digest in todo.popleft().inputs.items():
            stage = "pretrain" if need == "student" else need
            if (stage, digest) not in known or (stage, digest) in seen:
                continue
            seen.add((stage, digest))
            folder, made_from = known[stage, digest]
            key = f"{stage}@{made_from.provenance.get('round', 1)}" if stage in manifests else stage
            folders[key], manifests[key] = folder, made_from
            todo.append(made_from)
    order = {stage: place for place, stage in enumerate(STAGES)}
    names = sorted(manifests, key=lambda key: (order[key.split("@")[0]], key))
    return Side(name, {key: folders[key] for key in names}, {key: manifests[key] for key in names})


def _finished(manifest: Manifest) -> str:
    return str(manifest.provenance.get("finished", ""))
