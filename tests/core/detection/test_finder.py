"""Detection on one's own images: boxes in the picture's pixels, from a run or from a folder, and what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from small_artifacts import VOCABULARY, Picture, tiny_clip, tiny_config, write_data
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.detection.detector import load_detector, save_detector
from regionclip_core.detection.drawing import draw
from regionclip_core.detection.finder import Finder, finder_of_folder, name_encoder, set_names, with_network
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.inference import Detections
from regionclip_core.detection.model_folder import LoadedModel
from regionclip_core.detection.run_model import detector_of_run, run_encoder
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.passes import FINETUNED, PROPOSED, finetuned, zero_shot
from regionclip_core.models.clip import save_clip
from regionclip_core.models.text_embeddings import NamePrompts, embed_names, read_prompts, write_prompts
from regionclip_core.proposals.proposers import make_proposer, propose_shard
from regionclip_core.proposals.rpn_folder import rpn_section, save_rpn_folder
from regionclip_core.proposals.training import build_network
from regionclip_core.storage.records import Folder
from regionclip_core.weights.exporting import detector_card, export_detector

NAMES = VOCABULARY.names
UNKNOWN = ("dragon", "tea pot", "comb")


def config(proposals: dict[str, Any] | None = None, **evaluate: Any) -> Config:
    settings = tiny_config(
        proposals={"method": "rpn", "max_regions": 12, **(proposals or {})}, evaluate={"split": "val", **evaluate}
    )
    masks = settings.finetune.model_copy(update={"mask_head": True})  # which only splits with masks could train
    return settings.model_copy(update={"finetune": masks})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """The artifacts of a detector with masks, a student and a proposal network; none of them trained."""
    root = tmp_path_factory.mktemp("models")
    result = {name: Folder(str(root / name)) for name in ("finetune", "pretrain", "rpn")}
    clip = tiny_clip()
    detector = build_detector(clip, ("cat", "bus"), config())
    detector.box_regressor.weight.data.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    save_detector(detector, result["finetune"], clip.architecture, stem="regionclip")
    save_clip(clip, result["pretrain"])
    save_rpn_folder(result["rpn"], build_network(config().rpn, 0), rpn_section(config().rpn, config().proposals))
    return result


def run_model(folders: dict[str, Folder], settings: Config) -> LoadedModel:
    return detector_of_run(settings, folders["finetune"], tiny_clip(), folders["rpn"], VOCABULARY, "regionclip")


def finder(folders: dict[str, Folder], **evaluate: Any) -> Finder:
    return Finder.from_model(run_model(folders, config(**evaluate)))


@pytest.fixture(scope="module")
def exported(folders: dict[str, Folder], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The same detector as a folder of its own."""
    folder = Folder(str(tmp_path_factory.mktemp("exported") / "model"))
    model = run_model(folders, config())
    export_detector(folder, model, detector_card(model, "regionclip", None), NamePrompts.from_config(config().teacher))
    return folder


def same(one: Detections, other: Detections) -> bool:
    """Bit for bit."""
    fields = ("boxes", "scores", "labels", "proposal")
    return all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields) and one.masks == other.masks


def photograph(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(210, 331), (400, 150), (40, 50)])
def test_boxes_are_in_the_pictures_own_pixels(folders: dict[str, Folder], height: int, width: int) -> None:
    found = finder(folders, score_threshold=0.01).find(photograph(height, width))
    assert len(found) > 5
    assert bool((found.scores.diff() <= 0).all())
    limit = torch.tensor([width, height, width, height]) + 1e-3
    assert bool(((found.boxes >= 0) & (found.boxes <= limit)).all())
    assert bool((found.boxes[:, 2:] > found.boxes[:, :2]).all())
    if min(height, width) > 64:  # the networks see it with a short side of 64: no box of theirs reaches so far
        assert float(found.boxes[:, 2].max()) > 64 * width / min(height, width) + 50
        assert float(found.boxes[:, 3].max()) > 64 * height / min(height, width) + 50


def as_data(tmp_path: Path, pixels: np.ndarray) -> Folder:
    """A picture as a data set of one."""

    class Photograph(Picture):
        def pixels(self) -> np.ndarray:
            return pixels

    return write_data(tmp_path / "data", {"val": [[Photograph(pixels.shape[0], pixels.shape[1])]]})


