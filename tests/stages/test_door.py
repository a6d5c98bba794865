"""The public door: its examples run as they are printed, and importing the package stays light."""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from export_runs import Run, finished_run
from PIL import Image
from places import ROOT
from small_runs import artifact

import regionclip_core
from regionclip_core.config.loading import load_config
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.detection.results import NamedDetections
from regionclip_core.storage.records import Folder, read_manifest, write_manifest
from regionclip_core.threads import available_cpus


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the examples can run: runs/tiny, detector/ and photo.jpg."""
    root = tmp_path_factory.mktemp("door")
    run: Run = finished_run(root, "finetune")
    (root / "runs").mkdir()
    (root / "runs" / "tiny").symlink_to(root / "ws")
    assert run("export", "detector", "--out", str(root / "detector")).exit_code == 0
    assert run("export", "student", "--out", str(root / "student")).exit_code == 0
    Image.fromarray(make_sample("scene", 5, "mine", 0, 128).image).save(root / "photo.jpg")
    return root


OFFERED = {
    **{name: getattr(regionclip_core, name) for name in regionclip_core.__all__},
    **{name: getattr(RegionModel, name) for name in ("detect", "region_features", "embed")},
    "results": NamedDetections,
    **{name: getattr(NamedDetections, name) for name in ("plot", "to_pandas", "to_supervision", "to_coco")},
}
"""What a user of the door meets, each with an example."""


@pytest.mark.parametrize("name", OFFERED)
def test_the_example_of(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    [example] = doctest.DocTestFinder(recurse=False).find(OFFERED[name], name)
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, regionclip_core; print(sorted({'torch', 'pyarrow', 'numpy', 'spacy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    offered = ["ConceptPool", "load", "open_artifact", "parse_captions"]
    assert regionclip_core.__all__ == offered and {*offered, "__version__"} <= set(dir(regionclip_core))
    with pytest.raises(AttributeError, match=f"no attribute 'detect'; it offers {', '.join(offered)}"):
        regionclip_core.detect  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(("given", "expected"), [({}, "5000 {cpus}"), ({"OMP_NUM_THREADS": "1"}, "5000 1")])
def test_threads_are_as_in_the_pipeline(given: dict[str, str], expected: str) -> None:
    """Set before torch is loaded, unless the environment says otherwise: see docs/decisions.md, 17."""
    code = "import os, regionclip_core; regionclip_core.load; import torch; "
    code += "print(os.environ['GOMP_SPINCOUNT'], torch.get_num_threads())"
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout == expected.format(cpus=available_cpus()) + "\n"


def test_tables_are_those_of_all_shards_and_of_the_newest_finished_artifact(place: Path) -> None:
    found = regionclip_core.open_artifact(str(place / "ws"), "data")["index"]
    keys = [f"{number:06d}" for number in range(8)]
    assert found["key"].to_pylist() == [*keys, *keys[:4]]  # of train, then of val
    old = artifact(place / "ws", "data")
    assert regionclip_core.open_artifact(str(old))["index"] == found
    new = Folder(str(place / "ws" / "data" / "newer"))
    manifest, table = read_manifest(Folder(str(old))), old / "index-00000.parquet"
    assert manifest is not None
    new.write_bytes("index-00000.parquet", table.read_bytes())
    new.write_bytes("categories.json", (old / "categories.json").read_bytes())
    new.write_json("records.json", {"shards": [], "stage": [vars(record) for record in new.written]})
    try:
        assert len(regionclip_core.open_artifact(str(place / "ws"), "data")["index"]) == 12  # it isn't finished
        manifest.provenance["finished"] = "9999"
        write_manifest(new, manifest)
        assert len(regionclip_core.open_artifact(str(place / "ws"), "data")["index"]) == 4
    finally:
        new.remove_all()


def test_names_are_beside_the_ids(place: Path) -> None:
    """Of every row and list, as a plain lookup gives them."""
    names = json.loads((artifact(place / "ws", "data") / "categories.json").read_text())["names"]
    index = regionclip_core.open_artifact(str(place / "ws"), "data")["index"]
    labels = index["box_labels"].to_pylist()
    assert sum(map(len, labels)) > 10
    assert index["box_names"].to_pylist() == [[names[i] if i >= 0 else None for i in row] for row in labels]
    pool = regionclip_core.open_artifact(str(place / "ws"), "concepts")["concepts"]["concept"].to_pylist()
    found = regionclip_core.open_artifact(str(place / "ws"), "labels")["labels"]
    assert found["concept_name"].to_pylist() == [[pool[i] for i in row] for row in found["concept_id"].to_pylist()]
    top = found["top_concepts"].to_pylist()
    assert found["top_names"].to_pylist() == [[[pool[i] for i in one] for one in row] for row in top]
    assert found.to_pandas()["top_names"][0][0][0] == pool[top[0][0][0]]


def test_a_pool_of_captions_is_that_of_the_stage(place: Path) -> None:
    """Of the same captions, with the same settings."""
    config = load_config(str(place / "c.yaml")).concepts
    rows = regionclip_core.open_artifact(str(place / "ws"), "data")["index"].to_pylist()
    captions = [row["captions"] for row in rows]
    assert max(map(len, captions)) > 1
    pool = regionclip_core.ConceptPool.from_captions(captions, config.min_count, config.max_concepts, config.parser)
    stored = regionclip_core.open_artifact(str(place / "ws"), "concepts")
    assert pool.names == stored["concepts"]["concept"].to_pylist() and len(pool.names) > 3
    unprotected = [column for column in pool.table.column_names if column not in ("source", "dataset_class")]
    assert pool.table.select(unprotected).equals(stored["concepts"].select(unprotected))
    assert pool.dropped.equals(stored["dropped"])
    few = regionclip_core.ConceptPool.from_captions(captions, max_concepts=2)
    assert few.names == pool.names[:2] and "beyond_max_concepts" in few.dropped["reason"].to_pylist()


def test_the_lines_of_code_that_are_counted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours run; the table has the number of lines of each library's code, and none is shorter than ours."""
    monkeypatch.chdir(place)
    text = (ROOT / "docs" / "lines_of_code.md").read_text(encoding="utf-8")
    head, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in re.findall(r"^\|.*\|$", text, re.M)]
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows[1:]}
    blocks = re.findall(r"^## (.*)\n(?:(?!```).*\n)*```python\n((?:(?!```).*\n)*)", text, re.M)
    assert [title.lower() for title, _ in blocks] == [*table]
    names, photo = ["cup", "traffic light"], "photo.jpg"
    made: dict[str, Any] = {"names": names, "boxes": [(10, 20, 60, 90), (0, 0, 80, 40)], "photos": [photo, "two.jpg"]}
    made["captions"] = ["A photo of a dog", "Dogs and a kite"]
    Image.open(photo).save("two.jpg")
    for title, block in blocks:
        parts = re.split(r"^# (.*)\n", block, flags=re.M)[1:]
        code = dict(zip(parts[::2], parts[1::2], strict=True))
        counts = {library: len(list(filter(None, lines.splitlines()))) for library, lines in code.items()}
        assert {library: str(counts.get(library, "-")) for library in head[1:]} == table[title.lower()], title
        assert min(counts.values()) == counts["regionclip"]
        for library, lines in code.items():  # one statement per line
            assert len(ast.parse(lines).body) == counts[library] and max(map(len, lines.splitlines())) <= 100
        exec(code["regionclip"].replace("my_detector", "detector"), made)
        if title.startswith("Find"):
            assert made["found"].names and set(made["found"].names) <= set(names)
    assert made["features"].shape == made["texts"].shape and made["pool"].names == ["dog"]
    assert made["table"].index.levels[0].tolist() == made["photos"]
    assert made["table"].loc[photo].equals(made["found"].to_pandas())


