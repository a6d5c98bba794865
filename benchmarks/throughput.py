"""What a run gets through: labels against the machine's convolution peak, a training's loader, captions."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from made_inputs import Scale, make_boxes, make_clip, make_config, make_image, write_label_inputs
from measuring import Cost, Figure, cost_of
from plain_reference import PlainEncoder
from torch.utils.flop_counter import FlopCounterMode

from regionclip_core.storage.records import Folder
from stages.base import ShardWork, StageContext, load_work


@torch.inference_mode()
def convolution_peak(toy: bool) -> float:
    """Return FLOP per CPU second of a large 3 x 3 convolution: two per multiplication and addition."""
    images, side, channels = (1, 8, 256) if toy else (8, 56, 256)
    x = torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    seconds = min(cost_of(lambda: layer(x))[0].seconds for _ in range(5))
    return 2 * 9 * channels**2 * images * side**2 / seconds


def convolution_flops(scale: Scale) -> int:
    """Count the FLOP of the convolutions of one image with its regions, as the plain reference computes them."""
    encoder = PlainEncoder(make_clip(scale.toy).model.visual)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encoder(make_image(scale), [make_boxes(scale.regions[0], scale.height, scale.width)])
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])


def measure_labels(scale: Scale) -> list[Figure]:
    """Label a shard of JPEGs as the stage does."""
    config, flops = make_config(scale), convolution_flops(scale)
    rates, shares, costs = [], [], list[Cost]()
    with tempfile.TemporaryDirectory() as place:
        inputs = write_label_inputs(Folder(place), scale.labelled, scale)
        work, context = load_work("stages.labels:WORK"), StageContext(config, inputs["labels"], inputs)
        assert isinstance(work, ShardWork)
        state = work.setup(context)
        for _ in range(scale.rounds):
            peak = convolution_peak(scale.toy)
            cost, result = cost_of(lambda: work.process(context, state, 0))
            assert result.counts["regions"] == scale.labelled * scale.regions[0], result
            costs.append(cost)
            rates.append(scale.labelled / cost.seconds)
            shares.append(100 * flops * scale.labelled / cost.seconds / peak)
    memory = max(cost.memory for cost in costs)
    regions = [rate * scale.regions[0] for rate in rates]
    what = f"labels, {scale.height} x {scale.width} pixels, {scale.regions[0]} regions"
    return [
        Figure(what, rates, "images per CPU second", memory),
        Figure(what, regions, "regions per CPU second"),
        Figure(f"{what}: the plain form's convolutions per second", shares, "% of the convolution peak"),
    ]


def printed(script: str, *options: str) -> str:
    """Return what another benchmark prints; those that start processes get one of their own."""
    line = [sys.executable, str(Path(__file__).with_name(script)), *options]
    return subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout


def loader_text(scale: Scale) -> str:
    """Return images/s of a training's loader, and how long a step waits for it."""
    return printed("bench_loader.py", *(["--quick"] if scale.toy else []))


def startup_text(scale: Scale) -> str:
    """Return how fast the command line answers, and how fast many shards are planned."""
    return printed("bench_startup.py", "--skip-ray", *(["--shards", "40", "--rounds", "1"] if scale.toy else []))


def captions_text(scale: Scale) -> str:
    """Return captions per CPU second of the caption parser, and where its time goes."""
    if not scale.toy:
        return printed("bench_concepts.py")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("A man riding a brown horse on a city street.\nTwo dogs.\n")
        file.flush()
        return printed("bench_concepts.py", file.name)
