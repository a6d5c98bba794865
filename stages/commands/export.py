"""The `export` command: models of a workspace, or of an imported folder, for other programs."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder, free_target, whole_or_nothing, writable_target
from regionclip_core.storage.given_files import clip_folder, clip_layout, is_model_folder
from regionclip_core.threads import set_usual_threads
from stages.commands.finished import finished, folder_of, undisturbed
from stages.commands.workspace_models import USEFUL, ZERO_SHOT, detector_stages, run_vocabulary, workspace_detector
from stages.engine.plan import PlanLine

FORMATS = {"student": ("open_clip", "official"), "teacher": ("open_clip",), "detector": ("detector", "official")}
"""What can be written of what; the first is the default."""


def export(what: str, source: Config | str, out: str, format: str | None, name: str | None) -> None:
    """Write `what` (of FORMATS) from `source`, the config of a workspace or a model's folder, to `out`; prints what.

    `name` chooses the workspace's detector. `out` is a folder that must not exist or be empty, or with the official
    format a file that must not exist; it appears whole or not at all.

    Raises:
        ValueError: if there is no such model or format, or the model has no place in the format.
    """
    if what not in FORMATS:
        raise ValueError(f"export {what}: expected one of {', '.join(FORMATS)}, labels")
    format = format or FORMATS[what][0]
    if format not in FORMATS[what]:
        raise ValueError(f"--format {format}: a {what} can be exported as {' or '.join(FORMATS[what])}")
    if name is not None and what != "detector":
        raise ValueError(f"--name {name} is of detectors, and this exports the {what}: leave it out")
    name = name or "regionclip"
    target, file = None, Path(out)
    if format != "official":
        if file.suffix in (".pth", ".pt", ".safetensors"):
            raise ValueError(f"--out {out}: {format} is a folder; name one, or take --format official, which is a file")
        target = free_target(out)
    elif file.suffix not in (".pth", ".pt") or file.exists():
        there = ", and this is there already" if file.exists() else ""
        raise ValueError(f"--out {out}: the official format is one new file, such as model.pth{there}")
    else:
        writable_target(str(file.parent))
    lines: dict[str, PlanLine] = {}
    if isinstance(source, str):
        _check_model(what, source, format)
    elif what == "detector":
        lines = detector_stages(source, name, "export")
    else:
        lines = finished(source, [ZERO_SHOT[what]], USEFUL, "export")
    set_usual_threads()  # before torch is imported
    if target is not None:
        with whole_or_nothing(target) as folder:
            _write(what, source, folder, name, lines)
        print(f"{what} in {out}: {', '.join(sorted(path.name for path in target.iterdir()))}")
        return
    from regionclip_core.weights.exporting import save_official

    if isinstance(source, str):
        count = save_official(Folder(source), file)
    else:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        # The way to official names starts from our folders.
        with tempfile.TemporaryDirectory(prefix=".tmp-export-", dir=file.absolute().parent) as temporary:
            _write(what, source, Folder(temporary), name, lines)
            count = save_official(Folder(temporary), file)
    print(f"{what} in {out}: {count} tensors under the official names")


def _check_model(what: str, source: str, format: str) -> None:
    """Raise ValueError if a folder given with --model has nothing to export as `what`."""
    if (what == "detector") != is_model_folder(Folder(source)):
        raise ValueError(f"--model {source} holds no {what}; say what it is: export student, or export detector")
    if format == "detector":
        raise ValueError(f"--model {source} is a detector folder already: copy it, or give --format official")
    if format == "open_clip" and not clip_layout(clip_folder(source, "student" if what == "student" else "teacher")):
        raise ValueError(f"--model {source} holds no CLIP model: expected open_clip_config.json or clip.json in it")


def _write(what: str, source: Config | str, folder: Folder, name: str, lines: dict[str, PlanLine]) -> None:
    from regionclip_core.detection.model_folder import save_model
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import NamePrompts, read_prompts
    from regionclip_core.weights.exporting import export_open_clip
    from regionclip_core.weights.model_card import RunFacts, clip_card, detector_card

    if isinstance(source, str):
        place = clip_folder(source, "student" if what == "student" else "teacher")
        given = load_clip(place)
        export_open_clip(folder, given, clip_card(given, what, None), read_prompts(place))
        return
    with undisturbed(lines.values()):
        made = {stage: asdict(line.manifest) for stage, line in lines.items() if line.manifest is not None}
        metrics = folder_of(lines["evaluate"]).read_json("metrics.json") if "evaluate" in lines else None
        facts = RunFacts(source, made, metrics, run_vocabulary(source, lines))
        clip = None if what == "detector" else load_clip(folder_of(lines[ZERO_SHOT[what]]))
    if clip is None:
        model = workspace_detector(source, name, lines)
        save_model(folder, model, str(detector_card(model, name, facts)))
    else:
        export_open_clip(folder, clip, clip_card(clip, what, facts), NamePrompts.from_config(source.teacher))
