"""What commands share: their options and what these choose (a config, or a model), and the form that they all have,
strict with their options, with examples at the end of their help.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from regionclip_core.config.loading import Loaded
    from regionclip_core.config.tree import Config


def _stages(incomplete: str) -> list[str]:
    """Return the stages that begin so, for a shell's completion."""
    from regionclip_core.config.tree import STAGE_NAMES

    return [name for name in STAGE_NAMES if name.startswith(incomplete)]


StagesArgument = Annotated[
    list[str] | None, typer.Argument(help="Stages to bring up to date.  [default: all]", autocompletion=_stages)
]
StageArgument = Annotated[str, typer.Argument(help="Stage to look into.", autocompletion=_stages)]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="YAML file or preset name; of several, which are merged, the later ones win.  [default: pipeline.yaml]",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Override a setting; may be repeated.")
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", "-w", metavar="URL", help="Folder or fsspec URL, instead of the config's.")
]

ModelOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder from `import` or `export`.  [default: the workspace of the config]"),
]
NAMES = "Which of the workspace's detectors: regionclip, clip or oracle"
NameOption = Annotated[str | None, typer.Option(help=f"{NAMES}.  [default: regionclip]")]

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and what went wrong.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print each shard too, and progress more often.")]


def verbosity(quiet: bool, verbose: bool) -> int:
    """Return how much is printed: -1, 0 or 1. Raises ValueError for both at once."""
    if quiet and verbose:
        raise ValueError("expected --quiet or --verbose, not both")
    return verbose - quiet


def load_files(
    config: list[str] | None, overrides: list[str] | None, workspace: str | None, backend: str | None = None
) -> Loaded:
    """Return the config that the common options describe, and where its keys are from."""
    from regionclip_core.config import loading

    more = [f"workspace={json.dumps(workspace)}"] if workspace is not None else []
    more += [f"execution.backend={json.dumps(backend)}"] if backend is not None else []
    return loading.load_files(config, [*(overrides or []), *more])


def load(config: list[str] | None, overrides: list[str] | None, workspace: str | None) -> Config:
    """Return the config that the common options describe."""
    return load_files(config, overrides, workspace).config


def model_source(
    model: str | None,
    config: list[str] | None,
    overrides: list[str] | None,
    workspace: str | None,
    name: str | None,
) -> Config | str:
    """Return a model's folder, or the config of the workspace that holds the model `name`; never both."""
    if model is None:
        return load(config, overrides, workspace)
    if config or overrides or workspace is not None or name is not None:
        raise ValueError(
            "--model needs no config: leave out --config, --set, --workspace and --name, which choose a model of a "
            "run, or leave out --model"
        )
    return model


# ---------------------------------------------------------------- the form of a command

EXAMPLES = {
    "run": (
        "regionclip run                                   every stage that is not up to date",
        "regionclip run labels --set labels.threshold=0.5",
        "regionclip run --config coco_rn50 --workspace runs/coco --dry-run",
    ),
    "ablate": (
        "regionclip ablate ablation.yaml",
        "regionclip ablate ablation.yaml --only surer --seeds 0,1",
    ),
    "compare": ("regionclip compare runs/default runs/best --out compared.html",),
    "check": ("regionclip check --config mine.yaml", "regionclip check teacher labels"),
    "status": (
        "regionclip status",
        "regionclip status --set labels.threshold=0.5     what would run again, and why",
    ),
    "show": (
        "regionclip show labels",
        "regionclip show labels --concept dog --pictures dogs",
        "regionclip show concepts --against runs/other",
    ),
    "config": ("regionclip config --config coco_rn50 > mine.yaml",),
    "verify": ("regionclip verify --workspace runs/coco",),
    "gc": (
        "regionclip gc                                    list",
        "regionclip gc --also best --yes                  delete",
    ),
    "init": (
        "regionclip init --images photos --captions captions.csv --out mine.yaml",
        "regionclip init --images train --captions captions.csv --boxes train.json --val-images val "
        "--val-boxes val.json --out mine.yaml",
    ),
    "detect": (
        'regionclip detect photo.jpg --classes "teapot, violin, red umbrella"',
        "regionclip detect photos/ --model my_detector --classes names.txt --format coco,csv",
    ),
    "features": ("regionclip features photos/ --model my_detector --boxes boxes.csv --out features.parquet",),
    "embed": ('regionclip embed "teapot, violin" --model my_detector --out names.safetensors',),
    "serve": ("regionclip serve --model my_detector",),
    "export": (
        "regionclip export detector --out my_detector",
        "regionclip export detector --model weights/coco_rn50 --out model.pth --format official",
        "regionclip export labels --out review --format label-studio",
    ),
    "corrections": ("regionclip corrections fixed.json --exported review --out corrections.csv",),
    "import": (
        "regionclip import regionclip_finetuned-coco_rn50.pth --out weights/coco_rn50",
        "regionclip import lvis_1203_cls_emb.pth --out weights/lvis_names --names lvis_v1_val.json",
    ),
    "reproduce": ("regionclip reproduce coco_rn50 --weights DIR",),
}
"""By command; the tests parse them."""


class Command(TyperCommand):
    """A command that refuses an empty value and an option given twice, and says with any refused value what came."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        parser = self.make_parser(ctx)
        for param in self.params:
            if isinstance(param, TyperOption) and not param.is_flag:
                several = copy.copy(param)
                several.multiple = True  # of an option given twice the parser would keep the last value only
                several.add_to_parser(parser, ctx)
        given, _, _ = parser.parse_args(list(args))
        came = {
            name: [values] if isinstance(values, (str, bool)) else list(values or ()) for name, values in given.items()
        }
        for param in self.params:
            values = came.get(param.name, [])
            if "" in values:
                raise typer.BadParameter("expected a text, and an empty one came; is a variable not set?", ctx, param)
            if isinstance(param, TyperOption) and len(values) > 1 and not param.multiple:
                both = " and ".join(map(repr, values))
                raise typer.BadParameter(f"expected one value (came: {both}); give the option once", ctx, param)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is not None and (values := came.get(error.param.name)):
                error.message += f" (came: {values[0]!r})"
            raise


class App(typer.Typer):
    """Adds commands with their examples at the end of the help."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        def add(function: Callable[..., None]) -> Callable[..., None]:
            called = name or function.__name__
            settings.update(cls=Command, epilog=epilog(called))
            return super(App, self).command(called, **settings)(function)

        return add


def epilog(command: str) -> str | None:
    """Return a command's examples for the end of its help, as they are; None where there are none."""
    examples = EXAMPLES.get(command, ())
    heading = f"Example{'s' * (len(examples) > 1)}:"
    return "\n".join(["\b", heading, *(f"  {one}" for one in examples)]) if examples else None
