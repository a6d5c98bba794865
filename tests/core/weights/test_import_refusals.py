"""Files that don't fit are refused with the reason, and then nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import (
    SMALL,
    detector_state,
    pretrained_state,
    save,
    small_clip,
    visual,
    write_model_json,
)
from torch import Tensor

from regionclip_core.storage.folder import Folder
from regionclip_core.weights.importing import import_checkpoint

State = dict[str, Tensor]
CLS, BG, TEST = (f"roi_heads.box_predictor.{name}.weight" for name in ("cls_score", "cls_bg_score", "test_cls_score"))


def refused(tmp_path: Path, file: str | Path, match: str, **options: Any) -> None:
    """The import fails with that message, and the folder around it is as before."""
    options.setdefault("model", write_model_json(tmp_path / "small_model.json"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        import_checkpoint(str(file), str(tmp_path / "new" / "out"), **options)
    assert sorted(tmp_path.rglob("*")) == before


def changed(change: Callable[[State], Any], state: State | None = None) -> State:
    state = detector_state() if state is None else state
    change(state)
    return state


def test_the_untouched_files_are_fine(tmp_path: Path) -> None:
    """What the refusals below start from."""
    model = write_model_json(tmp_path / "m.json")
    for number, state in enumerate([detector_state(), pretrained_state()]):
        import_checkpoint(save(tmp_path / f"{number}.pth", state), str(tmp_path / f"out{number}"), model=model)


# ---------------------------------------------------------------- names and counts


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (1203, r"1203 rows, and nothing in the file names them.*LVIS's 1203: --names lvis_v1_val\.json"),
        (866, r"866 rows.*866 base categories: --names lvis_v1_train\.json"),
        (80, r"80 rows.*--names instances_val2017\.json"),
        (7, r"7 rows.*--names names\.txt, a text file with one name per line"),
    ],
)
def test_rows_without_names(tmp_path: Path, rows: int, match: str) -> None:
    refused(tmp_path, save(tmp_path / "w.pth", detector_state(rows, None)), match)


def test_rows_with_another_number_of_names(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", detector_state(48, 65))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    refused(
        tmp_path,
        file,
        rf"{TEST} has 65 rows, but --names .*names\.txt gives 2 names",
        names=str(tmp_path / "names.txt"),
    )
    coco = {"categories": [{"id": n, "name": f"thing {n}"} for n in range(80)]}
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    refused(
        tmp_path, file, r"65 rows, but --names .*instances\.json gives 80 names", names=str(tmp_path / "instances.json")
    )
    odd = save(tmp_path / "odd.pth", detector_state(48, 66))
    refused(tmp_path, odd, r"66 rows, but --names coco_ovd gives 65 or 48 or 17 names", names="coco_ovd")
    trained = save(tmp_path / "trained.pth", detector_state(47, 65))
    refused(tmp_path, trained, r"classifier of training has 47 rows, but 48 of the 65 names are base names")


def test_names_that_are_not_there(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", detector_state())
    refused(
        tmp_path,
        file,
        r"--names: '.*nowhere\.txt' is not .*there",
        names=str(tmp_path / "nowhere.txt"),
    )
    refused(tmp_path, file, r"--names: 'coco_ovd2' is not", names="coco_ovd2")
    (tmp_path / "twice.txt").write_text("\n".join(["cat"] * 65))
    refused(tmp_path, file, r"twice\.txt names \['cat'\] more than once", names=str(tmp_path / "twice.txt"))


# ---------------------------------------------------------------- weights


def narrower(state: State) -> None:
    state[CLS], state[TEST] = state[CLS][:, :12], state[TEST][:, :12]


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def with_extra(name: str) -> Callable[[State], Any]:
    return lambda state: state.update({name: torch.zeros(3)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (narrower, r"cls_score.weight has shape \(48, 12\), but small_model gives embeddings of 16 numbers"),
        (without("backbone.layer3.0.bn2.running_mean"), r"1 missing: encoder\.layer3\.0\.bn2\.running_mean"),
        (without("roi_heads.box_predictor.bbox_pred.bias"), r"1 missing: box_regressor\.bias"),
        (without("backbone.attnpool.positional_embedding"), r"attnpool\.positional_embedding is missing"),
        (with_extra("backbone.layer3.0.conv4.weight"), r"1 unknown: encoder\.layer3\.0\.conv4\.weight"),
        (with_extra("roi_heads.box_predictor.extra.weight"), r"unknown weights in the detector's heads.*extra"),
        (with_extra("roi_heads.mask_head.other.weight"), r"missing: mask_head\.deconv.*|unknown weights.*other"),
        (with_extra("offline_backbone.res2.0.conv1.weight"), "no proposal branch"),
        (lambda s: s.update({CLS: torch.ones(48, 16, dtype=torch.int8)}), r"zero or not finite \(48 of int8\)"),
        (lambda s: s.update({CLS: torch.ones(0, 16)}), r"cls_score\.weight has no rows"),
        (
            lambda s: s.update({"backbone.layer1.0.conv2.weight": torch.ones(8, 8, 3, 3, dtype=torch.int8)}),
            r"1 of another type: encoder\.layer1\.0\.conv2\.weight of int8 where float32 is expected",
        ),
        (
            lambda s: s.update({"backbone.attnpool.positional_embedding": torch.ones(())}),
            r"positional_embedding has the shape \(\), expected 2 axes",
        ),
        (
            lambda s: s.update({"backbone.attnpool.c_proj.weight": torch.ones(0, 16)}),
            r"c_proj\.weight has the shape \(0, 16\), expected 2 axes and none of length 0",
        ),
        (
            lambda s: s.update({"backbone.conv1.weight": torch.zeros(4, 3, 5, 5)}),
            r"of another shape: encoder\.conv1\.weight \(4, 3, 5, 5\) where \(4, 3, 3, 3\)",
        ),
        (
            lambda s: s["backbone.layer1.0.conv1.weight"].view(-1)[5:6].fill_(float("nan")),
            r"NaN or infinite numbers in encoder\.layer1\.0\.conv1\.weight: it is damaged",
        ),
        (lambda s: s[BG].fill_(0.1), r"cls_bg_score\.weight must be one row of 16 zeros"),
        (without(BG), r"cls_bg_score\.weight must be one row"),
        (
            lambda s: s[TEST][3].zero_(),
            r"test_cls_score\.weight has no rows, or rows that are zero or not finite \(65 of float32\)",
        ),
        (without("backbone.layer2.1.conv2.weight"), r"1 missing: encoder\.layer2\.1\.conv2\.weight"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("backbone.layer2.1.")],
            r"is no small_model: its weights say blocks \[1, 1, 1, 1\].*has blocks \[1, 2, 1, 1\]",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("backbone.layer2.0.")],
            r"expected the blocks of visual\.layer2 from 0 on, got \[1\]: weights are missing",
        ),
    ],
)
def test_detectors_with_something_wrong(tmp_path: Path, change: Callable[[State], Any], match: str) -> None:
    refused(tmp_path, save(tmp_path / "w.pth", changed(change)), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("lang_encoder.ln_final.bias"), r"CLIP model \(small_model\).*1 missing: ln_final\.bias"),
        (with_extra("lang_encoder.ln_extra.bias"), r"1 unknown: ln_extra\.bias"),
        (without("teacher_backbone.layer4.0.conv3.weight"), r"1 missing: visual\.layer4\.0\.conv3\.weight"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("lang_encoder.")],
            "image encoder without the text encoder",
        ),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("backbone.")], "holds no student"),
        (with_extra("offline_proposal_generator.rpn_head.conv9.weight"), "no proposal branch"),
    ],
)
def test_pretraining_files_with_something_wrong(tmp_path: Path, change: Callable[[State], Any], match: str) -> None:
    refused(tmp_path, save(tmp_path / "w.pth", changed(change, pretrained_state())), match)


def test_models_that_are_not_what_the_user_says(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", detector_state())
    refused(tmp_path, file, r"w\.pth is no RN50: its weights say .*width 8.* RN50 has .*width 64", model="RN50")
    refused(tmp_path, file, r"--model: expected an open_clip .*\(came: 'RN51'\); nearest: RN50", model="RN51")
    refused(tmp_path, file, r"no open_clip architecture has these shapes \(blocks \[1, 2, 1, 1\]", model=None)
    refused(tmp_path, file, r"nowhere\.json: no such file", model=str(tmp_path / "nowhere.json"))
    for described in ({"width": 3}, [], {"model_cfg": 3}, {**SMALL, "text_cfg": 3}):
        (tmp_path / "strange.json").write_text(json.dumps(described))
        refused(tmp_path, file, "expected open_clip's embed_dim", model=str(tmp_path / "strange.json"))
    unknown = {**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "depth": 3}}
    (tmp_path / "unknown.json").write_text(json.dumps(unknown))
    refused(tmp_path, file, r"unknown can't be built from .*'depth'", model=str(tmp_path / "unknown.json"))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("detectors", r"--kind: expected one of detector, .*, clip \(came: 'detectors'\); nearest: detector"),
        ("pretrained", "image encoder without the text encoder"),
        ("rpn", "no proposal branch"),
        ("embeddings", r"holds \d+ tensors; an embedding file has one"),
        ("clip", r"is no CLIP model: it has no visual\.\*"),
    ],
)
def test_a_kind_that_the_file_is_not(tmp_path: Path, kind: str, match: str) -> None:
    refused(tmp_path, save(tmp_path / "w.pth", detector_state()), match, kind=kind)


def test_a_pretraining_file_is_no_detector(tmp_path: Path) -> None:
    refused(tmp_path, save(tmp_path / "w.pth", pretrained_state()), r"is no detector: it has no", kind="detector")


def test_files_of_other_models(tmp_path: Path) -> None:
    refused(
        tmp_path,
        save(tmp_path / "w.pth", {"conv1.weight": torch.zeros(2, 2), "fc.weight": torch.zeros(2, 2)}),
        r"holds no model that is known here.*\{'conv1': 1, 'fc': 1\}",
    )


@pytest.mark.parametrize(
    "names",
    [
        ["level_embed"],  # one tensor of two axes, as embeddings are
        ["model.query_position_embeddings.weight"],
        ["bert.embeddings.word_embeddings.weight"],
        ["text_projection"],
        ["visual.proj"],
        ["embeddings", "names"],
        ["owlv2.vision_model.embeddings.class_embedding", "owlv2.text_model.embeddings.token_embedding.weight"],
        ["clip.vision_model.pre_layrnorm.weight", "clip.text_model.final_layer_norm.weight"],
        ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "rpn_head.rpn_conv.weight"],  # no CLIP ResNet
        ["backbone.layer1.0.conv1.weight", CLS],
        ["teacher_backbone.blocks.0.attn.qkv.weight", "student_backbone.blocks.0.attn.qkv.weight"],
        ["visual.patch_embed.proj.weight", "visual.blocks.0.attn.qkv.weight", "model.embed_tokens.weight"],
        ["visual.cls_token", "visual.blocks.0.attn.q_proj.weight"],  # an image tower alone
        ["visual_encoder.cls_token", "text_decoder.bert.embeddings.word_embeddings.weight"],
        ["cls_token", "blocks.0.attn.qkv.weight", "storage_tokens"],
        ["backbone.blocks.0.attn.q_proj.weight", "roi_head.bbox_head.0.fc_reg.weight"],
    ],
    ids=lambda names: names[0],
)
def test_files_that_have_something_in_common_with_ours(tmp_path: Path, names: list[str]) -> None:
    state = {name: torch.ones(65, 16) for name in names}
    refused(tmp_path, save(tmp_path / "w.pth", state), "w.pth holds no model that is known here.*by --kind")


# ---------------------------------------------------------------- proposals and embeddings


def test_proposal_files_with_something_wrong(tmp_path: Path) -> None:
    bare = {"backbone.res2.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    bare |= {f"proposal_generator.rpn_head.{n}": torch.zeros(1) for n in ("conv.weight", "objectness_logits.weight")}
    refused(tmp_path, save(tmp_path / "w.pth", bare), r"proposal network \(resnet50_c4\) is incomplete.*\d+ missing")
    unknown = bare | {"backbone.res2.0.conv9.weight": torch.zeros(1)}
    refused(tmp_path, save(tmp_path / "u.pth", unknown), r"1 unknown: backbone\.resnet\.layer1\.0\.conv9\.weight")
    other = bare | {"backbone.res2.0.gate.weight": torch.zeros(1)}
    refused(tmp_path, save(tmp_path / "o.pth", other), r"o\.pth: unknown weight 'res2\.0\.gate\.weight'")
    small = {f"rpn.head.objectness.{n}": torch.zeros(1) for n in ("weight", "bias")}
    small |= {"backbone.layers.0.0.weight": torch.zeros(1)}
    refused(tmp_path, save(tmp_path / "s.pth", small), "regionclip's own small proposal network")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(65, 3, 2), "holds no model|expected embeddings"),
        (torch.ones(65, 8, dtype=torch.int64), "of a floating-point type"),
        (torch.ones(65, 8), r"embeddings of 8 numbers, small_model makes 16"),
        (torch.zeros(65, 16), "zero or not finite"),
        (torch.full((65, 16), float("inf")), "zero or not finite"),
        (torch.ones(64, 16), r"has 64 rows, and nothing in the file names them"),
        (torch.zeros(0, 16), "expected embeddings"),
    ],
)
def test_embedding_files_with_something_wrong(tmp_path: Path, content: Tensor, match: str) -> None:
    torch.save(content, tmp_path / "e.pth")
    refused(tmp_path, tmp_path / "e.pth", match)


# ---------------------------------------------------------------- damage, and nothing written


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_damaged_and_dangerous_files(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "whole.pth", detector_state())).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, tmp_path / "cut.pth", "cut short or damaged")
    torch.save({"model": detector_state(), "trainer": Payload(tmp_path / "harm")}, tmp_path / "code.pth")
    refused(tmp_path, tmp_path / "code.pth", "reading it would run code from the file")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
    refused(tmp_path, tmp_path / "page.pth", "it is a web page")
    refused(tmp_path, tmp_path / "nowhere.pth", "is not there")


def test_tensors_that_share_their_memory_are_imported(tmp_path: Path) -> None:
    state = detector_state()
    state["backbone.layer1.0.bn1.weight"] = state["backbone.layer1.0.bn2.weight"] = torch.ones(8)
    model = write_model_json(tmp_path / "m.json")
    report = import_checkpoint(save(tmp_path / "w.pth", state), str(tmp_path / "out"), model=model)
    assert report.kind == "detector"


def test_what_says_nothing_about_the_file_is_not_passed_over(tmp_path: Path) -> None:
    torch.save({"proposal_generator.rpn_head.conv.weight": torch.ones(1)}, tmp_path / "rpn.pth")
    with pytest.raises(ValueError, match="is imported as rpn, whose rows have no names; leave --names out"):
        import_checkpoint(str(tmp_path / "rpn.pth"), str(tmp_path / "out"), names="coco_ovd")
    torch.save({"detector.encoder.conv1.weight": torch.ones(1)}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match="is of a folder that `import` or `export` made; `detect --model` takes"):
        import_checkpoint(str(tmp_path / "own.pth"), str(tmp_path / "out"))


def test_targets_that_are_taken(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", detector_state())
    model = write_model_json(tmp_path / "m.json")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is there already and not empty"):
        import_checkpoint(file, str(tmp_path / "full"), model=model)
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    for place in (file, f"{file}/inside"):
        with pytest.raises(ValueError, match=r"expected a local folder, but .*w\.pth is no folder"):
            import_checkpoint(file, place, model=model)
    with pytest.raises(ValueError, match="expected a local folder"):
        import_checkpoint(file, "s3://bucket/model", model=model)
    (tmp_path / "empty").mkdir()
    import_checkpoint(file, str(tmp_path / "empty"), model=model)
    assert (tmp_path / "empty" / "config.json").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json", "import.json"])
def test_a_disk_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write = Folder.write

    def fails(self: Folder, file: str) -> Any:
        if file == name:
            raise ValueError("no space left on device")
        return write(self, file)

    file = save(tmp_path / "w.pth", detector_state())
    monkeypatch.setattr(Folder, "write", fails)
    refused(tmp_path, file, "no space left")


def test_a_missing_part_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The student is fine and would be written first; the teacher is not."""
    teacher = visual(small_clip(4, {**SMALL, "vision_cfg": {**SMALL["vision_cfg"], "width": 16}}), "teacher_backbone.")
    state = {n: t for n, t in pretrained_state().items() if not n.startswith("teacher_")} | teacher
    refused(tmp_path, save(tmp_path / "w.pth", state), r"teacher_backbone\.\*: no open_clip architecture has these")
