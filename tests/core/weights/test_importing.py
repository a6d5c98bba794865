"""Published files into our folders: what arrives, what it computes, what goes back, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import ModelCard
from official_files import (
    GOLDEN,
    GOLDEN_MODEL,
    SMALL,
    detector_state,
    full_shapes,
    full_state,
    golden_backbone,
    heads,
    official_at,
    out,
    pretrained_state,
    same_bits,
    save,
    small_clip,
    text,
    visual,
    write_model_json,
)
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.model_folder import load_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.models.clip import load_clip
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.prompts import embed_texts
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.import_options import KINDS
from regionclip_core.weights.importing import _IMPORTERS, import_checkpoint, recognise

TOLERANCE = {"atol": 5e-6, "rtol": 5e-6}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: full-size files are large, and pytest keeps the folders of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """`--model` of the small architecture."""
    return write_model_json(tmp_path / "small_model.json")


def model_at(tmp_path: Path) -> RegionModel:
    return load_model(Folder(out(tmp_path)))


def report_at(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(out(tmp_path)) / "import.json").read_text())
    return found


# ---------------------------------------------------------------- the full lists


def test_a_full_coco_detector_comes_in_whole_and_goes_back_bit_by_bit(tmp_path: Path) -> None:
    state = full_state("coco_ovd_rn50")
    assert len(state) == 510
    file = save(tmp_path / "regionclip_finetuned-coco_rn50.pth", state, iteration=90000)
    report = import_checkpoint(file, out(tmp_path))
    assert (report.kind, report.layout) == ("detector", "torch")
    assert report.model.startswith("RN50: blocks [3, 4, 6, 3], width 64, input 224, embedding 1024")
    assert report.renamed.keys() == state.keys()
    assert report.left_over == {"iteration": "not part of the model"}
    assert report.matched == []
    assert list(report.added) == ["detector.class_embeddings", "detector.background_logit"]
    model = model_at(tmp_path)
    coco = load_categories("coco_ovd")
    assert model.vocabulary == coco
    assert model.detector.names == coco.names
    assert model.proposer is not None and model.proposer.rpn.backbone == "resnet50_c4"
    choice = model.proposer.settings
    assert (choice.pre_nms, choice.nms, choice.max_regions) == (6000, 0.7, 1000)
    assert model.clip_architecture == open_clip.get_model_config("RN50") | {"quick_gelu": True}
    readme = Path(out(tmp_path)) / "README.md"
    data = ModelCard.load(readme).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("other", "regionclip", "object-detection")
    card = readme.read_text()
    assert f"imported from `{report.file}` (sha256 `{report.sha256}`)" in card
    assert f"\n65: {', '.join(load_categories('coco_ovd').names[:12])} ...\n" in card
    assert "\nregionclip detect photo.jpg --model FOLDER\n" in card and "--rpn" not in card
    own = model.detector.state_dict()
    for name, tensor in state.items():
        if name.startswith("backbone."):
            assert torch.equal(own["encoder." + name.removeprefix("backbone.")], tensor), name
    rows = F.normalize(state["roi_heads.box_predictor.test_cls_score.weight"], dim=1)
    assert torch.equal(own["class_embeddings"], rows)
    assert same_bits(official_at(tmp_path), state)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lvis_rn50"])
def test_a_full_lvis_detector_of_half_precision(tmp_path: Path, model: str) -> None:
    state = full_state(model, torch.float16)
    (tmp_path / "names.txt").write_text("\n".join(f"thing {n}" for n in range(1203)))
    report = import_checkpoint(save(tmp_path / "lvis.pth", state), out(tmp_path), names=str(tmp_path / "names.txt"))
    halves = sum(tensor.dtype == torch.float16 for tensor in state.values())
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(report.converted) == halves == len(state) - len(counters) > 500
    assert set(report.converted.values()) == {"float16 -> float32"}
    model_in = model_at(tmp_path)
    assert all(p.dtype == torch.float32 for p in model_in.detector.parameters())
    assert model_in.detector.mask_head is not None
    deconv = state["roi_heads.mask_head.deconv.weight"].float()
    assert torch.equal(model_in.detector.mask_head.deconv.weight, deconv)
    assert model_in.inference.objectness == "raw_logit"
    assert (model_in.inference.score_threshold, model_in.inference.max_detections) == (0.02, 300)
    assert same_bits(official_at(tmp_path), state)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["coco_ovd_rn50x4", "lvis_rn50x4", "concept_extract_rn50", "zeroshot_lvis_rn50_gt"])
def test_other_full_detectors(tmp_path: Path, model: str) -> None:
    state = full_state(model)
    (tmp_path / "names.txt").write_text("\n".join(f"thing {n}" for n in range(1203)))
    names = None if "coco" in model else str(tmp_path / "names.txt")
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), names=names)
    assert report.model.startswith("RN50x4: " if "x4" in model else "RN50: ")
    assert model_at(tmp_path).detector.encoder.roi_size == (18 if "x4" in model else 14)
    assert same_bits(official_at(tmp_path), state)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pretrain_rn50", "pretrain_rn50x4"])
def test_full_pretraining_files(tmp_path: Path, model: str) -> None:
    state = full_state(model)
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path))
    assert report.renamed.keys() == state.keys()
    assert not report.left_over
    assert same_bits(official_at(tmp_path), state)
    for part in ("student", "teacher"):
        clip = load_clip(Folder(out(tmp_path)).child(part))
        assert clip.name == ("RN50x4" if "x4" in model else "RN50")
        assert clip.architecture["quick_gelu"] is True


def test_every_full_list_is_recognised() -> None:
    for model in json.loads((GOLDEN / "state_dict_keys.json").read_text()):
        state = dict.fromkeys(full_shapes(model), torch.ones(1))
        assert recognise(state, model) == ("pretrained" if model.startswith("pretrain") else "detector")
        bare = {n.removeprefix("offline_"): t for n, t in state.items() if n.startswith("offline_")}
        if bare:
            assert recognise(bare, model) == "rpn"


# ---------------------------------------------------------------- numbers


def golden_detector(tmp_path: Path) -> tuple[str, dict[str, Tensor]]:
    """A file with the weights of region_features.npz and detector_losses.npz under their official names."""
    stored = np.load(GOLDEN / "detector_losses.npz")
    state = golden_backbone("backbone.")
    for key in stored.files:
        if key.startswith(("w/", "w_openset/")):
            state["roi_heads.box_predictor." + key.split("/", 1)[1]] = torch.from_numpy(stored[key])
    base, novel = ([f"{letter}{n}" for n in range(count)] for letter, count in [("b", 12), ("n", 5)])
    (tmp_path / "names.yaml").write_text(json.dumps({"base": base, "novel": novel}))
    return save(tmp_path / "golden.pth", state), state


def test_an_imported_detector_computes_the_official_numbers(tmp_path: Path) -> None:
    file, state = golden_detector(tmp_path)
    config = write_model_json(tmp_path / "golden.json", GOLDEN_MODEL)
    import_checkpoint(file, out(tmp_path), names=str(tmp_path / "names.yaml"), model=config)
    detector = model_at(tmp_path).detector
    regions = np.load(GOLDEN / "region_features.npz")
    losses = np.load(GOLDEN / "detector_losses.npz")
    features = torch.from_numpy(losses["features"])
    with torch.no_grad():
        boxes = [torch.from_numpy(regions["boxes0"]), torch.from_numpy(regions["boxes1"])]
        res4 = torch.from_numpy(regions["res4"])
        region_feats = detector.encoder.pool(detector.encoder.regions(res4, boxes))
        torch.testing.assert_close(region_feats, torch.from_numpy(regions["region_feats"]), **TOLERANCE)
        # The test vocabulary is in use; that of training is one exchange away.
        wanted = torch.from_numpy(losses["infer_openset/logits"])
        torch.testing.assert_close(detector.classify(features), wanted, atol=2e-4, rtol=1e-5)
        raw = state["roi_heads.box_predictor.cls_score.weight"]
        detector.set_vocabulary(raw, [f"b{n}" for n in range(12)])
        wanted = torch.from_numpy(losses["train_logits"])
        torch.testing.assert_close(detector.classify(features), wanted, atol=2e-4, rtol=1e-5)
        deltas = torch.from_numpy(losses["train_deltas"])
        torch.testing.assert_close(detector.box_regressor(features), deltas, atol=1e-5, rtol=1e-5)


def test_an_imported_detector_computes_what_its_raw_tensors_say(tmp_path: Path) -> None:
    """From pixels to logits, against the formula written out with the file's own tensors."""
    file, state = golden_detector(tmp_path)
    config = write_model_json(tmp_path / "golden.json", GOLDEN_MODEL)
    report = import_checkpoint(file, out(tmp_path), names=str(tmp_path / "names.yaml"), model=config)
    assert report.missing.keys() == {"proposal branch", "text encoder"}
    detector = model_at(tmp_path).detector
    torch.manual_seed(0)
    images = torch.randn(1, 3, 96, 128)
    boxes = [torch.tensor([[3.0, 5.0, 80.0, 90.0], [10.0, 10.0, 120.0, 60.0]])]
    with torch.no_grad():
        found = detector(images, boxes)
        features = detector.encoder(images, boxes)
        predictor = {n.rsplit("box_predictor.", 1)[1]: t for n, t in state.items() if "box_predictor." in n}
        unit = features / features.norm(dim=1, keepdim=True)
        words = predictor["test_cls_score.weight"]
        cosines = unit @ (words / words.norm(dim=1, keepdim=True)).T
        logits = torch.cat((cosines, torch.zeros(2, 1)), dim=1) / 0.01
        deltas = features @ predictor["bbox_pred.weight"].T + predictor["bbox_pred.bias"]
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.deltas, deltas, atol=1e-5, rtol=1e-5)
    assert model_at(tmp_path).vocabulary.base == tuple(f"b{n}" for n in range(12))


