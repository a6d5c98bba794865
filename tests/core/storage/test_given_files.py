"""Stages that take published weights as they are: what they write, need, and make their fingerprints of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_artifacts import run_stage, tiny_clip, tiny_config

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector, load_detector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import ClipModel, find_weights, load_clip, save_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import clip_files, clip_folder
from stages.base import StageContext
from stages.declarations import STAGES


def open_clip_folder(clip: ClipModel, folder: Path) -> None:
    """A CLIP folder under open_clip's own names."""
    save_clip(clip, Folder(str(folder)))
    (folder / "clip.json").rename(folder / "open_clip_config.json")
    (folder / "clip.safetensors").rename(folder / "open_clip_model.safetensors")


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """What the import of a pretraining file leaves: two CLIP models."""
    for part, seed in (("teacher", 1), ("student", 2)):
        open_clip_folder(tiny_clip(seed), tmp_path / "pretrained" / part)
    return tmp_path / "pretrained"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """What the import of a detector leaves."""
    clip, names = tiny_clip(3), ("cat", "dog", "bus")
    torch.manual_seed(0)
    model = OpenVocabularyDetector(region_encoder(clip), torch.randn(3, clip.embed_dim), names, 0.01).eval()
    detector = model
    vocabulary = Vocabulary(names, base=("cat", "dog"))
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
    return tmp_path / "detector"


def same_weights(one: ClipModel, other: ClipModel) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_pretrained_folder_holds_both_models(pretrained: Path) -> None:
    for part in ("teacher", "student"):
        assert clip_folder(str(pretrained), part).url == str(pretrained / part)
        inner = str(pretrained / part)
        assert clip_folder(inner, part).url == inner
        assert clip_files(str(pretrained), part) == [
            f"{inner}/open_clip_config.json",
            f"{inner}/open_clip_model.safetensors",
        ]
    assert clip_files("elsewhere/weights.pt", "teacher") == ["elsewhere/weights.pt"]


