"""The Ray cluster: connecting, what it has, what runs on it, waiting for a place. Only the ray_*.py import ray."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES of CPU workers alone
os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "8")  # else a ray:// that is none is noticed after 30 s

import ray
from ray._private import ray_constants, services
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from ray.experimental import internal_kv

from regionclip_core.config.tree import ExecutionConfig
from regionclip_core.storage.local_files import scratch
from regionclip_core.storage.records import size
from regionclip_core.threads import SPIN_COUNT, available_cpus

OBJECT_STORE = 128 * 1024 * 1024
"""Bytes of Ray's object store on this machine: only shard numbers and records pass through it."""
LONGEST_FOLDER = 40
"""Characters of Ray's folder: its sockets add 64, and the path of a socket may have 103 (macOS; Linux: 107)."""
CONNECT_WITHIN = 10.0
"""Seconds in which a cluster's address has to answer."""
STATUS_WITHIN = 15.0
"""Seconds in which a cluster has to give its status: half a second, and the start of Ray's own command line."""
SAY_AFTER = 60.0
"""Seconds without any process at work until the user hears what the run waits for."""
GIVE_UP_AFTER = 600.0
"""Seconds without a place for any process until the stage fails."""

NOTES = "regionclip"
"""Namespace in Ray's store for what `say_it_runs` leaves."""
PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
"""Variables that say where a store is. Keys are not passed on: Ray shows what is in its dashboard and its logs."""
LOST = (WorkerCrashedError, NodeDiedError, OutOfMemoryError)
"""What Ray raises for a task whose worker or machine was lost, each time that it was tried."""


class WorkerDied(RuntimeError):
    """A call ended its worker's process, or a training lost a process, each time that it was tried."""


class NoRoom(RuntimeError):
    """For GIVE_UP_AFTER the cluster had no place for a process of the run."""


# ---------------------------------------------------------------- connecting


def worker_environment() -> dict[str, str]:
    """Return the variables that workers get: what the driver can import they can, with its sys.path made absolute.

    One thread, until a job asks for more, and waiting threads soon sleep: Ray's own processes share the CPUs. Workers
    know where a store is, but the keys to it must be on each machine.
    """
    path = dict.fromkeys(os.path.abspath(p or os.curdir) for p in sys.path if not p.endswith(".zip"))
    stores = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT),
        # A process that has used one GPU can't be shown another one, so it sees all, and takes the one that Ray names.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        **{name: value for name, value in stores.items() if urlsplit(value).password is None},
    }


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM over the block.

    Ray puts two others in its place when it starts: one in Python that exits, and one in C++ for crashes that prints a
    stack trace first. Then nothing of ours would end the workers, release the lock and say how to go on.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@own_sigterm()
def connect(execution: ExecutionConfig) -> str | None:
    """Connect to the cluster, or start Ray on this machine; return the dashboard's address, if there is one.

    Raises:
        ValueError: no cluster answers.
        OSError: Ray does not start.
    """
    # Ray counts calls that were killed for their memory apart, and would repeat them for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(execution.shard_retries))
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    address = execution.address
    if address is None:
        cpus = max(available_cpus(), execution.workers or 1, execution.train_workers)
        common |= {"include_dashboard": execution.dashboard, "object_store_memory": OBJECT_STORE, "num_cpus": cpus}
        # Else Ray starts workers first and, if one of them dies before it has registered, waits for it for ever.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # All processes started from here inherit the environment: a runtime_env does the same 2 to 3 s slower.
        os.environ.update(worker_environment())
        # Else Ray writes its token to the home folder, readable by every user of the machine.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        folder = own_folder()
        # Ray takes no loopback address from its callers, but this is how it chooses one itself, on macOS. Its servers
        # then listen there alone, so that no other machine can reach them.
        before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            return ray.init(address="local", _temp_dir=str(folder), **common).dashboard_url
        except Exception as error:  # of many types, mostly that a process of Ray's did not appear
            ray.shutdown()
            free = size(shutil.disk_usage(folder.parent).free)
            raise OSError(
                f"Ray did not start: {in_one_line(error)}. Its logs and sockets are in {folder}, where {free} are "
                "free. Set TMPDIR to another folder, or run with --backend local, without Ray"
            ) from error
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before
    found = address
    try:
        if address == "auto":
            found = os.environ.get("RAY_ADDRESS") or services.canonicalize_bootstrap_address(address) or address
        require_cluster(found, may_lack_token=address == "auto")
        runtime = {"env_vars": worker_environment()}
        return ray.init(address=address, runtime_env=runtime, **common).dashboard_url
    except (OSError, ValueError, RuntimeError, RayError) as error:
        at = address
        forms = "HOST:PORT takes the port of `ray start` (6379), ray://HOST:PORT that of its client server (10001)"
        if address == "auto":
            at = f"auto, here {found}" if found != address else address
            forms = "auto takes RAY_ADDRESS, or a Ray on this machine (that of another regionclip run is private)"
        raise ValueError(
            f"execution.address: no Ray cluster answers at {at} ({in_one_line(error)}). Start one there (`ray start "
            f"--head`), correct the address, or set it to null for this machine alone. {forms}; a cluster with a token "
            "needs RAY_AUTH_MODE=token and the token"
        ) from error


