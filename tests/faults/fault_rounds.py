"""What a round starts from, and what must hold after it: nothing half-written, and in the end the same bytes."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fault_processes import Run, Starter, tail, wait
from small_runs import small_tree

from regionclip_core.storage.folder import Folder
from regionclip_core.storage.records import MANIFEST, RECORDS
from stages.commands.verify import artifacts, verify_workspace

TARGET = "pairs"
"""The runs go up to here: every stage that is deterministic on any backend."""
TRAINING = "kill training"
"""The kind of round whose runs train."""
CHECKPOINTS = {"teacher": range(2, 8, 2), "rpn": range(1, 5), "pretrain": range(2, 6, 2), "finetune": range(1, 4)}
"""Steps at which the trainings keep what they have; they end later."""
RERUN, WENT_ON, TOO_LATE = "finished by a rerun", "went on", "too late"
OUTCOMES = (RERUN, WENT_ON, TOO_LATE)
_FRAME = ("shard-", "failed", "records", "manifest", "plan", "progress")
_PAGE = 4096


class Wrong(AssertionError):
    """A round that did not end as it must."""


@dataclass
class World:
    """A small pipeline, and what an uninterrupted run makes of it."""

    root: Path
    starter: Starter
    trains: bool = False
    """Go on to the last training, on one thread, where trainings are deterministic too."""
    config: Path = field(init=False)
    digests: dict[str, str] = field(init=False)
    """sha256 of every file of every artifact, by stage and name."""
    commits: dict[str, Any] = field(init=False)
    """What the records and manifests say, by stage and name."""
    files: int = field(init=False)
    """All files of the workspace, records included."""
    pages: int = field(init=False)
    """Bytes that they take on a disk."""
    _training: World | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        splits = {
            "train": {"source": "world", "images": 12, "image_size": 80},
            "val": {"source": "world", "images": 4, "image_size": 80},
        }
        sections: dict[str, dict[str, Any]] = {
            "data": {"splits": splits, "shard_size": 2},
            "rpn": {"weights": "random"},
            "proposals": {"method": "rpn"},
        }
        if self.trains:
            steps = {
                stage: {"steps": at.stop, "checkpoint_every": at.step, "batch_size": 2}
                for stage, at in CHECKPOINTS.items()
            }
            sections["teacher"] = {"weights": "train", "training": {"splits": ["train"], **steps.pop("teacher")}}
            sections = {**sections, **steps, "finetune": {**steps["finetune"], "oracle": False}}
        tree = small_tree("unused", **sections)
        self.config = self.root / "config.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        workspace = self.root / "reference"
        self.finish(self.starter.start(self.arguments(workspace), self.root / "reference.log"))
        self.digests, self.commits = contents(Folder(str(workspace))), commits(Folder(str(workspace)))
        sizes = [path.stat().st_size for path in workspace.rglob("*") if path.is_file()]
        self.files, self.pages = len(sizes), sum(-(-size // _PAGE) * _PAGE for size in sizes)

    def arguments(self, workspace: Path | str, *more: str) -> list[str]:
        """The command line of a run on a workspace."""
        return [
            "run",
            "finetune" if self.trains else TARGET,
            "--config",
            str(self.config),
            "--workspace",
            str(workspace),
            *more,
        ]

    def training(self) -> World:
        """The same with trainings, made when it is first asked for."""
        if self._training is None:
            (root := self.root / "trains").mkdir()
            self._training = World(root, self.starter, trains=True)
        return self._training

    def finish(self, run: Run) -> None:
        """Wait for a run that must succeed."""
        status = wait(run)
        if status != 0:
            raise Wrong(f"a run that nothing disturbs ends with status {status}\n{tail(run.log)}")

    def check_whole(self, workspace: Folder) -> None:
        """What is visible after a fault is whole: the reference's bytes, and what the records say."""
        for name, digest in contents(workspace).items():
            if self.digests.get(name) != digest:
                raise Wrong(f"half-written: {name} in {workspace.url}")
        for name, said in commits(workspace).items():
            if self.commits.get(name) != said:
                raise Wrong(f"{name} says {said}, the uninterrupted run's {self.commits.get(name)}")
        for stage, _, problems in verify_workspace(workspace):
            if problems:
                raise Wrong(f"records and files differ after the fault: {stage}: {problems[0]}")

    def check_same(self, workspace: Folder) -> None:
        """A finished workspace holds the reference's files, byte by byte, and nothing temporary."""
        found = contents(workspace)
        everything = found.keys() | self.digests.keys()
        differing = sorted(name for name in everything if found.get(name) != self.digests.get(name))
        if differing:
            raise Wrong(f"{len(differing)} files differ from the uninterrupted run's: {differing[:5]}")
        self.check_whole(workspace)
        if unsaid := sorted(self.commits.keys() - commits(workspace).keys()):
            raise Wrong(f"records of the uninterrupted run are missing: {unsaid[:5]}")
        if workspace.is_local:
            left = [str(path) for path in Path(workspace.url).glob("*/*/.tmp-*")]
            if left:
                raise Wrong(f"temporary files stay: {left}")
        if workspace.exists("lock.json"):
            raise Wrong("the lock stays")