@pytest.mark.parametrize("name", ["weights.pt", "ckptfile", "weights.v2"])
def test_a_teachers_file_counts_by_its_content_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """find_weights reads it, although the name could be a tag's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"weights")
    assert find_weights("RN50", name) == Path(name)
    files = STAGES["teacher"].raw_inputs
    assert files(tiny_config(teacher={"weights": name})) == [name]
    assert files(tiny_config(teacher={"weights": "openai"})) == []
    assert files(tiny_config(teacher={"weights": "gone/ckptfile"})) == ["gone/ckptfile"]  # and the plan says so


def test_a_tokenizer_beside_the_weights_counts(tmp_path: Path, pretrained: Path) -> None:
    for folder in (tmp_path, pretrained / "student"):
        for name in ("tokenizer.json", "special_tokens_map.json", "vocab.txt"):
            (folder / name).write_text("{}")
    for where, own in [
        (tmp_path / "weights.pt", ["weights.pt"]),
        (pretrained, ["student/open_clip_config.json", "student/open_clip_model.safetensors"]),
    ]:
        folder = where if where == pretrained else tmp_path
        beside = Path(own[0]).parent
        expected = [*own, str(beside / "tokenizer.json"), str(beside / "special_tokens_map.json")]
        assert clip_files(str(where), "student") == [str(folder / name) for name in expected]


@pytest.mark.parametrize("layout", ["open_clip", "artifact"])
def test_pretrain_takes_a_student(pretrained: Path, tmp_path: Path, layout: str) -> None:
    where = pretrained
    if layout == "artifact":
        where = tmp_path / "run"
        save_clip(tiny_clip(2), Folder(str(where)))
    stage, config = STAGES["pretrain"], tiny_config(pretrain={"weights": str(where)})
    assert stage.needs(config) == ()
    assert stage.settings(config) == {"pretrain": {"weights": str(where)}, "teacher": {"model": "small"}}
    assert all(
        Path(name).is_file() and Path(name).parent.name in ("student", "run") for name in stage.raw_inputs(config)
    )
    ctx = StageContext(config, Folder(str(tmp_path / "out")), {})
    summary = run_stage(stage, ctx)
    assert summary == {"model": "small", "weights": str(where)}
    assert sorted(ctx.out.names()) == ["clip.json", "clip.safetensors"]
    assert same_weights(load_clip(ctx.out), tiny_clip(2))


def test_a_student_of_another_architecture_than_the_teacher_is_refused(pretrained: Path, tmp_path: Path) -> None:
    architecture = {"embed_dim": 32, "image_size": 32, "vision_width": 8, "text_width": 16, "text_heads": 2}
    config = tiny_config(pretrain={"weights": str(pretrained)}, teacher={"architecture": architecture})
    ctx = StageContext(config, Folder(str(tmp_path / "out")), {})
    with pytest.raises(ValueError, match=r"student of the architecture small, .* set teacher\.model"):
        run_stage(STAGES["pretrain"], ctx)
    assert not ctx.out.names()


def test_finetune_takes_a_detector(detector: Path, tmp_path: Path) -> None:
    stage, config = STAGES["finetune"], tiny_config(finetune={"weights": str(detector)})
    assert stage.needs(config) == ()
    assert stage.settings(config) == {"finetune": {"weights": str(detector)}}
    assert [Path(name).name for name in stage.raw_inputs(config)] == [
        "config.json",
        "model.safetensors",
        "vocabulary.json",
    ]
    ctx = StageContext(config, Folder(str(tmp_path / "out")), {})
    summary = run_stage(stage, ctx)
    assert summary == {"detectors": {"regionclip": {"weights": str(detector), "names": 3}}}
    assert sorted(ctx.out.names()) == ["regionclip.json", "regionclip.safetensors"]
    taken = load_detector(ctx.out, stem="regionclip")
    assert (taken.names, taken.temperature, taken.background) == (("cat", "dog", "bus"), 0.01, "zero")
    given = region_encoder(tiny_clip(3)).eval()
    images, boxes = torch.randn(1, 3, 64, 64), [torch.tensor([[5.0, 5, 40, 50]])]
    with torch.no_grad():
        torch.testing.assert_close(taken.encoder(images, boxes), given(images, boxes))


def test_training_stages_are_as_they_were() -> None:
    config = tiny_config()
    assert STAGES["pretrain"].needs(config) == ("teacher", "labels", "pairs")
    assert STAGES["finetune"].needs(config) == ("data", "teacher", "proposals", "pretrain")
    assert {"concepts", "labels", "pairs"} <= set(STAGES["report"].needs(config))
    assert STAGES["pretrain"].raw_inputs(config) == STAGES["finetune"].raw_inputs(config) == []
    assert STAGES["teacher"].raw_inputs(config) == []


def test_the_report_needs_no_labels_for_a_given_student() -> None:
    config = tiny_config(pretrain={"weights": "somewhere"})
    needs = set(STAGES["report"].needs(config))
    assert not {"concepts", "labels", "pairs"} & needs
    assert {"data", "teacher", "proposals", "pretrain", "finetune", "evaluate"} <= needs


def test_a_teacher_folder_counts_by_the_content_of_its_own_model(pretrained: Path) -> None:
    stage = STAGES["teacher"]
    config = tiny_config(teacher={"weights": str(pretrained)})
    found = stage.raw_inputs(config)
    assert [Path(name).parent.name for name in found] == ["teacher", "teacher"]
    assert stage.raw_inputs(tiny_config(teacher={"weights": "openai"})) == []
    assert stage.raw_inputs(tiny_config(teacher={"weights": "a/file.pt"})) == ["a/file.pt"]


def test_embeddings_count_for_the_stages_that_embed_names_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    save_file({"embeddings": torch.ones(1, 16)}, str(tmp_path / "e" / "embeddings.safetensors"))
    (tmp_path / "e" / "embeddings.json").write_text(json.dumps({"names": ["cat"]}))
    plain, given = tiny_config(), tiny_config(teacher={"embeddings": [str(tmp_path / "e")]})
    for name, stage in STAGES.items():
        reads = name in ("labels", "finetune", "evaluate")
        assert (stage.raw_inputs(given) != stage.raw_inputs(plain)) == reads, name
        assert (stage.settings(given) != stage.settings(plain)) == (reads or name == "report"), name
