"""Detection on one's own images: boxes in the picture's pixels, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_artifacts import tiny_clip, tiny_config, write_data
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.clip import save_clip
from regionclip_core.config import Config
from regionclip_core.detecting import Finder, draw
from regionclip_core.detector import load_detector, save_detector
from regionclip_core.evaluating import EvaluationData, finetuned
from regionclip_core.finetuning import build_detector
from regionclip_core.inference import Detections
from regionclip_core.proposing import make_proposer, propose_shard
from regionclip_core.rpn_training import build_network, save_network

NAMES = ("cat", "dog", "bus", "cup")


def config(**evaluate: Any) -> Config:
    return tiny_config(proposals={"method": "rpn", "max_regions": 12}, evaluate={"split": "val", **evaluate})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """A detector, a student and a proposal network; none of them trained."""
    root = tmp_path_factory.mktemp("models")
    result = {name: Folder(str(root / name)) for name in ("finetune", "pretrain", "rpn")}
    clip = tiny_clip()
    detector = build_detector(clip, ("cat", "bus"), config())
    detector.box_regressor.weight.data.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    save_detector(detector, result["finetune"], clip.architecture, stem="regionclip")
    save_clip(clip, result["pretrain"])
    save_network(build_network(config().rpn, 0), result["rpn"])
    return result


def finder(folders: dict[str, Folder], names: tuple[str, ...] = NAMES, **evaluate: Any) -> Finder:
    return Finder.load(config(**evaluate), folders["finetune"], folders["pretrain"], folders["rpn"], names)


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


@pytest.mark.parametrize(("height", "width"), [(210, 331), (40, 50)])
def test_a_picture_is_found_in_as_the_evaluation_does(
    folders: dict[str, Folder], tmp_path: Path, height: int, width: int
) -> None:
    """The other way to the same numbers: the picture as a data set of one, through proposals and evaluate."""
    from small_artifacts import VOCABULARY, Picture

    assert VOCABULARY.names == NAMES
    pixels = photograph(height, width)

    class Photograph(Picture):
        def pixels(self) -> np.ndarray:
            return pixels

    data = write_data(tmp_path / "data", {"val": [[Photograph(height, width)]]})
    settings, proposals = config(), Folder(str(tmp_path / "proposals"))
    _, table = propose_shard(make_proposer(settings, folders["rpn"], "cpu"), data, 0)
    import pyarrow.parquet as pq

    with proposals.write("proposals-00000.parquet") as file:
        pq.write_table(table, file)
    evaluation = EvaluationData.read(settings, data, proposals)
    detector = load_detector(folders["finetune"], stem="regionclip")
    expected = finetuned(detector, tiny_clip(), settings, evaluation, "cpu", lambda n: None).detections[0]
    found = finder(folders).find(pixels)
    assert len(found) == len(expected.scores) > 5
    np.testing.assert_allclose(found.scores.numpy(), expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes.numpy(), expected.boxes, atol=1e-2)
    assert found.labels.tolist() == expected.labels.tolist()


def test_names_are_those_asked_for(folders: dict[str, Folder]) -> None:
    one = finder(folders, ("dragon", "tea pot", "comb"))
    assert one.detector.names == ("dragon", "tea pot", "comb")
    assert not one.detector.training
    labels = set(one.find(photograph(80, 90)).labels.tolist())
    assert labels
    assert labels <= {0, 1, 2}


def test_other_proposers_are_refused(folders: dict[str, Folder]) -> None:
    settings = tiny_config(proposals={"method": "grid"})
    with pytest.raises(ValueError, match=r"proposals\.method is grid; set it to rpn"):
        Finder.load(settings, folders["finetune"], folders["pretrain"], folders["rpn"], NAMES)


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
