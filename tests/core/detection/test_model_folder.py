"""Detector folders: what is saved is what is loaded, for every kind of encoder; what doesn't fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_towers
import torch
from safetensors.torch import load_file, save_file
from small_artifacts import tiny_clip

from regionclip_core.config.tree import ProposalsConfig, RpnConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import WEIGHTS, load_model, read_config, save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.checkpoint_files import misfits, read_safetensors
from regionclip_core.models.clip import ClipModel, save_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import is_model_folder
from regionclip_core.weights.exporting import save_official, to_official

VOCABULARY = Vocabulary(("cat", "dog", "bus", "tea pot"), base=("bus", "cat"), groups=(("rare", ("dog",)),))
RULES = InferenceSettings(score_threshold=0.02, nms_kind="gaussian", objectness="raw_logit", max_detections=7)
RPN = RpnConfig(width=4, image_size=64, anchor_sizes=(8, 16))
PROPOSALS = ProposalsConfig(splits=(), max_regions=9, pre_nms=40, nms=0.6)
PREPROCESS = Preprocess(64, 200, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def detector_of(clip: ClipModel, background: Any = "zero", mask_head: bool = False) -> OpenVocabularyDetector:
    torch.manual_seed(1)
    encoder = region_encoder(clip)
    embeddings = torch.randn(len(VOCABULARY), encoder.embed_dim)
    detector = OpenVocabularyDetector(encoder, embeddings, VOCABULARY.names, 0.03, background, mask_head)
    with torch.no_grad():
        detector.box_regressor.weight.normal_(std=0.3)
        if background == "learnable":
            detector.background_logit.fill_(1.5)
    return detector.eval()


def saved(folder: Path, clip: ClipModel, detector: OpenVocabularyDetector, with_rpn: bool = True, **more: Any) -> Any:
    """A folder with that detector; returns its proposal network."""
    torch.manual_seed(2)
    network = ProposalNetwork(RPN).eval() if with_rpn else None
    model = RegionModel(
        detector,
        more.pop("vocabulary", VOCABULARY),
        detector.class_embeddings,
        PREPROCESS,
        RULES,
        clip.name,
        clip.architecture,
        None if network is None else NetworkBoxes(network, RPN, PROPOSALS),
        **more,
    )
    save_model(Folder(str(folder)), model, "# A card\n")
    return network


@pytest.mark.parametrize(("background", "mask_head"), [("zero", True), ("learnable", False)])
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, background: str, mask_head: bool) -> None:
    clip = tiny_clip()
    detector = detector_of(clip, background, mask_head)
    network = saved(tmp_path, clip, detector, text=clip)
    loaded = load_model(Folder(str(tmp_path)))
    torch.manual_seed(0)
    images, boxes = torch.randn(1, 3, 64, 96), [torch.tensor([[3.0, 4.0, 60.0, 50.0], [1.0, 1.0, 20.0, 9.0]])]
    with torch.no_grad():
        for got, wanted in zip(loaded.detector(images, boxes), detector(images, boxes), strict=True):
            assert torch.equal(got, wanted)
        assert loaded.proposer is not None
        got, wanted = (n.propose(images, [(64, 96)], 40, 9, 0.6)[0] for n in (loaded.proposer.network, network))
    torch.testing.assert_close(got.boxes, wanted.boxes)  # channels last in memory: other last bits
    torch.testing.assert_close(got.logits, wanted.logits)
    assert loaded.vocabulary == VOCABULARY
    assert loaded.detector.names == VOCABULARY.names
    assert (loaded.detector.temperature, loaded.detector.background) == (0.03, background)
    assert (loaded.detector.mask_head is not None) == mask_head
    assert (loaded.preprocess, loaded.inference) == (PREPROCESS, RULES)
    rpn, proposals = loaded.proposer.rpn, loaded.proposer.settings
    assert (rpn.width, rpn.anchor_sizes, rpn.image_size) == (4, (8, 16), 64)
    assert (proposals.max_regions, proposals.pre_nms, proposals.nms) == (9, 40, 0.6)
    assert loaded.text is not None
    assert torch.equal(loaded.text.encode_text(["a cat"]), clip.encode_text(["a cat"]))
    assert load_model(Folder(str(tmp_path)), with_text=False).text is None
    assert not loaded.detector.training and not loaded.proposer.network.training
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_regionclip.py",
        "text",
        "vocabulary.json",
    ]


def test_the_layout_is_a_hugging_face_repositorys(tmp_path: Path) -> None:
    clip = tiny_clip()
    detector = detector_of(clip, mask_head=True)
    network = saved(tmp_path, clip, detector)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["format"]) == ("regionclip", 1)
    assert config["names"] == list(VOCABULARY.names)
    assert config["clip_architecture"] == clip.architecture
    assert config["inference"]["nms_kind"] == "gaussian"
    assert json.loads((tmp_path / "vocabulary.json").read_text())["digest"] == VOCABULARY.digest
    weights = load_file(str(tmp_path / "model.safetensors"))
    expected = {f"detector.{n}": t for n, t in detector.state_dict().items()}
    expected |= {f"rpn.{n}": t for n, t in network.state_dict().items()}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (tmp_path / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize(("kind", "value_blocks"), [("vit", 0), ("vit", 2), ("eva", 2), ("siglip", 0)])
def test_other_towers(tmp_path: Path, kind: str, value_blocks: int) -> None:
    """Neither needs its text tower or its tokenizer to be loaded."""
    known = {"vit": small_towers.VIT, "eva": small_towers.EVA, "siglip": small_towers.SIGLIP}
    description = known[kind]
    if kind == "siglip":
        description = {**description, "text_cfg": small_towers.TEXT}  # its own tokenizer is not on this machine
    clip = small_towers.small_clip(description)
    clip.value_blocks = value_blocks
    detector = detector_of(clip)
    clip.architecture = known[kind]
    saved(tmp_path, clip, detector, with_rpn=False)
    loaded = load_model(Folder(str(tmp_path)))
    images, boxes = torch.randn(1, 3, 32, 48), [torch.tensor([[3.0, 4.0, 30.0, 28.0]])]
    with torch.no_grad():
        assert torch.equal(loaded.detector(images, boxes).logits, detector(images, boxes).logits)
    assert loaded.proposer is None
    with pytest.raises(ValueError, match=rf"no place for this detector's {kind} as image tower \(only CLIP ResNets\)"):
        to_official(Folder(str(tmp_path)))


def test_weights_of_half_precision_are_computed_with_in_float32(tmp_path: Path) -> None:
    clip = tiny_clip()
    saved(tmp_path, clip, detector_of(clip))
    file = str(tmp_path / "model.safetensors")
    halves = {n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}
    save_file(halves, file)
    loaded = load_model(Folder(str(tmp_path)))
    assert all(p.dtype == torch.float32 for p in loaded.detector.parameters())
    weight = halves["detector.encoder.layer1.0.conv1.weight"].float()
    assert torch.equal(loaded.detector.encoder.state_dict()["layer1.0.conv1.weight"], weight)
    assert loaded.detector.class_embeddings.dtype == torch.float32


# ---------------------------------------------------------------- refusals


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    clip = tiny_clip()
    detector = detector_of(clip)

    def refused(match: str, name: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            load_model(Folder(str(tmp_path / name)))

    def fresh(name: str) -> Path:
        saved(tmp_path / name, clip, detector)
        return tmp_path / name

    (tmp_path / "empty").mkdir()
    refused(r"empty is no detector folder: it has no config\.json", "empty")
    edit(fresh("foreign") / "config.json", model_type="bert")
    refused("expected model_type 'regionclip'", "foreign")
    assert not is_model_folder(Folder(str(tmp_path / "foreign")))
    edit(fresh("new") / "config.json", format=2)
    refused("format 2, but this version reads 1", "new")
    edit(fresh("names") / "config.json", names=["dog", "cat", "bus", "tea pot"])
    refused(r"vocabulary\.json and the names in config\.json differ", "names")
    edit(fresh("tampered") / "vocabulary.json", names=["dog", "cat", "bus", "tea pot"])
    refused("made with the vocabulary", "tampered")
    weights = fresh("cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(r"model\.safetensors is damaged or cut short", "cut")
    weights = fresh("partial") / "model.safetensors"
    state = load_file(str(weights))
    state.pop("detector.encoder.layer2.0.conv1.weight")
    state["detector.surplus"] = torch.zeros(1)
    state["detector.box_regressor.bias"] = torch.zeros(5)
    save_file(state, str(weights))
    refused(
        r"1 missing: encoder\.layer2\.0\.conv1\.weight; 1 unknown: surplus; 1 of another shape: box_regressor\.bias "
        r"\(5,\) where \(4,\)",
        "partial",
    )
    state = {name: tensor for name, tensor in state.items() if not name.startswith("detector.class")}
    save_file(state, str(fresh("classless") / "model.safetensors"))
    refused(r"detector: class_embeddings is missing", "classless")
    edit(fresh("rpn") / "config.json", rpn={"backbone": "resnet50_c4"})
    refused("proposal network: the weights don't fit", "rpn")


def test_saving_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    clip = tiny_clip()
    detector = detector_of(clip)
    with pytest.raises(ValueError, match="must be the same, in order"):
        saved(tmp_path / "a", clip, detector, vocabulary=Vocabulary(("cat", "dog", "tea pot")))
    assert not (tmp_path / "a" / "config.json").exists()


def test_what_was_last_asked_for_is_not_saved(tmp_path: Path) -> None:
    clip, detector = tiny_clip(), detector_of(tiny_clip())
    saved(tmp_path / "one", clip, detector)
    model = load_model(Folder(str(tmp_path / "one")))
    model.ready(("dog", "cat"))
    save_model(Folder(str(tmp_path / "two")), model, "# A card\n")
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()
    one, two = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_misfits_forgive_the_counters_of_norms_alone() -> None:
    expected = {"bn.weight": torch.zeros(2), "bn.num_batches_tracked": torch.tensor(0)}
    assert misfits(expected, {"bn.weight": torch.ones(2)}) == []
    assert misfits(expected, {"bn.num_batches_tracked": torch.tensor(0)}) == ["1 missing: bn.weight"]
    many = {f"w{n}": torch.zeros(1) for n in range(9)}
    assert misfits(many, {}) == ["9 missing: w0, w1, w2, w3 ..."]


# ---------------------------------------------------------------- official files of models trained here


def test_a_detector_of_ours_under_official_names(tmp_path: Path) -> None:
    clip = tiny_clip()
    detector = detector_of(clip)
    saved(tmp_path, clip, detector, with_rpn=False, text=None)
    official = to_official(Folder(str(tmp_path)))
    rows = detector.class_embeddings
    predictor = {n.removeprefix("roi_heads.box_predictor."): t for n, t in official.items() if "box_predictor" in n}
    assert torch.equal(predictor["test_cls_score.weight"], rows)
    assert torch.equal(predictor["cls_score.weight"], rows[[0, 2]])  # the base names, in the vocabulary's order
    assert torch.equal(predictor["cls_bg_score.weight"], torch.zeros(1, 16))
    assert torch.equal(predictor["bbox_pred.weight"], detector.box_regressor.weight)
    encoder = {f"backbone.{n}" for n in detector.encoder.state_dict() if not n.endswith("num_batches_tracked")}
    assert {name for name in official if name.startswith("backbone.")} == encoder
    assert save_official(Folder(str(tmp_path)), tmp_path / "files" / "w.pth") == len(official)
    assert torch.load(tmp_path / "files" / "w.pth", weights_only=True)["model"].keys() == official.keys()


def test_what_the_official_code_has_no_place_for_is_refused(tmp_path: Path) -> None:
    clip = tiny_clip()

    def refused(folder: Path, match: str) -> None:
        target = tmp_path / "never" / "w.pth"
        with pytest.raises(ValueError, match=match):
            save_official(Folder(str(folder)), target)
        assert not target.parent.exists()

    saved(tmp_path / "learnt", clip, detector_of(clip, "learnable"), with_rpn=False)
    refused(
        tmp_path / "learnt", r"w\.pth is not written: .*'s learnable background \(only .*--set finetune.background=zero"
    )
    saved(tmp_path / "small", clip, detector_of(clip))
    refused(
        tmp_path / "small", r"'s rpn.backbone small \(only resnet50_c4, [a-z0-9_, ]+\)\. Export it without --format"
    )
    saved(tmp_path / "both", clip, detector_of(clip, "learnable"))
    refused(tmp_path / "both", r"'s learnable background \([^)]+\); rpn.backbone small")  # all of it at once
    save_clip(clip, Folder(str(tmp_path / "gelu")))
    refused(tmp_path / "gelu", "the text encoder has GELU")
    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", "holds no model")


def test_a_student_under_official_names(tmp_path: Path) -> None:
    clip = tiny_clip()
    clip.architecture["quick_gelu"] = True
    save_clip(clip, Folder(str(tmp_path)))
    official = to_official(Folder(str(tmp_path)))
    state = clip.model.state_dict()
    assert {n.split(".")[0] for n in official} == {"backbone", "lang_encoder"}
    assert torch.equal(official["backbone.layer4.0.conv1.weight"], state["visual.layer4.0.conv1.weight"])
    assert torch.equal(official["lang_encoder.text_projection"], state["text_projection"])
    assert "lang_encoder.logit_scale" not in official
    assert len(official) == len([n for n in state if not n.endswith("num_batches_tracked")]) - 1


def test_readers_of_parts(tmp_path: Path) -> None:
    clip = tiny_clip()
    saved(tmp_path, clip, detector_of(clip))
    folder = Folder(str(tmp_path))
    assert is_model_folder(folder)
    assert not is_model_folder(Folder(str(tmp_path / "nowhere")))
    assert read_config(folder)["clip_name"] == "small"
    assert read_safetensors(folder, WEIGHTS)["detector.class_embeddings"].shape == (4, 16)