def test_an_imported_pretraining_file_computes_the_official_numbers(tmp_path: Path) -> None:
    """Image tower and text tower of the goldens in one file; the former's embeddings cut to the latter's width."""
    stored = np.load(GOLDEN / "text_encoder.npz")
    state = golden_backbone("backbone.") | golden_backbone("teacher_backbone.")
    for prefix in ("backbone.", "teacher_backbone."):
        for kind in ("weight", "bias"):
            state[f"{prefix}attnpool.c_proj.{kind}"] = state[f"{prefix}attnpool.c_proj.{kind}"][:24].clone()
    state |= {f"lang_encoder.{k[2:]}": torch.from_numpy(stored[k]) for k in stored.files if k.startswith("w/")}
    config = write_model_json(tmp_path / "golden.json", {**GOLDEN_MODEL, "embed_dim": 24})
    import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=config)
    regions = np.load(GOLDEN / "region_features.npz")
    for part in ("student", "teacher"):
        clip = load_clip(Folder(out(tmp_path)).child(part))
        assert clip.logit_scale == pytest.approx(100.0)
        with torch.no_grad():
            words = clip.model.encode_text(torch.from_numpy(stored["tokens"]))
            encoder = region_encoder(clip)
            boxes = [torch.from_numpy(regions["boxes0"]), torch.from_numpy(regions["boxes1"])]
            feats = encoder.pool(encoder.regions(torch.from_numpy(regions["res4"]), boxes))
        torch.testing.assert_close(words, torch.from_numpy(stored["text_features"]), atol=5e-6, rtol=1e-5)
        torch.testing.assert_close(feats, torch.from_numpy(regions["region_feats"])[:, :24], **TOLERANCE)
    assert same_bits(official_at(tmp_path), state)


