"""Batches from worker processes: the same order, counts and errors as without, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from regionclip_core.datasets.images import BadImage
from regionclip_core.ops.image_batch import Batch, ImageBatch
from regionclip_core.training.error_budget import ErrorRateExceeded
from regionclip_core.training.loader import read_batches
from regionclip_core.training.unreadable_images import UnreadableImages

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@dataclass
class Numbers:
    """Batches of three images, of which some are bad; picklable, as workers need it."""

    bad: tuple[int, ...] = ()
    images: int = 40
    fail_at: int = -1
    kill_at: int = -1
    unreadable: UnreadableImages = field(init=False)

    def __post_init__(self) -> None:
        self.unreadable = UnreadableImages(self.images, 0.1)

    def __call__(self, step: int) -> torch.Tensor:
        if step == self.fail_at:
            raise FileNotFoundError(2, "no such shard", "pairs-00007.tar")
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = [self.unreadable.read(str(n), self._decode, n) for n in range(3 * step, 3 * step + 3)]
        return torch.tensor([-1 if n is None else n for n in found])

    def _decode(self, number: int) -> int:
        if number % self.images in self.bad:
            raise BadImage("bad_image", f"{number} is torn")
        return number


def read(at: Numbers, workers: int, steps: int = 9, first: int = 2) -> list[tuple[int, list[int]]]:
    return [(s, b.tolist()) for s, b in read_batches(at, first, steps, CPU, workers, at.unreadable)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_and_bad_images_are_counted_once(workers: int) -> None:
    at = Numbers(bad=(7, 20, 21))
    expected = [(step, [n if n not in at.bad else -1 for n in range(3 * step, 3 * step + 3)]) for step in range(2, 9)]
    assert read(at, workers) == expected
    assert at.unreadable.counts() == {"bad_image": 3}
    assert at.unreadable.summary()["unreadable"]["first"] == {str(n): f"{n} is torn" for n in at.bad}
    assert at.unreadable._read == 21
    assert read(at, workers, steps=2) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_images_end_it_at_the_same_batch_with_the_same_words(workers: int) -> None:
    at = Numbers(bad=(7, 12, 13, 20, 21))
    batches = read_batches(at, 0, 13, CPU, workers, at.unreadable)
    assert [next(batches)[0] for _ in range(7)] == list(range(7))
    with pytest.raises(ErrorRateExceeded) as caught:
        next(batches)
    assert str(caught.value) == str(at.unreadable.exceeded("5 of 40 images can't be read"))
    assert at.unreadable.counts() == {"bad_image": 5}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_as_it_is_when_its_batch_is_due(workers: int) -> None:
    batches = read_batches(Numbers(fail_at=4), 0, 9, CPU, workers, UnreadableImages())
    assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(FileNotFoundError) as caught:
        next(batches)
    assert str(caught.value) == "[Errno 2] no such shard: 'pairs-00007.tar'"


class Placed(NamedTuple):
    """A batch that says where it was put."""

    step: int
    device: torch.device | None = None

    def to(self, device: torch.device) -> Placed:
        return Placed(self.step, device)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_batches_go_to_the_very_device_that_is_asked_for() -> None:
    device = torch.device("cuda", 1)
    found = list(read_batches(Placed, 3, 7, device))
    assert found == [(step, Placed(step, device)) for step in range(3, 7)]


def test_a_worker_that_dies_is_named_with_what_to_do() -> None:
    at = Numbers(kill_at=4)
    with pytest.raises(RuntimeError, match=r"died before step \d.*lower execution.loader_workers \(now 2\)"):
        read(at, 2)


ORPHANS = """
import os, sys, time
import torch
sys.path[:0] = [{folder!r}]
from test_loader import Pids
from regionclip_core.training.loader import read_batches
if __name__ == "__main__":
    for step, pid in read_batches(Pids(), 0, 100, torch.device("cpu"), 2):
        print(int(pid), flush=True)
        if step == 3:
            time.sleep(60)
"""


class Pids:
    """The batch of a step is the process that read it."""

    def __call__(self, step: int) -> torch.Tensor:
        return torch.tensor(os.getpid())


def test_workers_of_a_killed_training_end(tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(ORPHANS.format(folder=str(Path(__file__).parent)))
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as training:
        pids = {int(training.stdout.readline()) for _ in range(4)}
        training.kill()
    assert len(pids) == 2
    assert training.pid not in pids
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@dataclass(frozen=True)
class Boxes(Batch):
    images: ImageBatch
    boxes: list[torch.Tensor]
    inner: Batch | None = None


def test_a_batch_is_the_same_after_pickling() -> None:
    image = torch.rand(2, 3, 80, 90).contiguous(memory_format=torch.channels_last)
    boxes = [torch.rand(4, 4), torch.zeros(0, 4), torch.rand(2**15), torch.tensor(3)]
    small = Boxes(ImageBatch(image[:, :, :4, :4], [(4, 4)], [(8, 9)]), [torch.arange(3)])
    batch = Boxes(ImageBatch(image, [(80, 90)], [(8, 9)]), boxes, small)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.images.tensor, image)
    assert again.images.tensor.stride() == image.stride()
    assert (again.images.sizes, again.images.original_sizes) == ([(80, 90)], [(8, 9)])
    assert torch.equal(again.inner.images.tensor, image[:, :, :4, :4])
    assert torch.equal(again.inner.boxes[0], torch.arange(3))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(again.boxes, batch.boxes, strict=True))
