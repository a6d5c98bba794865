"""The stages from pseudo labels to evaluation with every kind of ViT as teacher, student and detector."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_artifacts import pillow_crop, run_stage, tiny_config
from small_towers import CONVNEXT, EVA, PE, SIGLIP, VIT, small_clip, write_tokenizer
from torch import Tensor

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.detection.detector import load_detector
from regionclip_core.models.clip import ClipModel, load_clip, save_clip
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES

CONFIG = tiny_config(
    labels={"mode": "roi"},
    pretrain={"steps": 3, "optim": {"lr": 2e-3}},
    finetune={"oracle": False, "optim": {"lr": 2e-3}, "freeze_at": 1},
)


def description_of(kind: str, folder: Path) -> dict[str, Any]:
    if kind != "siglip":
        return {"vit": VIT, "eva": EVA, "pe": PE}[kind.removesuffix("-values")]
    pytest.importorskip("transformers")
    description = copy.deepcopy(SIGLIP)
    description["text_cfg"]["hf_tokenizer_name"] = str(write_tokenizer(folder))
    return description


@pytest.fixture(
    scope="module",
    params=[
        "vit-values",
        "pe",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit", "eva-values", "siglip")),
    ],
)
def run(request: Any, world: dict[str, Folder], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """Artifacts by stage, of a teacher that takes the place of the world's."""
    root = tmp_path_factory.mktemp(request.param)
    done = dict(world)
    done["teacher"] = Folder(str(root / "teacher"))
    clip = small_clip(description_of(request.param, root / "tokens"), seed=2)
    clip.value_blocks = 2 if "values" in request.param else 0
    save_clip(clip, done["teacher"])
    for name in ("labels", "pairs", "pretrain", "finetune", "evaluate"):
        stage = STAGES[name]
        done[name] = Folder(str(root / name))
        ctx = StageContext(CONFIG, done[name], {need: done[need] for need in stage.needs(CONFIG)})
        run_stage(stage, ctx)
    return done


def original_pixels(data: Folder, shard: int) -> dict[str, np.ndarray]:
    reader = ImageReader(data)
    return {row.key: reader.read(row) for row in read_index(data, shard) if row.status == "ok"}


def test_pseudo_labels_against_one_image_at_a_time(run: dict[str, Folder]) -> None:
    """64-px inputs of 80-px images, by themselves, a softmax over the pool at the teacher's own temperature."""
    clip = load_clip(run["teacher"])
    encoder = region_encoder(clip)
    _, concepts = load_embeddings(run["labels"])
    checked = 0
    for shard in split_shards(run["data"], ("train",)):
        pixels = original_pixels(run["data"], shard)
        for row in pq.read_table(Path(run["labels"].url) / f"labels-{shard:05d}.parquet").to_pylist():
            if not row["boxes"]:
                continue
            small = Image.fromarray(pixels[row["key"]]).resize((64, 64), Image.Resampling.BILINEAR)
            image = torch.from_numpy(np.array(small).transpose(2, 0, 1)) / 255
            image = (image - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1)
            with torch.no_grad():
                features = encoder(image[None], [torch.tensor(row["boxes"]) * 64 / 80])
            cosines = torch.nn.functional.normalize(features, dim=1) @ concepts.T
            expected = (cosines * clip.logit_scale).softmax(1)
            for region, probabilities in enumerate(expected):
                assert row["score"][region] == pytest.approx(float(probabilities.max()), rel=1e-3)
                named = row["top_concepts"][region]
                np.testing.assert_allclose(row["top_probabilities"][region], probabilities[named], rtol=1e-3)
                checked += 1
    assert checked > 10


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_student_has_moved_where_it_was_to(run: dict[str, Folder]) -> None:
    teacher, student = load_clip(run["teacher"]), load_clip(run["pretrain"])
    assert student.architecture == teacher.architecture
    assert student.value_blocks == teacher.value_blocks
    encoder = region_encoder(teacher)
    encoder.freeze(CONFIG.pretrain.freeze_at)
    wanted = {f"visual.{name}" for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    changed = moved(teacher.model.state_dict(), student.model.state_dict())
    assert changed <= wanted
    assert len(wanted - changed) == 0
    history = run["pretrain"].read_json("history.json")
    assert {"loss_region_contrastive", "loss_region_distill", "loss_image_text"} <= set(history[-1])


def test_the_detector_comes_back_from_its_files(run: dict[str, Folder]) -> None:
    for name, init in (("clip", "teacher"), ("regionclip", "pretrain")):
        clip = load_clip(run[init])
        detector = load_detector(run["finetune"], stem=name)
        assert type(detector.encoder) is type(region_encoder(clip))
        assert detector.encoder.value_blocks == clip.value_blocks
        assert ("value_blocks" in run["finetune"].read_json(f"{name}.json")) == bool(clip.value_blocks)
        changed = moved(clip.model.visual.state_dict(), detector.encoder.state_dict())
        frozen = (
            "conv1",
            "class_embedding",
            "positional",
            "ln_pre",
            "trunk.pos_embed",
            "trunk.patch_embed",
            "trunk.cls_token",
        )
        assert changed
        assert not any(key.startswith(frozen) for key in changed)
        images = torch.randn(2, 3, 64, 72)
        boxes = [torch.tensor([[3.0, 4.0, 50.0, 40.0]]), torch.zeros(0, 4)]
        with torch.no_grad():
            embedding = detector.encoder(images, boxes, [(64, 60), (40, 72)])
            logits = detector(images, boxes, [(64, 60), (40, 72)]).logits
        cosines = torch.cosine_similarity(embedding, detector.class_embeddings)
        torch.testing.assert_close(logits[0, :-1], cosines / detector.temperature, atol=1e-4, rtol=1e-4)


def test_all_rows_are_evaluated(run: dict[str, Folder]) -> None:
    metrics = run["evaluate"].read_json("metrics.json")
    assert set(metrics["finetuned"]) == set(metrics["zero_shot_gt"]) == set(metrics["zero_shot_rpn"])
    assert set(metrics["finetuned"]) == {"clip", "regionclip"}


def test_a_convnext_labels_crops(world: dict[str, Folder], tmp_path: Path) -> None:
    """Two stages with a teacher that has no regions; the scores are those of its own image embedding."""
    config = tiny_config(labels={"mode": "crop"})
    clip: ClipModel = small_clip(CONVNEXT)
    inputs = {**world, "teacher": Folder(str(tmp_path / "teacher"))}
    save_clip(clip, inputs["teacher"])
    stage, out = STAGES["labels"], Folder(str(tmp_path / "labels"))
    run_stage(stage, StageContext(config, out, {need: inputs[need] for need in stage.needs(config)}))
    table = pq.read_table(tmp_path / "labels" / f"labels-{split_shards(world['data'], ('train',))[0]:05d}.parquet")
    row = next(row for row in table.to_pylist() if row["boxes"])
    pixels = original_pixels(world["data"], split_shards(world["data"], ("train",))[0])[row["key"]]

    _, concepts = load_embeddings(out)
    for box, score in zip(row["boxes"], row["score"], strict=True):
        with torch.no_grad():
            features = clip.model.encode_image(pillow_crop(pixels, box, config.labels.context, clip)[None])
        cosines = torch.nn.functional.normalize(features, dim=1) @ concepts.T
        assert score == pytest.approx(float((cosines * clip.logit_scale).softmax(1).max()), rel=0.02)
