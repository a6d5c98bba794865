"""`execution.precision` in whole runs: what it changes, what the manifests say of it, and `detect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_runs import Run, finished_run
from PIL import Image
from small_runs import content, manifest, run_small, small_config

from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.precision import set_precision

RPN = {"proposals": {"method": "rpn"}}


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    yield
    set_precision("float32", "cpu")


@pytest.mark.parametrize("value", ["float16", "half", "fp32", True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"execution\.precision"):
        small_config("unused", execution={"backend": "local", "precision": value})


@pytest.mark.slow
def test_a_run_in_bf16_says_so(tmp_path: Path) -> None:
    """Every stage with a network has other bytes than in float32; recomputed activations change none."""
    execution = {"backend": "local", "threads": 1}
    for name, chosen in {
        "auto": {"recompute_activations": True},
        "float32": {"precision": "float32"},
        "bf16": {"precision": "bf16"},
    }.items():
        config = small_config(tmp_path / name, execution={**execution, **chosen}, **RPN)
        result = run_small(config, "evaluate")
        assert result.ok, result.messages
    auto, exact, found = (content(tmp_path / name) for name in ("auto", "float32", "bf16"))
    assert auto == exact
    same = {name for name, digest in found.items() if digest == exact[name]}
    assert same == {"data", "concepts", "teacher"}
    for stage in found.keys() - same - {"pairs"}:
        here, before = manifest(tmp_path / "bf16", stage), manifest(tmp_path / "float32", stage)
        if stage in ("proposals", "labels"):
            assert here["counts"]["in_bf16"] == here["rows"] and "in_bf16" not in before["counts"]
        else:
            assert here["summary"]["precision"] == "bf16" and "precision" not in before["summary"]


def test_detect_works_in_the_precision_asked_for(tmp_path: Path) -> None:
    run: Run = finished_run(tmp_path, "finetune")
    image = tmp_path / "scene.png"
    Image.fromarray(make_sample("scene", 5, "mine", 0, 128).image).save(image)

    def scores(*more: str) -> list[float]:
        out = tmp_path / "-".join(("out", *more))
        result = run("detect", str(image), "--out", str(out), "--score", "0", *more)
        assert result.exit_code == 0, result.output
        return [found["score"] for found in json.loads((out / "detections.json").read_text())[0]["detections"]]

    usual, exact, found = scores(), scores("--precision", "float32"), scores("--precision", "bf16")
    assert usual == exact
    assert found != exact and found[:20] == pytest.approx(exact[:20], abs=0.02)
    for value, message in {"half": "expected one of auto, float32, tf32, bf16", "tf32": "does not have"}.items():
        result = run("detect", str(image), "--out", str(tmp_path / "no"), "--precision", value)
        assert result.exit_code == 2 and f"--precision {'is ' * (value == 'tf32')}{value}" in result.stderr
        assert message in result.stderr and not (tmp_path / "no").exists()
