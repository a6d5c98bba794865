"""The command line: the only file that imports typer. Nothing here imports torch, ray or spaCy to answer."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regionclip_core.config import Config
    from stages.runner import Pipeline

app = typer.Typer(
    name="regionclip",
    help="RegionCLIP: region-text pretraining and open-vocabulary detection, from captions to a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich's would double the time to answer
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="YAML file or preset name.  [default: pipeline.yaml]")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Override a setting; may be repeated.")
]
WorkspaceOption = Annotated[
    str | None, typer.Option("--workspace", "-w", metavar="URL", help="Folder or fsspec URL, instead of the config's.")
]


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can get wrong into one message and exit status 2; REGIONCLIP_TRACEBACK=1 shows the rest."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from stages.lock import WorkspaceLocked

        try:
            command(*args, **kwargs)
        except (ValueError, FileNotFoundError, WorkspaceLocked) as error:
            if os.environ.get("REGIONCLIP_TRACEBACK"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("stopped; what is done is kept, run again to go on", err=True)
            raise typer.Exit(130) from error

    return wrapped


def load(config: str | None, overrides: list[str] | None, workspace: str | None, backend: str | None = None) -> Config:
    """The config that the common options describe."""
    from regionclip_core.config_io import load_config

    more = [f"workspace={json.dumps(workspace)}"] if workspace is not None else []
    more += [f"execution.backend={json.dumps(backend)}"] if backend is not None else []
    return load_config(config, [*(overrides or []), *more])


@app.command()
@user_errors
def run(
    stages: Annotated[list[str] | None, typer.Argument(help="Stages to bring up to date.  [default: all]")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    backend: Annotated[str | None, typer.Option(help="ray or local, instead of the config's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Throw the named stages' current results away first.")] = False,
) -> None:
    """Bring stages, and all they need, up to date."""
    from stages.runner import Pipeline

    pipeline = Pipeline(load(config, overrides, workspace, backend))
    if dry_run:
        from stages.show import plan_table

        wanted = pipeline.closure(stages)
        typer.echo(plan_table([line for line in pipeline.plan() if line.stage in wanted]))
        return
    signal.signal(signal.SIGTERM, _interrupt)
    result = pipeline.run(stages, force)
    _show_results(pipeline)
    if not result.ok:
        for stage, outcome in result.outcomes.items():
            if outcome in ("failed", "blocked"):
                typer.echo(f"{stage}: {outcome}: {result.messages[stage]}", err=True)
        raise typer.Exit(1)


def _show_results(pipeline: Pipeline) -> None:
    """The table and where the report is, once there are any."""
    from regionclip_core.artifacts import Folder
    from regionclip_core.report.results_table import format_results

    lines = {line.stage: line for line in pipeline.plan()}
    evaluate, report = lines.get("evaluate"), lines.get("report")
    if evaluate is not None and evaluate.state == "done":
        typer.echo("\n" + format_results(Folder(str(evaluate.path)).read_json("metrics.json")))
    if report is not None and report.state == "done":
        typer.echo(f"\nreport: {Folder(str(report.path)).path('report.html')}")


def _interrupt(number: int, frame: object) -> None:
    """A polite kill ends a run like Ctrl-C: workers end, the lock is released."""
    raise KeyboardInterrupt


@app.command()
@user_errors
def status(
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Where every stage stands, and why."""
    from stages.lock import read_holder
    from stages.runner import Pipeline
    from stages.show import status_json, status_table

    pipeline = Pipeline(load(config, overrides, workspace))
    lines = pipeline.plan()
    if as_json:
        typer.echo(json.dumps(status_json(lines), indent=1))
        return
    typer.echo(status_table(lines))
    if (holder := read_holder(pipeline.workspace)) is not None:
        typer.echo(f"{'left locked by a process that is gone' if holder.is_dead() else 'running'}: {holder}")


@app.command()
@user_errors
def show(
    stage: Annotated[str, typer.Argument(help="Stage to look into.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Look into a stage's artifact: summary, counts, settings, files, first rows."""
    from stages.runner import Pipeline
    from stages.show import show_stage

    pipeline = Pipeline(load(config, overrides, workspace))
    pipeline.closure([stage])  # refuses an unknown name
    [line] = [line for line in pipeline.plan() if line.stage == stage]
    typer.echo(show_stage(line, pipeline.workspace))


@app.command("config")
@user_errors
def show_config(config: ConfigOption = None, overrides: SetOption = None, workspace: WorkspaceOption = None) -> None:
    """Print the whole configuration, defaults and overrides included."""
    from regionclip_core.config_io import dump_config

    typer.echo(dump_config(load(config, overrides, workspace)), nl=False)


@app.command()
@user_errors
def verify(config: ConfigOption = None, overrides: SetOption = None, workspace: WorkspaceOption = None) -> None:
    """Re-read every artifact in the workspace against its record."""
    from regionclip_core.artifacts import Folder
    from stages.verify import artifacts, verify_artifact

    bad: set[str] = set()
    checked = 0
    for stage, folder in artifacts(Folder(load(config, overrides, workspace).workspace)):
        checked += 1
        for problem in verify_artifact(folder):
            bad.add(stage)
            typer.echo(f"{stage}: {problem}")
    typer.echo(f"{checked} artifacts read, {len(bad)} stages with problems")
    if bad:
        typer.echo(f"do them over: regionclip run {' '.join(sorted(bad))} --force", err=True)
        raise typer.Exit(1)


@app.command()
@user_errors
def gc(
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    also: Annotated[list[str] | None, typer.Option(help="Another config whose artifacts stay; repeatable.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
) -> None:
    """List, and with --yes delete, what no current config reaches."""
    from regionclip_core.artifacts import Folder
    from stages.gc import collect, unreachable
    from stages.show import size

    configs = [load(config, overrides, workspace), *(load(other, None, workspace) for other in also or [])]
    folder = Folder(configs[0].workspace)
    garbage, undecided = unreachable(configs, folder)
    if undecided:
        typer.echo(f"kept whole, until what they need has run: {', '.join(undecided)}")
    if yes:
        garbage = collect(configs, folder)
    for item in garbage:
        typer.echo(f"{'deleted' if yes else 'unreached'}  {size(item.bytes):>9}  {item.folder.url}")
    total = size(sum(item.bytes for item in garbage))
    typer.echo(f"{len(garbage)} artifacts, {total}" + ("" if yes or not garbage else "; --yes deletes them"))


@app.command()
@user_errors
def detect(
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    classes: Annotated[
        str, typer.Option(help='Categories to look for: "a,b,c".  [default: the categories of the config]')
    ] = "",
    out: Annotated[str, typer.Option(help="Folder for pictures and detections.json.")] = "detections",
    score: Annotated[float, typer.Option(help="Lowest score shown.", min=0, max=1)] = 0.3,
    checkpoint: Annotated[
        str | None, typer.Option(help="Detector folder.  [default: the workspace's finetuned detector]")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Find objects of any named category in images."""
    names = [name.strip() for name in classes.split(",") if name.strip()]
    if classes and not names:
        raise ValueError(f'--classes {classes!r} names no category; expected "a,b,c"')
    from stages.detect import detect as run_detect

    run_detect(load(config, overrides, workspace), images, names, out, checkpoint, score)


if __name__ == "__main__":
    sys.exit(app())
