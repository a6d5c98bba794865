"""What makes a split, or all its boxes, useless is said by `data`, with its reason, before anything is trained."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from small_inputs import NAMES, write_coco, write_tars
from small_runs import artifact, manifest, run_small, small_tree
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import parse_config
from regionclip_core.storage.folder import Folder
from regionclip_core.training.boxed_images import boxed_images
from regionclip_core.training.error_budget import ErrorBudget, ErrorRateExceeded
from stages.cli import app


class Set:
    """Two COCO folders of six images, and a pipeline that runs on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.workspace = root, root / "ws"
        self.splits: dict[str, Any] = {name: write_coco(Folder(str(root / name)), 6, name) for name in ("train", "val")}
        self.categories = {"base": NAMES[:-2], "novel": NAMES[-2:]}

    def edit(self, split: str, change: Callable[[dict[str, Any]], object], kind: str = "instances") -> None:
        file = self.root / split / f"{kind}.json"
        body = json.loads(file.read_text())
        change(body)
        file.write_text(json.dumps(body))

    def config(self, **sections: Any) -> Any:
        (self.root / "c.yaml").write_text(yaml.safe_dump(self.categories))
        data = {"splits": self.splits, "categories": str(self.root / "c.yaml")}
        return parse_config(small_tree(self.workspace, data=data, **sections))

    def message(self, **sections: Any) -> str:
        """What stops `data`."""
        result = run_small(self.config(**sections), "proposals")
        assert (result.outcomes["data"], result.outcomes["proposals"]) == ("failed", "blocked")
        return result.messages["data"]

    def cli(self, *arguments: str) -> Result:
        (self.root / "p.yaml").write_text(yaml.safe_dump(self.config().model_dump(mode="json"), sort_keys=False))
        return CliRunner().invoke(app, [*arguments, "--config", str(self.root / "p.yaml")])


@pytest.fixture
def small_set(tmp_path: Path) -> Set:
    return Set(tmp_path)