# ---------------------------------------------------------------- what arrives


@pytest.mark.parametrize(("train", "test"), [(48, 65), (65, None), (48, None), (17, None), (48, 17), (65, 65)])
def test_cocos_own_counts_need_no_names(tmp_path: Path, small: str, train: int, test: int | None) -> None:
    coco = load_categories("coco_ovd")
    state = detector_state(train, test)
    import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=small)
    base = tuple(name for name in coco.names if name in coco.base)
    model = model_at(tmp_path)
    assert model.detector.names == model.vocabulary.names
    assert model.vocabulary.names == {65: coco.names, 48: base, 17: coco.novel}[test or train]
    trained_on = {(48, 65): base, (65, None): base, (48, None): base, (65, 65): coco.names}
    assert set(model.vocabulary.base) == set(trained_on.get((train, test), ()))
    assert same_bits(official_at(tmp_path), state)


def test_names_from_annotation_files_follow_the_category_ids(tmp_path: Path, small: str) -> None:
    file = save(tmp_path / "w.pth", detector_state(3, None))
    coco = [{"id": 9, "name": "cow"}, {"id": 2, "name": "traffic light"}, {"id": 5, "name": "dog"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "categories": coco}))
    import_checkpoint(file, str(tmp_path / "a"), names=str(tmp_path / "coco.json"), model=small)
    assert load_model(Folder(str(tmp_path / "a"))).detector.names == ("traffic light", "dog", "cow")
    lvis = [
        {"id": 4, "name": "bow_(decorative_ribbons)", "frequency": "c"},
        {"id": 1, "name": "aerosol_can", "frequency": "f"},
        {"id": 3, "name": "applesauce", "frequency": "r"},
        {"id": 2, "name": "arctic_(type_of_shoe)", "frequency": "f"},
    ]
    (tmp_path / "lvis.json").write_text(json.dumps({"images": [], "categories": lvis}))
    # 3 rows are the base categories of these 4; a detector tested on all 4 gets all
    import_checkpoint(file, str(tmp_path / "b"), names=str(tmp_path / "lvis.json"), model=small)
    base = ("aerosol can", "arctic type of shoe", "bow decorative ribbons")
    assert load_model(Folder(str(tmp_path / "b"))).detector.names == base
    both = save(tmp_path / "both.pth", detector_state(3, 4))
    import_checkpoint(both, str(tmp_path / "c"), names=str(tmp_path / "lvis.json"), model=small)
    vocabulary = load_model(Folder(str(tmp_path / "c"))).vocabulary
    assert vocabulary.names == ("aerosol can", "arctic type of shoe", "applesauce", "bow decorative ribbons")
    assert vocabulary.base == base
    assert dict(vocabulary.groups)["rare"] == ("applesauce",)


