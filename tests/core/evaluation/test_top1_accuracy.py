"""The teacher's accuracy against a loop with Pillow's crops and open_clip's own encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_artifacts import (
    NOVEL_IDS,
    VOCABULARY,
    Picture,
    pillow_crop,
    rows_of,
    tear,
    tiny_clip,
    tiny_config,
    write_data,
    write_proposals,
)

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.top1_accuracy import Top1, crop_top1, whole_image_top1
from regionclip_core.models.clip import ClipModel
from regionclip_core.storage.records import Folder
from regionclip_core.training.unreadable_images import UnreadableImages

CONFIG = tiny_config(evaluate={"split": "val"}, labels={"context": 1.5})


def one_object(n: int) -> Picture:
    width, height = 40 + 3 * n, 64 - 2 * n
    return Picture(height, width, ((2 + n, 3, 30 + n, 33 + n // 2),), (n % 4,))


ONE = [one_object(n) for n in range(10)]
OTHERS = [
    Picture(50, 60, ((4, 6, 20, 30), (30, 10, 60, 26)), (0, 1)),  # two objects
    Picture(50, 60),  # none
    Picture(50, 60, ((4, 6, 20, 30),), (-1,)),  # one, of no known category
    Picture(50, 60, ((4, 6, 60, 30),), (0,), crowd=(0,)),  # a crowd is not one object
    Picture(50, 60, ((4, 6, 20, 30),), (2,), status="bad_image"),
]


def naive_cosines(clip: ClipModel, pixels: np.ndarray, box: list[float], context: float) -> np.ndarray:
    def unit(vector: torch.Tensor) -> np.ndarray:
        values = vector.double().numpy()
        return values / np.linalg.norm(values)

    with torch.no_grad():
        image = unit(clip.model.encode_image(pillow_crop(pixels, box, context, clip)[None])[0])
        texts = [clip.model.encode_text(clip.tokenizer([f"a photo of a {name}."]))[0] for name in VOCABULARY.names]
    return np.array([image @ unit(text) for text in texts])


def percent(cosines: list[tuple[int, np.ndarray]]) -> dict[str, float]:
    """(label, cosines) pairs -> share of those whose label has the best, in percent."""
    guesses = [(label, int(row.argmax())) for label, row in cosines]
    groups = {"base": [p for p in guesses if p[0] not in NOVEL_IDS], "novel": [p for p in guesses if p[0] in NOVEL_IDS]}
    groups["all"] = guesses
    return {name: 100 * float(np.mean([a == b for a, b in pairs])) for name, pairs in groups.items()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The cosines that accuracies are computed from: an untrained model's guesses alone would show little."""
    rows: list[np.ndarray] = []

    add = Top1.add

    def spy(self: Top1, logits: np.ndarray, labels: np.ndarray) -> None:
        rows.extend(logits)
        add(self, logits, labels)

    monkeypatch.setattr(Top1, "add", spy)
    return rows


def test_whole_images_with_one_object_against_a_loop(tmp_path: Path, seen: list[np.ndarray]) -> None:
    data = write_data(tmp_path, {"closeups": [ONE[:4] + OTHERS, ONE[4:]]})
    rows = [row for row in rows_of(data, "closeups") if (row.height, row.width) != (50, 60)]
    assert len(rows) == 10
    tear(data, rows[6])
    clip, reader = tiny_clip(), ImageReader(data)
    expected = []
    for n, row in enumerate(rows):
        if n != 6:
            whole = [0.0, 0.0, row.width, row.height]
            expected.append((int(row.box_labels[0]), naive_cosines(clip, reader.read(row), whole, 1.0)))
    found = whole_image_top1(clip, CONFIG, data, "closeups", UnreadableImages(20))
    np.testing.assert_allclose(seen, [row for _, row in expected], atol=2e-4)
    assert found == pytest.approx(percent(expected))
    assert 0 < found["all"] < 100


def test_crops_against_a_loop(tmp_path: Path, seen: list[np.ndarray]) -> None:
    data, proposals = write_data(tmp_path / "data", {"val": [ONE + OTHERS]}), Folder(str(tmp_path / "proposals"))
    usable = {row.key: torch.zeros(0, 4) for row in rows_of(data, "val") if row.status == "ok"}
    write_proposals(proposals, data, "val", usable, torch.zeros(0))
    clip, reader = tiny_clip(), ImageReader(data)
    expected = []
    for row in rows_of(data, "val"):
        if row.status != "ok":
            continue
        for box, label, crowd in zip(row.boxes.tolist(), row.box_labels, row.box_crowd, strict=True):
            if label >= 0 and not crowd:
                expected.append((int(label), naive_cosines(clip, reader.read(row), box, 1.5)))
    assert len(expected) == 12
    found = crop_top1(clip, CONFIG, EvaluationData(CONFIG, data, proposals))
    np.testing.assert_allclose(seen, [row for _, row in expected], atol=2e-4)
    assert found.scores() == pytest.approx(percent(expected))
    assert 0 < found.scores()["all"] < 100
    by_label = [percent([pair for pair in expected if pair[0] == label])["all"] for label in range(4)]
    means = {"base": [by_label[0], by_label[2]], "novel": [by_label[1], by_label[3]], "all": by_label}
    assert found.mean_class() == pytest.approx({name: float(np.mean(some)) for name, some in means.items()})


def test_a_split_without_such_an_image_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"closeups": [OTHERS]})
    with pytest.raises(ValueError, match=r"evaluate\.whole_image_split 'closeups' has no readable image"):
        whole_image_top1(tiny_clip(), CONFIG, data, "closeups", UnreadableImages(20))


def test_top1_by_group() -> None:
    logits = np.eye(4)[[0, 1, 1, 2, 0]]
    labels = np.array([0, 1, 0, 2, 3])
    top1 = Top1(Vocabulary(("cat", "dog", "zebra", "kite"), ("cat", "dog"), (("striped", ("zebra",)),)))
    assert top1.scores() == {"base": None, "novel": None, "all": None, "striped": None}
    top1.add(logits[:2], labels[:2])
    assert top1.scores()["novel"] is None
    assert top1.mean_class()["novel"] is None
    top1.add(logits[2:], labels[2:])
    assert top1.mean_class() == {"base": 75.0, "novel": 50.0, "all": 62.5, "striped": 100.0}
    assert top1.scores() == {"base": pytest.approx(200 / 3), "novel": 50.0, "all": 60.0, "striped": 100.0}
