"""`pip install .` is enough for what uses models: our packages are laid out as the wheel has them, those of the extras
are hidden, and all of it still works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from places import ROOT
from safetensors.torch import load_file
from small_artifacts import VOCABULARY, tiny_clip
from small_models import write_small_detector

from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.models.clip import save_clip
from regionclip_core.storage.folder import Folder
from stages.engine.look_ahead import OF_THE_PIPELINE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USE = """
import json, sys
from importlib.machinery import PathFinder

HIDDEN = set(json.loads(sys.argv[1]))

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path = [Light if finder is PathFinder else finder for finder in sys.meta_path]
from regionclip_stages.cli import app

def call(line):
    assert not app(line.split(), standalone_mode=False), line

call("detect photo.jpg --model detector --classes cat,kite --score 0 --format coco,csv --out found")
call("features photo.jpg --model detector --boxes boxes.csv --out features.parquet")
call("embed cat,kite --model detector --out names.safetensors")
call("export student --model clip --out student")
call("import rows.pt --kind embeddings --names names.txt --out embeddings")
import regionclip_core
[found] = regionclip_core.load("detector").detect("photo.jpg")
assert len(found)
for name in ("ConceptPool", "parse_captions"):
    try:
        getattr(regionclip_core, name)
    except ImportError as error:
        print(error)
for line in ("run --config tiny --workspace ws", "check --config tiny --workspace ws"):
    assert app(line.split(), standalone_mode=False) == 2, line
assert "stages" not in sys.modules
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def light() -> set[str]:
    """The distributions that `pip install .` brings, by what is installed here."""
    found: set[tuple[str, str]] = set()
    todo = [Requirement(text) for text in PROJECT["dependencies"]]
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            if (key := (plain(wanted.name), extra)) not in found:
                found.add(key)
                further = [Requirement(text) for text in metadata.requires(wanted.name) or ()]
                todo += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel installs, by pyproject.toml."""
    root = tmp_path_factory.mktemp("site")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in wheel["packages"]:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, root / target)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("light")
    write_small_detector(root / "detector")
    save_clip(tiny_clip(), Folder(str(root / "clip")))
    Image.fromarray(make_sample("scene", 5, "mine", 0, 128).image).save(root / "photo.jpg")
    (root / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax\nphoto.jpg,10,20,60,90\n")
    (root / "names.txt").write_text("\n".join(VOCABULARY.names))
    torch.save(torch.randn(len(VOCABULARY), 16), root / "rows.pt")
    return root


def test_only_names_of_ours_are_top_level(site: Path) -> None:
    assert sorted(path.name for path in site.iterdir()) == ["regionclip_core", "regionclip_stages"]


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_an_installed_run_needs_no_clone(site: Path, tmp_path: Path, backend: str) -> None:
    """Workers load the modules by the names that they have where they are installed."""
    line = f"run concepts --config tiny --workspace {tmp_path / 'ws'} --backend {backend}"
    program = f"import sys; from regionclip_stages.cli import app; app({line.split()}, standalone_mode=False)"
    program += (
        "; assert 'stages' not in sys.modules and sys.modules['regionclip_core'].__file__.startswith(sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(site)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ws" / "concepts").is_dir()


def test_models_are_used_without_the_packages_of_the_pipeline(place: Path, site: Path) -> None:
    installed = light()
    hidden = sorted(
        module
        for module, names in metadata.packages_distributions().items()
        if not {plain(name) for name in names} & {*installed, "regionclip"}
    )
    assert {*OF_THE_PIPELINE, "transformers", "pandas", "cv2"} <= set(hidden)
    command = [sys.executable, "-c", USE, json.dumps(hidden)]
    environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "found" / "detections.json").read_text())[0]["detections"]
    assert pq.read_table(place / "features.parquet").num_rows == 1
    assert load_file(place / "names.safetensors")["embeddings"].shape == (2, 16)
    assert (place / "student" / "open_clip_config.json").exists()
    said = done.stdout.splitlines()
    install = "pip install 'regionclip[pipeline]' (in a clone: '.[pipeline]')"
    assert [f"{name} needs spacy: {install}" in said for name in ("ConceptPool", "parse_captions")] == [True] * 2
    missing = f"error: a run needs {', '.join(OF_THE_PIPELINE)}, which this environment doesn't have: {install}"
    assert done.stderr.splitlines().count(missing) == 2
    assert not (place / "ws").exists()


def test_the_list_of_the_pipelines_modules_is_its_extra() -> None:
    named = [Requirement(text).name.replace("-", "_") for text in PROJECT["optional-dependencies"]["pipeline"]]
    assert sorted(named) == list(OF_THE_PIPELINE)