def test_names_from_lists_of_ones_own(tmp_path: Path, small: str) -> None:
    file = save(tmp_path / "w.pth", detector_state(3, None))
    names = Vocabulary(("red bus", "cat", "tea pot"), base=("cat",))
    (tmp_path / "vocabulary.json").write_text(json.dumps(names.to_json()))
    (tmp_path / "set.json").write_text(json.dumps({"base": ["cat"], "novel": ["red bus", "tea pot"]}))
    (tmp_path / "lines.txt").write_text("cat\n  red bus \n\ntea pot")
    expected = {"vocabulary.json": names.names, "set.json": ("cat", "red bus", "tea pot")}
    for name in ("vocabulary.json", "set.json", "lines.txt"):
        import_checkpoint(file, str(tmp_path / name) + "-out", names=str(tmp_path / name), model=small)
        found = load_model(Folder(str(tmp_path / name) + "-out")).detector.names
        assert found == expected.get(name, ("cat", "red bus", "tea pot"))
    for name, text_in in [("broken.json", "{"), ("other.json", '{"a": 1}')]:
        (tmp_path / name).write_text(text_in)
        with pytest.raises(ValueError, match=name):
            import_checkpoint(file, out(tmp_path), names=str(tmp_path / name), model=small)


def test_base_names_are_found_by_the_rows_of_training(tmp_path: Path, small: str) -> None:
    state = detector_state(3, 5)
    test, train = (f"roi_heads.box_predictor.{name}.weight" for name in ("test_cls_score", "cls_score"))
    state[train] = state[test][[0, 3, 4]] * torch.tensor([[2.0], [0.5], [7.0]])  # other norms, same directions
    file = save(tmp_path / "w.pth", state)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n\n")
    report = import_checkpoint(file, out(tmp_path), names=str(tmp_path / "names.txt"), model=small)
    assert model_at(tmp_path).vocabulary.base == ("a", "d", "e")
    assert any("3 base names found by the rows of training" in note for note in report.notes)
    (tmp_path / "right.yaml").write_text("{base: [a, d, e], novel: [b, c], order: [a, b, c, d, e]}")
    import_checkpoint(file, str(tmp_path / "right"), names=str(tmp_path / "right.yaml"), model=small)
    (tmp_path / "wrong.yaml").write_text("{base: [a, d, e], novel: [b, c], order: [a, b, d, c, e]}")
    with pytest.raises(ValueError, match=r"names are not in the order of the rows: row 1 .* is row 3 .*calls 'c'.*'d'"):
        import_checkpoint(file, str(tmp_path / "wrong"), names=str(tmp_path / "wrong.yaml"), model=small)


