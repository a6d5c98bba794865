"""The command line. Commands that use a model or give results away are in `cli_models.py`, init in `cli_configs.py`,
options that several share in `cli_options.py`; no other file imports typer.

Each command imports what it needs when it is called: the config alone would make `--help` take three times as long.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_configs import init
from .cli_models import corrections, detect, embed, export, features, import_, reproduce, serve
from .cli_options import (
    App,
    ConfigOption,
    QuietOption,
    SetOption,
    StageArgument,
    StagesArgument,
    VerboseOption,
    WorkspaceOption,
    load,
    load_files,
    verbosity,
)

if TYPE_CHECKING:
    from regionclip_core.storage.records import Folder


app = App(
    name="regionclip",
    help="RegionCLIP: region-text pretraining and open-vocabulary detection, from captions to a report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich's would double the time to answer
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    """Print the version and end, if it was asked for."""
    if asked:
        from importlib.metadata import version

        typer.echo(f"regionclip {version('regionclip')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None: ...


NO_WORKSPACE = "no artifact there; expected a workspace that `regionclip run` has written (--workspace, --config)"
SHOWN_FOREIGN = 10
"""How many folders that are no artifacts `gc` names one by one."""


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show what a user can get wrong as one message, with exit status 2, and what the machine does (a full disk, a lost
    connection) as one with exit status 1; REGIONCLIP_TRACEBACK=1 shows the traceback."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from .engine.advice import advice
        from .engine.lock import WorkspaceLocked

        for name in ("stdin", "stdout", "stderr"):  # closed, as by `>&-`: the next file opened would take its number
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (stays open)
        if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal can't show (file names!) is shown as escapes
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ImportError, WorkspaceLocked) as error:  # ImportError: an extra is not installed
            if isinstance(error, BrokenPipeError) and _reader_is_gone():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
                raise typer.Exit(128 + signal.SIGPIPE) from error
            if os.environ.get("REGIONCLIP_TRACEBACK"):
                raise
            of_the_user = not isinstance(error, OSError) or isinstance(error, FileNotFoundError)
            what_to_do = advice(str(error))
            if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
                what_to_do = "give a place that can be written to (--workspace, --out), and run again"
            elif not of_the_user:
                what_to_do = what_to_do or "fix the problem and run again; finished work is kept"
            typer.echo(f"error: {error}" + (f"\n{what_to_do}" if what_to_do else ""), err=True)
            raise typer.Exit(2 if of_the_user else 1) from error
        except KeyboardInterrupt as error:
            typer.echo("stopped; finished work is kept, run again to go on", err=True)
            raise typer.Exit(130) from error

    return wrapped


def _reader_is_gone() -> bool:
    """Return whether nobody reads standard output any more, as after `| head -1`: no reason for a message."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported without asking
    return any(events & select.POLLERR for _, events in poll.poll(0))


