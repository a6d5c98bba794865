"""Rounds: the student of one round labels, and starts, the next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import artifact, run_small, small_config, small_tree
from typer.testing import CliRunner

from regionclip_core.config.loading import dump_config, parse_config
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.pretraining.labelling import Labeller
from regionclip_core.storage.folder import Folder
from stages.cli import app
from stages.commands.comparisons.ablate import choose, load_ablation, plan_of
from stages.commands.comparisons.compare import side_of
from stages.commands.finished import folder_of
from stages.commands.gc import unreachable
from stages.commands.verify import advice, verify_workspace
from stages.engine.look_ahead import look_ahead
from stages.engine.plan import Planner

SETTINGS: dict[str, dict[str, Any]] = {
    "proposals": {"method": "rpn", "max_regions": 6},
    "labels": {"mode": "crop", "objectness_power": 2.0},
    "pretrain": {"weight_average": 0.7},
}
FIRST = ("labels@1", "pairs@1", "pretrain@1")
SECOND = ("labels", "pairs", "pretrain")


def rounds(workspace: Path, number: int, **sections: dict[str, Any]) -> Config:
    merged = {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in {*SETTINGS, *sections}}
    if number > 1:
        merged["labels"] = {"later_rounds": {"threshold": 0.0001}, **merged["labels"]}
    return parse_config({**small_tree(workspace, **merged), "rounds": number})


def digests(config: Config, *names: str) -> list[str]:
    lines = Planner(config).finished()
    return [line.manifest.content_digest for name in names if (line := lines[name]).manifest is not None]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = rounds(tmp_path_factory.mktemp("rounds") / "ws", 2)
    result = run_small(config)
    assert result.ok, result.messages
    before = ["data", "concepts", "teacher", "rpn", "proposals"]
    assert list(result.outcomes) == [*before, *FIRST, *SECOND, "finetune", "evaluate", "report"]
    return config


def begin(done: Config, workspace: Path) -> None:
    """Copy what has no rounds."""
    for stage in ("data", "concepts", "teacher", "rpn", "proposals"):
        shutil.copytree(Path(done.workspace) / stage, workspace / stage)


def test_the_second_round_is_that_of_two_runs_by_hand(done: Config, tmp_path: Path) -> None:
    begin(done, tmp_path / "ws")
    by_hand = rounds(tmp_path / "ws", 1)
    assert run_small(by_hand, "pretrain").ok
    assert digests(by_hand, *SECOND) == digests(done, *FIRST)
    student = tmp_path / "student"
    shutil.copytree(artifact(tmp_path / "ws", "pretrain"), student)
    labels = {"mode": "roi", "threshold": 0.0001, "weights": str(student)}
    by_hand = rounds(tmp_path / "ws", 1, labels=labels, pretrain={"init": str(student)})
    assert run_small(by_hand, "pretrain").ok
    assert digests(by_hand, *SECOND) == digests(done, *SECOND)
    assert not set(digests(done, *FIRST)) & set(digests(done, *SECOND))


def test_what_is_there_says_its_round(done: Config) -> None:
    lines = Planner(done).finished()
    first, second = lines["labels@1"].manifest, lines["labels"].manifest
    assert first is not None and second is not None
    assert "weights" not in first.settings["labels"] and "named_by" not in first.summary
    assert second.settings["labels"]["weights"] == second.summary["named_by"] == "student of round 1"
    assert "round" not in first.provenance and second.provenance["round"] == 2
    assert second.inputs["student"] == digests(done, "pretrain@1")[0]
    # finetune and all after it take the last round's.
    assert lines["finetune"].upstream["pretrain"] == lines["pretrain"].path != lines["pretrain@1"].path
    found = side_of(folder_of(lines["evaluate"]), "x").manifests  # from the evaluation back, round by round
    assert found == {name: line.manifest for name, line in lines.items() if name != "report"}
    page = (Path(str(lines["report"].path)) / "report.html").read_text()
    text = " ".join(page.split())
    assert "2 rounds of labels and pretraining" in text
    assert "The student of round 1 compares each proposal (mode <code>roi</code>)" in text
    assert "The student starts as the visual encoder of the student of round 1 and learns" in text


def test_results_of_fewer_and_of_more_rounds_are_shared(done: Config) -> None:
    workspace = Path(done.workspace)
    fewer, more = Planner(rounds(workspace, 1)).current(), Planner(rounds(workspace, 3)).current()
    assert [fewer[name].state for name in SECOND] == ["done"] * 3
    states = {name: line.state for name, line in more.items() if name.split("@")[0] in SECOND}
    assert [name for name, state in states.items() if state == "done"] == [
        *FIRST,
        *("labels@2", "pairs@2", "pretrain@2"),
    ]
    assert list(states)[-3:] == list(SECOND)
    assert more["labels"].settings["labels"]["weights"] == "student of round 2"


def test_a_workspace_can_be_moved(done: Config, tmp_path: Path) -> None:
    """The student of the round before counts by its content."""
    shutil.copytree(done.workspace, tmp_path / "moved")
    assert {line.state for line in Planner(rounds(tmp_path / "moved", 2)).lines()} == {"done"}


def test_gc_and_verify_know_the_rounds(done: Config) -> None:
    workspace = Folder(done.workspace)
    lines = Planner(done).lines()
    paths = {line.name: line.path for line in lines}
    assert unreachable([done], workspace) == ([], [])
    # Its finetune and so on are known only after its own have run.
    garbage, undecided = unreachable([rounds(Path(done.workspace), 1)], workspace)
    assert [item.folder.url for item in garbage] == [
        *(paths[name] for name in (*SECOND, "finetune")),
    ] and undecided == ["evaluate", "report"]
    found = list(verify_workspace(workspace))
    assert len(found) == len(lines) and not any(problems for *_, problems in found)
    bad = [("labels", Folder(str(paths[name]))) for name in ("labels", "labels@1")]
    assert advice(bad, lines, "") == ["do them over: regionclip run labels labels@1 --force"]


def test_the_command_line_names_the_rounds(done: Config, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(done))

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--config", str(file)])
        assert result.exit_code == 0, result.output
        return result.output

    status = said("status").splitlines()
    assert [row.split()[:2] for row in status[6:12]] == [[name, "done"] for name in (*FIRST, *SECOND)]
    named = [(one["name"], one["stage"], one["round"]) for one in json.loads(said("status", "--json"))]
    assert named[5:7] == [("labels@1", "labels", 1), ("pairs@1", "pairs", 1)]
    assert named[8:12] == [*((name, name, 2) for name in SECOND), ("finetune", "finetune", 1)]
    plan = {row.split()[0]: row for row in said("run", "labels@1", "pairs", "--force", "--dry-run").splitlines()}
    assert "pretrain" not in plan
    assert plan["pairs@1"].split()[1] == "skip" and "if labels@1 comes out as before" in plan["pairs@1"]
    assert "if pretrain@1 comes out as before" in plan["labels"] and plan["pairs"].split()[1] == "run"
    assert "named_by: student of round 1" in said("show", "labels")
    assert "named_by" not in said("show", "labels@1")
    assert said("check").startswith("nothing is wrong; to run: nothing")
    changed = said("status", "--set", "labels.later_rounds.threshold=0.2").splitlines()
    assert changed[6].split()[1] == "done" and "labels.threshold 0.0001 -> 0.2" in changed[9]
    changed = said("status", "--set", "labels.threshold=0.2").splitlines()
    assert "labels.threshold 0.0 -> 0.2" in changed[6]
    assert changed[9].startswith("labels ") and " after pretrain@1 " in changed[9]


def test_a_run_that_was_cut_between_rounds_goes_on(
    done: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(done, tmp_path / "ws")
    config = rounds(tmp_path / "ws", 2)
    assert list(run_small(config, "pretrain@1").outcomes)[-3:] == list(FIRST)
    plain, labelled = Labeller.label_shard, []

    def cut(labeller: Labeller, data: Folder, folder: Folder, shard: int) -> Any:
        if labelled:
            raise KeyboardInterrupt
        labelled.append(labeller.settings.weights)
        return plain(labeller, data, folder, shard)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "label_shard", cut)
        with pytest.raises(KeyboardInterrupt):
            run_small(config, "pretrain")
    assert labelled == ["student of round 1"]
    lines = {line.name: line for line in Planner(config).lines()}
    assert [lines[name].state for name in FIRST] == ["done"] * 3
    assert (lines["labels"].state, lines["labels"].reason) == ("partial", "1/2 done")
    assert [lines[name].reason for name in ("pairs", "pretrain")] == ["after labels", "after labels, pairs"]
    garbage, undecided = unreachable([config], Folder(config.workspace))
    assert garbage == [] and undecided[:2] == ["pairs", "pretrain"]
    outcomes = run_small(config, "pretrain").outcomes
    assert [outcomes[name] for name in (*FIRST, *SECOND)] == ["skipped"] * 3 + ["done"] * 3
    assert digests(config, *FIRST, *SECOND) == digests(done, *FIRST, *SECOND)


def test_an_ablation_of_rounds_runs_the_first_once(tmp_path: Path) -> None:
    tree = parse_yaml(dump_config(rounds(tmp_path / "ws", 1)), "c")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    content = {"config": str(tmp_path / "c.yaml"), "seeds": [0], "variants": {"one": {}, "two": {"rounds": 2}}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    ablation = load_ablation(str(tmp_path / "a.yaml"))
    row = plan_of(ablation, choose(ablation, [], [])).splitlines()[2]
    to_run, shared = row.split("two")[1].strip().split("  ", 1)
    assert to_run == "labels, pairs, pretrain, finetune, evaluate"
    assert shared.strip() == "data, concepts, teacher, rpn, proposals, labels@1, pairs@1, pretrain@1"


@pytest.mark.parametrize(
    ("number", "sections", "message"),
    [
        (2, {"pretrain": {"weights": "a"}}, "pretrain.weights: expected train with rounds above 1"),
        (2, {"labels": {"source": "a.json"}}, "labels.source_probabilities: with rounds above 1"),
        (1, {"labels": {"later_rounds": {"mode": "crop"}}}, "labels.later_rounds: there is one round"),
        (2, {"labels": {"weights": "student of round 1"}}, "labels.weights: expected a folder"),
        (1, {"pretrain": {"init": "student of round 1"}}, "pretrain.init: expected a folder"),
        (2, {"labels": {"max_size": 60}}, "labels.max_size: expected at least labels.image_size"),
    ],
)
def test_what_does_not_go_with_rounds_is_refused(number: int, sections: Any, message: str) -> None:
    tree = {**small_tree("unused", **sections), "rounds": number}
    with pytest.raises(ValueError, match=message):
        parse_config(tree)
    with pytest.raises(ValueError, match="rounds"):
        parse_config({**small_tree("unused"), "rounds": 11})


def test_one_round_is_as_without_the_setting() -> None:
    one = parse_config({**small_tree("unused"), "rounds": 1})
    assert list(Planner(one).steps) == list(Planner(small_config("unused")).steps)
    settings = [
        {name: step.stage.settings(step.config) for name, step in Planner(c).steps.items()}
        for c in (
            one,
            small_config("unused"),
        )
    ]
    assert settings[0] == settings[1]


def test_what_the_first_round_needs_is_looked_at_once(tmp_path: Path) -> None:
    config = rounds(tmp_path / "ws", 2, pretrain={"init": str(tmp_path / "gone")})
    planner = Planner(config)
    lines = planner.current()
    assert lines["pretrain@1"].state == "blocked" and not lines["pretrain"].wrong
    with pytest.raises(ValueError, match=r"^pretrain\.init: .*gone.* is not there") as error:
        look_ahead(config, planner.closure(None), lines)
    assert "\n" not in str(error.value)
    # A file that is no model is seen before anything runs.
    (tmp_path / "gone").write_text("no weights")
    with pytest.raises(ValueError, match=r"^pretrain\.init: ") as error:
        look_ahead(config, planner.closure(None), Planner(config).current())
    assert "\n" not in str(error.value)
