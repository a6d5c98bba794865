"""Loading, overriding and explaining configurations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from regionclip_core.config import loading as config_io
from regionclip_core.config.loading import dump_config, load_config, load_files, parse_config
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml, yaml_text

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


def test_an_emoji_is_one_character_however_it_is_written(file: str) -> None:
    """YAML reads JSON's two escapes of it as two halves, which no file name can have."""
    for override in (
        "workspace=/tmp/😀",
        json.dumps("/tmp/😀").join(["workspace=", ""]),
        'workspace="/tmp/\\U0001f600"',
    ):
        assert load_config(file, [override]).workspace == "/tmp/😀"
    assert parse_yaml(r'{"\ud83d\ude00": "\\ud83d\\ude00"}', "x") == {"😀": r"\ud83d\ude00"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_any_editor(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes((MINIMAL + "workspace: /tmp/café").replace("\n", "\r\n").encode(encoding))
    assert load_config(str(path)).workspace == "/tmp/café"
    path.write_bytes((MINIMAL + "workspace: /tmp/café").encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.yaml, line 10: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        load_config(str(path))


def test_dump_reads_back_equal(file: str, tmp_path: Path) -> None:
    config = load_config(file, ["seed=7"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(str(again)) == config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("labels.treshold=0.2", ["labels.treshold", "0.2", "labels.threshold"]),
        ("evaluate.fusion.novl=0.2", ["evaluate.fusion.novl", "nearest valid key: evaluate.fusion.novel"]),
        ("labels.unknown_names=add", ["labels.unknown_names: is of labels.source", "(came: 'add')"]),
        ("labels.source_probabilities=teacher", ["labels.source_probabilities: is of labels.source"]),
        (
            "labels={splits: [train], source: a.json, objectness_power: 1}",
            ["labels.objectness_power: expected 0 with", "(came: 1.0)"],
        ),
        ("lables.threshold=0.2", ["lables", "'threshold': 0.2", "nearest valid key: labels"]),
        ("threshold=0.2", ["threshold", "nearest valid key: labels.threshold"]),
        ("rpn.optim.learning=1", ["rpn.optim.learning", "valid keys in rpn.optim", "lr"]),
        ("labels.threshold=1.5", ["labels.threshold", "less than 1", "1.5"]),
        ("labels.top_k=many", ["labels.top_k", "whole number", "'many'"]),
        ("data.splits.train.imagess=3", ["data.splits.train.imagess", "data.splits.train.images"]),
        ("data.splits.val.images=0", ["data.splits.val.images:", "0"]),
        (
            "data.splits.val.source=zip",
            ["data.splits.val.source: expected 'world', 'tars', 'coco', 'lvis', 'folder' (came: 'zip')"],
        ),
        ("data.splits.val.source=wrld", ["1 wrong", "data.splits.val.source", "(came: 'wrld'); nearest: world"]),
        (
            "data.splits.val={source: Coco, images: x, instnces: y}",
            ["1 wrong", "val.source", "nearest: coco"],  # which keys are valid depends on the source
        ),
        (
            "data.splits.val={sorce: coco}",
            ["val.source: missing, one of world, tars,", "(came: {'sorce': 'coco'}); nearest to it here: sorce"],
        ),
        ("data.splits={}", ["data.splits: expected at least 1", "{}"]),
        ("data.splits=3", ["data.splits: expected a mapping (came: 3)"]),
        ("labels=3", ["labels: expected a mapping of settings (came: 3)"]),
        ("concepts.splits=train", ["concepts.splits: expected a list (came: 'train'); write [train]"]),
        ("concepts.splits=[]", ["concepts.splits: expected at least one split"]),
        ("concepts.splits=[trian]", ["concepts.splits: ", "['train', 'val'] (came: 'trian'); nearest: train"]),
        ("labels.splits=[train, train]", ["labels.splits: expected each split once (came: ['train', 'train'])"]),
        ("concepts.drop=[tyme]", ["concepts.drop.0", "(came: 'tyme'); nearest: time"]),
        ("proposals.method=gird", ["proposals.method", "(came: 'gird'); nearest: grid"]),
        ("rpn.optim.LR=3", ["rpn.optim.LR: unknown key (came: 3); nearest valid key: rpn.optim.lr"]),
        ("labels:threshold=1", ["labels:threshold: unknown key (came: 1); nearest valid key: labels.threshold"]),
        ("data.splits[train].images=3", ["nearest valid key: data.splits.train"]),
        ("rpn.optim.lr=.inf", ["rpn.optim.lr: expected a finite number (came: inf)"]),
        ("rpn.steps=1e3", ["rpn.steps: expected a whole number (came: 1000.0); write 1000"]),
        ("labels.threshold='0.2'", ["labels.threshold: expected a number (came: '0.2'); write it without quotes"]),
        ("execution.threads=true", ["execution.threads: expected a whole number (came: True)"]),
        ("seed=true", ["seed: expected a whole number (came: True)"]),
        ("seed=9223372036854775808", ["seed: expected less than"]),
        ("execution.dashboard=1", ["execution.dashboard: expected true or false (came: 1)"]),
        ("execution.device=gpu", ["execution.device: expected auto, cpu, cuda or cuda:N (came: 'gpu'); nearest: cuda"]),
        ("execution.device=cdua", ["(came: 'cdua'); nearest: cuda"]),
        ("execution.gpus_per_worker=1.5", ["execution.gpus_per_worker: expected a whole number or a share", "1.5"]),
        ("rpn.anchor_sizes=[]", ["1 wrong", "rpn.anchor_sizes: expected at least 1 of them (came: [])"]),
        ("rpn.anchor_sizes=[-3]", ["1 wrong", "rpn.anchor_sizes.0", "(came: -3)"]),
        ("proposals.grid_scales=[5]", ["1 wrong", "proposals.grid_scales.0", "(came: 5)"]),
        ("proposals.grid_scales=[-1]", ["proposals.grid_scales.0", "(came: -1)"]),
        ("teacher.architecture.vision_layers=[1, 1]", ["1 wrong", "vision_layers: expected 4 values (came: [1, 1])"]),
        ("teacher.architecture.vision_layers=[1, 1, 1, 1, 1]", ["vision_layers: expected at most 4 of them"]),
        (
            "data.splits.val={source: tars, urls: [a.tar, b.tar]}",
            ["data.splits.val.urls: expected text (came: ['a.tar', 'b.tar'])", "with braces: {a/*.tar,b/*.tar}"],
        ),
        ("data.splits.val.objects=[7, 3]", ["data.splits.val.objects", "(came: [7, 3]); write [3, 7]"]),
        ("data.splits.val.object_size=[0.3, 0.1]", ["data.splits.val.object_size", "(came: [0.3, 0.1])"]),
        ("data.splits.val.image_size=64", ["data.splits.val.object_size: ", "0.125 of image_size 64"]),
        ("rpn.max_size=127", ["rpn.max_size: expected at least rpn.image_size, which is 128 (came: 127)"]),
        ("finetune.train_sizes=[64, 2000]", ["finetune.train_sizes", "at most finetune.max_size, 1333 (came: 2000)"]),
        ("labels.canvas=padded", ["labels.canvas: `padded` is of labels.mode roi", "no canvas"]),
        ("pairs.min_regions=17", ["pairs.min_regions: expected at most pairs.max_regions, which is 16 (came: 17)"]),
        (
            "pretrain={contrastive_weight: 0, distill_weight: 0, image_text_weight: 0}",
            ["pretrain.contrastive_weight: expected one of", "above 0 (came: [0.0, 0.0, 0.0, 0.0])"],
        ),
        ("pretrain.crop_weight=1", ["pretrain.crop_weight: needs", "labels.crop_features: true (came: 1.0)"]),
        ("labels.grid_scales=[0.5]", ["labels.grid_scales: needs", "(came: [0.5])"]),
        ("labels={crop_features: true, grid_scales: [1.5]}", ["labels.grid_scales.0", "(came: 1.5)"]),
        ("pairs.other_regions=3", ["pairs.other_regions: needs", "(came: 3)"]),
        (
            "labels.max_regions=0",
            ["labels.max_regions: expected at least 1, or boxes from labels.grid_scales (came: 0)"],
        ),
        ("seed=\x01", ["override", "not valid YAML", "special characters"]),
        ("seed=2020-11-28", ["seed: expected a whole number (came: '2020-11-28')"]),
        ("seed=" + "[" * 5000, ["override 'seed=[[", "maximum depth"]),
        ("data.splits.val={source: coco}", ["data.splits.val.images", "missing"]),
        ("data.splits.val={images: 3}", ["data.splits.val.source: missing"]),
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


def test_settings_of_crops_that_fit_each_other(file: str) -> None:
    stored = ["labels.crop_features=true"]
    assert load_config(file, [*stored, "pretrain.crop_weight=1"]).pretrain.crop_weight == 1
    grid = [*stored, "labels.grid_scales=[0.5]", "labels.max_regions=0", "pairs.other_regions=9"]
    assert load_config(file, grid).labels.max_regions == 0
    with pytest.raises(
        ValueError, match=r"pairs\.other_regions: expected at least 1, .* reach no training \(came: 0\)"
    ):
        load_config(file, [*grid[:-1], "pairs.other_regions=0"])
    # A student that is given is not trained, whatever its losses would be.
    assert load_config(file, ["pretrain.weights=a/student", "pretrain.crop_weight=1"]).pretrain.crop_weight == 1


# What passes of -1, 0, NaN, infinities, 1e30, true and "1", setting by setting.
ZERO_PASSES = {
    *("seed", "execution.gpus_per_worker", "execution.shard_retries", "execution.max_error_rate", "report.images"),
    *("proposals.min_objectness", "labels.threshold", "labels.objectness_power"),
    *("pairs.min_regions", "pairs.other_regions", "pretrain.crop_weight"),
    "finetune.focal_gamma",
    *("evaluate.score_threshold", "evaluate.given_score_threshold"),
    *(f"evaluate.fusion.{key}" for key in ("base", "novel", "zero_shot")),
    *("pretrain.contrastive_weight", "pretrain.distill_weight", "pretrain.image_text_weight"),
    *(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("flip", "freeze_at")),
    "teacher.training.flip",
    *(
        f"{stage}.optim.{key}"
        for stage in ("teacher.training", "rpn", "pretrain", "finetune")
        for key in ("weight_decay", "momentum", "warmup_steps")
    ),
}
UNSET = {  # so that settings that may be null have a number
    "data.splits.coco": {"source": "coco", "images": "x", "limit": 3},
    "data.splits.lvis": {"source": "lvis", "images": "x", "instances": "y", "limit": 3},
    "teacher.training": {"splits": ["train"], "optim": {"clip_norm": 1}},
    "execution": {"workers": 2, "threads": 2},
    "concepts.max_concepts": 5,
    "evaluate.given_score_threshold": 0.1,
    **{f"{stage}.temperature": 0.1 for stage in ("labels", "pretrain", "finetune", "evaluate.fusion")},
    **{f"{stage}.optim.{key}": v for stage in ("rpn", "finetune") for key, v in [("clip_norm", 1), ("drops", [5])]},
    "finetune.train_sizes": [64],
}


def numeric_leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from numeric_leaves(value, (*path, key))
    elif isinstance(node, list):
        if node and not isinstance(node[0], str):
            yield path
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path


def replaced(node: Any, path: tuple[str, ...], value: Any) -> Any:
    if path:
        return {**node, path[0]: replaced(node[path[0]], path[1:], value)}
    return [value] * len(node) if isinstance(node, list) else value


def test_every_number_has_a_range(file: str) -> None:
    tree = parse_yaml(dump_config(load_config(file, [f"{k}={json.dumps(v)}" for k, v in UNSET.items()])), "")
    parse_config(tree)
    leaves = list(numeric_leaves(tree))
    assert len(leaves) > 110
    for path in leaves:
        dotted = ".".join(path)
        for value in (-1, 0, math.nan, math.inf, -math.inf, 10**30, 1e30, True, "1"):
            if value == 0 and not isinstance(value, bool) and dotted in ZERO_PASSES:
                parse_config(replaced(tree, path, value))
                continue
            with pytest.raises(ValueError, match=rf"\n  {re.escape(dotted)}\b.*came: "):
                parse_config(replaced(tree, path, value))
    assert {".".join(path) for path in leaves} >= ZERO_PASSES


def test_numbers_as_yaml_users_write_them(file: str) -> None:
    overrides = ["rpn.optim.lr=1e-3", "finetune.optim.lr=2E+1", "labels.temperature=1", "rpn.steps=4_000"]
    config = load_config(file, overrides)
    assert (config.rpn.optim.lr, config.finetune.optim.lr, config.rpn.steps) == (1e-3, 20.0, 4000)
    assert config.labels.temperature == 1.0 and isinstance(config.labels.temperature, float)


def test_yaml_is_1_2(tmp_path: Path) -> None:
    """`no` and `on` are text, as are dates and times of day; an exponent needs no dot; 010 is ten."""
    text = "[no, on, Y, true, False, 2026-11-28, 12:30, 1e-3, 1E3, 010, 0o10, 0x10, 1_000, ~, .5]"
    expected = ["no", "on", "Y", True, False, "2026-11-28", "12:30", 1e-3, 1e3, 10, 8, 16, 1000, None, 0.5]
    assert parse_yaml(text, "") == expected
    assert parse_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "")["d"] == {"b": 1, "e": 2}
    assert parse_yaml("# nothing", "") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1", r"^x, line 2, column 1: not valid YAML: .*'\\t'.*; indent with spaces$"),
        ("a: {b: 1, b: 2}", r"^x, line 1, column 11: .*duplicate key \"b\""),
        ("a: [1,\n2", r"^x, line 2, column 2: .*flow sequence"),
        ("a: *b", "^x, line 1, column 4: .*undefined alias"),
        ("a: 1\n---\nb: 2", "^x, line 2, column 1: .*single document"),
        ("a: !!python/object:os.system {}", "^x, line 1, column 4: .*constructor for the tag"),
        ("a: \x00", "^x: not valid YAML: .*special characters"),
    ],
)
def test_damaged_yaml_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_yaml(text, "x")


def test_what_is_written_reads_back() -> None:
    texts = [
        "no",
        "1e3",
        "1_0",
        "0o7",
        "~",
        "",
        " a",
        "a: b",
        "2026-11-28",
        "<<",
        "*a",
        "é",
        "a\nb",
        "- x",
        "#",
        "word " * 60,
    ]
    value = {**{text: [text, {"nested": text}] for text in texts}, "numbers": [1e-05, 1e22, 1.0, -0.0, 7, 10**20, True]}
    for short_lists in (False, True):
        again = parse_yaml(yaml_text(value, 60, short_lists), "")
        assert again == value and list(again) == list(value)
        assert [type(n) for n in again["numbers"]] == [type(n) for n in value["numbers"]]


def test_every_setting_says_what_it_means() -> None:
    """By its own docstring, or by that of a type which many settings share."""
    schema = Config.model_json_schema()
    sections = {"Config": schema, **schema["$defs"]}
    assert [name for name, section in sections.items() if not section["description"].strip()] == []
    settings = {
        f"{name}.{key}": one for name, section in sections.items() for key, one in section["properties"].items()
    }
    assert len(settings) > 200
    assert [name for name, one in settings.items() if not one.get("description", "").strip()] == []


def test_an_alias_that_holds_itself_is_of_no_section(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\ndata: &a\n  splits: *a\n")
    with pytest.raises(ValueError, match=r"data\.splits\.splits\.source: missing"):
        load_config(str(path))


def test_an_override_spares_the_other_uses_of_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL.replace("train: {", "train: &t {").replace("val: {source: world, images: 4}", "val: *t"))
    splits = load_config(str(path), ["data.splits.train.images=16"]).data.splits
    assert (splits["train"].images, splits["val"].images) == (16, 8)


# ---------------------------------------------------------------- the workspace


@pytest.mark.parametrize(
    ("workspace", "message"),
    [
        ("", r"expected a folder or URL \(came: ''\)"),
        (" ", r"\(came: ' '\)"),
        ("/", r"not the root of the file system \(came: '/'\)"),
        ("/tmp/..", "not the root"),
        ("file:///", "not the root"),
        ("s3:/bucket/x", r"\(came: 's3:/bucket/x'\); nearest: s3://bucket/x"),
        ("s3:bucket", "nearest: s3://bucket"),
        ("file:/tmp/x", "nearest: file:///tmp/x"),
        ("s3://", "s3://BUCKET/FOLDER"),
        ("ftpp://host/x", r"ftpp:// is no protocol .*nearest: ftp"),
        ("~nobody.has.this.name/x", "no user 'nobody.has.this.name'"),
        ("s3://bucket/run[1]", r"without \*, \? and \[.*\(came: 's3://bucket/run\[1\]'\)"),
        (__file__, r"expected a folder, but .*test_loading\.py is a file"),
        (f"file://{__file__}/x/y", r"expected a folder, but .*test_loading\.py is a file"),
    ],
)
def test_a_workspace_that_is_no_place_is_refused(file: str, workspace: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"workspace: .*{message}"):
        load_config(file, [f"workspace={json.dumps(workspace)}"])


def test_the_workspace_may_be_a_home_a_url_or_a_path(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    for given, taken in [("~/runs", "/homes/me/runs"), ("~", "/homes/me"), ("runs/a:b", "runs/a:b"), (".", ".")]:
        assert load_config(file, [f"workspace={json.dumps(given)}"]).workspace == taken
    for same in ("s3://bucket", "memory://x/y", "file:///tmp/x", "simplecache::s3://bucket/x", "/tmp/x"):
        assert load_config(file, [f"workspace={json.dumps(same)}"]).workspace == same


def test_text_that_looks_like_a_number_reads_back(file: str, tmp_path: Path) -> None:
    config = load_config(file, ["workspace='1e3'"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(str(again)) == config


@pytest.mark.parametrize("key", ["objectness", "finetuned_objectness"])
def test_raw_objectness_needs_a_proposal_network(file: str, key: str) -> None:
    """Other proposals have the logit 0, with which every score would be 0 and nothing would be found."""
    overrides = [f"evaluate.{key}=raw_logit"]
    assert getattr(load_config(file, overrides).evaluate, key) == "raw_logit"
    with pytest.raises(ValueError, match=f"evaluate.{key}: raw_logit .* proposals.method grid .* none"):
        load_config(file, [*overrides, "proposals.method=grid"])


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["execution.train_workers=4"], []),
        (
            ["execution.train_workers=3"],
            [
                "execution.train_workers: expected a number that divides pretrain.batch_size 16, "
                "finetune.batch_size 16 (came: 3); nearest: 2"
            ],
        ),
        (["execution.train_workers=3", "finetune.batch_size=6", "pretrain.weights=x/"], []),
        (["execution.train_workers=3", "pretrain.batch_size=3", "finetune.weights=x/"], []),
        (
            ["execution.train_workers=2", "execution.backend=local"],
            ["execution.train_workers: several processes need execution.backend: ray (came: 2 with local)"],
        ),
    ],
)
def test_processes_that_no_training_can_have_are_refused(file: str, overrides: list[str], lines: list[str]) -> None:
    if not lines:
        load_config(file, overrides)
        return
    with pytest.raises(ValueError) as refused:
        load_config(file, overrides)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == lines


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ValueError, match=r"c\.yaml, line 2, .*duplicate key \"seed\""):
        load_config(str(path))


def test_an_override_given_twice_is_refused(file: str) -> None:
    """With one value it is no mistake."""
    with pytest.raises(
        ValueError, match=r"^labels\.threshold is given twice, as 0\.1 and 0\.2 \(--set or its own option"
    ):
        load_config(file, ["labels.threshold=0.1", "seed=3", "labels.threshold=0.2"])
    assert load_config(file, ["seed=3", "seed=3"]).seed == 3


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


def test_a_file_says_only_what_is_different_from_the_one_that_it_extends(tmp_path: Path, file: str) -> None:
    (tmp_path / "below").mkdir()
    changed, again = tmp_path / "below" / "changed.yaml", tmp_path / "below" / "again.yaml"
    changed.write_text("extends: ../c.yaml\nlabels: {threshold: 0.3}\nrpn: {anchor_sizes: [9]}\nseed: 5\n")
    again.write_text("extends: changed.yaml\nlabels: {threshold: 0.7}\ndata: {splits: {val: {images: 6}}}\n")
    plain, merged = load_config(file), load_config(str(again), ["rpn.steps=9"])
    expected = plain.model_dump() | {"seed": 5}
    expected["labels"] |= {"threshold": 0.7}
    expected["rpn"] |= {"steps": 9, "anchor_sizes": (9.0,)}
    expected["data"]["splits"]["val"] |= {"images": 6}
    assert merged.model_dump() == expected
    changed.write_text("extends: tiny\nseed: 5\n")
    assert load_config(str(changed)) == load_config("tiny", ["seed=5"])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("extends: [a]", ValueError, r"d.yaml: extends: expected the name of a preset or a file \(came: \['a'\]\)"),
        ("extends: nowhere.yaml", FileNotFoundError, r"d.yaml: extends: no config file 'nowhere.yaml'"),
        ("extends: tinny", FileNotFoundError, r"d.yaml: extends: .*did you mean the preset 'tiny'\?"),
        ("extends: d.yaml", ValueError, r"d.yaml: extends: d.yaml is extended by itself: .*d.yaml"),
        (
            "extends: tiny\nlabels: {treshold: 1}",
            ValueError,
            r"d.yaml: 1 wrong\n  labels.treshold: unknown key.*labels.threshold",
        ),
    ],
)
def test_what_can_t_be_extended(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(error, match=re.compile(message, re.S)):
        load_config(str(tmp_path / "d.yaml"))


# ---------------------------------------------------------------- several files


def merged(*trees: Any) -> Any:
    """A plain merge: mappings by key, anything else is that of the last tree that has it."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def test_of_several_files_the_later_ones_win(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections and mappings by key, lists whole; a split of another source whole; the same by `extends`."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "a.yaml": """
          {labels: {threshold: 0.3, top_k: 5}, concepts: {merge: {men: man}, drop: [time], splits: [train, val]}}""",
        "b.yaml": """
          {labels: {threshold: 0.7}, concepts: {merge: {women: woman}, drop: [image], splits: [val]},
           data: {splits: {val: {images: 6}, more: {source: world, images: 3}}},
           teacher: {training: {splits: [val], optim: {lr: 0.5}}}}""",
        "later.yaml": "{teacher: {training: null}, evaluate: {fusion: {source: student}}}",
        "d.yaml": "{evaluate: {fusion: {base: 0.1}}}",
    }
    for name, text in changes.items():
        Path(name).write_text(text)
    paths = [file, *changes]
    trees = [parse_yaml(Path(path).read_text(), path) for path in paths]
    loaded = load_files(paths)
    assert loaded.config == parse_config(merged(*trees))
    assert [*loaded.config.data.splits] == ["train", "val", "more"]  # shards are numbered in this order
    config = loaded.config
    assert (config.concepts.merge, config.concepts.drop) == ({"men": "man", "women": "woman"}, ("image",))
    assert (config.evaluate.fusion.source, config.evaluate.fusion.base, config.teacher.training) == (
        "student",
        0.1,
        None,
    )
    for above, name in pairwise(paths):
        Path(name).write_text(yaml_text({"extends": above, **parse_yaml(Path(name).read_text(), name)}))
    assert load_config("d.yaml") == config
    Path("e.yaml").write_text("data: {splits: {val: {source: coco, images: x, instances: y}}}")
    Path("f.yaml").write_text("data: {splits: {val: {source: folder, images: x, captions: z}}}")
    assert (
        load_config([file, "e.yaml", "f.yaml"]).data.splits["val"] == load_config([file, "f.yaml"]).data.splits["val"]
    )


def test_where_each_key_is_from(tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = "word " * 60
    sections = {"labels": {"threshold": 0.3, "top_k": 5}, "data": {"splits": {"val": {"images": 6}}}}
    sections["concepts"] = {"drop": ["time"], "spacy_model": f"{long}x"}
    Path("a.yaml").write_text(yaml_text({"seed": 3, **sections}))
    Path("b.yaml").write_text("extends: a.yaml\nlabels: {threshold: 0.7}\n")
    loaded = load_files([file, "b.yaml"], ["labels.top_k=6", "rpn.steps=9"])
    assert loaded.files == (file, "a.yaml", "b.yaml")
    text = dump_config(loaded.config, loaded.later_origins)
    assert parse_yaml(text, "") == parse_yaml(dump_config(loaded.config), "")  # comments change nothing
    found = re.findall(r"^ *(\w+):.*  # (.*)$", text, re.M)  # what the command line sets is of no file
    assert found == [
        ("seed", "a.yaml"),
        ("images", "a.yaml"),
        ("drop", "a.yaml"),
        ("threshold", "b.yaml"),
    ]
    assert "\n  # a.yaml\n  spacy_model: word" in text  # over several lines
    alone = load_files(file)
    assert dump_config(alone.config, alone.later_origins) == dump_config(alone.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("labels: 3", r"labels: expected a mapping of settings \(came: 3\) \(from b\.yaml\)$"),
        ("labels: {treshold: 1}", r"labels\.treshold: unknown key .* \(from b\.yaml\)$"),
        ("rpn: {anchor_sizes: [12, -3]}", r"rpn\.anchor_sizes\.1: .* \(from b\.yaml\)$"),
        ("seed: {a: 1}", r"seed: expected a whole number \(came: \{'a': 1\}\)"),
        ("concepts: {splits: [trian]}", r"concepts\.splits: .*nearest: train \(from b\.yaml\)$"),
    ],
)
def test_a_mistake_is_named_with_its_file(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch, changes: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(changes)
    with pytest.raises(ValueError, match=message) as refused:
        load_config([file, "b.yaml"])
    assert str(refused.value).startswith(f"{file}, then b.yaml: 1 wrong\n")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"is a folder; expected a YAML file, and it has none; or a preset: best,"
    ):
        load_config(str(tmp_path))
    (tmp_path / "mine.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"is a folder; expected a YAML file, it has mine\.yaml"):
        load_config(["tiny", str(tmp_path)])
