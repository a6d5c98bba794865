"""Finetuning with a mask head: what is learned, from which boxes, what moves, and that a resumed run is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_samples import add_masks, decoded, triangle
from small_artifacts import TRAIN, rows_of, tiny_clip, tiny_config, write_data, write_proposals

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
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.models.clip import ClipModel
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatch, BoxBatches
from regionclip_core.training.fit import FitResult


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Folder]:
    """Data with triangles for masks, and the objects themselves as proposals."""
    root = tmp_path_factory.mktemp("masked")
    data = write_data(root / "data", {"train": TRAIN})
    add_masks(data, "train")
    proposals = Folder(str(root / "proposals"))
    boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(data, "train") if row.status == "ok"}
    write_proposals(proposals, data, "train", boxes, torch.zeros(9))
    return data, proposals


def masked_clip() -> ClipModel:
    """Its region maps are 4 x 4, its masks 8 x 8."""
    return tiny_clip(image_size=128)


def masked(**values: object) -> Config:
    return tiny_config(finetune={"mask_head": True, "steps": 4, "checkpoint_every": 2, **values})


def first_batch(training: FinetuneData, data: Folder, size: int, flip: float = 0.5) -> BoxBatch:
    clip = masked_clip()
    at = BoxBatches(
        images=training.images, reader=ImageReader(data), batch_size=size, image_size=64, max_size=200, flip=flip,
        mean=clip.mean, std=clip.std, seed=0,
    )  # fmt: skip
    return at(0).to("cpu")


def train(inputs: tuple[Folder, Folder], config: Config, checkpoints: Path) -> tuple[OpenVocabularyDetector, FitResult]:
    data, proposals = inputs
    training, clip = finetune_data(config, data, proposals, False), masked_clip()
    detector = build_detector(clip, training.names, config)
    result = finetune_detector(
        detector, clip, training, data, config, device="cpu",
        checkpoints=Folder(str(checkpoints)), progress=lambda *_: None,
    )  # fmt: skip
    return detector, result


def test_the_mask_loss_is_that_of_the_foreground_regions(inputs: tuple[Folder, Folder]) -> None:
    """Against a loop over the sampled regions, each with the mask of the object it overlaps, and no other."""
    config, (data, proposals) = masked(), inputs
    training = finetune_data(config, data, proposals, False)
    batch = first_batch(training, data, 4)
    detector = build_detector(masked_clip(), training.names, config)
    assert detector.mask_head is not None and batch.masks is not None
    torch.nn.init.normal_(detector.mask_head.predictor.weight, std=0.3)
    found = DetectorTrainer(detector, config.finetune)(batch)
    assert list(found) == ["loss_cls", "loss_box_reg", "loss_mask"]
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    targets = detector.targets(batch.extra, batch.boxes, batch.labels, config.finetune, generators)
    maps = detector.encoder.regions(detector.encoder.features(batch.images.tensor), targets.boxes)
    values, row = [], 0
    for image, boxes in enumerate(targets.boxes):
        for box in boxes:
            if int(targets.labels[row]) < 2:
                overlap = [_iou(box, truth) for truth in batch.boxes[image]]
                best = int(np.argmax(overlap))
                assert overlap[best] >= 0.5
                wanted = batch.masks[image].crop(torch.tensor([best]), box[None], 8)[0]
                logits = detector.mask_head(maps[row : row + 1])[0]
                for logit, label in zip(logits.flatten(), wanted.flatten(), strict=True):
                    p = torch.sigmoid(logit.detach().double())
                    values.append(-float(torch.log(p if label else 1 - p)))
            row += 1
    assert len(values) >= 4 * 64
    assert float(found["loss_mask"].detach()) == pytest.approx(np.mean(values), rel=1e-5)


def _iou(a: torch.Tensor, b: torch.Tensor) -> float:
    sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
    common = sides.prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def test_the_mask_loss_alone_reaches_head_and_encoder(inputs: tuple[Folder, Folder]) -> None:
    config, (data, proposals) = masked(), inputs
    training = finetune_data(config, data, proposals, False)
    detector = build_detector(masked_clip(), training.names, config)
    DetectorTrainer(detector, config.finetune)(first_batch(training, data, 3))["loss_mask"].backward()
    moved = {name for name, p in detector.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"mask_head.deconv.weight", "mask_head.predictor.bias", "encoder.layer4.0.conv1.weight"} <= moved
    assert "encoder.layer2.0.conv1.weight" in moved
    assert not any(name.startswith(("encoder.attnpool", "box_regressor")) for name in moved)


def test_a_batch_without_foreground_has_gradients_for_every_trained_parameter(inputs: tuple[Folder, Folder]) -> None:
    config, (data, proposals) = masked(background="learnable"), inputs
    training = finetune_data(config, data, proposals, False)
    batch = first_batch(training, data, 2)
    batch.boxes[:] = [torch.zeros(0, 4)] * 2
    batch.labels[:] = [torch.zeros(0, dtype=torch.int64)] * 2
    detector = build_detector(masked_clip(), training.names, config)
    losses = DetectorTrainer(detector, config.finetune)(batch)
    assert float(losses["loss_mask"].detach()) == 0.0
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


def test_data_without_masks_is_refused(inputs: tuple[Folder, Folder], tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": TRAIN})
    with pytest.raises(ValueError, match=r"data\.splits\.train\.masks: true"):
        finetune_data(masked(), data, inputs[1], False)


def test_a_resumed_training_gives_the_same_bytes(inputs: tuple[Folder, Folder], tmp_path: Path) -> None:
    config = masked()
    whole, result = train(inputs, config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "step-00000004.pt").unlink()
    resumed, again = train(inputs, config, tmp_path / "cut")
    assert (result.resumed_from, again.resumed_from) == (0, 2)
    state = resumed.state_dict()
    for name, tensor in whole.state_dict().items():
        assert state[name].equal(tensor), name
    start = build_detector(masked_clip(), ("cat", "bus"), config).state_dict()
    assert not state["mask_head.deconv.weight"].equal(start["mask_head.deconv.weight"])
    assert again.history == result.history
    assert "loss_mask" in result.history[-1]


def test_masks_are_learned(tmp_path: Path) -> None:
    """Two images: the masks of their objects become the triangles that the boxes hold, not the boxes."""
    data = write_data(tmp_path / "data", {"train": [[TRAIN[0][0], TRAIN[0][1]]]})
    add_masks(data, "train")
    proposals = Folder(str(tmp_path / "proposals"))
    boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(data, "train")}
    write_proposals(proposals, data, "train", boxes, torch.zeros(9))
    config = masked(steps=70, batch_size=2, flip=0.0, optim={"lr": 3e-3}, temperature=0.1)
    detector, result = train((data, proposals), config, tmp_path / "run")
    assert result.history[-1]["loss_mask"] < 0.5 * result.history[0]["loss_mask"]
    batch = first_batch(finetune_data(config, data, proposals, False), data, 2, flip=0.0)
    settings = InferenceSettings(score_threshold=0.0, max_detections=1)
    for i, found in enumerate(detector.detect(batch.images, batch.boxes, None, settings, box_deltas=False)):
        size = batch.images.original_sizes[i]
        expected = triangle(batch.images.to_original(i, batch.boxes[i])[0].tolist(), size).astype(bool)
        assert found.masks is not None
        mask = decoded(found.masks[0], size).astype(bool)
        assert (mask & expected).sum() / (mask | expected).sum() > 0.8  # the whole box would have 0.5
