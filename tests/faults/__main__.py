"""Breaks runs at random moments and shows that a rerun ends with the same bytes: `python tests/faults --rounds 100`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "stages"), str(HERE.parent.parent)]

from fault_kinds import KINDS  # noqa: E402
from fault_processes import Starter  # noqa: E402
from fault_rounds import OUTCOMES, Round, World, late_too_often  # noqa: E402

WRONG = "WRONG"


def shares(rounds: int, kinds: list[str]) -> list[str]:
    """The kind of each round: as often as its share says, at least once, spread evenly."""
    total = sum(KINDS[kind][1] for kind in kinds)
    due = []
    for kind in kinds:
        share = max(1, round(rounds * KINDS[kind][1] / total))
        due += [((number + 0.5) / share, kind) for number in range(share)]
    return [kind for _, kind in sorted(due)]


def table(counts: dict[str, Counter[str]], seconds: dict[str, float]) -> str:
    """Rounds by kind and outcome."""
    columns = (*OUTCOMES, WRONG)
    head = f"{'fault':<18}{'rounds':>7}" + "".join(f"{name:>21}" for name in columns) + f"{'seconds':>9}"
    rows = [
        f"{kind:<18}{sum(found.values()):>7}"
        + "".join(f"{found[name]:>21}" for name in columns)
        + f"{seconds[kind]:>9.0f}"
        for kind, found in counts.items()
    ]
    every: Counter[str] = sum(counts.values(), Counter())
    last = f"{'all':<18}{sum(every.values()):>7}" + "".join(f"{every[name]:>21}" for name in columns)
    return "\n".join([head, *rows, f"{last}{sum(seconds.values()):>9.0f}"])


def main() -> int:
    """Exit status 0 when every round ended as it must."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="how many; each kind gets its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only these; may be repeated")
    parser.add_argument("--number", type=int, help="only the round of this number, of each kind")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    root = Path(tempfile.mkdtemp(prefix="regionclip-faults-"))
    with Starter() as starter:
        world = World(root, starter)
        for kind in shares(arguments.rounds, kinds) if arguments.number is None else kinds:
            number, start = sum(counts[kind].values()), time.monotonic()
            if arguments.number is not None:
                number = arguments.number
            one = Round(world, kind, number, arguments.seed)
            try:
                outcome = KINDS[kind][0](one)
                one.clean()
            except Exception:
                outcome = WRONG
                print(f"--- {kind} {number} (seed {arguments.seed}), kept in {one.folder}\n{traceback.format_exc()}")
            counts[kind][outcome] += 1
            seconds[kind] += time.monotonic() - start
            print(f"{kind} {number}: {outcome}, {time.monotonic() - start:.1f} s", flush=True)
    print(table(counts, seconds))
    late = late_too_often(counts)
    for kind in late:
        print(
            f"{kind}: more than a fifth of the rounds came too late to break anything; its moments have to be earlier"
        )
    if late or any(found[WRONG] for found in counts.values()):
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
