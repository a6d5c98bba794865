"""The `reproduce` command: the published weights through a preset, and the paper's figures beside what comes out.

docs/REPRODUCE.md has the same in single commands, and what else the paper's tables need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionclip_core.config.loading import load_config
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.storage.folder import Folder, file_sha256

from ..engine.plan import Planner
from ..engine.runner import Pipeline
from .finished import folder_of
from .show import table

if TYPE_CHECKING:
    from regionclip_core.config.tree import Config

    from ..engine.progress import Reporter

DETECTION = ("pretrained", "detector", "rpn", "embeddings")
"""What an evaluation of a published detector reads."""


@dataclass(frozen=True)
class Published:
    """What belongs to one preset."""

    files: tuple[str, ...]
    """Names of the official files, in the order of DETECTION."""
    figures: Mapping[str, tuple[str, float | None]]
    """By its place in metrics.json: its name, and the paper's figure, percent; None where it could not be checked."""

    def place(self, part: str) -> str:
        """Return the name of the folder for what is made of a file."""
        return Path(self.files[DETECTION.index(part)]).stem


def _coco(novel: float, base: float | None, every: float | None) -> dict[str, tuple[str, float | None]]:
    by_group = {"novel": novel, "base": base, "all": every}
    return {f"finetuned.regionclip.{group}.ap50": (f"{group}: AP50", value) for group, value in by_group.items()}


def _lvis(rare: float, every: float | None) -> dict[str, tuple[str, float | None]]:
    # The official table says AP, not whether of boxes or masks.
    names = {"APr": ("rare", rare), "APc": ("common", None), "APf": ("frequent", None), "AP": ("all", every)}
    return {
        f"finetuned.regionclip.{of}lvis.{key}": (f"{name}: {what} AP", value)
        for of, what in (("", "box"), ("segm.", "mask"))
        for key, (name, value) in names.items()
    }


PUBLISHED = {
    f"{data}_{tower}": Published(
        (
            f"regionclip_pretrained-cc_{tower}.pth",
            f"regionclip_finetuned-{data}_{tower}.pth",
            network,
            f"{embeddings}{'' if tower == 'rn50' else f'_{tower}'}.pth",
        ),
        figures,
    )
    for data, tower, network, embeddings, figures in (
        ("coco", "rn50", "rpn_coco_48.pth", "coco_65_cls_emb", _coco(31.4, 57.1, 50.4)),
        ("coco", "rn50x4", "rpn_coco_48.pth", "coco_65_cls_emb", _coco(39.3, None, None)),
        ("lvis", "rn50", "rpn_lvis_866_lsj.pth", "lvis_1203_cls_emb", _lvis(17.1, None)),
        ("lvis", "rn50x4", "rpn_lvis_866_lsj.pth", "lvis_1203_cls_emb", _lvis(22.0, 32.3)),
    )
}


def reproduction(preset: str, weights: str, imported: str, workspace: str | None, overrides: Sequence[str]) -> Config:
    """Return the config of a run with the published weights of a preset.

    Args:
        weights: the folder with the official files.
        imported: the folder for what `import` makes of them.
        workspace: instead of runs/published_<preset>.
        overrides: further `a.b=value` settings; they win.

    Raises:
        FileNotFoundError: if files are missing; all of them are named.
        ValueError: if there is no such preset, or a setting is wrong.
    """
    if preset not in PUBLISHED:
        raise ValueError(
            f"reproduce: expected one of {', '.join(PUBLISHED)} (came: {preset!r}){nearest_hint(preset, PUBLISHED)}"
        )
    published = PUBLISHED[preset]
    if missing := [name for name in published.files if not (Path(weights) / name).is_file()]:
        raise FileNotFoundError(
            f"{weights} lacks {', '.join(missing)}. The links are in docs/MODEL_ZOO.md of the official repository; "
            "nothing is downloaded here"
        )
    places = {part: f"{imported}/{published.place(part)}" for part in DETECTION}
    return load_config(
        preset,
        [
            f"workspace={workspace or f'runs/published_{preset}'}",
            f"teacher.weights={places['pretrained']}",
            f"teacher.embeddings=[{places['embeddings']}]",
            f"pretrain.weights={places['pretrained']}",
            f"finetune.weights={places['detector']}",
            f"rpn.weights={places['rpn']}",
            # Nothing is trained, so nothing reads the training images.
            "data.splits.train.limit=1",
            "proposals.splits=[val]",
            "labels.splits=[val]",
            "finetune.split=val",
            *overrides,
        ],
    )


def reproduce(
    preset: str, weights: str, imported: str, config: Config, say: Callable[[str], None], shown: Reporter
) -> bool:
    """Import what is not imported yet, run `config`, and say the results; returns whether all stages ran.

    `preset`, `weights`, `imported` and `config`: see `reproduction`. `shown` shows the run.

    Raises:
        ValueError: if a file doesn't fit, or the folder for it holds something else.
    """
    published = PUBLISHED[preset]
    rows = {"embeddings": "coco_ovd"}  # what names a part's rows; COCO's detectors bring their order with them
    if preset.startswith("lvis"):
        rows = dict.fromkeys(("detector", "embeddings"), getattr(config.data.splits["val"], "instances", None))
    for part, name in zip(DETECTION, published.files, strict=True):
        _import(Path(weights) / name, Path(imported) / published.place(part), rows.get(part), say)
    result = Pipeline(config, shown).run()
    finished = Planner(config).finished()
    if result.ok:
        say("\n" + figures(preset, folder_of(finished["evaluate"]).read_json("metrics.json")))
        say(f"\nreport: {folder_of(finished['report']).path('report.html')}")
    return result.ok


def figures(preset: str, metrics: Mapping[str, Any]) -> str:
    """Return the table of the paper's figures and this run's; percent."""
    rows = [("", "paper", "here", "difference")]
    for key, (name, paper) in PUBLISHED[preset].figures.items():
        here: Any = metrics
        for step in key.split("."):
            here = here.get(step) if isinstance(here, Mapping) else None
        if here is not None:
            difference = "" if paper is None else f"{100 * here - paper:+.1f}"
            rows.append((name, "-" if paper is None else f"{paper:.1f}", f"{100 * here:.1f}", difference))
    return table(rows)


def _import(file: Path, out: Path, names: str | None, say: Callable[[str], None]) -> None:
    """Import a file, unless `out` is what an import of this very file has made."""
    from regionclip_core.weights.importing import REPORT, import_checkpoint  # loads torch

    if (out / REPORT).is_file():
        made_of = Folder(str(out)).read_json(REPORT)["sha256"]
        if made_of != file_sha256(file):
            raise ValueError(f"{out} is of another file than {file} is now: move it away, or choose another --imported")
        say(f"{out}: imported before")
        return
    import_checkpoint(str(file), str(out), names=names)
    say(f"{file}: imported into {out}")
