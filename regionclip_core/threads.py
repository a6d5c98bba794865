"""Threads of torch and of its OpenMP runtime: as many as there are CPUs for this process, and they soon sleep."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SPIN_COUNT = "5000"
"""How long waiting OpenMP threads spin before they sleep. At the default of 300,000 a training on two threads runs
four times slower where another program takes one of the CPUs; sleeping at once costs an idle machine 40 %."""


def set_threads(threads: int) -> None:
    """Let torch use this many threads, whether it is imported already or later."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # both are read once, when the OpenMP runtime is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def set_usual_threads() -> None:
    """Let torch, if it is imported later, use all CPUs of this process, unless the environment says otherwise.

    A program that has imported torch already keeps what it has.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def available_cpus() -> int:
    """Return the CPUs that this process may use: its affinity, and the control group's quota where there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, round(int(quota) / int(period))))
