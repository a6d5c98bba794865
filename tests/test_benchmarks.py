"""The benchmarks run, at toy sizes, and the plain reference in them computes what we compute."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from regionclip_core.precision import set_precision

ROOT = Path(__file__).resolve().parents[1]


def run(*line: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *line], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def table(page: str, title: str) -> list[list[str]]:
    """The cells of the rows below a title."""
    lines = [line for line in page.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_every_comparison_agrees_with_its_reference(tmp_path: Path) -> None:
    compares = ("regions", "pretraining", "detection", "nms", "evaluation")
    run("benchmarks", *compares, "--quick", "--rounds", "1", "--out", str(tmp_path))
    compared = table((tmp_path / "BENCHMARKS.md").read_text(), "Against a plain reference")
    starts = ["region encoding", "region encoding", "backbone and", "pretraining step", "detection", "detection"]
    starts += ["hard NMS", "soft-NMS", "hard NMS", "soft-NMS", "average precision"]
    assert all(row[0].startswith(start) for row, start in zip(compared, starts, strict=True))
    assert {row[0]: row[-1] for row in compared if not float(row[-1]) < 1e-4} == {}
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    run("benchmarks", "--quick", "--out", str(tmp_path))
    page = (tmp_path / "BENCHMARKS.md").read_text()
    assert len(table(page, "Throughput")) == len(table(page, "Growth")) == 3
    assert all(f"## {title}\n\n```\n" in page for title in ("Loader", "Captions", "Start-up"))


@pytest.mark.slow
def test_the_logic_of_the_gpu_tests_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONCLIP_GPU_TEST_DEVICE", "cpu")
    assert " passed" in run("-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider", "-k", "do_run_there")


def test_the_gpus_turn_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has torch already."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("sys.argv", ["gpu.py", "--tiny"])
    try:
        import_module("gpu").main()
    finally:
        set_precision("float32", "cpu")  # the last row's is bf16
    page = capsys.readouterr().out
    rows = [
        line.split(" | ") for line in page.splitlines() if line.startswith(("| labels", "| pretrain", "| finetune"))
    ]
    expected = [(work, kind) for work in ("labels", "pretrain", "finetune") for kind in ("float32", "bf16")]
    assert [(row[0].strip("| "), row[1]) for row in rows] == expected
    assert "The loader by itself" in page
