"""Two processes with half a batch each against one process with all of it: losses, gradients, trained weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from safetensors.torch import load_file
from torch import Tensor, nn

from regionclip_core.training.distributed import gather_rows, mean_over_ranks, use_global_batch_norms

EXACT = {"atol": 1e-9, "rtol": 1e-7}
FLOAT = {"atol": 5e-6, "rtol": 1e-5}
"""Four float32 steps; the weights compared move by more than a hundred times as much."""
HALVES = (slice(0, 3), slice(3, 6))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(one process, [rank 0, rank 1]). This process is rank 0: that saves one start of an interpreter."""
    other = torch.multiprocessing.get_context("spawn").Process(target=two_ranks.main, args=(1, str(folder)))
    other.start()
    try:
        alone = two_ranks.compute(folder, 0, 1)
        two_ranks.main(0, str(folder))
    finally:
        other.join(60)
        other.kill()
    return alone, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


CASES = [
    "towers",
    "clip",
    "pretrain",
    "pretrain_crops",
    "pretrain_weighted",
    "finetune",
    "finetune_weighted",
    "finetune_masks",
]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_global_batch(results: Any, case: str) -> None:
    alone, ranks = results[0][case], [rank[case] for rank in results[1]]
    assert len(alone["gradients"]) > 3
    for rank in ranks:
        assert rank["gradients"].keys() == alone["gradients"].keys()
        for name, expected in alone["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], expected, **EXACT, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(results: Any, case: str) -> None:
    for name, expected in results[0][case]["losses"].items():
        found = [rank[case]["losses"][name] for rank in results[1]]
        assert sum(found) / 2 == pytest.approx(expected, rel=1e-9), name
        if name in ("loss", "loss_image_text"):  # every rank evaluates the whole of these
            assert found == pytest.approx([expected] * 2, rel=1e-9)
        else:
            assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_batch_norms_see_the_global_batch(results: Any) -> None:
    """Their running statistics are those of one process, and not of half a batch."""
    half = two_ranks.loss_and_gradients(*two_ranks.clip_case(HALVES[0]), parallel=False)["buffers"]
    alone = results[0]["clip"]["buffers"]
    assert any(name.endswith("running_var") for name in alone)
    for name, expected in alone.items():
        for rank in results[1]:
            torch.testing.assert_close(rank["clip"]["buffers"][name], expected, **EXACT, msg=name)
        assert "running" not in name or not torch.allclose(half[name], expected, rtol=1e-5)


def test_regions_of_ones_own_are_the_official_losses(results: Any) -> None:
    """`gather_regions: false`: each rank's region losses are those of one process that has that part alone."""
    for rank, rows in zip(results[1], HALVES, strict=True):
        trainer, batch = two_ranks.pretrain_case(rows, gather_regions=False)
        batch = two_ranks.replace(batch, images=_whole_canvas(batch.images))
        alone = {name: float(value.detach()) for name, value in trainer(batch).items()}
        found = rank["pretrain_own"]["losses"]
        for name in ("loss_region_contrastive", "loss_region_distill"):
            assert found[name] == pytest.approx(alone[name], rel=1e-9)
            assert found[name] != pytest.approx(rank["pretrain"]["losses"][name], rel=1e-3)
    one = results[0]
    assert one["pretrain_own"]["losses"] == pytest.approx(one["pretrain"]["losses"], rel=1e-12)


def _whole_canvas(images: Any) -> Any:
    bottom, right = 96 - images.tensor.shape[2], 128 - images.tensor.shape[3]
    return two_ranks.replace(images, tensor=nn.functional.pad(images.tensor, (0, right, 0, bottom)))


def test_the_text_encoder_has_no_gradient(results: Any) -> None:
    names = results[1][0]["pretrain"]["gradients"]
    assert names
    assert all(name.startswith("student.") for name in names)


def test_a_gradient_that_two_gathers_share_is_summed_once_for_each(results: Any) -> None:
    """Every rank asks for the same gradient, so the sum over two ranks is twice that of one process."""
    for name in ("a", "b"):
        found = torch.cat([rank["shared"][name] for rank in results[1]])
        torch.testing.assert_close(found, 2 * results[0]["shared"][name], **EXACT)


def test_fit_trains_the_same_weights_on_two_ranks(results: Any) -> None:
    alone, ranks = results[0]["fit"], [rank["fit"] for rank in results[1]]
    start = two_ranks.Towers().state_dict()
    for name, expected in alone["weights"].items():
        assert not torch.allclose(expected, start[name], atol=1e-3)
        for rank in ranks:
            torch.testing.assert_close(rank["weights"][name], expected, **EXACT, msg=name)
    assert ranks[0]["history"] == ranks[1]["history"]
    assert ranks[0]["history"][-1]["loss"] == pytest.approx(alone["history"][-1]["loss"], rel=1e-9)


@pytest.mark.parametrize("stage", two_ranks.TRAININGS)
def test_stages_train_the_same_weights_on_two_ranks(results: Any, folder: Path, stage: str) -> None:
    """What is read, drawn, augmented and sampled is the same too, up to float noise in four steps."""
    alone, two = (folder / f"jobs-{n}" / stage for n in (1, 2))
    written = sorted(path.name for path in alone.iterdir() if path.is_file())
    assert written == sorted(path.name for path in two.iterdir() if path.is_file())
    start = load_file(folder / "jobs-1" / "teacher" / "clip.safetensors")
    for name in written:
        if name.endswith(".safetensors"):
            expected, found = load_file(alone / name), load_file(two / name)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, **FLOAT, msg=f"{name} {key}")
            changed = [tensor - start[f"visual.{k}"] for k, tensor in _visual(expected).items()]
            assert stage == "teacher" or max(float(c.abs().max()) for c in changed) > 100 * FLOAT["atol"]
        if name.startswith("history"):
            rows = [json.loads((f / name).read_text()) for f in (alone, two)]
            assert rows[0] != []
            for one, other in zip(*rows, strict=True):
                assert other == pytest.approx(one, rel=1e-4)


def _visual(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the visual encoder in a CLIP model or a detector, by the encoder's own names."""
    found = {k.removeprefix(p): v for k, v in state.items() for p in ("visual.", "encoder.") if k.startswith(p)}
    return {k: v for k, v in found.items() if k.endswith("weight") and "bn" not in k}


def test_one_process_goes_on_from_two_ranks_checkpoint(results: Any, folder: Path, tmp_path: Path) -> None:
    checkpoints = shutil.copytree(folder / "checkpoints-2", tmp_path / "checkpoints")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000004.pt", "step-00000005.pt"]
    (checkpoints / "step-00000005.pt").unlink()
    resumed = two_ranks.trained(slice(None), checkpoints, 0, 1)
    assert resumed["from"] == 4
    for name, expected in results[0]["fit"]["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], expected, **EXACT, msg=name)


def test_one_process_gathers_nothing() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    found: Tensor = gather_rows(rows)
    assert found is rows
    assert float(mean_over_ranks(torch.tensor(6.0), 4)) == 1.5
    assert float(mean_over_ranks(torch.tensor(0.0), 0)) == 0.0
    model = nn.Sequential(nn.BatchNorm2d(2))
    use_global_batch_norms(model)
    assert type(model[0]) is nn.BatchNorm2d
