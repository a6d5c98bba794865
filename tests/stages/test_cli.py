"""The command line, in process; benchmarks/bench_startup.py measures how fast it answers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from toy_runs import Toy
from typer.testing import CliRunner, Result

from stages.cli import app

Cli = Callable[..., Result]


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


def test_a_failure_exits_1_and_names_the_traceback(toy: Toy, cli: Cli) -> None:
    fault = toy.fault("raise-scaled-2")
    failed = cli("run")
    assert failed.exit_code == 1
    assert "scaled: failed: 1 of 4 shards failed" in failed.stderr and "failed-00002.json" in failed.stderr
    assert "total: blocked: waits for scaled" in failed.stderr
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
    failed = "failed: OSError: [Errno 28] No space left on device: '/there/x'\n"
    assert [f"{stage}: {failed}" in result.stderr for stage in ("numbers", "lonely")] == [True, True]
    assert result.stderr.count("\n") == 6 and "Traceback" not in result.output  # two of two lines, and two blocked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "labels.treshold=1"], "nearest valid key: labels.threshold"),
        (["run", "nothing"], "no stage 'nothing'"),
        (["run", "totl"], "nearest: total"),
        (["run", "--workspace", ""], "workspace: expected a folder or URL (came: '')"),
        (["show", "nothing"], "no stage 'nothing'"),
        (["show", "total"], "total has no finished result"),
        (["run", "--force"], "--force needs the stages"),
        (["run", "--backend", "spark"], "execution.backend"),
        (["detect", "x.jpg", "--classes", " , "], "names no category"),
        (["status", "--config", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
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


def test_help_and_status_import_nothing_slow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from stages.cli import app\n"
        "result = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert result.exit_code == 0, result.output\n"
        "slow = {'torch', 'torchvision', 'open_clip', 'ray', 'spacy', 'pyarrow', 'rich', 'fsspec'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    config = tmp_path / "c.yaml"
    config.write_text(
        "data: {splits: {train: {source: world, images: 8}}}\nconcepts: {splits: [train]}\n"
        "teacher: {weights: random}\nproposals: {splits: [train]}\nlabels: {splits: [train]}\n"
        f"evaluate: {{split: train}}\nworkspace: {tmp_path / 'ws'}\n"
    )
    for arguments in (["--help"], ["status", "-c", str(config)], ["run", "--dry-run", "-c", str(config)]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[]\n", arguments
