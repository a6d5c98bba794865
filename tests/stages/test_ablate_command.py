"""`ablate`: a table of variants and seeds through the artifact store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from small_runs import small_tree
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import load_config, parse_config
from regionclip_core.report.ablation import MEASURES
from stages.cli import app
from stages.commands.comparisons.ablate import load_ablation
from stages.engine.plan import Planner
from stages.pretrain import PretrainWork

GIVEN: dict[str, Any] = {
    "config": "base.yaml",
    "seeds": [3, 4],
    "workspace": "ws",
    "set": {"finetune.oracle": False, "pretrain": {"steps": 3}},
    "variants": {"paper": None, "short": {"pretrain.steps": 1}},
}
OWN = ("pretrain", "finetune", "evaluate")
"""Stages that `short` doesn't share with `paper`."""
Call = Callable[..., Result]


@pytest.fixture
def ablate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Writes `a.yaml` in the working directory and calls `ablate` on it."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(small_tree("elsewhere")))

    def call(*options: str, **changes: Any) -> Result:
        body = {**GIVEN, **changes}
        Path("a.yaml").write_text(yaml.safe_dump({k: v for k, v in body.items() if v is not ...}, sort_keys=False))
        return CliRunner().invoke(app, ["ablate", "a.yaml", *options])

    return call


