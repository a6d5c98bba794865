"""Training in several processes through Ray Train: gloo on CPUs, nccl on GPUs.

Ray Train starts the processes, connects them and ends them all when one fails. What the stage itself raises ends the
training; a process that was lost starts it again, from the last checkpoint.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar, cast

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from regionclip_core.storage.records import Failure, FileRecord, Folder
from stages.engine import ray_workers, work
from stages.engine.ray_workers import NoRoom, Patience, WorkerDied, environment
from stages.engine.work import StageOutcome, StageTask

TRAIN_FOLDER = ".train"
"""Ray Train's own folder inside the artifact's, while a distributed job runs."""
STARTED, OUTCOME, RAISED = "started.json", "outcome.json", "raised-{rank}.json"
"""Files in it: the processes run; what rank 0 has; the Failure of a process whose own code raised."""
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""How long Ray Train waits for a place for its processes; it can be set in the environment only."""
TICK = 0.5
"""Seconds between two looks at the running training."""

_PEER_LOST = re.compile(r"^Dist\w*Error|gloo|\bNCCL\b")
"""Errors of torch.distributed: what the other processes see of one that was lost."""

Result = TypeVar("Result")


def train(
    task: StageTask,
    gpu: bool,
    runtime_env: dict[str, Any],
    say: Callable[[str], None],
    watch: Callable[[], None],
) -> StageOutcome | Failure:
    """Run a distributed job, `execution.train_workers` processes with one CPU or GPU each.

    Lost processes are replaced `execution.shard_retries` times. Where the cluster has no place for them all, the
    user is told after a while, and the job fails after GIVE_UP_AFTER: its number of processes is a setting, and a
    training with fewer would be another one.
    """
    execution, storage = task.config.execution, Folder(task.out).child(TRAIN_FOLDER)
    tries = 1 + execution.shard_retries
    needs = f"{execution.train_workers} processes with 1 {'GPU' if gpu else 'CPU'} each"
    lost: Exception | None = None
    for left in reversed(range(tries)):
        try:
            return watched(lambda: _fit(task, gpu, runtime_env), _looking(storage, needs, say, watch))
        except WorkerDied as error:
            lost = error
            if left:
                say(f"{task.stage}: a process of the training was lost; all start again, {left} more times at most")
        except Exception as error:
            return work.failure(task.stage, None, error)
    assert lost is not None
    died = WorkerDied(f"the training lost a process {tries} times: out of memory, or a crash in native code? {lost}")
    died.__cause__ = lost
    return work.failure(task.stage, None, died)


def _looking(storage: Folder, needs: str, say: Callable[[str], None], watch: Callable[[], None]) -> Callable[[], None]:
    """A `watch` that also says what the training waits for, until its processes have started."""
    patience, started = Patience(say), False

    def look() -> None:
        nonlocal started
        watch()
        if started or patience.wait(needs) < ray_workers.SAY_AFTER / 2:  # a short start costs no look
            return
        with suppress(OSError):  # a store that is away for a moment
            started = storage.exists(STARTED)
        if started:
            patience.go_on()

    return look


def watched(call: Callable[[], Result], watch: Callable[[], None]) -> Result:
    """What the call returns or raises, an interrupt too; it runs in a thread, and `watch` is called meanwhile."""
    result: list[Result] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(TICK)
        watch()
    if raised:
        raise raised[0]
    return result[0]


def _fit(task: StageTask, gpu: bool, runtime_env: dict[str, Any]) -> StageOutcome | Failure:
    """One TorchTrainer.fit. Outcomes come back as files in Ray Train's own folder, removed afterwards.

    Raises:
        WorkerDied: a process was lost.
        NoRoom: the cluster had no place for all processes.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = Folder(task.out).child(TRAIN_FOLDER)
    storage.remove_all()  # a killed run may have left its outcome
    groups = set(placement_group_table())
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(num_workers=task.config.execution.train_workers, use_gpu=gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=cast(Any, RunConfig)(  # its types are those of an older Ray Train
            name=task.stage,
            storage_path=os.path.abspath(storage.url) if storage.is_local else storage.url,
            # Ray Train would start again whatever failed; `train` knows what is worth it.
            failure_config=cast(Any, FailureConfig)(max_failures=0, controller_failure_limit=0),
            worker_runtime_env=runtime_env,
        ),
    )
    try:
        with environment({START_TIMEOUT: str(ray_workers.GIVE_UP_AFTER)}):
            trainer.fit()
        outcome = storage.read_json(OUTCOME)
    except TrainingFailedError as error:
        _free_places(groups)
        for name in sorted(storage.names()):
            if name.startswith(RAISED.split("{")[0]):
                return Failure(**storage.read_json(name))
        reason = getattr(error, "controller_failure", error)
        if type(reason).__name__ == "InsufficientClusterResourcesError":  # more than an autoscaler may ever add
            raise NoRoom(str(reason)) from error
        if type(reason).__name__ == "WorkerGroupStartupTimeoutError":
            limit = f"{ray_workers.GIVE_UP_AFTER:.0f} s"
            raise NoRoom(f"no place for all {reason.num_workers} processes in {limit}. {ray_workers.room()}") from error
        raise WorkerDied(f"Ray says: {reason}") from reason
    finally:
        storage.remove_all()
    return StageOutcome([FileRecord(**f) for f in outcome["files"]], outcome["summary"], outcome["counts"])


def _free_places(before: set[str]) -> None:
    """Free what a failed training held, but for the placement groups `before`.

    Ray Train forgets its placement group when a process dies in the moment in which it is told to begin; then nobody
    could use these CPUs or GPUs until the driver ends, the next try least of all.
    """
    job = ray.get_runtime_context().get_job_id()
    for group, state in placement_group_table().items():
        if group not in before and group.endswith(job) and state["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def _train_loop(config: dict[str, Any]) -> None:
    """What each process of a distributed job runs."""
    from ray import train as ray_train

    ctx, task = ray_train.get_context(), config["task"]
    rank, storage = ctx.get_world_rank(), Folder(task.out).child(TRAIN_FOLDER)
    if rank == 0:
        storage.write_json(STARTED, {})
    outcome: StageOutcome | Failure
    try:
        outcome = work.job(task, rank, ctx.get_world_size(), ctx.get_local_world_size())
    except BaseException as error:  # an interrupt that the stage raised is no lost process either
        outcome = work.failure(task.stage, None, error)
    if isinstance(outcome, Failure):  # other ranks may hang in a collective: raising ends them all
        if not _PEER_LOST.search(outcome.error):
            storage.write_json(RAISED.format(rank=rank), asdict(outcome))
        raise RuntimeError(f"rank {rank}: {outcome.traceback}")
    if rank == 0:
        storage.write_json(OUTCOME, asdict(outcome))
