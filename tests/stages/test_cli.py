"""The command line, in process; benchmarks/bench_startup.py measures how fast it answers."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import yaml
from places import ROOT
from safetensors.numpy import save
from toy_runs import Toy
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from regionclip_core.config.schema import json_schema
from regionclip_core.report.results import GROUPS
from regionclip_core.storage.folder import Folder
from stages.cli import app
from stages.engine.plan import PlanLine, Planner
from stages.engine.runner import Pipeline, RunResult

Cli = Callable[..., Result]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def cli(toy: Toy) -> Cli:
    """Runs a command on the toy's config."""
    file = toy.root / "c.yaml"
    file.write_text(yaml.safe_dump(toy.config().model_dump(mode="json")))

    def call(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, [command, "--config", str(file), *arguments])

    return call


def test_run_status_show_verify_gc(toy: Toy, cli: Cli) -> None:
    plan = cli("run", "--dry-run", "total")
    assert plan.exit_code == 0 and not (toy.root / "ws").exists()
    rows = [row.split()[:2] for row in plan.stdout.splitlines()[1:]]
    assert rows == [["numbers", "run"], ["scaled", "run"], ["total", "run"]]
    assert cli("run").exit_code == 0
    table = cli("status").stdout.splitlines()
    assert [row.split()[:2] for row in table[1:]] == [[n, "done"] for n in ("numbers", "scaled", "total", "lonely")]
    changed = json.loads(cli("status", "--json", "--set", "labels.threshold=0.4").stdout)
    assert [(s["stage"], s["state"]) for s in changed][1] == ("scaled", "stale")
    assert changed[1]["reason"] == "labels.threshold 0.1 -> 0.4"
    shown = cli("show", "scaled").stdout
    for text in ("ok: 40", "threshold: 0.1", "scaled-00003.txt", "numbers:", "shards: 4"):
        assert text in shown
    assert cli("verify").stdout == "4 artifacts read, 0 stages with problems\n"
    listed = cli("gc", "--set", "finetune.steps=3").stdout
    assert "unreached" in listed and "/lonely/" in listed and "1 artifacts" in listed
    assert cli("verify").exit_code == 0
    assert "deleted" in cli("gc", "--yes", "--set", "finetune.steps=3").stdout
    assert [line.state for line in toy.plan().values()] == ["done", "done", "done", "missing"]


def test_several_configs_are_merged_and_said(toy: Toy, cli: Cli) -> None:
    (more := toy.root / "more.yaml").write_text("labels: {threshold: 0.4}\n")
    assert cli("run").exit_code == 0
    again = cli("run", "--config", str(more), "--dry-run")
    assert again.stderr == f"config: {toy.root / 'c.yaml'}, then {more}\n"
    assert "labels.threshold 0.1 -> 0.4" in again.stdout
    assert f"\n  threshold: 0.4  # {more}\n" in cli("config", "--config", str(more)).stdout
    assert "#" not in cli("config").stdout
    next((toy.root / "ws" / "numbers").glob("*/numbers-*")).write_bytes(b"other")
    advice = cli("verify", "--config", str(more)).stderr
    assert f"regionclip run numbers --force --config {toy.root / 'c.yaml'} --config {more}" in advice
    assert json.loads(cli("config", "--schema").stdout) == json_schema()


def test_a_failure_exits_1_and_names_the_traceback(toy: Toy, cli: Cli) -> None:
    fault = toy.fault("raise-scaled-2")
    failed = cli("run")
    assert failed.exit_code == 1
    assert "scaled     FAILED  1 of 4 shards failed" in failed.stderr and "failed-00002.json" in failed.stderr
    assert failed.stderr.endswith("\nblocked    1 waiting for scaled: total\n")
    assert failed.output.count("made to fail") == 1, "a failure is shown once"
    fault.unlink()
    assert cli("run").exit_code == 0
    file = next((toy.root / "ws" / "scaled").glob("*/scaled-00000.txt"))
    file.write_bytes(b"other")
    verified = cli("verify")
    assert verified.exit_code == 1 and str(file) in verified.stdout
    assert "regionclip run scaled --force" in verified.stderr
    assert cli("run", "scaled", "--force").exit_code == 0
    assert cli("verify").exit_code == 0