def test_what_has_no_tables_says_so(place: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished artifact of the stage report; run it first"):
        regionclip_core.open_artifact(str(place / "ws"), "report")
    with pytest.raises(ValueError, match=r"holds no tables, but \['clip\.json', 'clip\.safetensors'\]"):
        regionclip_core.open_artifact(str(place / "ws"), "teacher")
    with pytest.raises(ValueError, match="no model there"):
        regionclip_core.load(str(place / "runs"))


def test_the_clip_of_a_run_and_an_exported_student_are_one(place: Path) -> None:
    one = regionclip_core.load(str(artifact(place / "ws", "pretrain")))
    other = regionclip_core.load(str(place / "student"))
    boxes = [[3, 4, 60, 90], [0, 0, 128, 128]]
    found = [model.region_features(str(place / "photo.jpg"), boxes) for model in (one, other)]
    assert found[0].equal(found[1]) and found[0].shape == (2, 16)
    rpn = str(artifact(place / "ws", "rpn"))
    assert len(regionclip_core.load(str(place / "student"), rpn=rpn).adjusted(objectness="sigmoid").detect(
        str(place / "photo.jpg"), ["cup", "dog"])[0]) > 0  # fmt: skip


def test_a_caption_that_is_not_in_a_list_is_refused() -> None:
    """It would be parsed letter by letter."""
    with pytest.raises(ValueError, match=r"expected a list of captions, got the text 'A dog'; write \[caption\]"):
        regionclip_core.parse_captions("A dog")
    with pytest.raises(ValueError, match="expected a list of captions"):
        regionclip_core.ConceptPool.from_captions("A dog")
