"""The `export` command: models of a workspace, or of an imported folder, for other programs."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionclip_core.config.tree import Config
from stages.commands.finished import finished, folder_of, undisturbed
from stages.engine.plan import PlanLine

if TYPE_CHECKING:
    from regionclip_core.models.clip import ClipModel
    from regionclip_core.models.text_embeddings import NamePrompts
    from regionclip_core.storage.folder import Folder
    from regionclip_core.weights.exporting import RunFacts

WHAT = ("student", "teacher", "detector")
FORMATS = {"student": ("open_clip", "official"), "teacher": ("open_clip",), "detector": ("detector", "official")}
"""What can be written of what; the first is the default."""
_STAGE = {"student": "pretrain", "teacher": "teacher"}
_USEFUL = ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs", "pretrain", "evaluate")


def export(what: str, source: Config | str, out: str, format: str | None, name: str) -> None:
    """Write `what` (of WHAT) from `source`, the config of a workspace or a model's folder, to `out`; prints what.

    `name` chooses the workspace's detector. `out` is a folder that must not exist or be empty, or with the official
    format a file that must not exist; it appears whole or not at all.

    Raises:
        ValueError: if there is no such model or format, or the model has no place in the format.
    """
    if what not in WHAT:
        raise ValueError(f"export {what}: expected one of {', '.join(WHAT)}")
    format = format or FORMATS[what][0]
    if format not in FORMATS[what]:
        raise ValueError(f"--format {format}: a {what} can be exported as {' or '.join(FORMATS[what])}")
    if format == "official":
        count = _official(what, source, out, name)
        print(f"{what} in {out}: {count} tensors under the official names")
        return
    from regionclip_core.storage.new_folder import free_target, whole_or_nothing

    target = free_target(out)
    with whole_or_nothing(target) as folder:
        _write(what, source, folder, name)
    print(f"{what} in {out}: {', '.join(sorted(path.name for path in target.iterdir()))}")


def _official(what: str, source: Config | str, out: str, name: str) -> int:
    from regionclip_core.detection.model_folder import is_model_folder
    from regionclip_core.storage.folder import Folder
    from regionclip_core.weights.official_export import save_official

    file = Path(out)
    if file.suffix not in (".pth", ".pt") or file.exists():
        raise ValueError(f"--out {out}: the official format is one new file, such as model.pth")
    if isinstance(source, str):
        if (what == "detector") != is_model_folder(Folder(source)):
            raise ValueError(f"--model {source} holds no {what}; say what it is: export student, or export detector")
        return save_official(Folder(source), file)
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    # The way back to official names starts from our folders.
    temporary = tempfile.mkdtemp(prefix=".tmp-export-", dir=file.absolute().parent)
    try:
        folder = Folder(temporary)
        _write(what, source, folder, name)
        return save_official(folder, file)
    finally:
        shutil.rmtree(temporary)


def _write(what: str, source: Config | str, folder: Folder, name: str) -> None:
    if what == "detector":
        if isinstance(source, str):
            raise ValueError(
                f"--model {source}: a detector folder is made of a workspace's detector. One that is there already "
                "can be copied, or written as an official file with --format official"
            )
        _write_detector(source, folder, name)
        return
    from regionclip_core.weights.exporting import clip_card, export_open_clip

    clip, prompts, facts = _clip_of_folder(source, what) if isinstance(source, str) else _clip_of_run(source, what)
    export_open_clip(folder, clip, clip_card(clip, what, facts), prompts)


def _write_detector(config: Config, folder: Folder, name: str) -> None:
    from regionclip_core.models.text_embeddings import NamePrompts
    from regionclip_core.weights.exporting import detector_card, export_detector
    from stages.commands.run_models import workspace_detector

    model, lines = workspace_detector(config, name, "export")
    with undisturbed(lines.values()):
        facts = _facts(config, lines)
    card = detector_card(model, name, facts)
    export_detector(folder, model, card, NamePrompts.from_config(config.teacher))


def _clip_of_folder(place: str, what: str) -> tuple[ClipModel, NamePrompts | None, None]:
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import read_prompts
    from regionclip_core.storage.given_files import clip_folder

    folder = clip_folder(place, "student" if what == "student" else "teacher")
    return load_clip(folder), read_prompts(folder), None


def _clip_of_run(config: Config, what: str) -> tuple[ClipModel, NamePrompts, RunFacts]:
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import NamePrompts

    lines = finished(config, [_STAGE[what]], _USEFUL, "export")
    with undisturbed(lines.values()):
        clip = load_clip(folder_of(lines[_STAGE[what]]))
        return clip, NamePrompts.from_config(config.teacher), _facts(config, lines)


def _facts(config: Config, lines: dict[str, PlanLine]) -> RunFacts:
    from regionclip_core.weights.exporting import RunFacts
    from stages.commands.run_models import run_vocabulary

    stages: dict[str, dict[str, Any]] = {
        stage: asdict(line.manifest) for stage, line in lines.items() if line.manifest is not None
    }
    metrics = folder_of(lines["evaluate"]).read_json("metrics.json") if "evaluate" in lines else None
    return RunFacts(config, stages, metrics, run_vocabulary(config, lines))