def every(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Change all annotations: values, or functions of the annotation."""

    def change(body: dict[str, Any]) -> None:
        for one in body["annotations"]:
            one |= {key: value(one) if callable(value) else value for key, value in changes.items()}

    return change


def fractions(body: dict[str, Any]) -> None:
    for image in body["images"]:
        image["width"] += 0.5


# ---------------------------------------------------------------- all that a split has


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"category_id": lambda one: f"id{one['category_id']}"},
            r"of category 'id\d+', which the file does not name \(1, ",
        ),
        ({"bbox": lambda one: [["x"] * 4]}, r"box is not four numbers: \[\['x', "),
    ],
)
def test_a_split_that_loses_all_its_boxes_stops_data(small_set: Set, changes: dict[str, Any], reason: str) -> None:
    small_set.edit("val", every(**changes))
    message = small_set.message()
    assert re.search(
        rf"data\.splits\.val\.instances: none of its boxes can be used\. The first: 0{{12}}\.png\b.*: .*{reason}",
        message,
    )


def test_a_split_without_a_good_image_stops_data_with_its_reason(small_set: Set) -> None:
    """However large the others are, and whatever the limit; `status` and `show` say the same."""
    for kind in ("instances", "captions"):
        small_set.edit("val", fractions, kind)
    small_set.splits["more"] = {"source": "world", "images": 60, "image_size": 80}
    for rate in (0.2, 1.0):
        message = small_set.message(execution={"max_error_rate": rate})
        assert "100.0% of 6 samples of split 'val' are bad (6 bad_image), and none is good. Fix the input" in message
        assert "raise the limit" not in message and "run again to retry" not in message
        first = (
            "The first: 000000000000.png#0, 000000000001.png#1, 000000000002.png#2: width 80.5 and height 80 must be"
        )
        assert first in message
    assert first in " ".join(small_set.cli("status").stdout.split())
    shown = small_set.cli("show", "data")
    assert shown.exit_code == 0
    for part in (first, "  bad_image: 6", "the first that are bad", "failed.json", "index-00000.parquet"):
        assert part in shown.stdout


def test_repaired_images_of_a_split_count_on_the_next_run(small_set: Set) -> None:
    """Images are no part of a fingerprint: the shards of the bad split, and only they, are done over."""
    resized = sorted((small_set.root / "val" / "images").iterdir())
    whole = [file.read_bytes() for file in resized]
    for file in resized:
        Image.open(file).resize((40, 40)).save(file)
    config = small_set.config(rpn={"weights": "random"}, proposals={"method": "rpn"})
    result = run_small(config, "proposals")
    assert "100.0% of 6 samples of split 'val' are bad" in result.messages["proposals"]
    assert (
        "The first: 000000000000.png, 000000000001.png, 000000000002.png: decoded to 40 x 40 pixels, the index says 80 "
        in (result.messages["proposals"])
    )
    records = {
        file: file.stat().st_mtime_ns for file in artifact(small_set.workspace, "proposals").glob("shard-*.json")
    }
    assert len(records) == 4
    for file, data in zip(resized, whole, strict=True):
        file.write_bytes(data)
    assert run_small(config, "proposals").ok
    kept = [file.name for file, before in records.items() if file.stat().st_mtime_ns == before]
    assert sorted(kept) == ["shard-00000.json", "shard-00001.json"]


def test_images_that_go_after_data_are_judged_by_split_with_their_reasons(
    small_set: Set, capsys: pytest.CaptureFixture[str]
) -> None:
    """`labels` and `pairs`, like `data`: a small split is not hidden by a large one, and each number has its reason."""
    splits = {"splits": ["train", "val", "more"]}
    small_set.splits["more"] = {"source": "world", "images": 60, "image_size": 80}
    sections = {"concepts": splits, "labels": splits, "proposals": {**splits, "method": "grid"}}
    config = small_set.config(**sections, execution={"max_error_rate": 0.4})
    images = sorted((small_set.root / "val" / "images").iterdir())
    assert run_small(config, "proposals").ok
    whole = [file.read_bytes() for file in images]
    for file in images[:3]:
        file.unlink()
    result = run_small(config, "labels")
    assert "50.0% of 6 samples of split 'val' are bad (3 bad_image)" in result.messages["labels"]
    assert "The first: 000000000000.png: no file" in result.messages["labels"]
    for file, data in zip(images, whole, strict=True):
        file.write_bytes(data)
    assert run_small(config, "labels").ok
    for file in images:
        file.write_bytes(b"torn")
    assert "100.0% of 6 samples of split 'val' are bad (6 bad_image)" in run_small(config, "pairs").messages["pairs"]
    for file, data in zip(images[1:], whole[1:], strict=True):
        file.write_bytes(data)
    capsys.readouterr()
    assert run_small(config, "pairs").ok
    assert "bad_image\npairs      note    the first: 000000000000.png: " in capsys.readouterr().out
    assert manifest(small_set.workspace, "pairs")["counts"]["bad_image"] == 1
    folder = artifact(small_set.workspace, "pairs")
    assert [len(pq.read_table(file)) for file in folder.glob("unreadable-*.parquet")] == [1]
    for command in (("show", "pairs"), ("verify",)):
        (small_set.root / "p.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        shown = CliRunner().invoke(app, [*command, "--config", str(small_set.root / "p.yaml")])
        assert shown.exit_code == 0, shown.output
        assert command == ("verify",) or "that are bad or lost a part\n  000000000000.png: " in shown.stdout


def test_a_split_that_gives_nothing_is_said(small_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """A stage that gives nothing at all has failed; one split of several is a note."""
    both, annotated = {"splits": ["train", "val"]}, (small_set.root / "train" / "instances.json").read_bytes()
    given = {"method": "given", **both}
    for split in ("train", "val"):
        small_set.edit(split, lambda body: body.update(annotations=[]))
    message = run_small(small_set.config(proposals=given), "proposals").messages["proposals"]
    assert message.startswith("ValueError: proposals.method: given: no image of split 'train' has a proposal; no image")
    assert "split 'val' has a proposal; give splits with annotated boxes, another method" in message
    (small_set.root / "train" / "instances.json").write_bytes(annotated)
    config = small_set.config(proposals=given, concepts=both, labels=both)
    assert run_small(config, "pairs").ok
    shown = capsys.readouterr().out
    for note in (
        "proposals  note    no image of split 'val' has a proposal",
        "pairs      note    split 'val' gives no sample: 6 few_regions",
    ):
        assert note in shown


def test_each_split_has_a_budget_of_its_own() -> None:
    budget = ErrorBudget(0.1)
    budget.add({"ok": 1900, "bad_image": 10}, "large")
    budget.add({"ok": 8, "bad_image": 2}, "small")
    budget.check()
    with pytest.raises(ErrorRateExceeded, match=r"^20\.0% of 10 samples of split 'small' are bad") as caught:
        budget.check(final=True)
    assert caught.value.split == "small"
    budget = ErrorBudget(1.0)
    budget.add({"bad_image": 2000, "few_regions": 3}, "x")
    budget.check()
    with pytest.raises(ErrorRateExceeded, match=r"^100\.0% of 2000 samples of split 'x'"):
        budget.check(final=True)
    budget.add({"ok": 1}, "x")
    budget.check(final=True)


def test_images_that_are_not_where_the_config_says_stop_data(small_set: Set) -> None:
    small_set.splits["val"]["images"] = str(small_set.root / "train")
    assert "data.splits.val.images: none of the first 4 images is there: no file" in small_set.message()


# ---------------------------------------------------------------- categories


def test_categories_that_match_nothing_are_said(small_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """On the screen, in the summary and by `show`; those that differ in case or spaces stop the stage."""
    counts: dict[str, int] = {}
    for split in ("train", "val"):
        body = json.loads((small_set.root / split / "instances.json").read_text())
        for one in body["annotations"]:
            name = NAMES[one["category_id"] - 1]
            counts[name] = counts.get(name, 0) + 1
    left_out = max(counts, key=lambda name: counts[name])
    small_set.categories = {"base": [n for n in NAMES if n != left_out] + [left_out + "s"], "novel": ["unicorn"]}
    assert run_small(small_set.config(), "data").ok
    summary = manifest(small_set.workspace, "data")["summary"]
    assert summary["not_annotated"] == {f"{left_out}s": left_out, "unicorn": None}
    assert summary["in_neither_set"] == {left_out: counts[left_out]}
    screen, shown = capsys.readouterr().out, small_set.cli("show", "data").stdout
    for note in (f"'{left_out}s' (nearest: '{left_out}'), 'unicorn'", f"nor novel: '{left_out}' ({counts[left_out]})"):
        assert note in screen
        assert note in " ".join(shown.split()).replace("''", "'")
    small_set.categories = {"base": [NAMES[0].title(), *NAMES[1:]], "novel": []}
    message = small_set.message()
    assert (
        f"data.splits.train.instances: data.categories ({small_set.root}/c.yaml) has {NAMES[0].title()!r} for "
        f"{NAMES[0]!r}. They differ" in message
    )
    small_set.categories = {"base": [f"{name}s" for name in NAMES], "novel": []}
    message = small_set.message()
    listed = ", ".join(repr(name) for name in sorted(NAMES)[:10])
    assert f"{small_set.root}/train/instances.json: none of its categories ({listed} and " in message
    assert f"is in data.categories ({small_set.root}/c.yaml) ('{NAMES[0]}s', " in message
    assert f"nearest: '{sorted(NAMES)[0]}s' for {sorted(NAMES)[0]!r}, " in message and "..." not in message


@pytest.mark.parametrize(
    ("written", "kind", "what"),
    [
        (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "odd_past_edge", "look like corners [x1, y1, x2, y2]"),
        (lambda b: [value / 80 for value in b], "odd_under_pixel", "look like shares of the image, 0 to 1"),
    ],
)
def test_boxes_in_another_form_stop_data(
    small_set: Set, written: Callable[[list[float]], list[float]], kind: str, what: str, capsys: Any
) -> None:
    """A few of them are counted and named."""

    def some(body: dict[str, Any]) -> None:
        body["annotations"][0]["bbox"] = [70, 70, 40, 40] if kind == "odd_past_edge" else [3, 3, 0.5, 0.5]

    small_set.edit("val", some)
    assert run_small(small_set.config(), "data").ok
    assert manifest(small_set.workspace, "data")["counts"][kind] == 1
    assert f", 1 {kind}\ndata       note    the first: 000000000000.png: box [" in capsys.readouterr().out
    small_set.edit("train", every(bbox=lambda one: written(one["bbox"])))
    message = small_set.message()
    assert what in message and "`bbox` is [x, y, width, height] in pixels" in message
    assert "data.splits.train.instances: " in message and "The first: 000000000000.png" in message


def test_splits_of_the_same_images_are_noted(small_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    assert "note" not in small_set.cli("check", "data").stdout
    small_set.splits["val"] = {**small_set.splits["train"], "limit": 4}
    note = f"the splits 'train' and 'val' have the same images (of {small_set.root}/train/instances.json): a score"
    assert f"note: {note}" in small_set.cli("check", "data").stdout
    assert run_small(small_set.config(), "data").ok
    assert f"data       note    {note}" in capsys.readouterr().out
    assert manifest(small_set.workspace, "data")["summary"]["notes"][0].startswith(note)


# ---------------------------------------------------------------- boxes that nobody can learn from


def test_stages_without_boxes_stop_the_run_after_data(small_set: Set) -> None:
    """Those that need none can still be run."""
    small_set.edit("train", every(iscrowd=1))
    with pytest.raises(
        ValueError,
        match=r"^finetune\.split: finetune needs boxes of base categories, and split 'train' has \d+ crowd boxes\. Fix",
    ):
        run_small(small_set.config())
    assert sorted(path.name for path in small_set.workspace.iterdir() if path.is_dir()) == ["data"]
    assert run_small(small_set.config(), "proposals").ok
    crowds = manifest(small_set.workspace, "data")["summary"]["boxes"]["train"]["crowd_boxes"]
    with pytest.raises(ValueError, match=rf"training needs some: all {crowds} of them are crowds \(iscrowd\)"):
        boxed_images(Folder(str(artifact(small_set.workspace, "data"))), "train", range(len(NAMES)))
    del small_set.splits["val"]["instances"]
    small_set.splits["more"] = {"source": "world", "images": 2, "image_size": 80}
    with pytest.raises(
        ValueError, match=r"^evaluate\.split: .* base or novel categories, and split 'val' has none at all"
    ):
        run_small(small_set.config(finetune={"split": "more"}, proposals={"splits": [*small_set.splits]}), "evaluate")


# ---------------------------------------------------------------- what the screen says


def test_the_first_reasons_come_with_the_counts(small_set: Set, capsys: pytest.CaptureFixture[str]) -> None:
    small_set.edit("train", lambda body: body["annotations"][0].update(bbox=[1, 2, 3]))
    assert run_small(small_set.config(), "data").ok
    screen = capsys.readouterr().out
    assert ", 1 lost_box\n" in screen
    line = "the first: 000000000000.png: box is not four numbers: [1, 2, 3]"
    assert f"data       note    {line}\n" in screen
    assert line.removeprefix("the first: ") in small_set.cli("show", "data").stdout


def test_show_of_an_interrupted_or_absent_stage(small_set: Set) -> None:
    nothing = small_set.cli("show", "data")
    assert nothing.exit_code == 2 and "Run `regionclip run data` with the same config first" in nothing.stderr
    assert run_small(small_set.config(), "data").ok
    folder = artifact(small_set.workspace, "data")
    (folder / "manifest.json").unlink()
    shown = small_set.cli("show", "data").stdout
    assert "not finished: partial, 4/4 done" in shown and "  ok: 12" in shown


def test_a_tar_whose_name_is_not_utf8_is_named(small_set: Set) -> None:
    folder = small_set.root / "web"
    write_tars(Folder(str(folder)))
    os.rename(folder / "00000.tar", os.fsencode(folder) + b"/caf\xe9.tar")
    small_set.splits["web"] = {"source": "tars", "urls": str(folder / "*.tar")}
    with pytest.raises(
        ValueError, match=r"^data\.splits\.web\.urls: the name of .*/caf\\xe9\.tar is not UTF-8; rename"
    ):
        run_small(small_set.config(), "data")
    small_set.splits["web"]["urls"] = f"{folder}/"
    with pytest.raises(ValueError, match=r"^data\.splits\.web\.urls: '/.*/web' is a folder; name the files in it"):
        run_small(small_set.config(), "data")
