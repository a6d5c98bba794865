"""Training in several processes through Ray Train: gloo on CPUs, nccl on GPUs.

Ray Train starts the processes, connects them and ends them all when one fails. What the stage itself raises ends the
training; a process that was lost starts it again, from the last checkpoint. The number of tries is kept here and not in
Ray Train's FailureConfig, which starts again whatever failed, but not where a process dies while it begins.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar, cast

import ray
from ray import train as ray_train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from regionclip_core.storage.records import Failure, Folder

from . import ray_cluster, work
from .ray_cluster import NoRoom, Patience, WorkerDied
from .work import StageOutcome, StageTask

TRAIN_FOLDER = ".train"
"""Ray Train's own folder inside the artifact's, while a distributed job runs."""
TICK = 0.5
"""Seconds between two looks at the running training."""
_PEER_LOST = re.compile(r"^Dist\w*Error|gloo|\bNCCL\b")
"""Errors of torch.distributed: what the other processes see of one that was lost."""

Result = TypeVar("Result")


class StageRaised(RuntimeError):
    """The stage's own exception, as a Failure: no reason to start again."""


def train(task: StageTask, gpu: bool, say: Callable[[str], None], watch: Callable[[], None]) -> StageOutcome | Failure:
    """Run a distributed job, `execution.train_workers` processes with one CPU or GPU each.

    A lost process starts all again, `execution.shard_retries` times. Where the cluster has no place for them all, the
    user hears of it after a while, and the job fails after GIVE_UP_AFTER: its number of processes is a setting, and a
    training with fewer would be another one.
    """
    execution = task.config.execution
    tries = 1 + execution.shard_retries
    needs = f"{execution.train_workers} processes with 1 {'GPU' if gpu else 'CPU'} each"
    note, patience = uuid.uuid4().hex, Patience(say)

    def look() -> None:
        watch()
        if patience.wait(needs) >= ray_cluster.SAY_AFTER / 2 and ray_cluster.runs_one_of([note]):
            patience.go_on()

    lost: Exception | None = None
    for left in reversed(range(tries)):
        try:
            return watched(lambda: _fit(task, gpu, note), look)
        except WorkerDied as error:
            lost = error
            if left:
                say(f"{task.stage}: a process of the training was lost; all start again, {left} more times at most")
        except Exception as error:
            return work.failure(task.stage, None, error)
    died = WorkerDied(f"the training lost a process {tries} times: out of memory, or a crash in native code? {lost}")
    died.__cause__ = lost
    return work.failure(task.stage, None, died)


def watched(call: Callable[[], Result], watch: Callable[[], None]) -> Result:
    """Return or raise what the call does, an interrupt too; it runs in a thread, and `watch` is called meanwhile."""
    answer: Future[Result] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # an executor would wait for it where the run is interrupted
    while not wait([answer], TICK).done:
        watch()
    return answer.result()


def _fit(task: StageTask, gpu: bool, note: str) -> StageOutcome | Failure:
    """Train once.

    Raises:
        WorkerDied: a process was lost.
        NoRoom: the cluster had no place for all processes.
    """
    storage = Folder(task.out).child(TRAIN_FOLDER)
    storage.remove_all()  # a killed run may have left something
    trainer = TorchTrainer(
        cast(Any, _train_loop),
        train_loop_config={"task": task, "note": note},
        scaling_config=ScalingConfig(num_workers=task.config.execution.train_workers, use_gpu=gpu),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=cast(Any, RunConfig)(  # its types are those of an older Ray Train
            name=task.stage,
            storage_path=storage.url,
            failure_config=cast(Any, FailureConfig)(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(ray_cluster.GIVE_UP_AFTER)  # no other way to set it
        outcome: StageOutcome = cast(Any, trainer.fit()).return_value  # rank 0's
        return outcome
    except TrainingFailedError as error:
        free_places()
        for raised in getattr(error, "worker_failures", {}).values():
            if isinstance(raised, StageRaised):
                return cast(Failure, raised.args[0])
        reason = getattr(error, "controller_failure", error)
        if type(reason).__name__ == "InsufficientClusterResourcesError":  # more than an autoscaler may ever add
            raise NoRoom(str(reason)) from error
        if type(reason).__name__ == "WorkerGroupStartupTimeoutError":
            limit = f"{ray_cluster.GIVE_UP_AFTER:.0f} s"
            workers = task.config.execution.train_workers
            raise NoRoom(f"no place for all {workers} processes in {limit}. {ray_cluster.room()}") from error
        raise WorkerDied(f"Ray says: {reason}") from reason
    finally:
        ray_cluster.remove_notes(note)
        storage.remove_all()


def free_places() -> None:
    """Free the CPUs or GPUs that a failed training of this run still holds.

    Ray Train forgets its placement group when a process dies while it begins; then nobody could use these places until
    the driver ends, not even the next try.
    """
    job = ray.get_runtime_context().get_job_id()
    for group, state in placement_group_table().items():
        if group.endswith(job) and state["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def _train_loop(config: dict[str, Any]) -> StageOutcome:
    """Run the job in one of the processes."""
    ctx, task = ray_train.get_context(), config["task"]
    rank = ctx.get_world_rank()
    if rank == 0:
        ray_cluster.say_it_runs(config["note"])
    try:
        outcome = work.job(task, rank, ctx.get_world_size(), ctx.get_local_world_size())
    except BaseException as error:  # an interrupt that the stage raised is no lost process either
        outcome = work.failure(task.stage, None, error)
    if isinstance(outcome, Failure):  # other ranks may hang in a collective: raising ends them all
        if _PEER_LOST.search(outcome.error):
            raise RuntimeError(f"rank {rank}: {outcome.traceback}")
        raise StageRaised(outcome)
    return outcome
