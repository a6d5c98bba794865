"""CLIP models, proposal networks and embedding files into our folders."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from official_files import SMALL, detector_state, full_state, out, same_bits, save, small_clip, write_model_json
from safetensors.torch import save_file

from regionclip_core.datasets.categories import load_categories
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.text_embeddings import read_embeddings
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import open_network
from regionclip_core.proposals.rpn_weights import from_official
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.clip_files import Architecture, write_clip
from regionclip_core.weights.exporting import to_official
from regionclip_core.weights.import_report import ImportReport, WeightFile
from regionclip_core.weights.importing import import_checkpoint


@pytest.fixture
def small(tmp_path: Path) -> str:
    """`--model` of the small architecture."""
    return write_model_json(tmp_path / "small_model.json")


# ---------------------------------------------------------------- CLIP models


def openai_archive(clip: ClipModel, path: Path) -> None:
    """As OpenAI's downloads: a traced module in half precision that also has its sizes as tensors."""
    model = clip.model
    for name, number in [("input_resolution", 64), ("context_length", 12), ("vocab_size", 49408)]:
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(number))
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), torch.zeros(1, 12, dtype=torch.int64)))
    traced.half().save(str(path))


@pytest.mark.parametrize(
    ("name", "note"), [("RN50", ""), ("ViT-L-14", "differ in them"), ("ViT-S-16", "are known"), ("ViT-B-16-SigLIP", "")]
)
def test_a_normalisation_that_could_be_another_is_noted(tmp_path: Path, name: str, note: str) -> None:
    """ViT-L-14 was published with CLIP's mean of pixels and, by LAION, with 0.5."""
    state = small_clip().model.state_dict()
    report = ImportReport("w.pt", "", 0, "torch", "clip")
    folder = Folder(out(tmp_path))
    write_clip(folder, state, Architecture(name, SMALL), WeightFile("w.pt", state, {}), report)
    assert [note in one for one in report.notes] == ([True] if note else [])
    mean = folder.read_json("open_clip_config.json")["preprocess_cfg"]["mean"]
    tag = ("RN50", "openai") if name == "ViT-S-16" else (name, "webli" if "SigLIP" in name else "openai")
    assert mean == list(open_clip.get_pretrained_cfg(*tag)["mean"])
    report.notes.clear()
    openai = WeightFile("w.pt", state | {"input_resolution": torch.tensor(32)}, {})
    write_clip(Folder(f"{folder.url}/openai"), state, Architecture(name, SMALL), openai, report)
    assert report.notes == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["torchscript", "state_dict", "safetensors"])
def test_clip_files_in_any_layout_and_precision(tmp_path: Path, layout: str) -> None:
    clip = small_clip()
    expected = {k: v.half().float() if v.is_floating_point() else v for k, v in clip.model.state_dict().items()}
    half = {k: v.half() if v.is_floating_point() else v.clone() for k, v in clip.model.state_dict().items()}
    file = tmp_path / "w.pt"
    if layout == "torchscript":
        openai_archive(clip, file)
    elif layout == "state_dict":
        torch.save(half | {"input_resolution": torch.tensor(64)}, file)
    else:
        save_file(half, str(file))
    config = {name: value for name, value in SMALL.items() if name != "quick_gelu" or layout == "safetensors"}
    report = import_checkpoint(str(file), out(tmp_path), model=write_model_json(tmp_path / "m.json", config))
    assert (report.kind, report.layout) == ("clip", "torch" if layout == "state_dict" else layout)
    loaded = load_clip(Folder(out(tmp_path)))
    assert same_bits(loaded.model.state_dict(), expected)
    assert loaded.architecture["quick_gelu"] is True  # known from OpenAI's numbers, or the description
    assert set(report.converted.values()) == {"float16 -> float32"}
    if layout == "torchscript":
        assert set(report.left_over) == {"attn_mask", "input_resolution", "context_length", "vocab_size"}


def test_open_clip_opens_an_imported_model(tmp_path: Path, small: str) -> None:
    clip = small_clip()
    save_file(clip.model.state_dict(), str(tmp_path / "w.safetensors"))
    import_checkpoint(str(tmp_path / "w.safetensors"), out(tmp_path), model=small)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out(tmp_path)}")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval().encode_image(images), clip.encode_images(images))