def evaluation(tmp_path: Path, pixels: np.ndarray, settings: Config, rpn: Folder) -> EvaluationData:
    """What the evaluate stage reads of a picture, its proposals stored as the proposals stage does."""
    data, proposals = as_data(tmp_path, pixels), Folder(str(tmp_path / "proposals"))
    _, table = propose_shard(make_proposer(settings, rpn, "cpu"), data, 0)
    with proposals.write("proposals-00000.parquet") as file:
        pq.write_table(table, file)
    return EvaluationData.read(settings, data, proposals)


@pytest.mark.parametrize(("height", "width"), [(210, 331), (40, 50)])
def test_a_picture_is_found_in_as_the_evaluation_does(
    folders: dict[str, Folder], tmp_path: Path, height: int, width: int
) -> None:
    """The other way to the same numbers: through proposals and evaluate."""
    pixels = photograph(height, width)
    data = evaluation(tmp_path, pixels, config(), folders["rpn"])
    detector = load_detector(folders["finetune"], stem="regionclip")
    expected = next(finetuned(detector, tiny_clip(), config(), data, "cpu", lambda n: None)).found[FINETUNED]
    found = finder(folders).find(pixels)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.masks is not None and len(found.masks) == len(found)


# ---------------------------------------------------------------- folders


def test_an_exported_detector_finds_the_same_bit_for_bit(folders: dict[str, Folder], exported: Folder) -> None:
    pixels = photograph(210, 331)
    expected, found = finder(folders).find(pixels), finder_of_folder(exported.url).find(pixels)
    assert len(expected) > 5
    assert same(found, expected)


def test_an_exported_detector_embeds_new_names_as_its_run_does(folders: dict[str, Folder], exported: Folder) -> None:
    pixels = photograph(150, 120)
    model = run_model(folders, config())
    set_names(model, UNKNOWN, run_encoder(tiny_clip(), config()))
    expected = Finder.from_model(model).find(pixels)
    one = finder_of_folder(exported.url, names=UNKNOWN)
    assert one.names == UNKNOWN
    assert same(one.find(pixels), expected)
    other = finder_of_folder(exported.url, names=UNKNOWN, prompts="clip81").find(pixels)
    assert not torch.equal(other.scores, expected.scores)
    by_text = finder_of_folder(exported.url, names=UNKNOWN, text=folders["pretrain"].url, prompts="single").find(pixels)
    torch.testing.assert_close(by_text.scores, expected.scores, atol=1e-4, rtol=0)  # one prompt: nothing to average


def test_stored_embeddings_are_kept_and_only_other_names_are_embedded(folders: dict[str, Folder]) -> None:
    model = run_model(folders, config())
    before = model.detector.class_embeddings.clone()
    asked: list[list[str]] = []

    def encode(names: Any) -> Tensor:
        asked.append(list(names))
        return torch.ones(len(names), before.shape[1])

    set_names(model, ("bus", "dragon", "cat"), encode)
    assert asked == [["dragon"]]
    assert model.detector.names == ("bus", "dragon", "cat")
    expected = torch.stack([before[2], torch.full_like(before[0], before.shape[1] ** -0.5), before[0]])
    torch.testing.assert_close(model.detector.class_embeddings, expected)
    set_names(model, ("bus", "cat"), encode, anew=True)
    assert asked[-1] == ["bus", "cat"]
    with pytest.raises(ValueError, match=r"no embedding of \['lamp'\] and no text encoder .*--text DIR"):
        set_names(model, ("bus", "lamp"), None)
    with pytest.raises(ValueError, match=r"names \['bus'\] more than once"):
        set_names(model, ("bus", "bus"), encode)


@pytest.fixture
def pretrained(folders: dict[str, Folder], tmp_path: Path) -> Folder:
    """The folder that an imported pretraining file becomes: student/, rpn/."""
    folder = Folder(str(tmp_path / "pretrained"))
    save_clip(tiny_clip(), folder.child("student"))
    write_prompts(folder.child("student"), NamePrompts.from_config(config().teacher))
    network = build_network(config().rpn, 0)
    save_rpn_folder(folder.child("rpn"), network, rpn_section(config().rpn, config().proposals))
    return folder


