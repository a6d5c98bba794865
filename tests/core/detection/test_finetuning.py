"""Finetuning: which boxes a detector learns from, under which labels, and what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import (
    BASE_IDS,
    TRAIN,
    VOCABULARY,
    Picture,
    region_feature,
    rows_of,
    tiny_clip,
    tiny_config,
    write_data,
    write_proposals,
)
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.finetuning import (
    DetectorTrainer,
    FinetuneData,
    build_detector,
    finetune_data,
    finetune_detector,
)
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.prompt_templates import SHORT
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatches
from regionclip_core.training.fit import FitResult
from regionclip_core.training.sampling import RepeatOrder

LOGITS = torch.linspace(4, -4, 60)


def proposals_for(url: Path, data: Folder, leave_out: str = "") -> tuple[Folder, dict[str, Tensor]]:
    """The objects themselves, and boxes anywhere."""
    folder, rng = Folder(str(url)), np.random.default_rng(0)
    boxes = {}
    for row in rows_of(data, "train"):
        if row.status != "ok" or row.key == leave_out:
            continue
        corner, side = rng.uniform(0, 30, (12, 2)), rng.uniform(6, 18, (12, 2))
        boxes[row.key] = torch.from_numpy(np.concatenate([row.boxes, np.hstack([corner, corner + side])])).float()
    write_proposals(folder, data, "train", boxes, LOGITS)
    return folder, boxes


def naive_training(data: Folder, boxes: dict[str, Tensor], names: tuple[str, ...]) -> dict[str, Any]:
    """By key: the boxes and the names that training may see."""
    result = {}
    for row in rows_of(data, "train"):
        seen = [
            (box.tolist(), VOCABULARY.names[label])
            for box, label, crowd in zip(row.boxes, row.box_labels, row.box_crowd, strict=True)
            if label >= 0 and not crowd and VOCABULARY.names[label] in names
        ]
        if row.key in boxes and seen:
            result[row.key] = seen
    return result


@pytest.mark.parametrize("oracle", [False, True])
def test_boxes_and_renumbered_labels_against_a_loop(boxes_data: Folder, tmp_path: Path, oracle: bool) -> None:
    proposals, boxes = proposals_for(tmp_path, boxes_data, leave_out="train/0003")
    training = finetune_data(tiny_config(), boxes_data, proposals, oracle)
    assert training.names == (VOCABULARY.names if oracle else ("cat", "bus"))
    found = {
        image.row.key: [
            (box.tolist(), training.names[int(label)]) for box, label in zip(image.boxes, image.labels, strict=True)
        ]
        for image in training.images
    }
    expected = naive_training(boxes_data, boxes, training.names)
    assert found == expected
    assert len(expected) == (5 if oracle else 4)
    for image in training.images:
        assert torch.equal(image.extra, boxes[image.row.key])
        assert image.labels.dtype == torch.int64


def test_rare_categories_repeat_their_images(boxes_data: Folder, tmp_path: Path) -> None:
    """Shares are among the images and boxes that training sees: five images, one of them with a dog."""
    proposals, _ = proposals_for(tmp_path, boxes_data)
    assert finetune_data(tiny_config(), boxes_data, proposals, False).factors is None
    config = tiny_config(finetune={"sampling": "repeat_factor", "repeat_threshold": 0.9})
    for everything in (False, True):
        training = finetune_data(config, boxes_data, proposals, everything)
        held = [set(image.labels.tolist()) for image in training.images]
        share = {label: sum(label in one for one in held) / len(held) for label in range(len(training.names))}
        expected = [max(max(1.0, (0.9 / share[label]) ** 0.5) for label in one) for one in held]
        np.testing.assert_allclose(training.factors, expected)
        assert max(expected) > min(expected)


def test_sampling_and_sizes_reach_the_training(
    boxes_data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(**values: Any) -> Any:
        at = BoxBatches(**values)
        return lambda step: seen.append(at(step)) or seen[-1]

    monkeypatch.setattr("regionclip_core.detection.finetuning.BoxBatches", watched)
    changes = {"train_sizes": [40, 56], "sampling": "repeat_factor", "repeat_threshold": 1.0, "background": "zero"}
    config = tiny_config(finetune={**changes, "steps": 6, "flip": 0.0})
    finetuned(boxes_data, tmp_path, "run", config)
    assert {min(size) for batch in seen for size in batch.images.sizes} == {40, 56}
    proposals, _ = proposals_for(tmp_path / "proposals", boxes_data)
    training = finetune_data(config, boxes_data, proposals, False)
    order = RepeatOrder(training.factors, config.seed)
    wanted = [training.images[order[position]].labels.tolist() for position in range(24)]
    assert [labels.tolist() for batch in seen[:6] for labels in batch.labels] == wanted


@pytest.mark.parametrize(("prompts", "normalize"), [("single", True), ("short", True), ("short", False)])
def test_class_embeddings_follow_the_prompts(prompts: str, normalize: bool) -> None:
    clip = tiny_clip()
    config = tiny_config(teacher={"prompts": prompts, "normalize_prompts": normalize})
    found = embed_names(clip, VOCABULARY.names, config.teacher)
    templates = SHORT if prompts == "short" else ("a photo of a {}.",)
    for name, row in zip(VOCABULARY.names, found, strict=True):
        with torch.no_grad():
            vectors = [clip.model.encode_text(clip.tokenizer([t.format(name)]))[0] for t in templates]
        mean = torch.stack([v / v.norm() if normalize else v for v in vectors]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm() if normalize else mean, atol=1e-5, rtol=1e-4)


def test_a_new_detector_is_the_clip_model_and_a_seed() -> None:
    config, clip = tiny_config(), tiny_clip()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again = (build_detector(clip, ("cat", "bus"), config) for _ in range(2))
    other = build_detector(clip, ("cat", "bus"), config.model_copy(update={"seed": 9}))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.box_regressor.weight, again.box_regressor.weight)
    assert not torch.equal(one.box_regressor.weight, other.box_regressor.weight)
    for name, tensor in one.encoder.state_dict().items():
        assert torch.equal(tensor, clip.model.visual.state_dict()[name]), name
    assert one.temperature == pytest.approx(0.07)
    assert build_detector(clip, ("cat",), tiny_config(finetune={"temperature": 0.5})).temperature == 0.5
    frozen = {name.split(".")[0] for name, p in one.encoder.named_parameters() if not p.requires_grad}
    assert {"conv1", "conv2", "conv3", "layer1"} <= frozen
    assert all(p.requires_grad for n, p in one.encoder.named_parameters() if n.startswith("layer3.0.conv"))


def training_batches(training: FinetuneData, data: Folder, clip: ClipModel, **values: Any) -> Any:
    places = {"image_size": 64, "max_size": 1333, "mean": clip.mean, "std": clip.std}
    at = BoxBatches(images=training.images, reader=ImageReader(data), **places, **values)
    return lambda step: at(step).to("cpu")


def finetuned(
    data: Folder, tmp_path: Path, name: str, config: Config, everything: bool = False
) -> tuple[OpenVocabularyDetector, FitResult]:
    proposals, _ = proposals_for(tmp_path / "proposals", data)
    training = finetune_data(config, data, proposals, everything)
    clip = tiny_clip()
    detector = build_detector(clip, training.names, config)
    result = finetune_detector(
        detector,
        clip,
        training,
        data,
        config,
        device="cpu",
        checkpoints=Folder(str(tmp_path / name)),
        progress=lambda *_: None,
    )
    return detector, result


def test_finetuning_moves_what_is_not_frozen(boxes_data: Folder, tmp_path: Path) -> None:
    config = tiny_config()
    detector, result = finetuned(boxes_data, tmp_path, "run", config)
    start = build_detector(tiny_clip(), ("cat", "bus"), config)
    before = start.state_dict()
    assert result.steps == 2
    assert not detector.training
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert {"background_logit", "box_regressor.weight", "encoder.layer2.0.conv1.weight"} <= trained
    for name, tensor in detector.state_dict().items():
        if name != "encoder.attnpool.k_proj.bias":  # its gradient is rounding noise around zero
            assert torch.equal(tensor, before[name]) == (name not in trained), name


@pytest.mark.parametrize("background", ["zero", "learnable"])
def test_background_starts_where_the_setting_says(boxes_data: Folder, tmp_path: Path, background: str) -> None:
    """Learnable: even with the categories on the first batch; a rate of almost nothing leaves it there."""
    config = tiny_config(finetune={"background": background, "flip": 0.0, "optim": {"lr": 1e-12}, "steps": 1})
    detector, _ = finetuned(boxes_data, tmp_path, "run", config)
    if background == "zero":
        assert float(detector.background_logit.detach()) == 0
        return
    clip = tiny_clip()
    proposals, _ = proposals_for(tmp_path / "proposals", boxes_data)
    training = finetune_data(config, boxes_data, proposals, False)
    batch = training_batches(training, boxes_data, clip, batch_size=4, flip=0.0, seed=config.seed)(0)
    classes = torch.nn.functional.normalize(embed_names(clip, ("cat", "bus"), config.teacher), dim=1)
    values = []
    for i, boxes in enumerate(batch.extra):
        for box in boxes.tolist():
            with torch.no_grad():
                feature = region_feature(clip.model.visual, batch.images.tensor[i : i + 1], box)
            values.append(float(np.log(np.exp((classes @ feature / feature.norm()).numpy() / 0.07).sum())))
    assert float(detector.background_logit.detach()) == pytest.approx(np.mean(values), rel=1e-4)
    assert detector.background_logit.requires_grad


def test_novel_boxes_change_nothing_but_the_oracle(boxes_data: Folder, tmp_path: Path) -> None:
    """The same pictures without the novel annotations give the same detector, to the bit."""

    class Repainted(Picture):
        source: Picture

        def pixels(self) -> np.ndarray:
            return self.source.pixels()

    def without_novel(picture: Picture) -> Picture:
        kept = [i for i, n in enumerate(picture.labels) if n in BASE_IDS and i not in picture.crowd]
        copy = Repainted(
            picture.height,
            picture.width,
            tuple(picture.boxes[i] for i in kept),
            tuple(picture.labels[i] for i in kept),
            status=picture.status,
        )
        object.__setattr__(copy, "source", picture)
        return copy

    stripped = write_data(tmp_path / "data", {"train": [[without_novel(p) for p in shard] for shard in TRAIN]})
    config = tiny_config()
    # The proposals are made from all boxes, and are the same for both.
    proposals, _ = proposals_for(tmp_path / "proposals", boxes_data)
    weights = {}
    for name, data, everything in (("all", boxes_data, False), ("base", stripped, False), ("oracle", boxes_data, True)):
        training = finetune_data(config, data, proposals, everything)
        clip = tiny_clip()
        detector = build_detector(clip, training.names, config)
        finetune_detector(
            detector, clip, training, data, config, device="cpu",
            checkpoints=Folder(str(tmp_path / name)), progress=lambda *_: None,
        )  # fmt: skip
        weights[name] = detector.encoder.layer4[0].conv1.weight.detach()
    assert torch.equal(weights["all"], weights["base"])
    assert not torch.equal(weights["all"], weights["oracle"])


def test_training_learns_its_pictures(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", {"train": [[TRAIN[0][0], TRAIN[0][1]]]})
    changes = {"steps": 40, "batch_size": 2, "optim": {"lr": 2e-3}, "temperature": 0.1}
    _, result = finetuned(data, tmp_path, "run", tiny_config(finetune=changes))
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]


def seeded(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_trainers_losses_are_the_detectors(boxes_data: Folder, tmp_path: Path) -> None:
    """With the batch's seeds for what is sampled, and `extra` as the proposals."""
    config, clip = tiny_config(), tiny_clip()
    proposals, _ = proposals_for(tmp_path, boxes_data)
    training = finetune_data(config, boxes_data, proposals, False)
    batch = training_batches(training, boxes_data, clip, batch_size=3, flip=0.5, seed=0)(0)
    detector = build_detector(clip, training.names, config).train()
    found = DetectorTrainer(detector, config.finetune)(batch)
    expected = detector.loss(
        batch.images.tensor, batch.extra, batch.boxes, batch.labels, config.finetune,
        seeded(batch.seeds),
    )  # fmt: skip
    assert {k: float(v.detach()) for k, v in found.items()} == {k: float(v.detach()) for k, v in expected.items()}
    assert set(found) == {"loss_cls", "loss_box_reg"}
    targets = detector.targets(batch.extra, batch.boxes, batch.labels, config.finetune, seeded(batch.seeds))
    assert bool((targets.labels < 2).any())  # proposals do meet their objects at input scale