@app.command()
@user_errors
def run(
    stages: StagesArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    backend: Annotated[str | None, typer.Option(help="ray or local, instead of the config's.")] = None,
    max_error_rate: Annotated[
        float | None, typer.Option(help="Share of bad samples at which a stage stops, instead of the config's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Throw the named stages' current results away first.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring stages, and all they need, up to date."""
    from regionclip_core.report.results import format_results
    from regionclip_core.storage.records import Folder

    from .commands.show import plan_table
    from .engine.look_ahead import look_ahead
    from .engine.plan import Planner
    from .engine.progress import reporter
    from .engine.runner import Pipeline

    shown = reporter(verbosity(quiet, verbose))
    limit = [] if max_error_rate is None else [f"execution.max_error_rate={max_error_rate}"]
    files = load_files(config, [*(overrides or []), *limit], workspace, backend)
    loaded = files.config
    if len(files.files) > 1:
        typer.echo(f"config: {', then '.join(files.files)}", err=True)
    if dry_run:
        planner = Planner(loaded)
        wanted = planner.closure(stages, force)
        lines = [line for line in planner.lines() if line.name in wanted]
        forced = (stages or ()) if force else ()
        typer.echo(plan_table(lines, forced=forced))
        look_ahead(loaded, wanted, planner.current(), forced)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, the lock is released
    result = Pipeline(loaded, shown).run(stages, force)
    if quiet:
        raise typer.Exit(0 if result.ok else 1)
    try:
        finished = Planner(loaded).finished()
        if "evaluate" in finished and "evaluate" in result.outcomes:
            typer.echo("\n" + format_results(Folder(str(finished["evaluate"].path)).read_json("metrics.json")))
        if "report" in finished and "report" in result.outcomes:
            typer.echo(f"\nreport: {Folder(str(finished['report'].path)).path('report.html')}")
    except OSError as error:  # a run that failed has said why
        if result.ok:
            raise
        typer.echo(f"no results shown: {error}", err=True)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
@user_errors
def ablate(
    file: Annotated[str, typer.Argument(help="YAML file: config, seeds, variants; and workspace, set.")],
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Run these seeds only.  [default: the file's]")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="VARIANT", help="Run this variant only; repeatable.  [default: all]")
    ] = None,
    workspace: WorkspaceOption = None,
    backend: Annotated[str | None, typer.Option(help="ray or local, instead of the config's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, do nothing.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run variants of a config with several seeds, and write a table of their results and differences."""
    from regionclip_core.report.ablation import format_ablation

    from .commands.comparisons.ablate import check, choose, load_ablation, plan_of, run_ablation
    from .engine.progress import reporter

    level = verbosity(quiet, verbose)
    if not all(seed.strip().isdecimal() for seed in (seeds or "0").split(",")):
        raise ValueError(f"--seeds: expected whole numbers, such as 0,1,2 (came: {seeds!r})")
    numbers = [int(seed) for seed in seeds.split(",")] if seeds else []
    ablation = load_ablation(file, numbers, workspace, backend)
    cells = choose(ablation, numbers, only or ())
    if dry_run:
        check(ablation, cells)
        typer.echo(plan_of(ablation, cells))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers end, the lock is released
    say = (lambda text: None) if quiet else typer.echo
    run_ablation(ablation, cells, say, lambda: reporter(level))
    say("\n" + format_ablation(ablation.shown))
    say(f"also as {ablation.workspace.path(ablation.shown.name)}.txt, .md, .html and .ablation.json")
    if any(cell.state == "failed" for cell in cells):
        raise typer.Exit(1)


@app.command()
@user_errors
def compare(
    a: Annotated[str, typer.Argument(help="Workspace, config file, or a cell: NAME.ablation.json:VARIANT:SEED.")],
    b: Annotated[str, typer.Argument(help="The other one; differences are B - A.")],
    out: Annotated[str | None, typer.Option(help="HTML file for a page with all tables and with pictures.")] = None,
) -> None:
    """Put two finished runs side by side: settings that differ, results, categories, the same pictures."""
    from regionclip_core.report.comparison import format_comparison

    from .commands.comparisons.compare import compare_runs

    typer.echo(format_comparison(compare_runs(a, b, out)), nl=False)
    if out is not None:
        typer.echo(f"\npage: {out}")


@app.command()
@user_errors
def check(
    stages: StagesArgument = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Look for what would stop a run: settings, files, weights, the device. `run` does the same first."""
    from regionclip_core.config.checks import same_images

    from .engine.look_ahead import look_ahead
    from .engine.plan import Planner

    planner = Planner(load(config, overrides, workspace))
    for note in same_images(planner.config.data.splits):
        typer.echo(f"note: {note}")
    to_run = look_ahead(planner.config, planner.closure(stages), planner.current())
    typer.echo(f"nothing is wrong; to run: {', '.join(to_run) or 'nothing, all is up to date'}")


@app.command()
@user_errors
def status(
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the state of every stage, and why."""
    from .commands.show import status_json, status_table
    from .engine.lock import is_left_behind, read_holder
    from .engine.plan import Planner

    planner = Planner(load(config, overrides, workspace))
    lines = planner.lines()
    if as_json:
        typer.echo(json.dumps(status_json(lines), indent=1))
        return
    typer.echo(status_table(lines, planner.workspace))
    if (holder := read_holder(planner.workspace)) is not None:
        gone = is_left_behind(planner.workspace, holder)
        typer.echo(f"{'left locked by a process that is gone' if gone else 'running'}: {holder}")


@app.command()
@user_errors
def show(
    stage: StageArgument,
    against: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="concepts: what differs from this other workspace's or artifact's pool."),
    ] = None,
    concept: Annotated[str | None, typer.Option(help="labels: only those of this concept.")] = None,
    pictures: Annotated[
        str | None, typer.Option(metavar="DIR", help="With --concept: pictures of its regions, into this new folder.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Pictures at most, highest scores first.", min=1, max=10**5)] = 50,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Look into a stage's artifact: summary, counts, settings, files, first rows; pool and labels by name."""
    from .commands.finished import undisturbed
    from .commands.show import look_closer, show_stage, write_pictures
    from .engine.plan import Planner

    planner = Planner(load(config, overrides, workspace))
    planner.closure([stage])  # refuses an unknown name
    for option, value, wanted in (("against", against, "concepts"), ("concept", concept, "labels")):
        if value is not None and stage != wanted:
            raise ValueError(f"--{option} is of `regionclip show {wanted}` (came: show {stage})")
    if pictures is not None and concept is None:
        raise ValueError("--pictures are those of one concept: name it with --concept")
    if against is not None or concept is not None:
        typer.echo(look_closer(planner.config, against, concept))
        if pictures is not None and concept is not None:
            write_pictures(planner.config, concept, pictures, limit)
        return
    line = planner.finished().get(stage)
    if line is None:
        line = next(line for line in planner.lines() if line.name == stage)
    with undisturbed([line] if line.state == "done" else []):
        typer.echo(show_stage(line, planner.workspace))


@app.command("config")
@user_errors
def show_config(
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of config files, for editors.")
    ] = False,
) -> None:
    """Print the whole configuration, defaults and overrides included; what is of a later file says so."""
    from regionclip_core.config.loading import dump_config
    from regionclip_core.config.schema import json_schema

    if schema:
        typer.echo(json.dumps(json_schema(), indent=1))
        return
    loaded = load_files(config, overrides, workspace)
    typer.echo(dump_config(loaded.config, loaded.later_origins), nl=False)


@app.command()
@user_errors
def verify(config: ConfigOption = None, overrides: SetOption = None, workspace: WorkspaceOption = None) -> None:
    """Re-read every artifact in the workspace: bytes against records, then rows, schemas and vocabularies."""
    from .commands.verify import advice, not_recorded, verify_workspace
    from .engine.plan import Planner

    planner = Planner(load(config, overrides, workspace))
    bad: list[tuple[str, Folder]] = []
    checked = 0
    for stage, folder, problems in verify_workspace(planner.workspace):
        checked += 1
        bad += [(stage, folder)] * bool(problems)
        for problem in problems:
            typer.echo(f"{stage}: {problem}")
        for path in not_recorded(folder):
            typer.echo(f"{stage}: note: {path} is not part of the artifact; nothing reads it")
    if not checked:
        raise ValueError(f"{planner.workspace.url}: {NO_WORKSPACE}")
    typer.echo(f"{checked} artifacts read, {len({stage for stage, _ in bad})} stages with problems")
    if bad:
        given = [
            *(("--config", one) for one in config or []),
            *(("--set", one) for one in overrides or []),
            ("--workspace", workspace),
        ]
        options = "".join(f" {option} {shlex.quote(value)}" for option, value in given if value is not None)
        for line in advice(bad, planner.lines(), options):
            typer.echo(line, err=True)
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
    """List, and with --yes delete, what no current config reaches, nor one of the workspace's ablations."""
    from regionclip_core.storage.records import Folder, size

    from .commands.gc import ablations, collect, foreign_folders, unreachable
    from .commands.verify import artifacts

    configs = [load(config, overrides, workspace), *(load([other], None, workspace) for other in also or [])]
    folder = Folder(configs[0].workspace)
    if next(artifacts(folder), None) is None and not foreign_folders(folder):
        raise ValueError(f"{folder.url}: {NO_WORKSPACE}")
    for file, more in ablations(folder).items():
        typer.echo(f"what {file} reaches stays; delete that file to let its artifacts go")
        configs += more
    garbage, undecided = (collect if yes else unreachable)(configs, folder)
    if undecided:
        typer.echo(f"kept whole, until what they need has run: {', '.join(undecided)}")
    for item in garbage:
        typer.echo(f"{'deleted' if yes else 'unreached'}  {size(item.bytes):>9}  {item.folder.url}")
    others = foreign_folders(folder)
    for other in others[:SHOWN_FOREIGN]:
        typer.echo(f"left alone            {other.url}: no artifact")
    if len(others) > SHOWN_FOREIGN:
        typer.echo(f"left alone            {len(others) - SHOWN_FOREIGN} more folders that are no artifacts")
    total = size(sum(item.bytes for item in garbage))
    typer.echo(f"{len(garbage)} artifacts, {total}" + ("" if yes or not garbage else "; --yes deletes them"))


for _command in (init, detect, features, embed, serve, export, corrections, reproduce):
    app.command()(user_errors(_command))
app.command("import")(user_errors(import_))


if __name__ == "__main__":
    sys.exit(app())
