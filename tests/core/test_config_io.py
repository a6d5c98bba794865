"""Loading, overriding and explaining configurations."""

from pathlib import Path

import pytest
import yaml

from regionclip_core import config_io
from regionclip_core.config_io import dump_config, load_config

MINIMAL = """
data:
  splits:
    train: {source: world, images: 8}
    val: {source: world, images: 4}
concepts: {splits: [train]}
teacher: {weights: random}
proposals: {splits: [train, val]}
labels: {splits: [train]}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return str(path)


def test_overrides_are_parsed_as_yaml(file: str) -> None:
    overrides = ["labels.threshold=0.25", "rpn.optim.lr=1e-4", "concepts.max_concepts=null", "concepts.drop=[time]"]
    config = load_config(file, [*overrides, "data.splits.train.images=16", "execution.backend=local"])
    assert config.labels.threshold == 0.25
    assert config.rpn.optim.lr == 1e-4
    assert config.concepts.max_concepts is None
    assert config.concepts.drop == ("time",)
    assert config.data.splits["train"].images == 16  # type: ignore[union-attr]
    assert config.execution.backend == "local"


def test_dump_reads_back_equal(file: str, tmp_path: Path) -> None:
    config = load_config(file, ["seed=7"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(str(again)) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("labels.treshold=0.2", ["labels.treshold", "0.2", "labels.threshold"]),
        ("lables.threshold=0.2", ["lables", "'threshold': 0.2", "nearest valid key: labels"]),
        ("threshold=0.2", ["threshold", "nearest valid key: labels.threshold"]),
        ("rpn.optim.learning=1", ["rpn.optim.learning", "valid keys in rpn.optim", "lr"]),
        ("labels.threshold=1.5", ["labels.threshold", "less than 1", "1.5"]),
        ("labels.top_k=many", ["labels.top_k", "integer", "'many'"]),
        ("data.splits.train.imagess=3", ["data.splits.train.imagess", "data.splits.train.images"]),
        ("data.splits.val.images=0", ["data.splits.val.images:", "0"]),
        ("data.splits.val.source=zip", ["data.splits.val", "world, tars, coco, lvis, folder"]),
        ("data.splits.val={source: coco}", ["data.splits.val.images", "missing"]),
        ("data.splits.val={images: 3}", ["data.splits.val", "`source`"]),
        ("teacher.training.step=3", ["teacher.training.step", "teacher.training.steps"]),
        ("evaluate.split=test", ["evaluate.split", "'test'", "['train', 'val']"]),
        ("seed.x=1", ["seed.x=1"]),
        ("seed", ["seed", "a.b=value"]),
        ("seed=[", ["seed=[", "YAML"]),
    ],
)
def test_mistakes_name_path_value_and_nearest_key(file: str, override: str, parts: list[str]) -> None:
    overrides = ["seed=1", override] if override == "seed.x=1" else [override]
    with pytest.raises(ValueError) as caught:
        load_config(file, overrides)
    for part in parts:
        assert part in str(caught.value)
    assert ".world." not in str(caught.value)


@pytest.mark.parametrize("key", ["objectness", "finetuned_objectness"])
def test_raw_objectness_needs_a_proposal_network(file: str, key: str) -> None:
    """Other proposals have the logit 0, with which every score would be 0 and nothing would be found."""
    overrides = [f"evaluate.{key}=raw_logit"]
    assert getattr(load_config(file, overrides).evaluate, key) == "raw_logit"
    with pytest.raises(ValueError, match=f"evaluate.{key}: raw_logit .* proposals.method grid .* none"):
        load_config(file, [*overrides, "proposals.method=grid"])


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    assert yaml.safe_load(path.read_text()) == {"seed": 2}  # what plain YAML would have done
    with pytest.raises(ValueError, match="'seed' given twice"):
        load_config(str(path))


def test_default_file_and_presets(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "tiny.yaml").write_text(MINIMAL + "seed: 5\n")
    monkeypatch.setattr(config_io, "PRESETS", presets)
    monkeypatch.chdir(tmp_path)
    assert load_config("tiny").seed == 5
    with pytest.raises(FileNotFoundError, match="preset 'tiny'"):
        load_config("tinyy")
    with pytest.raises(FileNotFoundError, match=r"no pipeline\.yaml .*tiny"):
        load_config()
    (tmp_path / "pipeline.yaml").write_text(MINIMAL + "seed: 6\n")
    assert load_config().seed == 6


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "a: \xff"])
def test_broken_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_config(str(path))
