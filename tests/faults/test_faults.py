"""A few rounds of the fault harness, and proof that it sees what it is there to see. `make faults` runs a hundred.

The usual tests have single breaks: test_runner, test_lost_work, test_ray_backend, test_unwritable, test_s3.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kinds import KINDS
from fault_processes import Starter, wait
from fault_rounds import CHECKPOINTS, RERUN, TOO_LATE, WENT_ON, Round, World, Wrong, late_too_often

from regionclip_core.storage.folder import Folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Starter() as starter:
        yield World(tmp_path_factory.mktemp("faults"), starter)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill driver", "full disk"])
def test_a_rerun_finishes_with_the_same_bytes(world: World, kind: str) -> None:
    assert KINDS[kind][0](Round(world, kind, 0, seed=0)) == RERUN


@pytest.mark.slow
def test_a_full_disk_where_nothing_may_be_mounted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then files run out of space by a wrapper around them."""
    monkeypatch.setenv("PATH", "")
    assert KINDS["full disk"][0](Round(world, "full disk", 1, seed=0)) == RERUN


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(world: World) -> None:
    trains = world.training()
    made = {name for name in trains.digests if name.endswith(".safetensors")}
    assert {f"{stage}/" for stage in CHECKPOINTS} <= {name[: name.index("/") + 1] for name in made}
    assert KINDS["kill training"][0](Round(world, "kill training", 0, seed=0)) == RERUN


def test_kinds_that_break_nothing_are_reported() -> None:
    counts = {"a": Counter({RERUN: 8, TOO_LATE: 2}), "b": Counter({RERUN: 7, TOO_LATE: 3}), "c": Counter({TOO_LATE: 1})}
    assert late_too_often(counts) == ["b"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("kill driver", "kill training", "full disk")])
def test_every_kind_of_fault(world: World, kind: str) -> None:
    assert KINDS[kind][0](Round(world, kind, 0, seed=1)) in (RERUN, WENT_ON)


@pytest.mark.slow
def test_what_is_wrong_is_seen(world: World, tmp_path: Path) -> None:
    """A byte more in a file, a file cut short, one missing, a record or manifest that says something else, a temporary
    file that stays, a run that fails.
    """
    workspace = tmp_path / "ws"
    world.finish(world.starter.start(world.arguments(workspace), tmp_path / "log"))
    folder = Folder(str(workspace))
    world.check_same(folder)
    file = next(workspace.glob("data/*/index-00003.parquet"))
    data = file.read_bytes()
    for spoilt in (data + b"x", data[:-1], b""):
        file.write_bytes(spoilt)
        for check in (world.check_same, world.check_whole):
            with pytest.raises(Wrong, match=r"data/index-00003\.parquet"):
                check(folder)
    file.unlink()
    with pytest.raises(Wrong, match="1 files differ"):
        world.check_same(folder)
    with pytest.raises(Wrong, match=r"index-00003\.parquet: missing"):
        world.check_whole(folder)
    file.write_bytes(data)
    for name, old, new in [
        ("records.json", '"seconds":', '"rows":9,"seconds":'),
        ("manifest.json", '"images": {', '"images": {"more": 1, '),
    ]:
        text = (file.parent / name).read_text()
        assert old in text
        (file.parent / name).write_text(text.replace(old, new, 1))
        with pytest.raises(Wrong, match="the uninterrupted run's"):
            world.check_whole(folder)
        (file.parent / name).write_text(text)
    (file.parent / ".tmp-1-x").touch()
    with pytest.raises(Wrong, match="temporary files stay"):
        world.check_same(folder)
    run = world.starter.start(world.arguments(tmp_path / "no", "--set", "data.splits=3"), tmp_path / "log")
    with pytest.raises(Wrong, match=r"ends with status 2\n(.*\n)*.*data\.splits"):
        world.finish(run)
    run = world.starter.start(world.arguments(tmp_path / "hangs"), tmp_path / "log")
    with pytest.raises(TimeoutError, match="did not end within 0 s"):
        wait(run, limit=0)
    assert wait(run) == -9