def contents(workspace: Folder) -> dict[str, str]:
    """sha256 of every file that belongs to an artifact's content, by stage and name."""
    return {
        f"{stage}/{name}": hashlib.sha256(folder.read_bytes(name)).hexdigest()
        for stage, folder in artifacts(workspace)
        for name in folder.names()
        if not name.startswith(_FRAME)
    }


def commits(workspace: Folder) -> dict[str, Any]:
    """What records and manifests say of results: everything but how long it took, where, when and with what."""
    found: dict[str, Any] = {}
    for stage, folder in artifacts(workspace):
        names = folder.names()
        rolled = folder.read_json(RECORDS) if RECORDS in names else {"shards": []}
        single = [folder.read_json(name) for name in names if re.fullmatch(r"shard-\d+\.json", name)]
        for record in [*rolled["shards"], *single]:
            said = {k: v for k, v in record.items() if k != "seconds"}
            name = f"{stage}/shard {record['shard']}"
            found[name] = said if found.get(name, said) == said else [found[name], said]
        if MANIFEST in names:
            found[f"{stage}/files"] = rolled["stage"]
            manifest = folder.read_json(MANIFEST)
            found[f"{stage}/manifest"] = {k: v for k, v in manifest.items() if k != "provenance"}
    return found


@dataclass
class Round:
    """One round: its own workspace and its own random numbers."""

    world: World
    kind: str
    number: int
    seed: int
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} {self.kind} {self.number}")
        if self.kind == TRAINING:
            self.world = self.world.training()
        self.folder.mkdir()

    @property
    def folder(self) -> Path:
        """Everything of the round."""
        return self.world.root / f"{self.kind.replace(' ', '-')}-{self.number}"

    @property
    def workspace(self) -> Path:
        """The workspace, where it is local."""
        return self.folder / "ws"

    @property
    def log(self) -> Path:
        """Output of the runs."""
        return self.folder / "log"

    def moment(self) -> Callable[[], bool]:
        """Comes true at a random moment: some time after a random number of files has appeared."""
        files = self.random.randrange(self.world.files * 9 // 10)
        delay = self.random.random() * self.random.choice([0.0, 0.01, 0.05, 0.2])
        seen: list[float] = []

        def came() -> bool:
            if not seen and sum(path.is_file() for path in self.workspace.rglob("*")) >= files:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] >= delay

        return came

    def checkpoint(self, stage: str) -> Callable[[], bool]:
        """Comes true a little while after a random one of a training's checkpoints, or after its beginning."""
        step = self.random.choice([0, *CHECKPOINTS[stage]])
        pattern = f"{stage}/*/checkpoints/**/step-*.pt" if step else f"{stage}/*"
        delay = self.random.random() * self.random.choice([0.0, 0.01, 0.05, 0.2])
        seen: list[float] = []

        def came() -> bool:
            if not seen and any(not step or int(p.stem[5:]) >= step for p in self.workspace.glob(pattern)):
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] >= delay

        return came

    def rerun(self, outcome: str = RERUN) -> str:
        """Check what the fault left, run to the end, check the result; returns `outcome`."""
        workspace = Folder(str(self.workspace))
        self.world.check_whole(workspace)
        self.world.finish(self.world.starter.start(self.world.arguments(self.workspace), self.log))
        self.world.check_same(workspace)
        return outcome

    def clean(self) -> None:
        """Remove everything of a round that went well."""
        shutil.rmtree(self.folder)


def late_too_often(counts: dict[str, Counter[str]]) -> list[str]:
    """Kinds of which more than a fifth of the rounds, and more than one, broke nothing."""
    return [kind for kind, found in counts.items() if found[TOO_LATE] > max(1, sum(found.values()) / 5)]