def test_the_activation_is_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import regionclip_core.weights.clip_files as shapes
    import regionclip_core.weights.import_options as options

    small = {name: value for name, value in SMALL.items() if name != "quick_gelu"}
    names = {"RN50": small, "RN50-quickgelu": SMALL}
    for module in (shapes, options):
        monkeypatch.setattr(module, "model_config", lambda name: dict(names[name]))
    monkeypatch.setattr(shapes, "RESNETS", ("RN50",))
    save_file(small_clip().model.state_dict(), str(tmp_path / "w.safetensors"))
    with pytest.raises(
        ValueError, match=r"shapes of RN50.*--model RN50-quickgelu .*or --model RN50 \(trained with GELU"
    ):
        import_checkpoint(str(tmp_path / "w.safetensors"), out(tmp_path))
    for name, quick in [("RN50", False), ("RN50-quickgelu", True)]:
        folder = tmp_path / name
        import_checkpoint(str(tmp_path / "w.safetensors"), str(folder), model=name)
        assert load_clip(Folder(str(folder))).architecture.get("quick_gelu", False) is quick
        assert load_clip(Folder(str(folder))).name == "RN50"


def test_a_vit_needs_its_name(tmp_path: Path) -> None:
    config = {**SMALL, "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}}
    vit = small_clip(3, config)
    save_file(vit.model.state_dict(), str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"image tower is none: say which it is, such as --model ViT-B-32"):
        import_checkpoint(str(tmp_path / "w.safetensors"), out(tmp_path))
    import_checkpoint(
        str(tmp_path / "w.safetensors"), out(tmp_path), model=write_model_json(tmp_path / "vit.json", config)
    )
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_clip(Folder(out(tmp_path))).encode_images(images), vit.encode_images(images))


# ---------------------------------------------------------------- proposal networks and embeddings


def test_a_proposal_file_with_a_whole_detector_around_it(tmp_path: Path) -> None:
    branch = {n: t for n, t in full_state("coco_ovd_rn50", torch.float16).items() if n.startswith("offline_")}
    bare = {name.removeprefix("offline_"): tensor for name, tensor in branch.items()}
    others = {
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(81, 8),
        "roi_heads.res5.0.conv1.weight": torch.zeros(4, 4, 1, 1),
        "pixel_mean": torch.zeros(3, 1, 1),
    }
    report = import_checkpoint(save(tmp_path / "rpn_coco_48.pth", bare | others), out(tmp_path))
    assert (report.kind, report.model) == ("rpn", "resnet50_c4")
    assert report.renamed.keys() == bare.keys()
    assert report.left_over.keys() == others.keys()
    network, rpn, proposals = open_network(out(tmp_path))
    assert (rpn.image_size, rpn.max_size, proposals.pre_nms) == (800, 1333, 6000)
    direct = ProposalNetwork(rpn)
    direct.load_state_dict({name: tensor.float() for name, tensor in from_official(bare).items()})
    # Proposals of random weights have tied scores, whose order is a matter of rounding: the weights are compared.
    assert same_bits(network.state_dict(), direct.state_dict())
    assert same_bits(to_official(Folder(out(tmp_path))), bare)
    # The same branch out of a detector's file.
    import_checkpoint(save(tmp_path / "d.pth", detector_state() | branch), str(tmp_path / "again"), kind="rpn")
    assert same_bits(to_official(Folder(str(tmp_path / "again"))), bare)


def test_torchvisions_proposal_network(tmp_path: Path) -> None:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    source = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    report = import_checkpoint(str(tmp_path / "w.pth"), out(tmp_path))
    assert (report.kind, report.model) == ("rpn", "torchvision_fpn")
    others = {name for name in source.state_dict() if name.startswith("roi_heads.") or name.endswith("_tracked")}
    assert report.left_over.keys() == others
    network, rpn, _ = open_network(out(tmp_path))
    assert rpn.backbone == "torchvision_fpn"
    assert torch.equal(network.rpn.head.objectness.weight, source.rpn.head.cls_logits.weight)


@pytest.mark.parametrize(
    ("rows", "names"), [(65, None), (3, "cat\ndog\nbus stop\n"), (3, "\ufeffcat\ndog\nbus stop\n"), (1, "cat")]
)
def test_embedding_files(tmp_path: Path, rows: int, names: str | None) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(rows, 1024) * 9
    named = {"embeddings": embeddings}
    torch.save(embeddings[0] if rows == 1 else embeddings if names is None else named, tmp_path / "e.pth")
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
    report = import_checkpoint(
        str(tmp_path / "e.pth"), out(tmp_path), names=names and str(tmp_path / "names.txt"), model="RN50"
    )
    assert (report.kind, report.model) == ("embeddings", f"{rows} embeddings of 1024 numbers")
    found, stored = read_embeddings(Folder(out(tmp_path)))
    assert torch.equal(stored, embeddings)  # with their own norms
    assert found == (
        load_categories("coco_ovd").names if names is None else tuple(names.lstrip("\ufeff").split("\n")[:rows])
    )