def test_a_clip_folder_finds_zero_shot_as_the_official_evaluation_does(
    folders: dict[str, Folder], pretrained: Folder, tmp_path: Path
) -> None:
    """Raw objectness, the zero background, proposals as they are and only lightly suppressed: through evaluate."""
    settings = config({"nms": 0.9}, objectness="raw_logit", zero_shot_background="zero", score_threshold=0.001)
    pixels = photograph(210, 331)
    data = evaluation(tmp_path, pixels, settings, folders["rpn"])
    expected = next(zero_shot(tiny_clip(), settings, data, "cpu", lambda n: None)).found[PROPOSED]
    found = finder_of_folder(pretrained.url, names=NAMES).find(pixels)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()
    apart = finder_of_folder(pretrained.child("student").url, names=NAMES, rpn=folders["rpn"].url)
    assert same(apart.find(pixels), found)


def test_what_a_model_lacks_is_asked_for(exported: Folder, pretrained: Folder, tmp_path: Path) -> None:
    student = pretrained.child("student").url
    with pytest.raises(ValueError, match=r"no model there\. Expected a detector folder"):
        finder_of_folder(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="no names of its own: give them with --classes"):
        finder_of_folder(pretrained.url)
    with pytest.raises(ValueError, match=r"has no proposal network: give the folder of one with --rpn"):
        finder_of_folder(student, names=NAMES)
    with pytest.raises(ValueError, match=r"no folder of a proposal network"):
        finder_of_folder(exported.url, rpn=student)
    (Path(exported.url) / "text").rename(tmp_path / "text")
    try:
        with pytest.raises(ValueError, match=r"no embedding of \['dragon', 'tea pot', 'comb'\] and no text encoder"):
            finder_of_folder(exported.url, names=UNKNOWN)
        assert finder_of_folder(exported.url, names=("dog", "cat")).names == ("dog", "cat")
        assert finder_of_folder(exported.url, names=UNKNOWN, text=str(tmp_path / "text")).names == UNKNOWN
    finally:
        (tmp_path / "text").rename(Path(exported.url) / "text")


def test_a_model_without_proposals_takes_another_network(folders: dict[str, Folder]) -> None:
    model = replace(run_model(folders, config()), network=None)
    bare = replace(model, config={**model.config, "rpn": None})
    with pytest.raises(ValueError, match="the model has no proposal network: give the folder of one with --rpn"):
        Finder.from_model(bare)
    pixels = photograph(90, 120)
    found = Finder.from_model(with_network(bare, folders["rpn"].url)).find(pixels)
    assert same(found, finder(folders).find(pixels))


def test_settings_of_ones_own_change_what_is_found(folders: dict[str, Folder]) -> None:
    pixels = photograph(210, 331)
    usual = finder(folders)
    few = usual.adjusted(max_detections=3).find(pixels)
    assert len(few) == 3
    assert torch.equal(few.scores, usual.find(pixels).scores[:3])
    assert len(usual.adjusted(nms=0.1).find(pixels)) < len(usual.find(pixels))
    assert usual.adjusted() == usual
    sigmoid = finder(folders, finetuned_objectness="sigmoid").find(pixels)
    assert same(usual.adjusted(objectness="sigmoid").find(pixels), sigmoid)
    assert not same(usual.find(pixels), sigmoid)
    large = config(image_size=96).model_copy(update={"rpn": config().rpn.model_copy(update={"image_size": 96})})
    expected = Finder.from_model(run_model(folders, large)).find(pixels)
    assert same(usual.adjusted(image_size=96).find(pixels), expected)


