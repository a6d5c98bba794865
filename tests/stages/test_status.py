"""What `status` and `run --dry-run` say of stages that are not done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_stages
import yaml
from toy_runs import Toy
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import parse_config
from regionclip_core.storage.records import Folder, read_manifest
from stages.cli import app
from stages.engine import plan

Cli = Callable[..., Result]


@pytest.fixture
def cli(toy: Toy) -> Cli:
    file = toy.root / "c.yaml"
    file.write_text(yaml.safe_dump(toy.config().model_dump(mode="json")))
    return lambda *arguments: CliRunner().invoke(app, [*arguments, "--config", str(file)])


def folder_of(toy: Toy, stage: str) -> Path:
    return Path(str(toy.plan()[stage].path))


def test_a_missing_outside_input_blocks_its_stage_and_no_other(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is refused, since it stays missing until somebody changes something; not so a store that is away."""
    away = False

    def looks(self: Any, config: Any) -> dict[str, Any]:
        if away:
            raise ConnectionError(f"{config.evaluate.split}: no answer")
        with open(config.evaluate.split):
            return {}

    monkeypatch.setattr(toy_stages.Lonely, "settings", looks)
    where = str(toy.root / "no" / "tars")
    splits = {name: {"source": "world", "images": 8} for name in ("train", where)}
    settings: dict[str, Any] = {"data__splits": splits, "evaluate__split": where, "proposals__splits": list(splits)}
    monkeypatch.setattr(toy_stages.Numbers, "raw_inputs", lambda self, config: [])
    lines = toy.plan(**settings)
    assert {name: line.state for name, line in lines.items()}["lonely"] == "blocked"
    assert lines["lonely"].reason == f"evaluate.split: No such file or directory: {where}"
    with pytest.raises(ValueError, match=r"^evaluate\.split: No such file or directory: /"):
        toy.run(**settings)
    assert not toy.calls()
    away = True
    assert toy.run(**settings).outcomes == {
        **dict.fromkeys(("numbers", "scaled", "total"), "done"),
        "lonely": "blocked",
    }


def test_a_dry_run_with_force_says_what_is_thrown_away(toy: Toy, cli: Cli) -> None:
    toy.run()
    before = toy.content()
    rows = [
        re.split(r"  +", row)[:3] for row in cli("run", "scaled", "total", "--force", "--dry-run").stdout.splitlines()
    ]
    assert rows[1:] == [
        ["numbers", "skip", "up to date"],
        *([name, "run", "--force throws away what is there (done, up to date)"] for name in ("scaled", "total")),
    ]
    rows = [re.split(r"  +", row)[:3] for row in cli("run", "numbers", "--force", "--dry-run").stdout.splitlines()]
    assert rows[1:] == [["numbers", "run", "--force throws away what is there (done, up to date)"]]
    assert toy.content() == before
    assert "--force needs the stages" in cli("run", "--force", "--dry-run").stderr


def test_status_adds_up_what_is_there(toy: Toy, cli: Cli) -> None:
    fault = toy.fault("raise-scaled-2")
    toy.run()
    line = toy.plan()["scaled"]
    assert line.so_far is not None and (line.so_far.rows, line.so_far.missing) == (30, 0)
    sizes = [len((folder_of(toy, "scaled") / f"scaled-{shard:05d}.txt").read_bytes()) for shard in (0, 1, 3)]
    row = next(row for row in cli("status").stdout.splitlines() if row.startswith("scaled"))
    assert re.split(r"  +", row)[:4] == ["scaled", "failed", "30", f"{sum(sizes)} B"]
    fault.unlink()
    toy.run()
    shown = cli("status", "--set", "finetune.steps=3").stdout
    row = next(row for row in shown.splitlines() if row.startswith("lonely"))
    manifest = read_manifest(Folder(str(folder_of(toy, "lonely"))))
    assert manifest is not None
    assert re.split(r"  +", row)[:4] == ["lonely", "stale", "(0)", f"({manifest.bytes} B)"]
    assert row.endswith(f"({folder_of(toy, 'lonely')})") and "(...): of the latest result" in shown
    stage = json.loads(cli("status", "--json", "--set", "finetune.steps=3").stdout)[3]
    assert (stage["manifest"], stage["previous"]["bytes"]) == (None, manifest.bytes)


def test_status_says_when_it_left_out_records(toy: Toy, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.fault("interrupt-scaled-3")
    with pytest.raises(KeyboardInterrupt):
        toy.run()
    (folder_of(toy, "scaled") / "records.json").unlink()
    monkeypatch.setitem(plan.LOOKS_INTO, True, 2)
    row = next(row for row in cli("status").stdout.splitlines() if row.startswith("scaled"))
    assert re.split(r"  +", row)[:3] == ["scaled", "partial 3/4", ">= 20"]


def test_a_missing_input_is_told_with_its_key(tmp_path: Path) -> None:
    tars = {"source": "tars", "urls": str(tmp_path / "no" / "{00..03}.tar")}
    for data, key, path in (
        ({"splits": {"train": tars}}, "data.splits.train.urls", str(tmp_path / "no")),
        ({"categories": str(tmp_path / "c.yaml")}, "data.categories", str(tmp_path / "c.yaml")),
    ):
        raw = yaml.safe_load(toy_stages.CONFIG) | {"workspace": str(tmp_path / "ws")}
        raw["data"] |= data
        lines = {line.stage: line for line in plan.Planner(parse_config(raw)).lines()}
        assert (lines["data"].state, lines["concepts"].state, lines["teacher"].state) == (
            *("blocked", "blocked"),
            "missing",
        )
        assert lines["data"].reason.startswith(f"{key}: ") and path in lines["data"].reason
