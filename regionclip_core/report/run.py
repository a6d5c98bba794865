"""A finished run as the page's sections read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.csv_tables import CsvTables
from regionclip_core.report.curves import charts
from regionclip_core.report.detections import Detections, Truth, look_at, read_truth
from regionclip_core.report.pictures import Drawn, PictureBook, true_boxes
from regionclip_core.report.precision_recall import PrecisionRecall
from regionclip_core.report.samples import Sample
from regionclip_core.storage.records import Folder, Manifest

Values = dict[str, Any]

INITS = {"clip": "CLIP init", "regionclip": "RegionCLIP init", "oracle": "all boxes (oracle)"}
"""Finetuned detectors, and what the page calls them."""


@dataclass
class Run:
    """A finished run: its artifacts and their manifests by stage name."""

    config: Config
    folders: Mapping[str, Folder]
    manifests: Mapping[str, Manifest]
    vocabulary: Vocabulary
    book: PictureBook = field(default_factory=PictureBook)
    tables: CsvTables = field(default_factory=CsvTables)

    def summary(self, stage: str) -> Values:
        """Return the stage's own summary; empty where the stage was not run."""
        return self.manifests[stage].summary if stage in self.manifests else {}

    def left_out(self, stage: str) -> list[str]:
        """Return sentences about samples, or parts of samples, that the stage could not use."""
        counts = self.manifests[stage].counts if stage in self.manifests else {}
        lines = []
        for prefix, what in (("bad_", "Bad samples, left out"), ("lost_", "Images used without a bad part")):
            named = {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix)}
            parts = [f"{name.replace('_', ' ')} {n:,}" for name, n in named.items() if n and name != "annotations"]
            lines += [f"{what}: {', '.join(parts)}."] if parts else []
        if orphans := counts.get("lost_annotations"):  # they cost no sample
            lines.append(f"Annotations whose image is not listed: {orphans:,}.")
        return lines

    def training(self, stage: str, files: Mapping[str, str] | None = None) -> Values | None:
        """Return charts of a stage's trainings, `files` by training; None where the stage had nothing to do."""
        if stage not in self.folders or "unused" in self.summary(stage):
            return None
        folder, files = self.folders[stage], files or {stage: "history.json"}
        histories = {run: folder.read_json(file) for run, file in files.items() if folder.exists(file)}
        return {"charts": charts(histories), "runs": list(histories)}

    def true_boxes(self, sample: Sample, text: bool = True) -> list[Drawn]:
        """Return the annotated objects, to be drawn in the colour of their kind."""
        return true_boxes(sample, self.vocabulary, text)

    @cached_property
    def truth(self) -> Truth:
        """The images and objects of the evaluated split."""
        return read_truth(self.folders["data"], self.config.evaluate.split)

    @cached_property
    def detected(self) -> tuple[dict[str, Detections], dict[str, Mapping[str, Any]]]:
        """What each finetuned detector found, and its precision by group and recall; by title.

        Empty where no detector's detections are there.
        """
        evaluate, found, curves = self.folders["evaluate"], dict[str, Detections](), dict[str, Mapping[str, Any]]()
        stems = {stem: title for stem, title in INITS.items() if evaluate.exists(f"detections-{stem}.json")}
        if not stems:
            return found, curves
        measured = PrecisionRecall(self.config, self.folders["data"], self.folders["proposals"])
        for stem, title in stems.items():
            found[title] = look_at(evaluate, stem, self.truth, measured.add)
            curves[title] = measured.curves()
        return found, curves