def test_a_detector_with_a_text_encoder_keeps_it(tmp_path: Path, small: str) -> None:
    clip = small_clip()
    state = detector_state(17, None) | text(clip)
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=small)
    model = model_at(tmp_path)
    assert model.text is not None
    names = ["a photo of a cat", "two dogs"]
    assert torch.equal(model.text.encode_text(names), clip.encode_text(names))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.text.encode_images(images), clip.encode_images(images))
    assert report.renamed["lang_encoder.ln_final.bias"] == "text/ln_final.bias"
    assert report.added["text/logit_scale"].startswith("ln 100")
    assert same_bits(official_at(tmp_path), state)


def test_names_that_are_not_those_of_the_rows_are_refused(tmp_path: Path) -> None:
    """The file's own text encoder shows it, also where classifier and names have the same number."""
    architecture = {**SMALL, "embed_dim": 128, "text_cfg": {**SMALL["text_cfg"], "width": 64}}
    model = write_model_json(tmp_path / "wide.json", architecture)
    clip = small_clip(config=architecture)
    names = list(load_categories("coco_ovd").names)
    state = visual(clip, "backbone.") | heads(48, 65, width=128) | text(clip)
    state["roi_heads.box_predictor.test_cls_score.weight"] = embed_texts(clip, names, prompt_templates("clip81"), False)
    file = save(tmp_path / "w.pth", state)
    import_checkpoint(file, str(tmp_path / "right"), model=model)
    (tmp_path / "names.txt").write_text("\n".join(sorted(names)))
    with pytest.raises(ValueError, match=r"w\.pth: its classifier: the names are in another order than the rows"):
        import_checkpoint(file, str(tmp_path / "wrong"), model=model, names=str(tmp_path / "names.txt"))
    assert not (tmp_path / "wrong").exists()


def test_a_mask_head_comes_along(tmp_path: Path, small: str) -> None:
    state = visual(small_clip(), "backbone.") | heads(3, None, mask_channels=256)
    (tmp_path / "names.txt").write_text("a\nb\nc")
    import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), names=str(tmp_path / "names.txt"), model=small)
    model = model_at(tmp_path)
    assert model.detector.mask_head is not None
    assert model.detector.mask_head is not None
    maps = torch.randn(2, 256, 2, 2)
    weight, bias = state["roi_heads.mask_head.deconv.weight"], state["roi_heads.mask_head.deconv.bias"]
    hidden = F.conv_transpose2d(maps, weight, bias, stride=2).relu()
    point = state["roi_heads.mask_head.predictor.weight"], state["roi_heads.mask_head.predictor.bias"]
    torch.testing.assert_close(model.detector.mask_head(maps), F.conv2d(hidden, *point)[:, 0])
    assert same_bits(official_at(tmp_path), state)


