"""The colours of the world's objects: a perfect model, and a loop over boxes and colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import run_stage, tiny_clip, tiny_config

from regionclip_core.config.checks import check_config
from regionclip_core.datasets.world.palette import NAMED
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.evaluation.colours import Colours
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.metrics import measure
from regionclip_core.evaluation.passes import GIVEN, PROPOSED, zero_shot
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES


@pytest.fixture
def world(tmp_path: Path) -> tuple[EvaluationData, Any]:
    config = tiny_config(evaluate={"split": "val", "colours": True})
    data, proposals = Folder(str(tmp_path / "data")), Folder(str(tmp_path / "proposals"))
    run_stage(STAGES["data"], StageContext(config, data, {}))
    run_stage(STAGES["proposals"], StageContext(config, proposals, {"data": data}))
    return EvaluationData(config, data, proposals), config


def test_colours_against_a_loop(world: tuple[EvaluationData, Any]) -> None:
    evaluation, config = world
    clip, names = tiny_clip(), evaluation.vocabulary.names
    colours, generator = Colours(clip, config, evaluation), torch.Generator().manual_seed(0)
    number, right = 0, 0
    for [image] in evaluation.batches(1):
        sample = make_sample("scene", config.seed, "val", int(image.row.key), 80)
        features = torch.randn(len(image.boxes), clip.embed_dim, generator=generator)
        expected = []
        for feature, label, colour in zip(features, image.labels.tolist(), sample.colours, strict=True):
            assert names[label] in sample.labels
            texts = embed_names(clip, [f"{one} {names[label]}" for one in NAMED], config.teacher)
            cosines = [float(torch.cosine_similarity(text, feature, dim=0)) for text in texts]
            expected.append(list(NAMED)[int(np.argmax(cosines))] == colour)
        assert colours.right(image, features).tolist() == expected
        perfect = embed_names(
            clip,
            [f"{c} {names[k]}" for c, k in zip(sample.colours, image.labels.tolist(), strict=True)],
            config.teacher,
        )
        assert colours.right(image, 3 * perfect).all()
        number, right = number + len(expected), right + sum(expected)
    assert 0 < right < number


def test_the_zero_shot_pass_measures_them(world: tuple[EvaluationData, Any]) -> None:
    evaluation, config = world
    results = list(zero_shot(tiny_clip(), config, evaluation, "cpu", lambda n: None))
    every = np.concatenate([result.colour_right.numpy() for result in results])
    scores = measure(results, evaluation.evaluator, (GIVEN, PROPOSED))
    assert scores[GIVEN]["all"]["colour_top1"] == pytest.approx(100 * every.mean())
    assert "colour_top1" not in scores[PROPOSED]["all"]


def test_other_images_are_refused(world: tuple[EvaluationData, Any]) -> None:
    evaluation, config = world
    other = Colours(tiny_clip(), config.model_copy(update={"seed": 4}), evaluation)
    [image] = next(evaluation.batches(1))
    with pytest.raises(ValueError, match=r"evaluate\.colours: image 0 of split 'val' is not the one"):
        other.right(image, torch.zeros(len(image.boxes), 16))


def test_only_the_world_has_colours() -> None:
    world = {"source": "world", "images": 5}
    splits = {"train": world, "val": {"source": "coco", "images": "x", "instances": "y"}}
    config = tiny_config(data={"splits": splits}, evaluate={"split": "val", "colours": True})
    assert any(
        line.startswith("evaluate.colours: only the embedded world") for line in check_config(config, ["evaluate"])
    )
