"""What is known to stop a run is said before its first stage, all in one list, and by `check` too."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_inputs import NAMES, write_coco, write_tars
from small_runs import manifest, run_small, small_tree
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from stages.cli import app


class Set:
    """Two COCO folders of four images, and a pipeline that trains its teacher on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.workspace = root, root / "ws"
        self.splits: dict[str, Any] = {name: write_coco(Folder(str(root / name)), 4, name) for name in ("train", "val")}
        (root / "c.yaml").write_text(yaml.safe_dump({"base": NAMES[:-2], "novel": NAMES[-2:]}))
        self.sections: dict[str, Any] = {"concepts": {"splits": ["train"]}}

    def tree(self) -> dict[str, Any]:
        data = {"splits": self.splits, "categories": str(self.root / "c.yaml")}
        return small_tree(self.workspace, **({"data": data} | self.sections))

    def config(self) -> Config:
        return parse_config(self.tree())

    def cli(self, *arguments: str) -> Result:
        (self.root / "p.yaml").write_text(yaml.safe_dump(self.tree(), sort_keys=False))
        return CliRunner().invoke(app, [*arguments, "--config", str(self.root / "p.yaml")])

    def wrong(self, *stages: str) -> list[str]:
        """What `check` says; `run` and `run --dry-run` must say the same, and do nothing."""
        found = [self.cli(*command, *stages) for command in (["check"], ["run"], ["run", "--dry-run"])]
        assert [one.exit_code for one in found] == [2, 2, 2]
        assert len({one.stderr for one in found}) == 1
        assert not list(self.workspace.rglob("plan.json"))
        lines = found[0].stderr.removeprefix("error: ").splitlines()
        if lines[0].endswith(" wrong; fix them and run again:"):
            assert int(lines.pop(0).split()[0]) == len(lines)
        return [line.removeprefix("  ") for line in lines]


@pytest.fixture
def small_set(tmp_path: Path) -> Set:
    return Set(tmp_path)


def test_nothing_wrong(small_set: Set) -> None:
    checked = small_set.cli("check", "concepts")
    assert (checked.exit_code, checked.stdout) == (0, "nothing is wrong; to run: data, concepts\n")
    assert not list(small_set.workspace.rglob("plan.json"))
    assert run_small(small_set.config(), "concepts").ok
    assert small_set.cli("check", "concepts").stdout == "nothing is wrong; to run: nothing, all is up to date\n"


