"""A model of a run, of a detector folder and of a CLIP folder: what it finds, region features, embeddings of names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_artifacts import VOCABULARY, Picture, tiny_clip, tiny_config, write_data
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import to_tensor
from regionclip_core.detection.assembly import model_of_run, open_model, with_parts, zero_shot_of_run
from regionclip_core.detection.detector import load_detector, save_detector
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.inference import Detections
from regionclip_core.detection.model_folder import save_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.passes import FINETUNED, FINETUNED_FUSED, PROPOSED, finetuned, zero_shot
from regionclip_core.evaluation.second_scores import SecondScores, crop_scores
from regionclip_core.models.clip import save_clip
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.text_embeddings import NamePrompts, embed_names, read_prompts, write_prompts
from regionclip_core.ops.image_batch import pixel_batch
from regionclip_core.proposals.network import build_network
from regionclip_core.proposals.proposers import make_proposer, propose_shard
from regionclip_core.proposals.rpn_folder import rpn_section, write_rpn_folder
from regionclip_core.storage.records import Folder
from regionclip_core.weights.model_card import detector_card

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
    write_rpn_folder(
        result["rpn"], build_network(config().rpn, 0).state_dict(), rpn_section(config().rpn, config().proposals)
    )
    return result


def run_model(folders: dict[str, Folder], settings: Config | None = None, **evaluate: Any) -> RegionModel:
    settings = settings or config(**evaluate)
    return model_of_run(settings, folders["finetune"], tiny_clip(), folders["rpn"], VOCABULARY, "regionclip")


@pytest.fixture(scope="module")
def exported(folders: dict[str, Folder], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The same detector as a folder of its own."""
    folder = Folder(str(tmp_path_factory.mktemp("exported") / "model"))
    model = run_model(folders)
    save_model(folder, model, str(detector_card(model, "regionclip", None)))
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
    found = run_model(folders, score_threshold=0.01).detect(photograph(height, width))[0]
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
    return EvaluationData(settings, data, proposals)


@pytest.mark.parametrize(("height", "width"), [(210, 331), (40, 50)])
def test_a_picture_is_found_in_as_the_evaluation_does(
    folders: dict[str, Folder], tmp_path: Path, height: int, width: int
) -> None:
    """The other way to the same numbers: through proposals and evaluate."""
    pixels = photograph(height, width)
    data = evaluation(tmp_path, pixels, config(), folders["rpn"])
    detector = load_detector(folders["finetune"], stem="regionclip")
    expected = next(finetuned(detector, tiny_clip(), config(), data, "cpu", lambda n: None)).found[FINETUNED]
    found = run_model(folders).detect(pixels)[0]
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.masks is not None and len(found.masks) == len(found)


@pytest.mark.parametrize("source", ["student", "teacher_crops"])
def test_a_second_classifier_takes_part_as_in_the_evaluation(
    folders: dict[str, Folder], tmp_path: Path, source: str
) -> None:
    pixels = photograph(210, 331)
    settings = config(fusion={"source": source, "base": 0.3, "novel": 0.7})
    data, clip = evaluation(tmp_path, pixels, settings, folders["rpn"]), tiny_clip(1)
    kept = SecondScores(len(VOCABULARY))
    list(zero_shot(clip, settings, data, "cpu", lambda n: None, kept))
    second = kept if source == "student" else crop_scores(clip, settings, data, lambda n: None)
    detector = load_detector(folders["finetune"], stem="regionclip")
    result = next(finetuned(detector, tiny_clip(), settings, data, "cpu", lambda n: None, second))
    expected = result.found[FINETUNED_FUSED]
    context = None if source == "student" else settings.labels.context
    model, plain = run_model(folders), run_model(folders).detect(pixels)[0]
    opinion = zero_shot_of_run(settings, clip, None, VOCABULARY)
    fused = model.fused(opinion, 0.3, 0.7, context)
    [found] = fused.detect(pixels)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-5)
    assert found.labels.tolist() == expected.labels.tolist()
    assert not torch.equal(found.scores, plain.scores)
    # Exponents of 0 leave the model's own probability; names outside the vocabulary count as novel ones.
    np.testing.assert_allclose(model.fused(opinion, 0.0, 0.0, context).detect(pixels)[0].scores, plain.scores)
    others = [model.fused(opinion, base, 0.7, context).detect(pixels, UNKNOWN)[0].scores for base in (0.1, 0.9)]
    assert torch.equal(*others)
    # Both see the image in another size.
    resized = fused.adjusted(image_size=96).detect(pixels)[0]
    again = model.adjusted(image_size=96).fused(opinion, 0.3, 0.7, context).detect(pixels)[0]
    assert same(resized, again) and not torch.equal(resized.scores, found.scores)