def test_too_many_bad_samples_stop_the_run_until_it_is_told_to_go_on(toy: Toy, cli: Cli) -> None:
    """One number in ten is bad."""
    stopped = cli("run", "numbers", "--max-error-rate", "0.05")
    assert stopped.exit_code == 1
    assert "10.0% of 40 samples are bad (4 bad_nine); execution.max_error_rate is 0.05" in stopped.stderr
    assert len(list((toy.root / "ws" / "numbers").glob("*/shard-*.json"))) == 4  # kept
    assert cli("run", "numbers", "--max-error-rate", "0.1").exit_code == 0
    refused = cli("run", "--max-error-rate", "1.5")
    assert refused.exit_code == 2
    assert "execution.max_error_rate" in refused.stderr and "1.5" in refused.stderr


def test_a_full_disk_is_a_message_a_stage(toy: Toy, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/there/x")
    monkeypatch.setattr("stages.engine.runner.write_manifest", Mock(side_effect=full))
    result = cli("run")
    assert result.exit_code == 1
    failed = "FAILED  OSError: [Errno 28] No space left on device: '/there/x'\n"
    assert result.stderr.count("/failed.json; free space there and run again, finished work is kept; or give") == 2
    assert [f"{stage:<10} {failed}" in result.stderr for stage in ("numbers", "lonely")] == [True, True]
    assert result.stderr.endswith("\nblocked    2 waiting for numbers: scaled, total\n")
    assert result.stderr.count("\n") == 5 and "Traceback" not in result.output  # two of two lines, and the blocked


@pytest.mark.parametrize(
    ("error", "what_to_do"),
    [
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/there/x"), "free space there and run again"),
        (ConnectionError("s3://b/x: NoCredentialsError: Unable to"), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (
            ValueError("Invalid endpoint: localhost:9000"),
            "set AWS_ENDPOINT_URL to a URL, such as http://localhost:9000",
        ),
    ],
)
def test_what_to_do_about_the_machine_or_a_store(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, what_to_do: str
) -> None:
    """In a stage, and before the first one."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with monkeypatch.context() as patch:
        patch.setattr("stages.engine.work.begin", Mock(side_effect=error))
        assert f"/failed.json; {what_to_do}" in cli("run", "numbers").stderr
    monkeypatch.setattr("stages.engine.runner.hold", Mock(side_effect=error))
    assert f"error: {error}\n{what_to_do}" in cli("run", "numbers").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-w", "a", "--set", "workspace=b"], "workspace is given twice, as 'b' and 'a'"),
        (["run", "--set", "labels.treshold=1"], "nearest valid key: labels.threshold"),
        (["run", "nothing"], "no stage 'nothing'"),
        (["run", "totl"], "nearest: total"),
        (["run", "--workspace", " "], "workspace: expected a folder or URL (came: ' ')"),
        (["show", "nothing"], "no stage 'nothing'"),
        (["show", "total"], "missing, after scaled. Run `regionclip run total` with the same config first"),
        (["run", "--force"], "--force needs the stages"),
        (["run", "--backend", "spark"], "execution.backend"),
        (["detect", "x.jpg", "--classes", " , "], "names no category"),
        (["gc", "--also", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["verify"], "/ws: no artifact there; expected a workspace"),
        (["gc"], "/ws: no artifact there; expected a workspace"),
    ],
)
def test_what_a_user_gets_wrong_exits_2_with_one_message(cli: Cli, arguments: list[str], message: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert "Traceback" not in result.output


def test_classes_are_read_before_anything_slow_is_loaded() -> None:
    script = """
import sys
from typer.testing import CliRunner
from stages.cli import app
result = CliRunner().invoke(app, ["detect", "x.jpg", "--classes", "nowhere.txt"])
print(result.exit_code, result.stderr, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 error: --classes: 'nowhere.txt' is not") and done.stdout.endswith("False\n")


def test_a_workspace_with_an_emoji(toy: Toy, cli: Cli) -> None:
    workspace = toy.root / "a😀b"
    assert cli("run", "lonely", "--workspace", str(workspace)).exit_code == 0
    assert (workspace / "lonely").is_dir()
    assert "done" in cli("status", "--workspace", str(workspace)).stdout


def test_nothing_is_said_when_the_reader_has_gone() -> None:
    """As `regionclip status | head -1`: the exit status says that SIGPIPE ended the program."""
    command = [sys.executable, "-m", "stages.cli", "config", "--config", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", ["", "0 1 2"])
def test_a_program_without_standard_streams_runs(toy: Toy, closed: str) -> None:
    """As after `>&-`. What it writes has to end in its own files."""
    (config := toy.root / "c.yaml").write_text(yaml.safe_dump(toy.config().model_dump(mode="json")))
    code = (
        f"import os, sys; [os.close(int(n)) for n in {closed!r}.split()]\n"
        f"os.execv(sys.executable, [sys.executable, '-c', sys.argv[1], 'run', '-c', {str(config)!r}])\n"
    )
    program = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
        "from stages import declarations; import toy_stages; declarations.STAGES = toy_stages.STAGES\n"
        "from stages.cli import app; app()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.state for line in toy.plan().values()} == {"done"}
    assert ("total      done" in done.stdout) is (closed == "")


@pytest.mark.parametrize(
    ("outcomes", "shown"), [({"labels": "done"}, []), ({"evaluate": "skipped", "report": "done"}, ["AP50", "report: "])]
)
def test_results_are_shown_by_a_run_that_evaluates(
    toy: Toy, cli: Cli, monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, str], shown: list[str]
) -> None:
    """Whether or not they have been there before."""
    group = {"ap50": 20.0, "ap": 10.0}
    Folder(str(toy.root / "e")).write_json("metrics.json", {"zero_shot_gt": {"clip": dict.fromkeys(GROUPS, group)}})
    lines = {stage: PlanLine(stage, "done", "", path=str(toy.root / "e")) for stage in ("evaluate", "report")}
    monkeypatch.setattr(Planner, "finished", lambda planner: lines)
    monkeypatch.setattr(Pipeline, "run", lambda *_: RunResult(outcomes))
    printed = cli("run").stdout
    assert [text for text in ("AP50", "report: ") if text in printed] == shown


def test_config_prints_what_reads_back(toy: Toy, cli: Cli, tmp_path: Path) -> None:
    printed = cli("config", "--set", "seed=9", "--workspace", "memory://x").stdout
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    result = CliRunner().invoke(app, ["config", "-c", str(again)])
    assert result.stdout == printed
    assert yaml.safe_load(printed)["workspace"] == "memory://x" and yaml.safe_load(printed)["seed"] == 9


def test_a_second_run_says_who_holds_the_workspace(toy: Toy, cli: Cli) -> None:
    from stages.engine.lock import hold

    with hold(toy.workspace):
        result = cli("run")
        assert result.exit_code == 2 and "is held by host" in result.stderr and "--workspace" in result.stderr
        assert "running: host" in cli("status").stdout


def test_an_interrupt_exits_130_and_keeps_what_is_done(toy: Toy, cli: Cli) -> None:
    toy.fault("interrupt-scaled-2")
    result = cli("run")
    assert result.exit_code == 130 and "run again to go on" in result.stderr
    assert toy.plan()["scaled"].reason == "2/4 done"


TYPOS_IN_AN_IMPORT = [
    (["nowhere.pth", "--out", "new"], "nowhere.pth is not there: expected a file of weights"),
    ([".", "--out", "new"], ". is a folder: expected a file of weights"),
    (["w.pth", "--out", "full"], "--out full is there already and not empty"),
    (["w.pth", "--out", "new", "--kind", "detectr"], "(came: 'detectr'); nearest: detector"),
    (["w.pth", "--out", "new", "--model", "RN51"], "(came: 'RN51'); nearest: RN50"),
    (["w.pth", "--out", "new", "--model", "rn50.json"], "--model rn50.json: no such file"),
    (["w.pth", "--out", "new", "--names", "names.txt"], "--names: 'names.txt' is not"),
    (["w.pth", "--out", "new", "--names", "coco_ovd2"], "--names: 'coco_ovd2' is not"),
    (["https://x.org/w.pth", "--out", "new"], "expected a file of this machine; download it first"),
    (["w.pth", "--out", "w.pth/new"], "--out w.pth/new: expected a local folder, but "),
    (["w.pth", "--out", "new"], "w.pth is no file of weights: it starts with b'no weigh'"),
    (["cut.pth", "--out", "new"], "cut.pth is cut short or damaged (File is not a zip file)"),
    (["cut.safetensors", "--out", "new"], "cut.safetensors is damaged or cut short"),
]


def test_typos_in_an_import_are_said_before_anything_slow(tmp_path: Path) -> None:
    """One process types them all, and can't import torch."""
    (tmp_path / "full").mkdir()
    for name in ("w.pth", "full/mine.txt"):
        (tmp_path / name).write_text("no weights")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04" + bytes(99))
    (tmp_path / "cut.safetensors").write_bytes(save({"a": np.ones((4, 4))})[:-1])
    code = (
        "import json, sys\nsys.modules['torch'] = None\n"
        "from typer.testing import CliRunner\nfrom stages.cli import app\n"
        "said = [CliRunner().invoke(app, ['import', *options]) for options in json.loads(sys.argv[1])]\n"
        "print(json.dumps([(one.exit_code, one.stderr) for one in said]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps([options for options, _ in TYPOS_IN_AN_IMPORT])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    for (_, message), (status, said) in zip(TYPOS_IN_AN_IMPORT, json.loads(done.stdout), strict=True):
        assert status == 2 and said.startswith("error: ") and message in said


def test_a_run_of_some_stages_needs_no_sections_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = "data: {splits: {mine: {source: world, images: 8}}}\nexecution: {backend: local}\n"
    (tmp_path / "data.yaml").write_text(data)
    (tmp_path / "concepts.yaml").write_text(data + "concepts: {splits: [mine], parser: rules, min_count: 1}\n")

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    assert call("run", "data", "-c", "data.yaml").exit_code == 0
    assert call("run", "concepts", "-c", "concepts.yaml").exit_code == 0
    states = [(s["stage"], s["state"]) for s in json.loads(call("status", "--json", "-c", "concepts.yaml").stdout)]
    assert states[:3] == [("data", "done"), ("concepts", "done"), ("teacher", "missing")]
    (tmp_path / "whole.yaml").write_text(call("config", "-c", "concepts.yaml").stdout)
    assert call("run", "concepts", "-c", "whole.yaml", "--dry-run").stdout.count("skip") == 2
    for stage, missing in [("concepts", "concepts.splits"), ("labels", "teacher.training"), (None, "labels.splits")]:
        refused = call("run", *filter(None, [stage]), "-c", "data.yaml")
        assert refused.exit_code == 2 and f"\n  {missing}: " in refused.stderr
        assert "name the stages to run, such as `regionclip run data`" in refused.stderr
    written = call("run", "data", "-c", "data.yaml", "--set", "labels.threshold=0.2")
    assert written.exit_code == 2 and "labels.splits: expected at least one split" in written.stderr


def test_help_and_status_import_nothing_slow(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from stages.cli import app\n"
        "slow = {'torch', 'torchvision', 'open_clip', 'ray', 'spacy', 'pyarrow', 'rich', 'fsspec'}\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    result = CliRunner().invoke(app, arguments)\n"
        "    assert result.exit_code == 0, result.output\n"
        "    print(arguments[0], sorted(slow & set(sys.modules)))\n"
    )
    config = tmp_path / "c.yaml"
    config.write_text(
        "data: {splits: {train: {source: world, images: 8}}}\nconcepts: {splits: [train]}\n"
        "teacher: {weights: random}\nproposals: {splits: [train]}\nlabels: {splits: [train]}\n"
        f"evaluate: {{split: train}}\nworkspace: {tmp_path / 'ws'}\n"
    )
    commands = [["--help"], ["status", "-c", str(config)], ["run", "--dry-run", "-c", str(config)]]
    line = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "--help []\nstatus []\nrun []\n"


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert CliRunner().invoke(app, ["--version"]).stdout == f"regionclip {project['version']}\n"


def test_every_command_has_examples_that_it_takes() -> None:
    """As plain lines at the end of its help, whatever the width; each is parsed as the command would."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        text = CliRunner().invoke(app, [name, "-h"], terminal_width=50).stdout
        heading, _, lines = text.partition("Example")[2].partition("\n")
        assert heading in (":", "s:") and lines
        for line in filter(None, lines.splitlines()):
            words = shlex.split(line.strip().split("    ")[0].split(" > ")[0])
            assert words[:2] == ["regionclip", name]
            command.make_context(name, words[2:])


def test_a_shell_completes_stages() -> None:
    asked = {"_REGIONCLIP_COMPLETE": "complete_bash", "COMP_WORDS": "regionclip run p", "COMP_CWORD": "2"}
    assert CliRunner().invoke(app, env=asked, prog_name="regionclip").stdout.split() == [
        "proposals",
        "pairs",
        "pretrain",
    ]


def test_a_quiet_run_prints_what_goes_wrong_and_a_verbose_one_each_shard(toy: Toy, cli: Cli) -> None:
    toy.fault("raise-scaled-1")
    quiet = cli("run", "-q")
    assert quiet.exit_code == 1 and quiet.stdout == "" and quiet.stderr.count("made to fail") == 1
    log = (Path(toy.workspace.url) / "run.log").read_text()
    assert "numbers    done" in log and "made to fail" in log and "shard   0" not in log
    verbose = cli("run", "--verbose")
    assert "scaled     shard   1 failed: RuntimeError: made to fail" in verbose.stdout
    assert cli("run", "-q", "-v").exit_code == 2
