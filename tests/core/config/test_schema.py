"""The JSON Schema of config files and the page of all keys: as the code has them, and true of the project's files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from places import ROOT

from regionclip_core.config.loading import PRESETS, load_config
from regionclip_core.config.schema import SCHEMA_FILE, json_schema
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml

FILES = sorted({ROOT / "pipeline.yaml", *PRESETS.glob("*.yaml")})


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    Draft202012Validator.check_schema(json_schema())
    return Draft202012Validator(json_schema())


def docs_config() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_config", ROOT / "docs" / "config.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_schema_and_page_are_those_of_the_code() -> None:
    stored = SCHEMA_FILE.read_text(encoding="utf-8")
    assert stored == json.dumps(json_schema(), indent=1) + "\n", f"run `regionclip config --schema > {SCHEMA_FILE}`"
    docs = docs_config()
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run `python docs/config.py`"


def test_the_page_has_every_key_with_its_values_and_default() -> None:
    page = (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.M))

    def keys(tree: dict[str, Any], above: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            found |= keys(value, f"{above}{key}.") if isinstance(value, dict) and key != "merge" else {f"{above}{key}"}
        return found

    config = load_config(str(ROOT / "pipeline.yaml"))  # which has every section, and splits of one source
    set_there = {re.sub(r"splits\.\w+", "splits.NAME", key) for key in keys(config.model_dump())}
    set_there = {re.sub(r"^.*\.optim\.", "optim.", key) for key in set_there}
    assert set_there - rows.keys() == set()
    assert rows["labels.mode"].startswith("`roi`, `crop` | `crop` | ")
    assert rows["rpn.optim"].startswith("a section | `lr: 0.004` | ")
    assert rows["finetune.focal_gamma"].startswith("number, from 0 to 100, or null | `0.5` | ")
    assert rows["evaluate.nms"].startswith("number, above 0 to 1 | `0.5` | ")
    assert rows["data.splits.NAME.urls"].startswith("text | required | ")
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in re.findall(r"^#+ (.*)$", page, re.M)}
    assert set(re.findall(r"\(#([^)]*)\)", page)) <= anchors


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_project_s_configs_fit_the_schema_and_name_it(file: Path, schema: Draft202012Validator) -> None:
    text = file.read_text(encoding="utf-8")
    assert [error.message for error in schema.iter_errors(parse_yaml(text, file.name))] == []
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named is not None and os.path.samefile(file.resolve().parent / named[1], SCHEMA_FILE)


@pytest.mark.parametrize(
    ("tree", "is_good"),
    [
        ({}, True),
        ({"extends": "coco_rn50", "data": {"splits": {"val": {"images": "there"}}}}, True),
        ({"teacher": {"training": None}, "labels": {"threshold": 0}, "concepts": {"drop": ["time"]}}, True),
        ({"labels": {"treshold": 0.1}}, False),
        ({"labels": {"threshold": 1}}, False),
        ({"labels": {"threshold": "0.1"}}, False),
        ({"labels": {"mode": "rio"}}, False),
        ({"labels": 3}, False),
        ({"extends": ["a"]}, False),
        ({"data": {"splits": {"val": {"source": "zip"}}}}, False),
        ({"data": {"splits": {"val": {"source": "folder", "urls": "a.tar"}}}}, False),
        ({"teacher": {"architecture": {"vision_layers": [1, 1, 1]}}}, False),
    ],
)
def test_the_schema_refuses_what_loading_refuses(tree: dict[str, Any], is_good: bool, schema: Any) -> None:
    """What is left out is no mistake of a part of a config."""
    assert schema.is_valid(tree) is is_good
    tree.pop("extends", None)
    if not is_good and tree:
        with pytest.raises(ValueError, match="validation error"):
            Config.model_validate(tree)