def test_all_that_is_wrong_is_one_list(small_set: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every stage that is to run, and of no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place = small_set.root
    small_set.splits["train"]["images"] = f"{place}/train/imagse"
    small_set.splits["val"] |= {"images": "foo://bucket/val", "instances": f"{place}/val/instance.json"}
    (place / "empty").mkdir()
    small_set.sections |= {
        "execution": {"device": "cuda"},
        "concepts": {"parser": "spacy", "spacy_model": "en_core_web_gone"},
        "teacher": {"weights": str(place / "RN50.pt"), "prompts": str(place / "prompts.txt")},
        "proposals": {"method": "rpn"},
        "rpn": {"weights": str(place / "empty")},
        "pretrain": {"init": "gs://bucket/student"},
        "finetune": {"weights": "memory://nowhere/detector"},
    }
    begins = [
        f"data.splits.val.instances: input '{place}/val/instance.json' is not there (looked from ",
        f"teacher.weights: input '{place}/RN50.pt' is not there (looked from ",
        f"rpn.weights: {place}/empty holds no rpn.json; expected a folder",
        f"teacher.prompts: input '{place}/prompts.txt' is not there",
        "pretrain.init: gs://bucket/student/student: Please install gcsfs",
        "finetune.weights: input 'memory://nowhere/detector/config.json' is not there",
        f"data.splits.train.images: no folder {place}/train/imagse; give the folder in which the file names start; "
        "nearest: images",
        "data.splits.val.images: foo://bucket/val: foo:// is no protocol that fsspec knows; expected a path, or a URL",
        "concepts.parser is `spacy`, but the pipeline 'en_core_web_gone' is not installed",
        "execution.device is cuda, but torch ",
    ]
    lines = small_set.wrong()
    assert len(lines) == len(begins)
    assert [line for line, begin in zip(lines, begins, strict=True) if not line.startswith(begin)] == []
    assert lines[0].endswith("; nearest: instances.json") and "`pip install gcsfs`" in lines[4]
    assert len(small_set.wrong("concepts")) == 4, "data's three, and the parser"


def test_weights_and_a_tokenizer_that_only_a_name_says(small_set: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for in the caches of open_clip and huggingface_hub; nothing is fetched."""
    for module in ("clip", "tokenization"):
        monkeypatch.setattr(f"regionclip_core.models.{module}.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setenv("HOME", str(small_set.root))
    small_set.sections["teacher"] = {"model": "RN50", "weights": "openai"}
    first, fetch, other = small_set.wrong("teacher")
    assert first.startswith("teacher.weights: the 'openai' weights of RN50 are not on this machine")
    assert "open_clip.create_model('RN50', pretrained='openai')" in fetch and "checkpoint file" in other
    small_set.sections["teacher"] = {"model": "RN50", "weights": "openia"}
    [line] = small_set.wrong("teacher")
    assert "'openia' is neither a file nor a CLIP folder" in line and "which has ['openai'," in line
    small_set.sections["teacher"] = {"model": "ViT-B-16-SigLIP", "weights": "random"}
    assert small_set.wrong("teacher")[0].startswith(
        "teacher.model: the tokenizer timm/ViT-B-16-SigLIP is not on this machine"
    )
    # On a cluster the machines that do the work may have what this one has not.
    small_set.sections |= {"teacher": {"model": "RN50", "weights": "openai"}, "execution": {"device": "cuda"}}
    small_set.sections["execution"] |= {"backend": "ray", "address": "10.0.0.1:6379"}
    assert small_set.cli("check", "teacher").exit_code == 0


def test_a_file_that_is_no_weights_of_the_teacher(small_set: Set) -> None:
    """Known by its first bytes, or by the names of its tensors, before anything runs."""
    place = small_set.root
    (place / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    (place / "page.pth").write_text("<!DOCTYPE html>\n")
    small_set.sections |= {
        "teacher": {"model": "RN50", "weights": str(place / "lfs.pt")},
        "proposals": {"method": "rpn"},
        "rpn": {"weights": str(place / "page.pth")},
    }
    teacher, rpn = small_set.wrong()
    assert teacher.startswith(f"teacher.weights: {place}/lfs.pt is no file of weights: it is a git-lfs pointer")
    assert rpn.startswith(f"rpn.weights: {place}/page.pth is no file of weights: it is a web page")
    weights = {"conv1.weight": torch.zeros(2), "layer1.0.conv1.weight": torch.ones(2)}
    torch.save(weights, place / "resnet18.pth")
    save_file(weights, place / "resnet18.safetensors")
    for name in ("resnet18.pth", "resnet18.safetensors"):
        small_set.sections["teacher"]["weights"] = str(place / name)
        [line] = small_set.wrong("teacher")
        assert line.startswith(
            f"teacher.weights: {place}/{name} has no tensor visual.layer1....: no CLIP model of teacher.model: RN50"
        )
    torch.save({f"visual.{name}": tensor for name, tensor in weights.items()}, place / "resnet18.pth")
    small_set.sections["teacher"]["weights"] = str(place / "resnet18.pth")
    assert small_set.cli("check", "teacher").exit_code == 0
    small_set.sections["teacher"]["model"] = "ViT-B-32"
    assert "has no tensor visual.transformer." in small_set.wrong("teacher")[0]


def test_prompts_without_a_place_for_the_name(small_set: Set) -> None:
    (small_set.root / "prompts.txt").write_text("a photo of a {}.\na photo\n")
    small_set.sections["teacher"] = {"prompts": str(small_set.root / "prompts.txt")}
    [line] = small_set.wrong("labels")
    assert line.startswith("teacher.prompts: ") and "'a photo' must hold {} exactly once" in line
    assert small_set.cli("check", "proposals").exit_code == 0


def test_what_is_done_needs_its_inputs_no_more(small_set: Set) -> None:
    assert run_small(small_set.config(), "concepts").ok
    (small_set.root / "train" / "images").rename(small_set.root / "away")
    assert small_set.cli("check", "concepts").exit_code == 0
    assert small_set.cli("run", "concepts").exit_code == 0
    for command in (["check", "proposals"], ["check", "data"], ["run", "data", "--force"]):
        refused = small_set.cli(*command)
        is_done = command == ["check", "data"]
        assert refused.exit_code == (0 if is_done else 2), command
        assert is_done or "data.splits.train.images: no folder" in refused.stderr
    assert manifest(small_set.workspace, "data")["rows"] == 8  # not thrown away before the look


# ---------------------------------------------------------------- splits without captions or boxes


def test_captions_that_the_config_does_not_name(small_set: Set) -> None:
    training = {"splits": ["train"], "steps": 1, "batch_size": 2}
    small_set.sections["teacher"] = {"weights": "train", "training": training}
    del small_set.splits["train"]["captions"]
    [line] = small_set.wrong()
    assert line == (
        "concepts.splits, labels.splits, teacher.training.splits: expected images with captions, came 0 captions in "
        "'train' (data.splits.train.captions: not set). Give a file with captions or another split; stages that "
        "need no captions can be run by name"
    )
    assert run_small(small_set.config(), "proposals").ok
    small_set.sections["concepts"] = {"splits": ["train", "val"]}  # one that has some is enough
    assert small_set.cli("check", "concepts").exit_code == 0


def test_a_caption_file_without_captions_stops_the_run_after_data(small_set: Set) -> None:
    """Known when the file has been read; no stage that needs none is run first, and none fails for the same reason."""
    file = small_set.root / "train" / "captions.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    expected = rf"came 0 captions in 'train' \(data\.splits\.train\.captions: {file}\)"
    with pytest.raises(ValueError, match=rf"^concepts\.splits, labels\.splits: .*{expected}"):
        run_small(small_set.config())
    assert [path.name for path in small_set.workspace.iterdir() if path.is_dir()] == ["data"]
    assert manifest(small_set.workspace, "data")["summary"]["without_captions"] == ["train"]
    again = small_set.cli("check")
    assert again.exit_code == 2 and "came 0 captions" in again.stderr
    assert run_small(small_set.config(), "proposals").ok


def test_boxes_that_the_config_does_not_name(small_set: Set) -> None:
    for split in small_set.splits.values():
        del split["instances"]
    small_set.sections["proposals"] = {"method": "rpn"}
    where = "has none at all. Fix its annotations (data.splits.{}.instances: not set) or give another split"
    train, val = small_set.wrong()
    assert train.startswith("rpn.split, finetune.split: rpn and finetune need boxes of base categories, and split")
    assert val.startswith("evaluate.split: evaluate needs boxes of base or novel categories, and split 'val'")
    assert where.format("train") in train and where.format("val") in val


# ---------------------------------------------------------------- input that is wholly bad


def test_a_folder_without_its_images_stops_data(small_set: Set) -> None:
    (small_set.root / "captions.csv").write_text("file,caption\n0001.jpg,a cat\n0002.jpg,a dog\n")
    (small_set.root / "empty").mkdir()
    paths = {"images": f"{small_set.root}/empty", "captions": f"{small_set.root}/captions.csv"}
    small_set.splits["mine"] = {"source": "folder", **paths}
    message = run_small(small_set.config(), "data").messages["data"]
    assert "data.splits.mine.images: none of the first 2 images is there: no file" in message
    assert "run again to retry" not in message


def test_a_compressed_tar_is_named_as_it_is(small_set: Set) -> None:
    folder = small_set.root / "tars"
    write_tars(Folder(str(folder)), tars=1)
    (folder / "a.tar.gz").write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
    small_set.splits["mine"] = {"source": "tars", "urls": f"{folder}/a.tar.gz"}
    message = run_small(small_set.config(), "data").messages["data"]
    assert "(1 bad_tar), and none is good. Fix the input" in message and "raise the limit" not in message
    assert "The first: a.tar.gz#damaged: no uncompressed tar (invalid header); unpack it first" in message


def test_status_says_what_the_config_lacks(small_set: Set) -> None:
    tree = {key: value for key, value in small_set.tree().items() if key in ("workspace", "execution", "data")}
    tree["data"]["splits"] = {"mine": small_set.splits["train"]}
    (small_set.root / "p.yaml").write_text(yaml.safe_dump(tree))
    shown = CliRunner().invoke(app, ["status", "--config", str(small_set.root / "p.yaml")]).stdout
    why = {row.split()[0]: " ".join(row.split()[2:]) for row in shown.splitlines()}
    assert why["data"].startswith("never run ")
    assert why["concepts"].startswith("not in the config: concepts.splits: expected at least one split of data.splits")
    assert why["teacher"].startswith("not in the config: teacher.training: missing")
    assert why["rpn"].startswith("not in the config: rpn.split: expected a split of data.splits, which has ['mine']")


def test_neither_status_nor_check_loads_torch_for_nothing(small_set: Set) -> None:
    small_set.cli("status")
    script = """
import sys
from typer.testing import CliRunner
from stages.cli import app
for command in ("status", "check"):
    print(CliRunner().invoke(app, [command, "--config", sys.argv[1]]).exit_code, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(small_set.root / "p.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 False\n0 False\n"