def test_cells_fail_alone_resume_and_make_a_table(ablate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = ablate("--dry-run")
    rows = [line.split() for line in planned.stdout.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["3", "paper"], ["3", "short"], ["4", "paper"], ["4", "short"]]
    assert [row[2] for row in rows] == ["data,", "pretrain,", "data,", "pretrain,"]
    assert planned.exit_code == 0 and not Path("ws").exists()

    works = PretrainWork.run

    def fails(self: PretrainWork, ctx: Any) -> Any:
        if (ctx.config.seed, ctx.config.pretrain.steps) == (3, 1):
            raise RuntimeError("made to fail")
        return works(self, ctx)

    monkeypatch.setattr(PretrainWork, "run", fails)
    first = ablate()
    assert first.exit_code == 1, first.output
    said = [line for line in first.stdout.splitlines() if line.startswith("[") and " in " in line]
    assert [line.split(" in ")[0] for line in said] == [
        "[1/4] paper, seed 3: done",
        "[2/4] short, seed 3: failed",
        "[3/4] paper, seed 4: done",
        "[4/4] short, seed 4: done",
    ]
    assert first.stderr.count("made to fail") == 1 and "made to fail" not in "".join(said)
    assert "FAILED short, seed 3: pretrain: RuntimeError: made to fail" in Path("ws/a.txt").read_text()
    assert "made to fail" in Path("ws/a.md").read_text() and "made to fail" in Path("ws/a.html").read_text()
    assert {stage: len(list(Path("ws", stage).iterdir())) for stage in ("data", "labels", "pretrain", "evaluate")} == {
        "data": 2, "labels": 2, "pretrain": 4, "evaluate": 3
    }  # fmt: skip

    # Another call that leaves the cell alone still says why it failed; one that may work finishes it, and it alone.
    assert ablate("--only", "paper").exit_code == 0
    assert "FAILED short, seed 3: pretrain: failed: RuntimeError: made to fail" in Path("ws/a.txt").read_text()
    monkeypatch.setattr(PretrainWork, "run", works)
    again = ablate()
    assert again.exit_code == 0, again.output
    assert again.stdout.count("finished before") == 3 and "FAILED" not in again.stdout
    assert "pretrain   retry" in again.stdout and "data       skip" in again.stdout

    # The numbers are those of the artifacts, and the differences those of the numbers.
    found = json.loads(Path("ws/a.ablation.json").read_text())
    assert [cell["state"] for cell in found["cells"]] == ["done"] * 4
    ap50, seconds = {}, {}
    for cell in found["cells"]:
        name, seed = cell["variant"], cell["seed"]
        steps = {"paper": 3, "short": 1}[name]
        own = [f"seed={seed}", f"pretrain.steps={steps}", "finetune.oracle=false", "workspace=ws"]
        config = load_config("base.yaml", own)
        assert parse_config(yaml.safe_load(cell["config"])) == config
        lines = Planner(config).finished()
        metrics = json.loads(Path(str(lines["evaluate"].path), "metrics.json").read_text())
        ap50[name, seed] = metrics["zero_shot_gt"]["regionclip"]["all"]["top1"]
        assert cell["values"]["RegionCLIP, region features: top-1"]["all"] == ap50[name, seed]
        needed = [line.manifest.provenance["seconds"] for line in lines.values() if line.stage in OWN]
        seconds[name, seed] = sum(needed)
    for measure, values in (("RegionCLIP, region features: top-1", ap50), ("seconds, all stages", None)):
        [row] = [r for r in found["rows"] if r["measure"] == measure and r["difference"]]
        if values is None:
            values = {(c["variant"], c["seed"]): c["values"][measure]["all"] for c in found["cells"]}
        a, b = (values["short", seed] - values["paper", seed] for seed in (3, 4))
        half = 12.7062 * abs(a - b) / 2  # of two values: the deviation is |a - b| / sqrt(2)
        estimate = row["groups"]["all"]
        assert row["variant"] == "short" and estimate["n"] == 2
        assert [estimate[k] for k in ("low", "mean", "high")] == pytest.approx(
            [(a + b) / 2 - half, (a + b) / 2, (a + b) / 2 + half]
        )
    for cell in found["cells"]:
        spent = cell["values"].get("seconds, stages that the baseline doesn't share")
        own = seconds[cell["variant"], cell["seed"]]
        assert spent == (None if cell["variant"] == "paper" else {"all": pytest.approx(own)})

    # Two of its cells side by side.
    both = ["compare", "ws/a.ablation.json:paper:3", "ws/a.ablation.json:short:3"]
    compared = CliRunner().invoke(app, both)
    assert compared.exit_code == 0, compared.output
    [line] = [line.split() for line in compared.stdout.splitlines() if line.startswith("pretrain.steps")]
    assert line == ["pretrain.steps", "3", "1"] and "B  short, seed 3: seed 3, evaluated" in compared.stdout
    assert "with another content: pretrain, finetune, evaluate\n" in compared.stdout
    [line] = [
        one.split() for one in compared.stdout.splitlines() if re.match("zero-shot, given boxes +RegionCLIP", one)
    ][1:]
    assert line[-3:-1] == [f"{ap50[name, 3]:.1f}" for name in ("paper", "short")]

    # What the ablation reaches stays until its file is deleted.
    gc = ["gc", "--config", "base.yaml", "--workspace", "ws", "--yes"]
    kept = CliRunner().invoke(app, gc)
    assert kept.exit_code == 0, kept.output
    assert "what ws/a.ablation.json reaches stays" in kept.stdout and "\n0 artifacts" in kept.stdout
    Path("ws/a.ablation.json").write_text("{}")
    refused = CliRunner().invoke(app, gc)
    assert refused.exit_code == 2 and "ws/a.ablation.json: expected an ablation" in refused.stderr
    Path("ws/a.ablation.json").unlink()
    assert "deleted" in CliRunner().invoke(app, gc).stdout and not list(Path("ws/pretrain").iterdir())


def test_variants_win_over_set_and_options_over_the_file(ablate: Call) -> None:
    variants = {"a": {"pretrain": {"steps": 2}}, "b": {"labels.threshold": 0.25, "pretrain.batch_size": 2}}
    assert ablate("--dry-run", variants=variants).exit_code == 0
    table = load_ablation("a.yaml", [9], workspace="other", backend="ray")
    assert list(table.configs) == [(name, seed) for seed in (3, 4, 9) for name in ("a", "b")]
    b = table.configs["b", 9]
    assert (b.seed, b.workspace, b.execution.backend) == (9, "other", "ray")
    assert (b.pretrain.steps, b.pretrain.batch_size, b.labels.threshold) == (3, 2, 0.25)
    assert (table.configs["a", 3].pretrain.steps, table.configs["a", 3].labels.threshold) == (2, 0.0)
    assert not b.finetune.oracle


def test_only_and_seeds_choose_cells(ablate: Call) -> None:
    rows = ablate("--dry-run", "--only", "short", "--seeds", "4,7").stdout.splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["4", "short"], ["7", "short"]]


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ((), {"varients": {}}, "a.yaml: unknown key 'varients'; nearest: variants"),
        ((), {"variants": ...}, "variants: missing"),
        ((), {"variants": {}}, "variants: expected at least 1 of them"),
        ((), {"seeds": 3}, "seeds: expected a list (came: 3); write [3]"),
        ((), {"seeds": []}, "seeds: expected at least 1 of them"),
        (
            (),
            {"variants": {"paper": {}, "surer": {"labels": {"treshold": 0.5}}}},
            "a.yaml: variant 'surer': base.yaml with overrides: 1 wrong\n  labels.treshold: unknown key (came: 0.5); "
            "nearest valid key: labels.threshold",
        ),
        ((), {"set": {"labels.threshold": "x"}}, "variant 'paper', 'short': base.yaml with overrides: 1 wrong"),
        ((), {"variants": {"paper": {"seed": 3}}}, "a.yaml: variants.paper: seed is a key of the ablation itself"),
        ((), {"config": "tinny"}, "did you mean the preset 'tiny'?"),
        (("--only", "shrt"), {}, "no variant 'shrt'; variants: paper, short; nearest: short"),
        (("--seeds", "1;2"), {}, "--seeds: expected whole numbers, such as 0,1,2 (came: '1;2')"),
        # Known before anything runs, and said once, not per seed.
        (
            (),
            {"variants": {"paper": {}, "given": {"pretrain.weights": "gone.safetensors"}}},
            "variant 'given': pretrain.weights: ",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    ablate: Call, options: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    result = ablate(*options, **changes)
    assert result.exit_code == 2 and result.stderr.count(said) == 1, result.output
    assert not Path("ws").exists()


def leaves(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def test_the_file_of_readmes_table_makes_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = load_ablation("docs/ablation.yaml")
    own = {"seed", "workspace", "execution", "finetune", "evaluate"}
    reference = leaves(load_config("pipeline.yaml").model_dump(exclude=own))
    # What the README says: the same recipe with a longer schedule, and AdamW.
    longer = {"data.splits.scene.images", "rpn.steps", "pretrain.steps"}
    longer |= {"rpn.optim.optimizer", "pretrain.optim.optimizer", "pretrain.optim.lr"}
    for seed in (0, 1, 2):
        paper = leaves(table.configs["paper", seed].model_dump(exclude=own))
        assert {key for key in reference.keys() | paper.keys() if reference.get(key) != paper.get(key)} == longer
        assert (paper["rpn.optim.optimizer"], paper["pretrain.optim.optimizer"]) == ("adamw", "adamw")
    lines = (ROOT / "README.md").read_text().split("| mean of 3 seeds (range) |")[1].split("\n\n")[0].splitlines()[2:]
    shown = [line.split("|")[1].strip(" *") for line in lines]
    titles = [measure.title for measure in MEASURES]
    assert len(shown) == 14 and shown == [title for title in titles if title in shown]
