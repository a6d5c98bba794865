"""The options that commands share, and what they choose: a config, or a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

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