@pytest.mark.parametrize("second", [None, "region features", "crops"])
def test_against_given_names_a_score_does_not_depend_on_the_other_classes(
    folders: dict[str, Folder], second: str | None
) -> None:
    pixels, model = photograph(210, 331), run_model(folders)
    if second is not None:
        opinion = zero_shot_of_run(config(), tiny_clip(1), None, VOCABULARY)
        model = model.fused(opinion, 0.3, 0.7, 1.2 if second == "crops" else None)
    model = model.adjusted(score_threshold=0.0, nms=1.0, max_detections=10_000)

    def scores(classes: tuple[str, ...], against: tuple[str, ...]) -> Tensor:
        """Of the first class, per proposal."""
        [found] = model.detect(pixels, classes, against)
        first = found.labels == 0
        return found.scores[first][found.proposal[first].argsort()]

    asked, other = UNKNOWN[0], NAMES[0]
    for first in (asked, NAMES[1]):  # outside of the names that it is compared with, and among them
        alone, beside = scores((first,), NAMES), scores((first, other, "democracy"), NAMES)
        assert len(alone) > 5
        torch.testing.assert_close(alone, beside)
        assert not torch.allclose(scores((first,), ()), scores((first, other, "democracy"), ()))


def test_a_detector_is_no_second_classifier(folders: dict[str, Folder]) -> None:
    with pytest.raises(ValueError, match="expected a CLIP model, such as an exported student"):
        run_model(folders).fused(run_model(folders))


# ---------------------------------------------------------------- folders


def test_an_exported_detector_finds_the_same_bit_for_bit(folders: dict[str, Folder], exported: Folder) -> None:
    pixels = photograph(210, 331)
    [expected], [found] = run_model(folders).detect(pixels), open_model(exported.url).detect(pixels)
    assert len(expected) > 5
    assert same(found, expected)


def test_an_exported_detector_embeds_new_names_as_its_run_does(folders: dict[str, Folder], exported: Folder) -> None:
    pixels = photograph(150, 120)
    [expected] = run_model(folders).detect(pixels, UNKNOWN)
    model = open_model(exported.url)
    assert same(model.detect(pixels, UNKNOWN)[0], expected)
    assert model.ready(UNKNOWN) == UNKNOWN
    [other] = open_model(exported.url, prompts="clip81").detect(pixels, UNKNOWN)
    assert not torch.equal(other.scores, expected.scores)
    by_text = open_model(exported.url, text=folders["pretrain"].url, prompts="single").detect(pixels, UNKNOWN)[0]
    torch.testing.assert_close(by_text.scores, expected.scores, atol=1e-4, rtol=0)  # one prompt: nothing to average


def test_another_text_encoder_brings_its_prompts_or_takes_the_models(
    folders: dict[str, Folder], exported: Folder, tmp_path: Path
) -> None:
    assert open_model(exported.url, text=folders["pretrain"].url).prompts == NamePrompts.from_config(config().teacher)
    save_clip(tiny_clip(), Folder(str(tmp_path)))
    write_prompts(Folder(str(tmp_path)), NamePrompts(("a {}",), False))
    assert open_model(exported.url, text=str(tmp_path)).prompts == NamePrompts(("a {}",), False)


