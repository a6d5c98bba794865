"""Model cards: README.md of an exported model, in the form of Hugging Face's, filled in by the run that made it.

Numbers are percent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regionclip_core.config.yaml_text import yaml_text

LICENSE = "apache-2.0"
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://")
_PRIVATE = frozenset({"workspace", "execution", "report"})
"""Sections that say where a run took place, not what it computed."""

INTENDED_USE = (
    "Research on open-vocabulary detection, and finding objects by name in photographs where a person looks at the "
    "result. Names outside of its training are understood only as far as the text encoder goes."
)
LIMITS = (
    "Scores are no calibrated probabilities. Small, crowded and unusual objects are missed more often than average "
    "precision suggests, and a name that fits nothing in the image may still be found somewhere. The model inherits "
    "the biases of the captions and images that CLIP was trained on. It must not be used to identify people or to "
    "judge them, nor where a wrong or missing detection can do harm."
)
LIMITS_OF_CLIP = (
    "The model compares images and regions with text; it finds no boxes by itself. It inherits the biases of the "
    "captions and images that CLIP was trained on, and must not be used to identify people or to judge them."
)


@dataclass(frozen=True)
class Result:
    """One number of the card's machine-readable part."""

    dataset: str
    metric: str
    """Its name, such as `AP50 novel`."""
    value: float


@dataclass(frozen=True)
class ModelCard:
    """What a card says; `render` gives the file's text."""

    title: str
    task: str
    """Hugging Face's `pipeline_tag`."""
    library: str
    summary: str
    usage: str
    """Shell or Python lines."""
    sections: tuple[tuple[str, str], ...] = ()
    """Headings and Markdown, after the usage."""
    tags: tuple[str, ...] = ()
    results: tuple[Result, ...] = field(default=())
    license: str = LICENSE
    """Of the weights; `other` where they come from elsewhere."""

    def render(self) -> str:
        """README.md: YAML between two lines of dashes, then Markdown."""
        front: dict[str, Any] = {
            "license": self.license,
            "library_name": self.library,
            "pipeline_tag": self.task,
            "tags": ["regionclip", *self.tags],
            "metrics": sorted({result.metric.split()[0] for result in self.results}),
        }
        if self.results:
            front["model-index"] = [{"name": self.title, "results": [self._entry(name) for name in self._datasets()]}]
        text = yaml_text(front, 110)
        parts = [f"---\n{text}---", f"# {self.title}", self.summary, f"## Use\n\n```\n{self.usage.strip()}\n```"]
        parts += [f"## {heading}\n\n{body.strip()}" for heading, body in self.sections]
        return "\n\n".join(parts) + "\n"

    def _datasets(self) -> list[str]:
        return list(dict.fromkeys(result.dataset for result in self.results))

    def _entry(self, dataset: str) -> dict[str, Any]:
        metrics = [
            {"type": result.metric.split()[0], "name": result.metric, "value": round(result.value, 2)}
            for result in self.results
            if result.dataset == dataset
        ]
        slug = re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-")
        return {"task": {"type": self.task}, "dataset": {"type": slug, "name": dataset}, "metrics": metrics}


def detect_usage(has_network: bool, has_text: bool) -> str:
    """Shell lines that run a detector folder: `--rpn` where it has no proposal network, `--classes` where it can."""
    line = "regionclip detect photo.jpg --model FOLDER" + ("" if has_network else " --rpn RPN_FOLDER")
    return line + (f'\n{line} --classes "cat,traffic light"' if has_text else "")


# ---------------------------------------------------------------- parts of a run's card


def settings_text(config: Mapping[str, Any], sections: Iterable[str]) -> str:
    """Sections of a config as YAML, without what says where the run took place: paths are cut to their last part."""
    shown = {name: _without_places(config[name]) for name in sections if name in config and name not in _PRIVATE}
    return f"```yaml\n{yaml_text(shown, 110, short_lists_in_a_line=True)}```"


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def data_text(splits: Mapping[str, Any], images: Mapping[str, int], vocabulary: Mapping[str, int]) -> str:
    """A table of the splits, with the images that could be used where the run has counted them."""
    rows = []
    for name, split in splits.items():
        files = [split[key] for key in ("instances", "captions", "urls") if split.get(key)]
        count = images.get(name)
        rows.append([name, split["source"], ", ".join(map(str, _without_places(files))) or "-", _count(count)])
    groups = ", ".join(f"{count} {name}" for name, count in vocabulary.items())
    return f"{table(['split', 'source', 'files', 'images'], rows)}\n\nCategories: {groups}."


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_text(tables: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    """Tables of results (title -> model -> column -> percent) one below the other."""
    parts = []
    for title, models in tables.items():
        columns = list(next(iter(models.values())))
        rows = [[model, *(_number(values[column]) for column in columns)] for model, values in models.items()]
        parts.append(f"{title[0].upper()}{title[1:]}, percent:\n\n{table(['model', *columns], rows)}")
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def provenance_text(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """How the stages behind a model came about: stage -> `fingerprint`, `content_digest`, `provenance` of its manifest.

    Hosts are left out.
    """
    rows, commits = [], set()
    packages: dict[str, str] = {}
    for name, manifest in stages.items():
        made = manifest.get("provenance", {})
        commits.add(made.get("git_commit") or "unknown")
        packages |= made.get("packages", {})
        finished = str(made.get("finished", "-"))[:19]
        rows.append([name, f"`{manifest['fingerprint'][:12]}`", f"`{manifest['content_digest'][:12]}`", finished])
    versions = ", ".join(f"{package} {version}" for package, version in sorted(packages.items())) or "unknown"
    return (
        f"{table(['stage', 'settings and inputs', 'content', 'finished (UTC)'], rows)}\n\n"
        f"Commit of the code: {', '.join(sorted(commits))}. Packages: {versions}."
    )


def architecture_text(config: Mapping[str, Any]) -> str:
    """config.json's description of a detector in words and one JSON line."""
    rpn = config["rpn"]
    network = (
        "none: give `detect` the folder of one with --rpn" if rpn is None else f"`{rpn['backbone']}`, {json.dumps(rpn)}"
    )
    rows = [
        ["image encoder", f"{config['clip_name']} of CLIP, run on regions by RoIAlign"],
        ["classifier", f"{len(config['names'])} names, cosine / {config['temperature']:.4g}"],
        ["background", config["background"]],
        ["masks", "class-agnostic mask head" if config["mask_head"] else "none"],
        ["proposals", network],
        ["input", f"shorter side {config['preprocess']['image_size']} px, longer {config['preprocess']['max_size']}"],
        ["scoring", json.dumps(config["inference"])],
    ]
    return table(["part", "what"], rows)
