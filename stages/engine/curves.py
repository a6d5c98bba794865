"""Curves of running trainings in TensorBoard or Weights & Biases (`execution.curves`), drawn by the training's process.

Each start of a training writes all its rows again, those of earlier runs too, in the place of what was there: a resume
doubles no point. What is drawn is beside the artifacts, since no two runs give the same times.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.locations import absolute, is_remote
from regionclip_core.storage.records import Folder

from .history import Curves, Row

TENSORBOARD = "tensorboard"
"""Folder of the workspace; in it one per training, <step>/<fingerprint>, and its name where a stage has several."""


def curves(config: Config, step: str, out: str) -> Curves | None:
    """Return what draws the trainings of a step, whose artifact is `out`; None where nothing does.

    TensorBoard's files grow, which objects in a store can't: a remote workspace gets none.
    """
    kind, workspace = config.execution.curves, absolute(Folder(config.workspace).url)
    mark = out.rsplit("/", 1)[-1]
    if kind == "wandb":
        return WeightsAndBiases(config, workspace, step, mark)
    if kind == "tensorboard" and not is_remote(workspace):
        return TensorBoard(Path(workspace) / TENSORBOARD / step / mark)
    return None


class TensorBoard:
    """An event file per training. tensorboardX's SummaryWriter would write in a thread, whose errors nobody sees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None

    def start(self, training: str, rows: list[Row]) -> None:
        """Write a new event file with these rows, and remove older ones."""
        from tensorboardX import RecordWriter  # imports torch, which the process of a training has

        self.close()
        folder = self._folder / training
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"))
        self._event(file_version="brain.Event:2")
        # An open TensorBoard drops what it has from this step on.
        self._event(step=rows[0]["step"], session_log={"status": "START"})
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Write the row's numbers as scalars."""
        values = [
            {"tag": name, "simple_value": value}
            for name, value in row.items()
            if name not in ("step", "time", "training")
        ]
        self._event(step=row["step"], wall_time=row["time"], summary={"value": values})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(**{"wall_time": time.time(), **fields}).SerializeToString())


def no_wandb() -> list[str]:
    """Return why Weights & Biases can't be used here, and what to do; empty if it can."""
    otherwise = "or set execution.curves to tensorboard or none"
    if importlib.util.find_spec("wandb") is None:
        return [f"execution.curves: wandb is not installed here: `pip install wandb`, {otherwise}"]
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return []
    import wandb  # slow

    try:
        if wandb.login(prompt=False):  # asks the server whether it takes the key
            return []
        why = "has no key here"
    except wandb.Error as error:
        why = f"does not answer: {error}"
    return [f"execution.curves: wandb {why}. Run `wandb login`, set WANDB_MODE=offline, {otherwise}"]


class WeightsAndBiases:
    """A run per training, of the project WANDB_PROJECT or `regionclip`.

    Its id is that of the artifact in this workspace. So a resumed training goes on with its run, which takes no step
    twice.
    """

    def __init__(self, config: Config, workspace: str, step: str, mark: str) -> None:
        self._config = config
        self._workspace = workspace
        self._names = (step, mark)
        self._run: Any = None

    def start(self, training: str, rows: list[Row]) -> None:
        """Begin or resume a run with these rows."""
        import wandb  # an extra, and slow

        self.close()
        names = [name for name in (*self._names, training) if name]
        place = hashlib.sha256(self._workspace.encode()).hexdigest()[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "regionclip"),
            name=" ".join(names),
            id="-".join([*names, place]).replace("@", "-"),
            resume="allow",
            dir=None if is_remote(self._workspace) else self._workspace,
            config=self._config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Log the row at its step."""
        values = {name: value for name, value in row.items() if name not in ("step", "time", "training")}
        self._run.log(values, step=row["step"])

    def close(self) -> None:
        """End the run; waits until everything is sent."""
        if self._run is not None:
            self._run.finish()
            self._run = None