def test_the_report_names_every_tensor(tmp_path: Path, small: str) -> None:
    state = detector_state() | {
        "pixel_mean": torch.zeros(3, 1, 1),
        "backbone.bn1.num_batches_tracked": torch.tensor(5),
        "teacher_backbone.conv1.weight": torch.zeros(4, 3, 3, 3),
        "ema.decay": torch.tensor(0.9),
    }
    file = save(tmp_path / "w.pth", {**state, "note": "by hand"}, optimizer={})
    report = import_checkpoint(file, out(tmp_path), model=small)
    assert report.left_over == {
        "note": "no tensor",
        "optimizer": "not part of the model",
        "pixel_mean": "a constant that follows from the configuration",
        "backbone.bn1.num_batches_tracked": "a counter that nothing reads",
        "teacher_backbone.conv1.weight": "no part of a detector",
        "ema.decay": "no part of a detector",
    }
    assert report.renamed.keys() | report.left_over.keys() == state.keys() | {"note", "optimizer"}
    assert report.renamed["backbone.layer2.1.bn3.running_var"] == "detector.encoder.layer2.1.bn3.running_var"
    stored = report_at(tmp_path)
    assert stored["renamed"] == report.renamed
    assert stored["left_over"] == report.left_over
    assert (stored["file"], stored["bytes"]) == ("w.pth", Path(file).stat().st_size)
    printed = "\n".join(report.lines())
    assert "backbone -> detector.encoder" in printed
    assert "pixel_mean: a constant" in printed
    assert "optimizer: not part of the model" in printed
    assert len(report.lines()) < 12


def test_a_pretraining_file_gives_student_and_teacher(tmp_path: Path, small: str) -> None:
    state = pretrained_state()
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=small)
    assert report.kind == "pretrained"
    student, teacher = (load_clip(Folder(out(tmp_path)).child(part)) for part in ("student", "teacher"))
    expected = {"student": small_clip(3), "teacher": small_clip(4)}
    images, words = torch.randn(2, 3, 64, 64), ["a cat", "a dog on a sofa"]
    for clip, source in [(student, expected["student"]), (teacher, expected["teacher"])]:
        assert torch.equal(clip.encode_images(images), source.encode_images(images))
        assert torch.equal(clip.encode_text(words), expected["student"].encode_text(words))  # the one text tower
        assert clip.model.logit_scale.item() == pytest.approx(math.log(100))
    assert report.renamed["lang_encoder.text_projection"] == "student/text_projection, teacher/text_projection"
    assert report.missing.keys() == {"proposal branch"}
    assert same_bits(official_at(tmp_path), state)


def test_a_teacher_of_another_width_is_left_over_with_the_reason(tmp_path: Path, small: str) -> None:
    other = small_clip(4, {**SMALL, "embed_dim": 24})
    state = {n: t for n, t in pretrained_state().items() if not n.startswith("teacher_")} | visual(
        other, "teacher_backbone."
    )
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=small)
    assert not (Path(out(tmp_path)) / "teacher").exists()
    assert report.left_over.keys() == {n for n in state if n.startswith("teacher_")}
    assert "have 24 numbers" in next(iter(report.left_over.values()))


def test_openais_names_with_a_teacher_are_a_pretraining_file(tmp_path: Path, small: str) -> None:
    """As teacher_RN50_student_RN50_OAI_CLIP.pth is described."""
    clip = small_clip()
    state = visual(clip, "visual.") | visual(clip, "teacher_backbone.") | text(clip, "")
    state["logit_scale"] = torch.tensor(4.2)
    report = import_checkpoint(save(tmp_path / "w.pth", state), out(tmp_path), model=small)
    assert report.kind == "pretrained"
    assert not report.added
    for part in ("student", "teacher"):
        loaded = load_clip(Folder(out(tmp_path)).child(part))
        assert torch.equal(loaded.encode_text(["a cat"]), clip.encode_text(["a cat"]))
        assert loaded.logit_scale == pytest.approx(math.exp(4.2))


def test_kinds_are_those_that_the_command_names() -> None:
    assert KINDS == tuple(_IMPORTERS) == ("detector", "pretrained", "rpn", "embeddings", "clip")
