"""The reference run over several seeds, teacher included: mean and range of every headline number, as Markdown.

python benchmarks/seeds.py 0 1 2                 # runs what is not done yet, in runs/seed-<n>
python benchmarks/seeds.py --metrics a.json ...  # only reads finished metrics.json files
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
Value = Callable[[Metrics], float]


def ap50(setting: str, model: str, group: str) -> Value:
    """Reads one AP50."""
    return lambda m: float(m[setting][model][group]["ap50"])


def gain(setting: str, group: str) -> Value:
    """Reads RegionCLIP's AP50 less CLIP's."""
    return lambda m: ap50(setting, "regionclip", group)(m) - ap50(setting, "clip", group)(m)


def region_top1(model: str, group: str) -> Value:
    """Reads the top-1 accuracy of region features of given boxes."""
    return lambda m: float(m["zero_shot_gt"][model][group]["top1"])


def teacher_top1(kind: str, group: str) -> Value:
    """Reads the teacher's top-1 accuracy on whole images or crops."""
    return lambda m: float(m["teacher"][kind][group])


def rows() -> list[tuple[str, Callable[[str], Value]]]:
    """Label, and the value of a group, of every row of the table."""
    return [
        ("CLIP, whole images: top-1", lambda g: teacher_top1("whole_image_top1", g)),
        ("CLIP, crops: top-1", lambda g: teacher_top1("crop_top1", g)),
        ("CLIP, region features: top-1", lambda g: region_top1("clip", g)),
        ("RegionCLIP, region features: top-1", lambda g: region_top1("regionclip", g)),
        ("zero-shot, proposals, CLIP: AP50", lambda g: ap50("zero_shot_rpn", "clip", g)),
        ("zero-shot, proposals, RegionCLIP: AP50", lambda g: ap50("zero_shot_rpn", "regionclip", g)),
        ("**zero-shot gain**", lambda g: gain("zero_shot_rpn", g)),
        ("finetuned on base boxes, CLIP init: AP50", lambda g: ap50("finetuned", "clip", g)),
        ("finetuned on base boxes, RegionCLIP init: AP50", lambda g: ap50("finetuned", "regionclip", g)),
        ("**finetuned gain**", lambda g: gain("finetuned", g)),
        ("oracle, finetuned on all boxes: AP50", lambda g: ap50("finetuned", "oracle", g)),
    ]


def table(runs: list[Metrics]) -> str:
    """Mean over the runs, and the range in brackets."""
    lines = [f"| mean of {len(runs)} seeds (range) | novel | base |", "|---|---|---|"]
    for label, value in rows():
        cells = []
        for group in ("novel", "base"):
            values = [value(group)(run) for run in runs]
            cells.append(f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finished_metrics(seed: int) -> Metrics:
    """Bring the run of a seed up to date and read its metrics."""
    from regionclip_core.config.loading import load_config
    from stages.engine.plan import Planner
    from stages.engine.runner import Pipeline

    config = load_config("pipeline.yaml", [f"seed={seed}", f"workspace=runs/seed-{seed}"])
    if not Pipeline(config).run(["evaluate"]).ok:
        raise SystemExit(f"the run of seed {seed} failed; see runs/seed-{seed}")
    path = Planner(config).finished()["evaluate"].path
    return json.loads((Path(str(path)) / "metrics.json").read_text())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, help="seeds to run")
    parser.add_argument("--metrics", nargs="*", default=[], help="finished metrics.json files")
    arguments = parser.parse_args()
    runs = [finished_metrics(seed) for seed in arguments.seeds]
    runs += [json.loads(Path(name).read_text()) for name in arguments.metrics]
    if not runs:
        parser.error("give seeds to run or --metrics files to read")
    print(table(runs))


if __name__ == "__main__":
    main()
