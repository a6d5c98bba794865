"""Every input that the config names by its path may be at a URL: it is read and counted as a local one.

Images, tars, annotation and caption files at URLs are in test_sources.py and test_annotation_files.py, and with
everything else in object storage in tests/stages/test_s3.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lvis_samples import write_lvis
from small_artifacts import run_stage, tiny_clip, tiny_config

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config, RpnConfig
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import create_clip, load_clip, save_clip
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import open_network, rpn_section, write_rpn_folder
from regionclip_core.storage.fingerprints import InputDigests
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import exists
from stages.base import StageContext
from stages.declarations import STAGES

Put = Callable[[Path], str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Copies a local file or folder to a store; returns its URL."""

    def copy(path: Path) -> str:
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            folder = Folder(f"memory://{tmp_path.name}/{file.parent.relative_to(tmp_path)}".removesuffix("/."))
            folder.write_bytes(file.name, file.read_bytes())
        return f"memory://{tmp_path.name}/{path.relative_to(tmp_path)}"

    return copy


def outcome(stage: str, config: Config, out: Path) -> Folder:
    """What a job stage that needs nothing writes."""
    ctx = StageContext(config, Folder(str(out)), {})
    run_stage(STAGES[stage], ctx)
    return ctx.out


def digests(stage: str, config: Config, tmp_path: Path) -> list[str]:
    known = InputDigests(Folder(str(tmp_path / "ws")))
    return [known.digest(path) for path in STAGES[stage].raw_inputs(config)]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    "look", [Folder.names, lambda folder: folder.read_json("x"), lambda folder: exists(folder.url)]
)
def test_a_store_whose_client_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ValueError, match=r"^gs://bucket/ws(/x)?: .*gcsfs.* Google Storage: `pip install gcsfs`, on eve"
    ):
        look(Folder("gs://bucket/ws"))


