"""Images that turn out unreadable in a training or in the evaluation: replaced, named, and limited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import encoded
from small_runs import artifact, content, manifest, run_small, small_config

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from regionclip_core.training import fit as training
from regionclip_core.training.error_budget import ErrorRateExceeded
from stages.base import StageContext
from stages.commands.verify import verify_workspace
from stages.declarations import STAGES
from stages.evaluate import WORK as EVALUATE

COUNT, GONE, TORN = 12, (2, 5, 9), 4
NAMES = ("dog", "bus")


def write_coco(folder: Path, damaged: bool = True) -> dict[str, Any]:
    """A COCO split whose files are partly gone, one of them torn."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    entries, boxes, captions = [], [], []
    for number in range(COUNT):
        name = f"{number:03d}.png"
        entries.append({"id": number, "file_name": name, "width": 80, "height": 80})
        boxes.append({"image_id": number, "category_id": 2, "bbox": [8, 8, 40, 40], "iscrowd": 0, "area": 1600})
        captions.append({"image_id": number, "caption": f"a {NAMES[number % 2]} on a table"})
        data = encoded(rng.integers(0, 256, (80, 80, 3), np.uint8), "PNG")
        if not (damaged and number in GONE):
            (folder / "images" / name).write_bytes(data[:200] if damaged and number == TORN else data)
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    for kind, entered in (("instances", boxes), ("captions", captions)):
        body = {"images": entries, "annotations": entered, "categories": categories}
        (folder / f"{kind}.json").write_text(json.dumps(body))
    files = {kind: str(folder / f"{kind}.json") for kind in ("instances", "captions")}
    return {"source": "coco", "images": str(folder / "images"), **files}


