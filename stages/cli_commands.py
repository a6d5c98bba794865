"""Commands as this command line has them: strict with their options, with examples at the end of their help."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

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
    "init": ("regionclip init --images photos --captions captions.csv --out mine.yaml",),
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
