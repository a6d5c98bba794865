"""The faults. Each takes a round, breaks a run, brings it to its end, and returns the outcome; or raises Wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_processes import Run, Started, alive, descendants, kill, tail, wait
from fault_rounds import CHECKPOINTS, RERUN, TOO_LATE, TRAINING, WENT_ON, Round, Wrong

from regionclip_core.storage.folder import Folder

RAY = ("--backend", "ray", "--set", "execution.workers=2")
GONE_AFTER = 60.0
"""Seconds within which the workers of a killed driver must be gone."""


def kill_driver(round: Round) -> str:
    """SIGKILL a run on the local backend, up to three times at random moments."""
    world, killed = round.world, 0
    for _ in range(round.random.choice([1, 1, 2, 3])):
        run = world.starter.start(world.arguments(round.workspace), round.log)
        if wait(run, round.moment()) is not None:
            break
        kill(run.pid)
        wait(run)
        killed += 1
        world.check_whole(Folder(str(round.workspace)))
    return round.rerun(RERUN if killed else TOO_LATE)


def kill_training(round: Round) -> str:
    """SIGKILL trainings, up to three times, each after a random one of its checkpoints: they go on bit-equal."""
    world = round.world
    stages = round.random.choices(list(CHECKPOINTS), k=round.random.choice([1, 1, 2, 3]))
    killed = 0
    for stage in sorted(stages, key=list(CHECKPOINTS).index):
        run = world.starter.start(world.arguments(round.workspace), round.log)
        if wait(run, round.checkpoint(stage)) is not None:
            break
        kill(run.pid)
        wait(run)
        killed += 1
        world.check_whole(Folder(str(round.workspace)))
    return round.rerun(RERUN if killed else TOO_LATE)


# ---------------------------------------------------------------- full disk


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A file system of its own at `folder`, of so many bytes; yields what makes it large. None: not allowed here."""
    folder.mkdir()

    def mount(options: str) -> bool:
        program = shutil.which("mount")
        command = [str(program), "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return program is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not mount(f"size={size}"):
        folder.rmdir()
        yield None
        return
    try:
        yield lambda: _must(mount("remount,size=256m"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _must(done: bool) -> None:
    if not done:
        raise RuntimeError("the small file system could not be made larger")


def full_disk(round: Round) -> str:
    """A disk on which a run finds no room for all it writes; then it gets more."""
    world = round.world
    share = round.random.uniform(0.02, 0.98)
    with small_disk(round.workspace, int(share * world.pages)) as enlarge:
        budget = None if enlarge is not None else int(share * world.pages)
        run = world.starter.start(world.arguments(round.workspace), round.log, budget=budget)
        status = wait(run)
        if status == 0:
            return round.rerun(TOO_LATE)
        if status != 1 or "No space left on device" not in round.log.read_text():
            raise Wrong(f"a full disk ends a run with status {status}\n{tail(round.log)}")
        if enlarge is not None:
            enlarge()
        return round.rerun()


# ---------------------------------------------------------------- object storage


def broken_connection(round: Round) -> str:
    """Object storage that can't be reached any more after so many bytes; or that three times cuts the connections, or
    does what it is asked without saying so.
    """
    from s3_server import BUCKET, s3_server

    world = round.world
    with s3_server() as s3:
        variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        workspace = Folder(f"s3://{BUCKET}/ws")
        run = world.starter.start(world.arguments(workspace.url), round.log, variables)
        how = round.random.choices(["for good", "cut", "lost answer"], [5, 2, 3])[0]
        for _ in range(1 if how == "for good" else 3):
            before = s3.proxy.cuts + s3.proxy.lost
            if how == "lost answer":
                s3.proxy.lose_answer(round.random.randrange(world.files // 3))
            else:
                s3.proxy.cut_after(int(round.random.random() ** 2 * world.pages), how == "for good")
            if wait(run, lambda before=before: s3.proxy.cuts + s3.proxy.lost > before) is not None:
                break
        status = wait(run)
        cut = s3.proxy.cuts + s3.proxy.lost > 0
        s3.proxy.repair()
        if status not in (0, 1):
            raise Wrong(f"a broken connection ends a run with status {status}\n{tail(round.log)}")
        world.check_whole(workspace)
        world.finish(world.starter.start(world.arguments(workspace.url), round.log, variables))
        world.check_same(workspace)
    if not cut:
        return TOO_LATE
    return WENT_ON if status == 0 else RERUN


# ---------------------------------------------------------------- Ray


def ray_workers(run: Run) -> list[int]:
    """Processes of a run that do its work, or are ready to: they write to the workspace, Ray's own do not."""
    names = ("ray::call", "ray::warm", "ray::IDLE")
    return sorted(pid for pid, command in descendants(run.pid).items() if command.startswith(names))


def kill_ray_driver(round: Round) -> str:
    """SIGKILL the driver of a run on Ray, and rerun: at once, or when its workers are gone, which must be soon."""
    run = Started(round.world.arguments(round.workspace, *RAY), round.log)
    if wait(run, round.moment()) is not None:
        return round.rerun(TOO_LATE)
    workers, left = ray_workers(run), descendants(run.pid)
    kill(run.pid)
    wait(run)
    if round.random.random() < 0.5:
        _await_end(workers)
    outcome = round.rerun()
    _await_end(workers)
    round.world.check_same(Folder(str(round.workspace)))  # what the old workers still wrote changed nothing
    for pid in left:  # Ray's agents notice a minute later
        if alive(pid):
            kill(pid)
    return outcome


def _await_end(pids: list[int]) -> None:
    deadline = time.monotonic() + GONE_AFTER
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise Wrong(f"workers outlive their driver by {GONE_AFTER:g} s")
        time.sleep(0.05)


def kill_ray_worker(round: Round) -> str:
    """SIGKILL one or two workers of a run on Ray: it should go on by itself."""
    run: Run = Started(round.world.arguments(round.workspace, *RAY), round.log)
    killed = 0
    for _ in range(round.random.choice([1, 2])):
        came = round.moment()
        if wait(run, lambda came=came: came() and bool(ray_workers(run))) is not None:
            break
        if workers := ray_workers(run):
            kill(round.random.choice(workers))
            killed += 1
    status = wait(run)
    if status == 0:
        round.world.check_same(Folder(str(round.workspace)))
        return WENT_ON if killed else TOO_LATE
    if status != 1:
        raise Wrong(f"a run whose worker was killed ends with status {status}\n{tail(round.log)}")
    return round.rerun()


def lose_node(round: Round) -> str:
    """Take one of two worker nodes away from a cluster: the run should go on with what is left."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        more = ("--backend", "ray", "--set", f"execution.address={cluster.address}")
        run = Started(round.world.arguments(round.workspace, *more), round.log)
        if (status := wait(run, round.moment())) is None:
            cluster.remove_node(round.random.choice(nodes), allow_graceful=False)
            status = wait(run)
            outcome = WENT_ON
        else:
            outcome = TOO_LATE
        if status not in (0, 1):
            raise Wrong(f"a run whose node was lost ends with status {status}\n{tail(round.log)}")
    finally:
        cluster.shutdown()
    if status == 1:
        return round.rerun()
    round.world.check_same(Folder(str(round.workspace)))
    return outcome


KINDS: dict[str, tuple[Callable[[Round], str], int]] = {
    "kill driver": (kill_driver, 28),
    TRAINING: (kill_training, 12),
    "full disk": (full_disk, 20),
    "broken connection": (broken_connection, 20),
    "kill ray worker": (kill_ray_worker, 9),
    "kill ray driver": (kill_ray_driver, 7),
    "lose node": (lose_node, 4),
}
"""Every kind, and how many of 100 rounds it gets: cheap ones get more."""
assert sum(share for _, share in KINDS.values()) == 100