def require_cluster(address: str, may_lack_token: bool) -> None:
    """Raise OSError or ValueError where no Ray cluster answers: Ray itself would go on trying for minutes.

    A server of another kind may be there, and `ray status` may wait for it for long, in a process that can be stopped.
    may_lack_token: `ray.init("auto")` takes a token from the home folder also without RAY_AUTH_MODE; `ray status` not.
    """
    where = urlsplit(address if "://" in address else f"ray://{address}")
    if where.scheme != "ray" or where.port is None:
        raise ValueError("expected auto, HOST:PORT or ray://HOST:PORT")
    socket.create_connection((where.hostname or "", where.port), CONNECT_WITHIN).close()
    if "://" in address:
        return
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(status, capture_output=True, text=True, timeout=STATUS_WITHIN)
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"`ray status` got no answer in {STATUS_WITHIN:.0f} s") from None
    if done.returncode and not (may_lack_token and "AuthenticationError" in done.stderr):
        raise ConnectionError(done.stderr.strip().rpartition("\n")[2])


def in_one_line(error: Exception) -> str:
    """Return an error of Ray's as one line; some of them are pages long."""
    return textwrap.shorten(str(error) or type(error).__name__, 500, placeholder=" ...").rstrip(".")


def own_folder() -> Path:
    """Return a new or old folder for the sockets and logs of a Ray on this machine, which only this user can enter.

    It is in RAY_TMPDIR or TMPDIR, or in /tmp where these are too long for a socket. Ray opens its own folder to every
    user, so it gets one inside a private one.
    """
    places = (os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "/tmp")
    name = f"regionclip-ray-{os.getuid()}/r"
    inside = next((place for place in places if len(os.path.join(place, name)) <= LONGEST_FOLDER), places[0])
    return scratch("ray", inside) / "r"


# ---------------------------------------------------------------- what there is


def resources() -> dict[str, float]:
    """Return what the cluster's living machines have, by Ray's names."""
    return cast(dict[str, float], cast(Any, ray).cluster_resources())


def room() -> str:
    """Return the cluster's size and what of it is free, in words."""
    there, free = resources(), cast(dict[str, float], cast(Any, ray).available_resources())
    parts = [f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU")]
    machines = sum(node["Alive"] for node in cast(Any, ray).nodes())
    return f"The cluster has {' and '.join(parts)} free, on {machines} machines"


def own_gpu() -> int | None:
    """Return the index, for torch, of the GPU that Ray gave this call; None without one."""
    ids = ray.get_gpu_ids()
    if not ids:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # of the machine's Ray; its ids are then those in this list
    return visible.split(",").index(str(ids[0])) if visible else int(ids[0])


# ---------------------------------------------------------------- what runs


def say_it_runs(note: str) -> None:
    """Leave a note, from a worker: this call runs, and on which machine."""
    internal_kv._internal_kv_put(note, ray.get_runtime_context().get_node_id(), namespace=NOTES)


def runs_one_of(notes: Iterable[str]) -> bool:
    """Return whether one of these calls runs on a machine that is alive."""
    alive = {node["NodeID"] for node in cast(Any, ray).nodes() if node["Alive"]}
    found = (internal_kv._internal_kv_get(note, namespace=NOTES) for note in notes)
    return any(node is not None and node.decode() in alive for node in found)


def remove_notes(beginning: str) -> None:
    """Remove the notes whose names begin like this."""
    internal_kv._internal_kv_del(beginning, del_by_prefix=True, namespace=NOTES)


class Patience:
    """Waiting for a place in the cluster, and saying so."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: float | None = None
        self._said = False

    def wait(self, needs: str) -> float:
        """Return the seconds since the last `go_on`, and say so once. `needs`: what has no place."""
        now = monotonic()
        self._since = now if self._since is None else self._since
        waited = now - self._since
        if waited >= SAY_AFTER and not self._said:
            self._said = True
            self._say(
                f"waiting for {needs}: no process of this run has been at work for {waited:.0f} s. {room()}. "
                f"After {GIVE_UP_AFTER:.0f} s the stage fails, and what it has finished is kept. Free the resources or "
                "add a machine (`ray start --address=...` on it) and it goes on by itself; after an interrupt or a "
                "failure, run the same command again"
            )
        return waited

    def go_on(self) -> None:
        """Something runs."""
        if self._said:
            self._say("the cluster has room again: going on")
        self._since, self._said = None, False
