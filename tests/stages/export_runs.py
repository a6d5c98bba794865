"""A finished small run with a proposal network, and its config as a file, for the tests of detect and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from small_runs import run_small, small_tree
from typer.testing import CliRunner, Result

from regionclip_core.config.loading import parse_config
from stages.cli import app


@dataclass(frozen=True)
class Run:
    """A workspace and the file of its config."""

    workspace: Path
    file: Path

    def __call__(self, command: str, *arguments: str) -> Result:
        """A command with the run's config."""
        return CliRunner().invoke(app, [command, *arguments, "--config", str(self.file)])


def finished_run(root: Path, *stages: str) -> Run:
    """Run the stages (all without a name) on the embedded world."""
    architecture = {
        "embed_dim": 16, "image_size": 32, "vision_width": 8, "text_width": 16, "text_heads": 2, "context_length": 16,
        "quick_gelu": True,
    }  # fmt: skip
    tree = small_tree(
        root / "ws",
        teacher={"architecture": architecture},
        proposals={"method": "rpn", "max_regions": 8},
        finetune={"background": "zero", "oracle": False},
    )
    file = root / "c.yaml"
    file.write_text(yaml.safe_dump(tree))
    result = run_small(parse_config(tree), *stages)
    assert result.ok, result.messages
    return Run(root / "ws", file)


def free(command: str, *arguments: str) -> Result:
    """A command without any config."""
    return CliRunner().invoke(app, [command, *arguments])