def test_names_of_ones_own_leave_the_model_as_it_was(folders: dict[str, Folder]) -> None:
    pixels, model = photograph(150, 120), run_model(folders)
    [before] = model.detect(pixels)
    assert not same(model.detect(pixels, UNKNOWN)[0], before)
    assert same(model.detect(pixels)[0], before)
    assert model.ready() == NAMES


def test_stored_embeddings_are_kept_and_only_other_names_are_embedded(
    folders: dict[str, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run_model(folders)
    stored = model.embeddings.clone()
    asked: list[list[str]] = []

    def encode(self: NamePrompts, clip: Any, names: Any) -> Tensor:
        asked.append(list(names))
        return torch.ones(len(names), stored.shape[1])

    monkeypatch.setattr(NamePrompts, "embed", encode)
    expected = torch.stack([stored[2], torch.full_like(stored[0], stored.shape[1] ** -0.5), stored[0]])
    torch.testing.assert_close(model.embed(("bus", "dragon", "cat")), expected)
    model.ready(("bus", "dragon", "cat"))
    torch.testing.assert_close(model.detector.class_embeddings, expected)
    assert asked == [["dragon"]]  # once
    with_parts(model, prompts="short").embed(("bus", "cat"))
    assert asked[-1] == ["bus", "cat"]
    assert model.embed(()).shape == (0, stored.shape[1])
    with pytest.raises(ValueError, match=r"no embedding of \['lamp'\] and no text encoder .*--text DIR"):
        replace(model, text=None).embed(("bus", "lamp"))
    with pytest.raises(ValueError, match=r"names \['bus'\] more than once"):
        model.ready(("bus", "bus"))


@pytest.fixture
def pretrained(folders: dict[str, Folder], tmp_path: Path) -> Folder:
    """The folder that an imported pretraining file becomes: student/, rpn/."""
    folder = Folder(str(tmp_path / "pretrained"))
    save_clip(tiny_clip(), folder.child("student"))
    write_prompts(folder.child("student"), NamePrompts.from_config(config().teacher))
    network = build_network(config().rpn, 0)
    write_rpn_folder(folder.child("rpn"), network.state_dict(), rpn_section(config().rpn, config().proposals))
    return folder


def test_a_clip_folder_finds_zero_shot_as_the_official_evaluation_does(
    folders: dict[str, Folder], pretrained: Folder, tmp_path: Path
) -> None:
    """Raw objectness, the zero background, proposals as they are and only lightly suppressed: through evaluate."""
    settings = config({"nms": 0.9}, objectness="raw_logit", zero_shot_background="zero", score_threshold=0.001)
    pixels = photograph(210, 331)
    data = evaluation(tmp_path, pixels, settings, folders["rpn"])
    expected = next(zero_shot(tiny_clip(), settings, data, "cpu", lambda n: None)).found[PROPOSED]
    [found] = open_model(pretrained.url).detect(pixels, NAMES)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()
    apart = open_model(pretrained.child("student").url, rpn=folders["rpn"].url)
    assert same(apart.detect(pixels, NAMES)[0], found)


@pytest.mark.parametrize("background", ["none", "zero"])
def test_a_runs_clip_model_finds_zero_shot_as_its_evaluation_does(
    folders: dict[str, Folder], tmp_path: Path, background: str
) -> None:
    pixels, settings = photograph(210, 331), config(objectness="sigmoid", zero_shot_background=background)
    data = evaluation(tmp_path, pixels, settings, folders["rpn"])
    expected = next(zero_shot(tiny_clip(), settings, data, "cpu", lambda n: None)).found[PROPOSED]
    [found] = zero_shot_of_run(settings, tiny_clip(), folders["rpn"], VOCABULARY).detect(pixels)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()


def test_what_a_model_lacks_is_asked_for(exported: Folder, pretrained: Folder, tmp_path: Path) -> None:
    student, pixels = pretrained.child("student").url, photograph(60, 60)
    with pytest.raises(ValueError, match=r"no model there\. Expected a detector folder"):
        open_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="no names of its own: give them with --classes"):
        open_model(pretrained.url).detect(pixels)
    with pytest.raises(ValueError, match="the model has no proposal network: give the folder of one with --rpn"):
        open_model(student).detect(pixels, NAMES)
    with pytest.raises(ValueError, match=r"no folder of a proposal network"):
        open_model(exported.url, rpn=student)
    (Path(exported.url) / "text").rename(tmp_path / "text")
    try:
        with pytest.raises(ValueError, match=r"no embedding of \['dragon', 'tea pot', 'comb'\] and no text encoder"):
            open_model(exported.url).ready(UNKNOWN)
        assert open_model(exported.url).ready(("dog", "cat")) == ("dog", "cat")
        assert open_model(exported.url, text=str(tmp_path / "text")).ready(UNKNOWN) == UNKNOWN
    finally:
        (tmp_path / "text").rename(Path(exported.url) / "text")
    with pytest.raises(ValueError, match="no text encoder"):
        open_model(exported.url, with_text=False).ready(UNKNOWN)


def test_a_model_without_proposals_takes_another_network(folders: dict[str, Folder]) -> None:
    bare, pixels = replace(run_model(folders), proposer=None), photograph(90, 120)
    with pytest.raises(ValueError, match="the model has no proposal network"):
        bare.detect(pixels)
    [found] = with_parts(bare, rpn=folders["rpn"].url).detect(pixels)
    assert same(found, run_model(folders).detect(pixels)[0])


def test_settings_of_ones_own_change_what_is_found(folders: dict[str, Folder]) -> None:
    pixels = photograph(210, 331)
    model = run_model(folders)
    [usual] = model.detect(pixels)
    [few] = model.adjusted(max_detections=3).detect(pixels)
    assert len(few) == 3
    assert torch.equal(few.scores, usual.scores[:3])
    assert len(model.adjusted(nms=0.1).detect(pixels)[0]) < len(usual)
    assert model.adjusted().inference == model.inference
    [sigmoid] = run_model(folders, finetuned_objectness="sigmoid").detect(pixels)
    assert same(model.adjusted(objectness="sigmoid").detect(pixels)[0], sigmoid)
    assert not same(usual, sigmoid)
    large = config(image_size=96).model_copy(update={"rpn": config().rpn.model_copy(update={"image_size": 96})})
    [expected] = run_model(folders, large).detect(pixels)
    assert same(model.adjusted(image_size=96).detect(pixels)[0], expected)
    narrow = config(max_size=80)
    narrow = narrow.model_copy(update={"rpn": narrow.rpn.model_copy(update={"max_size": 80})})
    assert same(model.adjusted(max_size=80).detect(pixels)[0], run_model(folders, narrow).detect(pixels)[0])
    few = config({"max_regions": 4, "nms": 0.3})
    expected = run_model(folders, few).detect(pixels)[0]
    assert same(model.adjusted(proposals=4, proposal_nms=0.3).detect(pixels)[0], expected)
    assert not same(expected, usual)


# ---------------------------------------------------------------- for people


def test_images_of_one_size_share_a_batch_and_no_result_depends_on_the_others(folders: dict[str, Folder]) -> None:
    sizes = [(60, 90), (90, 60), (60, 90), (64, 64)] * 3  # more than one batch takes
    pixels, model = [np.roll(photograph(*size), 7 * n, 1) for n, size in enumerate(sizes)], run_model(folders)
    found = model.detect(pixels)
    assert len(found) == 12 and not same(found[0], found[2])
    boxes = [one.boxes[:3] for one in found]
    features = model.region_features(pixels, boxes).split([len(some) for some in boxes])
    for image, own, some, rows in zip(pixels, found, boxes, features, strict=True):
        [alone] = model.detect(image)
        assert torch.equal(alone.labels, own.labels) and torch.equal(alone.proposal, own.proposal)
        torch.testing.assert_close(alone.boxes, own.boxes)
        torch.testing.assert_close(alone.scores, own.scores)
        torch.testing.assert_close(model.region_features(image, some), rows)


def test_an_image_may_come_in_any_form(folders: dict[str, Folder], tmp_path: Path) -> None:
    pixels, model = photograph(60, 90), run_model(folders)
    file = tmp_path / "é.png"
    Image.fromarray(pixels).save(file)
    [expected] = model.detect(pixels)
    forms: list[Any] = [str(file), file, file.read_bytes(), Image.open(file), to_tensor(pixels)]
    for found in [*(model.detect(form)[0] for form in forms), *model.detect(forms)]:
        assert same(found, expected)
    for wrong in (pixels[:, :, 0], pixels.astype(float), torch.zeros(3, 9, 9), [[1, 2]]):
        with pytest.raises(ValueError, match=r"expected uint8\[H, W, 3\] RGB or, as a tensor, uint8\[3, H, W\]"):
            model.detect([wrong])
    with pytest.raises(ValueError, match="no file"):
        model.detect(str(tmp_path / "nothing.png"))
    assert all(same(found, expected) for found in model.detect(np.stack([pixels, pixels])))
    with pytest.raises(ValueError, match="expected a list of names, got the text 'cat'"):
        model.detect(pixels, "cat")


@pytest.mark.parametrize("kind", ["detector", "clip"])
def test_features_and_embeddings_are_what_the_model_classifies_by(
    exported: Folder, pretrained: Folder, kind: str
) -> None:
    """Their cosines, by the temperature, are the logits; a CLIP model needs no proposal network for them."""
    model = open_model(exported.url if kind == "detector" else pretrained.child("student").url)
    model = model.adjusted(image_size=64)
    sizes, boxes = [(60, 90), (80, 64)], [[[3.0, 4, 50, 40], [1, 1, 30, 50]], torch.tensor([[2.0, 2, 60, 70]])]
    images = [photograph(*size) for size in sizes]
    features, embeddings = model.region_features(images, boxes), model.embed(UNKNOWN)
    assert (features.shape, embeddings.shape) == ((3, 16), (3, 16))
    assert features.dtype == embeddings.dtype == torch.float32
    model.detector.set_vocabulary(embeddings, UNKNOWN)
    row = 0
    for image, some in zip(images, boxes, strict=True):
        batch = pixel_batch([to_tensor(image)], 64, 1333, model.preprocess.mean, model.preprocess.std).to("cpu")
        regions = batch.to_input(0, torch.as_tensor(some))
        with torch.no_grad():
            logits = model.detector(batch.tensor, [regions]).logits[:, :-1]
        cosines = features[row : row + len(regions)] @ embeddings.T
        torch.testing.assert_close(cosines / model.detector.temperature, logits, atol=1e-3, rtol=1e-4)
        row += len(regions)
    assert torch.equal(model.region_features(images[0], boxes[0]), features[:2])
    assert model.region_features([], []).shape == (0, 16)


def test_names_are_embedded_as_the_text_encoder_does(pretrained: Folder) -> None:
    model = open_model(pretrained.child("student").url)
    found = embed_names(tiny_clip(), UNKNOWN, config().teacher)
    torch.testing.assert_close(model.embed(UNKNOWN), found / found.norm(dim=1, keepdim=True))


def test_prompts_are_kept_in_the_folder_and_official_where_there_are_none(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert read_prompts(folder) == NamePrompts.official()
    assert len(NamePrompts.official().templates) == 81 and not NamePrompts.official().normalize
    write_prompts(folder, NamePrompts(("a {}", "{}."), True))
    assert read_prompts(folder) == NamePrompts(("a {}", "{}."), True)
    settings = config().model_copy(update={"teacher": config().teacher.model_copy(update={"prompts": "short"})})
    made = NamePrompts(prompt_templates("short"), config().teacher.normalize_prompts).embed(tiny_clip(), NAMES)
    assert torch.equal(made, embed_names(tiny_clip(), NAMES, settings.teacher))
    folder.write_json("prompts.json", {"templates": ["no gap"], "normalize_prompts": True})
    with pytest.raises(ValueError, match=r"prompts\.json: expected `templates`"):
        read_prompts(folder)