def test_prompts_are_kept_in_the_folder_and_official_where_there_are_none(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert read_prompts(folder) == NamePrompts.official()
    assert len(NamePrompts.official().templates) == 81 and not NamePrompts.official().normalize
    write_prompts(folder, NamePrompts(("a {}", "{}."), True))
    assert read_prompts(folder) == NamePrompts(("a {}", "{}."), True)
    settings = config().model_copy(update={"teacher": config().teacher.model_copy(update={"prompts": "short"})})
    made = name_encoder(tiny_clip(), NamePrompts.from_config(settings.teacher), None)(NAMES)
    assert torch.equal(made, embed_names(tiny_clip(), NAMES, settings.teacher))
    folder.write_json("prompts.json", {"templates": ["no gap"], "normalize_prompts": True})
    with pytest.raises(ValueError, match=r"prompts\.json: expected `templates`"):
        read_prompts(folder)


# ---------------------------------------------------------------- pictures


def detections(boxes: list[list[float]], scores: list[float]) -> Detections:
    rows: Tensor = torch.arange(len(boxes))
    return Detections(torch.tensor(boxes), torch.tensor(scores), rows % len(NAMES), rows)


@pytest.mark.parametrize(("height", "width", "scale"), [(600, 900, 1), (256, 200, 2), (60, 50, 9)])
def test_draw_puts_a_box_where_it_was_found(height: int, width: int, scale: int) -> None:
    grey = np.full((height, width, 3), 90, np.uint8)
    box = [0.2 * width // 1, 0.5 * height // 1, 0.7 * width // 1, 0.9 * height // 1]
    picture = draw(grey, detections([box], [0.8]), NAMES, 0.5)
    assert picture.size == (width * scale, height * scale)
    red = np.abs(np.asarray(picture).astype(int) - [220, 30, 60]).max(axis=2) == 0
    x0, y0, x1, y1 = (int(v * scale) for v in box)
    for y in (y0, y1):
        assert red[y, x0 : x1 + 1].all()
    for x in (x0, x1):
        assert red[y0 : y1 + 1, x].all()
    assert not red[y0 + 15 : y1 - 4, x0 + 4 : x1 - 4].any()
    assert not red[: max(0, y0 - 20)].any()
    assert not red[y1 + 3 :].any()
    assert not red[y0 + 15 :, : x0 - 2].any()
    assert (np.asarray(picture)[y0 - 14 : y0, x0 : x0 + 40] > 240).all(axis=2).any()  # white letters


def test_draw_shows_what_is_sure_enough_and_the_best_on_top() -> None:
    grey = np.full((600, 900, 3), 90, np.uint8)
    boxes = [[100.0, 100, 300, 300], [500, 100, 700, 300]]
    both = np.asarray(draw(grey, detections(boxes, [0.75, 0.25]), NAMES, 0.25))
    sure = np.asarray(draw(grey, detections(boxes, [0.75, 0.25]), NAMES, 0.26))
    none = np.asarray(draw(grey, detections([], []), NAMES, 0.0))
    assert (none == 90).all()
    assert (sure[:, 450:] == 90).all()
    assert np.array_equal(both[:, :450], sure[:, :450])
    assert not (both[:, 450:] == 90).all()
    same = [[100.0, 100, 300, 300]] * 2
    top = np.asarray(draw(grey, detections(same, [0.8, 0.7]), NAMES, 0.0))
    best = np.asarray(draw(grey, detections(same[:1], [0.8]), NAMES, 0.0))
    assert np.array_equal(top[best != 90], best[best != 90])


def test_masks_are_tinted_and_the_best_lies_on_top() -> None:
    grey = np.full((600, 900, 3), 90, np.uint8)
    shapes = np.zeros((3, 600, 900), np.uint8)
    shapes[0, 100:300, 100:300] = 1
    shapes[1, 200:400, 200:400] = 1
    shapes[2, 500:550, 500:550] = 1
    boxes = [[100.0, 100, 300, 300], [200, 200, 400, 400], [500, 500, 550, 550]]
    found = detections(boxes, [0.9, 0.8, 0.1])
    found = replace(found, masks=[coco_mask.encode(np.asfortranarray(shape))["counts"] for shape in shapes])
    picture = np.asarray(draw(grey, found, NAMES, 0.5))
    first, second, both = picture[150, 150], picture[350, 350], picture[250, 250]
    assert (first != 90).any() and (second != 90).any() and (first != second).any()
    assert (both == first).all()
    assert (picture[520, 520] == 90).all()  # its score is too low
    assert (picture[450, 150] == 90).all()
    plain = np.asarray(draw(grey, replace(found, masks=None), NAMES, 0.5))
    changed = (plain != picture).any(axis=2)
    assert not changed[(shapes[:2].sum(axis=0) == 0)].any()
