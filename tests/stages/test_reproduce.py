"""`regionclip reproduce`: the same run as docs/REPRODUCE.md's commands, and a whole one with random weights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from official_files import full_state
from places import GOLDEN, ROOT
from small_inputs import write_coco
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import load_config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.models.clip import load_clip
from regionclip_core.models.text_embeddings import NamePrompts
from regionclip_core.storage.records import Folder
from regionclip_core.weights.importing import import_checkpoint
from stages.cli import app
from stages.commands import reproduce as command
from stages.commands.reproduce import DETECTION, PUBLISHED, figures, reproduction
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline, RunResult

TEXT = (ROOT / "docs" / "REPRODUCE.md").read_text(encoding="utf-8").replace("\\\n", " ")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reproduce", *arguments])


def files(folder: Path, preset: str) -> Path:
    for name in PUBLISHED[preset].files:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("preset", ["coco_rn50", "lvis_rn50"])
def test_it_is_the_run_of_the_documents_commands(preset: str, tmp_path: Path) -> None:
    ours = reproduction(preset, str(files(tmp_path, preset)), "weights", None, ())
    [command] = re.findall(rf"^regionclip (run .*--workspace runs/published_{preset} .*)$", TEXT, re.M)
    _, *arguments = shlex.split(command)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    sets = [value for option, value in zip(arguments[::2], arguments[1::2], strict=True) if option == "--set"]
    assert load_config(preset, [f"workspace={given['--workspace']}", *sets]) == ours
    imports = {
        shlex.split(line)[2].removeprefix("published/"): shlex.split(line)[4]
        for line in re.findall(r"^regionclip import .*$", TEXT, re.M)
    }
    assert {name: f"weights/{Path(name).stem}" for name in PUBLISHED[preset].files}.items() <= imports.items()


def test_figures_are_those_of_the_presets_comments() -> None:
    for preset, published in PUBLISHED.items():
        comment = (ROOT / "stages" / "presets" / f"{preset}.yaml").read_text().split("\nseed")[0]
        for name, paper in published.figures.values():
            word = {"rare": "APr"}.get(name.split(":")[0], name.split(":")[0])
            word = "AP" if (preset[:4], word) == ("lvis", "all") else word
            said = re.search(rf"\b{word} (\d+\.\d)", comment)
            assert (float(said[1]) if said else None) == paper, (preset, name)


def test_the_table_has_the_difference() -> None:
    metrics = {"finetuned": {"regionclip": {"novel": {"ap50": 0.30}, "base": {"ap50": 0.6}, "all": {"ap50": 0.5}}}}
    rows = [line.split() for line in figures("coco_rn50x4", metrics).splitlines()]
    assert rows[1:] == [["novel:", "AP50", "39.3", "30.0", "-9.3"], ["base:", "AP50", "-", "60.0"],
                        ["all:", "AP50", "-", "50.0"]]  # fmt: skip


def test_what_is_missing_is_named_before_anything_is_done(tmp_path: Path) -> None:
    result = call("coco_rn50", "--weights", str(tmp_path), "--imported", str(tmp_path / "made"))
    assert result.exit_code == 2 and "docs/MODEL_ZOO.md" in result.stderr
    assert all(name in result.stderr for name in PUBLISHED["coco_rn50"].files)
    result = call("coco_rn51", "--weights", str(tmp_path))
    assert result.exit_code == 2 and "nearest: coco_rn50" in result.stderr
    assert not (tmp_path / "made").exists()


def test_quiet_and_verbose_are_those_of_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What shows the run, and what is said of the imports; both at once are refused."""
    shown: list[Reporter] = []

    class Failing(Pipeline):
        def run(self, *_: object) -> RunResult:
            shown.append(self.report)
            return RunResult({"data": "failed"})

    monkeypatch.setattr(command, "Pipeline", Failing)
    monkeypatch.setattr(command, "_import", lambda file, out, names, say: say(f"{file.name}: imported"))
    given = ("coco_rn50", "--weights", str(files(tmp_path, "coco_rn50")), "-w", str(tmp_path / "ws"))
    for option, lines in ((), len(DETECTION)), (("-v",), len(DETECTION)), (("-q",), 0):
        result = call(*given, *option)
        assert result.exit_code == 1 and len(result.stdout.splitlines()) == lines, result.output
    for report, said in zip(shown, (["said", "odd"], ["said", "shard", "odd"], ["odd"]), strict=True):
        capsys.readouterr()
        report.say("said")
        report.detail("shard")
        report.warn("odd")
        assert capsys.readouterr().out.split() == said
    both = call(*given, "-q", "-v")
    assert both.exit_code == 2 and "-q" in both.stderr and len(shown) == 3


@pytest.mark.slow
def test_official_files_are_imported_once_and_measured(tmp_path: Path) -> None:
    """RN50 in its true size, random weights, two small images."""
    made = write_coco(Folder(str(tmp_path / "coco")), 2)
    body = json.loads(Path(made["instances"]).read_text())
    used = {one["category_id"] for one in body["annotations"]}
    annotated = [category for category in body["categories"] if category["id"] in used]
    annotated[0]["name"], annotated[1]["name"] = "snowboard", "giraffe"  # of COCO's, one novel, one base
    Path(made["instances"]).write_text(json.dumps(body))
    student, detector, network, embeddings = (tmp_path / name for name in PUBLISHED["coco_rn50"].files)
    torch.save({"model": full_state("pretrain_rn50")}, student)
    import_checkpoint(str(student), str(tmp_path / "first"))
    categories, text = load_categories("coco_ovd"), load_clip(Folder(str(tmp_path / "first" / "teacher")))
    rows = NamePrompts.official().embed(text, categories.names)
    torch.save(rows, embeddings)
    classifier = "roi_heads.box_predictor.{}cls_score.weight"
    own = {
        classifier.format("test_"): rows,
        classifier.format(""): rows[[i in categories.base for i in categories.names]],
    }
    torch.save({"model": full_state("coco_ovd_rn50") | own}, detector)
    shapes = json.loads((GOLDEN / "official_rpn_keys.json").read_text())["resnet50_c4"]
    weights = {
        name: torch.ones(shape) if name.endswith("running_var") else torch.randn(shape) * 0.02
        for name, shape in shapes.items()
    }
    torch.save({"model": weights}, network)
    settings = {
        **{f"data.splits.{split}.{key}": made[key] for split in ("train", "val") for key in ("images", "instances")},
        "data.splits.train.captions": made["captions"],
        "execution.backend": "local",
        "rpn.image_size": 224,
        "evaluate.image_size": 224,
        "proposals.max_regions": 20,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    given = ("coco_rn50", "--weights", str(tmp_path), "--imported", str(tmp_path / "made"), "-w", str(tmp_path / "ws"))
    first = call(*given, *sets)
    assert first.exit_code == 0, first.output
    assert first.stdout.count("imported into") == len(DETECTION)
    assert re.search(r"novel: AP50 +31\.4 +\d", first.stdout)
    again = call(*given, *sets)
    assert again.exit_code == 0 and again.stdout.count("imported before") == len(DETECTION)
    assert call(*given, *sets, "-q").output == ""
    with network.open("ab") as file:
        file.write(b" ")
    changed = call(*given, *sets)
    assert changed.exit_code == 2 and "is of another file than" in changed.stderr