@pytest.mark.parametrize("name", ["c.yaml", "c.json", "lvis.json"])
def test_categories(tmp_path: Path, put: Put, name: str) -> None:
    lists = {"base": ["pear", "fig"], "novel": ["kiwi"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(lists))
    (tmp_path / "c.json").write_text(json.dumps(lists))
    write_lvis(tmp_path)
    path = tmp_path / name if name.startswith("c.") else next(tmp_path.glob("*lvis*.json"))
    url = put(path)
    assert load_categories(url) == load_categories(str(path)) == load_categories(f"file://{path}")
    with pytest.raises(FileNotFoundError, match=r"data\.categories: 'memory://.*nowhere\.yaml' is not `world`"):
        load_categories(url.replace(path.name, "nowhere.yaml"))


def test_prompts(tmp_path: Path, put: Put) -> None:
    (tmp_path / "prompts.txt").write_text("# comment\na {}.\n")
    url = put(tmp_path / "prompts.txt")
    assert prompt_templates(url) == ("a {}.",)
    local, remote = (tiny_config(teacher={"prompts": one}) for one in (str(tmp_path / "prompts.txt"), url))
    assert digests("labels", remote, tmp_path) == digests("labels", local, tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"teacher.prompts: 'memory://.*no such file is there \(looked from .*one template per line",
    ):
        prompt_templates(f"{url}.no")


@pytest.mark.parametrize("kind", ["file", "CLIP folder"])
def test_teacher_weights(tmp_path: Path, put: Put, kind: str) -> None:
    save_clip(tiny_clip(1), Folder(str(tmp_path / "clip")))
    path = tmp_path / "clip"
    if kind == "file":
        path = tmp_path / "w.pt"
        torch.save(tiny_clip(1).model.state_dict(), path)
    local, remote = (tiny_config(teacher={"weights": one}) for one in (str(path), put(path)))
    assert same(create_clip(remote.teacher, 0).model, create_clip(local.teacher, 0).model)
    assert digests("teacher", remote, tmp_path) == digests("teacher", local, tmp_path)


def test_damaged_weights_are_named_by_their_url(tmp_path: Path, put: Put) -> None:
    (tmp_path / "w.pt").write_bytes(b"<html>")
    url = put(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"^{url} is no file of weights: it is a web page"):
        create_clip(tiny_config(teacher={"weights": url}).teacher, 0)
    with pytest.raises(FileNotFoundError, match="no file at memory://"):
        create_clip(tiny_config(teacher={"weights": f"{url}.no"}).teacher, 0)


def test_teacher_embeddings(tmp_path: Path, put: Put) -> None:
    from safetensors.torch import save

    clip, folder = tiny_clip(1), Folder(str(tmp_path / "embeddings"))
    folder.write_json("embeddings.json", {"names": ["cat", "dog"]})
    folder.write_bytes("embeddings.safetensors", save({"embeddings": torch.randn(2, clip.embed_dim)}))
    local, remote = (tiny_config(teacher={"embeddings": [one]}) for one in (folder.url, put(tmp_path / "embeddings")))
    names = ("dog", "bus")
    assert torch.equal(embed_names(clip, names, remote.teacher), embed_names(clip, names, local.teacher))
    assert digests("labels", remote, tmp_path) == digests("labels", local, tmp_path)


@pytest.mark.parametrize("kind", ["file", "RPN folder"])
def test_rpn_weights(tmp_path: Path, put: Put, kind: str) -> None:
    section: dict[str, Any] = {"width": 4, "anchor_sizes": [8, 16]}
    settings = RpnConfig(**section)
    write_rpn_folder(Folder(str(tmp_path / "rpn")), ProposalNetwork(settings).state_dict(), rpn_section(settings))
    path = tmp_path / "rpn" / "rpn.safetensors" if kind == "file" else tmp_path / "rpn"
    local, remote = (
        tiny_config(rpn={**section, "weights": one}, proposals={"method": "rpn"}) for one in (str(path), put(path))
    )
    taken = [open_network(outcome("rpn", one, tmp_path / str(i)).url)[0] for i, one in enumerate((local, remote))]
    assert same(*taken)
    assert digests("rpn", remote, tmp_path) == digests("rpn", local, tmp_path)


def test_pretrain_weights(tmp_path: Path, put: Put) -> None:
    save_clip(tiny_clip(2), Folder(str(tmp_path / "pretrained" / "student")))
    url = put(tmp_path / "pretrained")
    local, remote = (tiny_config(pretrain={"weights": one}) for one in (str(tmp_path / "pretrained"), url))
    assert same(load_clip(outcome("pretrain", remote, tmp_path / "out")).model, tiny_clip(2).model)
    assert digests("pretrain", remote, tmp_path) == digests("pretrain", local, tmp_path)


def test_finetune_weights(tmp_path: Path, put: Put) -> None:
    clip, names = tiny_clip(3), ("cat", "dog")
    detector = OpenVocabularyDetector(region_encoder(clip), torch.randn(2, clip.embed_dim), names, 0.01).eval()
    vocabulary = Vocabulary(names, base=names)
    model = RegionModel(
        detector,
        vocabulary,
        detector.class_embeddings,
        Preprocess(64, 128, clip.mean, clip.std),
        InferenceSettings(),
        clip.name,
        clip.architecture,
    )
    save_model(Folder(str(tmp_path / "detector")), model, "# a detector")
    url = put(tmp_path / "detector")
    local, remote = (tiny_config(finetune={"weights": one}) for one in (str(tmp_path / "detector"), url))
    one, other = (outcome("finetune", c, tmp_path / str(i)) for i, c in enumerate((local, remote)))
    assert one.read_bytes("regionclip.safetensors") == other.read_bytes("regionclip.safetensors")
    assert digests("finetune", remote, tmp_path) == digests("finetune", local, tmp_path)


def test_a_pipeline_of_spacy_at_a_url_is_refused_when_the_config_is_read() -> None:
    tree = tiny_config().model_dump(mode="json")
    tree["concepts"]["spacy_model"] = "s3://bucket/en_core_web_sm"
    with pytest.raises(ValueError, match=r"concepts\.spacy_model: .*'s3://bucket/en_core_web_sm'.*copy it to a disk"):
        parse_config(tree)