def config(workspace: Path, split: dict[str, Any], rate: float = 1.0, steps: int = 20) -> Config:
    world = {"source": "world", "images": 4, "image_size": 80}
    return small_config(
        workspace,
        execution={"max_error_rate": rate},
        data={"splits": {"train": split, "val": world}, "shard_size": 5},
        rpn={"weights": "train", "steps": steps, "batch_size": 2, "checkpoint_every": 4},
        proposals={"method": "rpn"},
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_coco(tmp_path_factory.mktemp("coco"))


def assert_named(found: dict[str, Any]) -> None:
    assert found["counts"] == {"bad_image": len(GONE) + 1}
    unreadable, [note] = found["summary"]["unreadable"], found["summary"]["notes"]
    assert note.startswith(f"{len(GONE) + 1} unreadable images, the first: 0") and "no file" in note
    assert unreadable["images"] == len(GONE) + 1
    assert sorted(unreadable["first"]) == [f"{number:03d}.png" for number in sorted((*GONE, TORN))]
    for key, reason in unreadable["first"].items():
        assert ("truncated" if key == f"{TORN:03d}.png" else "no file") in reason


def test_a_training_names_what_it_could_not_read_and_a_killed_one_ends_with_the_same_weights(
    tmp_path: Path, split: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_small(config(tmp_path / "unbroken", split), "rpn").ok
    unbroken = manifest(tmp_path / "unbroken", "rpn")
    assert_named(unbroken)
    assert [p for *_, problems in verify_workspace(Folder(str(tmp_path / "unbroken"))) for p in problems] == []
    save = training.save_checkpoint

    def killed(folder: Any, step: int, *rest: Any) -> None:
        save(folder, step, *rest)
        if step == 12:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_checkpoint", killed)
        assert "killed" in run_small(config(tmp_path / "resumed", split), "rpn").messages["rpn"]
    first_steps = {f"step-{step:08d}.pt" for step in (8, 12)}
    assert {p.name for p in (artifact(tmp_path / "resumed", "rpn") / "checkpoints").iterdir()} == first_steps
    assert run_small(config(tmp_path / "resumed", split), "rpn").ok
    assert "unreadable" in manifest(tmp_path / "resumed", "rpn")["summary"]  # of the steps since then
    assert content(tmp_path / "resumed") == content(tmp_path / "unbroken")


def test_too_many_unreadable_images_stop_a_training_and_a_raised_limit_goes_on(
    tmp_path: Path, split: dict[str, Any]
) -> None:
    result = run_small(config(tmp_path / "ws", split, rate=0.1), "rpn")
    assert result.outcomes["rpn"] == "failed"
    for part in ("2 of 12 images can't be read", "--max-error-rate", "--force", ".png: ", "no file"):
        assert part in result.messages["rpn"]
    assert run_small(config(tmp_path / "ws", split, rate=0.4), "rpn").ok
    assert_named(manifest(tmp_path / "ws", "rpn"))


def test_a_split_with_no_readable_image_says_what_to_do(tmp_path: Path) -> None:
    """Where `data` found images, and they are gone since."""
    split = write_coco(tmp_path / "coco")
    assert run_small(config(tmp_path / "ws", split), "data").ok
    for image in (tmp_path / "coco" / "images").iterdir():
        image.unlink()
    message = run_small(config(tmp_path / "ws", split), "rpn").messages["rpn"]
    for part in ("no file", "100 images in a row can't be read", "--force"):
        assert part in message


def test_every_other_job_names_them_too(tmp_path: Path) -> None:
    """Files that go or break after the stages before have read them."""
    split, workspace = write_coco(tmp_path / "coco", damaged=False), tmp_path / "ws"
    both = config(workspace, split, steps=2)
    sections = {
        "data": both.data.model_copy(update={"splits": {**both.data.splits, "val": both.data.splits["train"]}}),
        "finetune": both.finetune.model_copy(update={"steps": 12, "oracle": True}),
        "evaluate": both.evaluate.model_copy(update={"whole_image_split": "train"}),
    }
    both = both.model_copy(update=sections)
    assert run_small(both, "pretrain", "proposals").ok
    assert manifest(workspace, "pretrain")["counts"] == {}
    assert "unreadable" not in manifest(workspace, "rpn")["summary"]
    for number in (1, 6):
        (tmp_path / "coco" / "images" / f"{number:03d}.png").write_bytes(b"torn")
    assert run_small(both, "evaluate").ok
    finetune, evaluate = (manifest(workspace, stage) for stage in ("finetune", "evaluate"))
    assert (finetune["counts"], evaluate["counts"]) == ({"bad_image": 2}, {"bad_image": 4})
    note = "2 unreadable images, the first: 00"
    assert [text[: len(note)] for text in finetune["summary"]["notes"]] == [note] * len(finetune["summary"]["notes"])
    assert all(f"split '{name}': {note}" in " ".join(evaluate["summary"]["notes"]) for name in ("val", "train"))
    detectors = [one["unreadable"] for one in finetune["summary"]["detectors"].values()]
    splits = evaluate["summary"]["unreadable"]
    assert (len(detectors), set(splits)) == (3, {"val", "train"})
    for one in (*detectors, *splits.values()):
        assert one["images"] == 2
        assert sorted(one["first"]) == ["001.png", "006.png"]
    strict = both.model_copy(update={"execution": both.execution.model_copy(update={"max_error_rate": 0.1})})
    inputs = {name: Folder(str(artifact(workspace, name))) for name in STAGES["evaluate"].needs(strict)}
    with pytest.raises(ErrorRateExceeded, match=r"^2 of 12 images can't be read"):
        EVALUATE.run(StageContext(strict, Folder(str(tmp_path / "out")), inputs))


def test_the_teacher_names_them_too(tmp_path: Path, split: dict[str, Any]) -> None:
    teacher = {"weights": "train", "training": {"splits": ["train"], "steps": 12, "batch_size": 4}}
    base = config(tmp_path / "ws", split)
    trained = base.model_copy(
        update={"teacher": type(base.teacher).model_validate({**base.teacher.model_dump(), **teacher})}
    )
    assert run_small(trained, "teacher").ok
    assert_named(manifest(tmp_path / "ws", "teacher"))
