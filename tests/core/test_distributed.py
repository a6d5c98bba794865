"""Two processes with half a batch each against one process with all of it: losses, gradients, trained weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from torch import Tensor

from regionclip_core.distributed import gather_rows

EXACT = {"atol": 1e-9, "rtol": 1e-7}


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


@pytest.mark.parametrize("case", ["towers", "clip", "pretrain"])
def test_gradients_are_those_of_the_global_batch(results: Any, case: str) -> None:
    alone, ranks = results[0][case], [rank[case] for rank in results[1]]
    assert len(alone["gradients"]) > 3
    for rank in ranks:
        assert rank["gradients"].keys() == alone["gradients"].keys()
        for name, expected in alone["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], expected, **EXACT, msg=name)


@pytest.mark.parametrize(
    ("case", "name"), [("towers", "loss"), ("clip", "loss_image_text"), ("pretrain", "loss_image_text")]
)
def test_every_rank_reports_the_global_image_text_loss(results: Any, case: str, name: str) -> None:
    expected = results[0][case]["losses"][name]
    assert [rank[case]["losses"][name] for rank in results[1]] == pytest.approx([expected] * 2, rel=1e-9)


def test_the_distillation_loss_is_the_mean_of_the_ranks(results: Any) -> None:
    alone = results[0]["pretrain"]["losses"]["loss_region_distill"]
    one, two = (rank["pretrain"]["losses"]["loss_region_distill"] for rank in results[1])
    assert alone == pytest.approx((one + two) / 2, rel=1e-9)
    assert one != pytest.approx(two, rel=1e-3)


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
