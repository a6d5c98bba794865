"""What the GPU's tests share: the device, exact float32, and staying out of the way of a plain `pytest`.

`make test-gpu` runs them; REGIONCLIP_GPU_TEST_DEVICE=cpu runs their logic on a machine without a GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "core")]  # golden_checks, small inputs
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS; read when CUDA starts


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Without `-m gpu` these files are not even imported."""
    return True if "not gpu" in str(config.getoption("markexpr")) else None


@pytest.fixture(scope="session")
def device() -> Iterator[str]:
    """Where the models run, without TF32, which has 10 bits and is torch's default in convolutions.

    Tests skip where this is a GPU and torch sees none.
    """
    import torch

    wanted = os.environ.get("REGIONCLIP_GPU_TEST_DEVICE", "cuda")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device; REGIONCLIP_GPU_TEST_DEVICE=cpu runs the logic of these tests")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield wanted
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
