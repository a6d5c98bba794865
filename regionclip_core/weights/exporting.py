"""Models out of a run or a folder, for other programs: open_clip, Hugging Face's repository layout.

Official files are `official_export`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import open_clip

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.model_folder import CARD, config_of, save_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.evaluation.metrics import paper_numbers
from regionclip_core.models.clip import ClipModel, save_clip
from regionclip_core.models.text_embeddings import NamePrompts, write_prompts
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS
from regionclip_core.weights.model_card import (
    INTENDED_USE,
    LIMITS,
    LIMITS_OF_CLIP,
    ModelCard,
    Result,
    architecture_text,
    data_text,
    detect_usage,
    provenance_text,
    results_text,
    settings_text,
)

_TRAINED_BY = {
    "teacher": ("data", "teacher"),
    "student": ("data", "concepts", "teacher", "labels", "pretrain"),
    "detector": ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pretrain", "finetune", "evaluate"),
}
"""Sections of the config that shape each kind of model."""


@dataclass(frozen=True)
class RunFacts:
    """What a run knows about the model that is exported from it."""

    config: Config
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Manifests of the finished stages behind the model, as JSON, in pipeline order."""
    metrics: Mapping[str, Any] | None = None
    """metrics.json of the evaluate stage, where it has run."""
    vocabulary: Vocabulary | None = None

    @property
    def images(self) -> dict[str, int]:
        """Usable images by split, as far as the run has counted them."""
        return dict(self.stages["data"]["summary"]["images"]) if "data" in self.stages else {}


def export_open_clip(folder: Folder, clip: ClipModel, card: ModelCard, prompts: NamePrompts | None) -> None:
    """A folder that open_clip opens with `local-dir:`: its configuration, the weights, a card, and our prompts."""
    save_clip(clip, folder, layout=CLIP_LAYOUTS[0])
    description = folder.read_json(CLIP_LAYOUTS[0][0])
    description["preprocess_cfg"] |= usual_resizing(clip.name)
    folder.write_json(CLIP_LAYOUTS[0][0], description, indent=1)
    if prompts is not None:
        write_prompts(folder, prompts)
    folder.write_bytes(CARD, card.render().encode())


def usual_resizing(name: str) -> dict[str, str]:
    """How open_clip resizes images for an architecture, where its published weights agree: SigLIP squashes them."""
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    found = {key: {tag.get(key) for tag in tags} for key in ("interpolation", "resize_mode")}
    return {key: values.pop() for key, values in found.items() if len(values) == 1 and None not in values}


def export_detector(folder: Folder, model: RegionModel, card: ModelCard) -> None:
    """Write a detector folder; the text encoder's prompts go with it, so that new names are embedded alike."""
    save_model(folder, model, card.render())


# ---------------------------------------------------------------- cards


def clip_card(clip: ClipModel, what: str, facts: RunFacts | None) -> ModelCard:
    """The card of a `student` or `teacher`; `facts` of the run that it comes from."""
    origin = {
        "student": "The student of region-text pretraining (RegionCLIP, arXiv 2112.09106): a CLIP model whose image "
        "encoder was trained on pseudo labels of image regions, so that it also understands regions.",
        "teacher": "The teacher of region-text pretraining (RegionCLIP, arXiv 2112.09106): the CLIP model whose "
        "knowledge of whole images labels regions.",
    }[what]
    usage = (
        "import open_clip\n"
        "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:FOLDER')\n"
        "tokenizer = open_clip.get_tokenizer('local-dir:FOLDER')\n\n"
        "# or, with a proposal network, as a detector of any names:\n"
        '# regionclip detect photo.jpg --model FOLDER --rpn RPN_FOLDER --classes "cat,traffic light"'
    )
    architecture = f"{clip.name}: images of {clip.image_size} x {clip.image_size} pixels, embeddings of "
    sections = [("Model", f"{architecture}{clip.embed_dim} numbers, temperature {1 / clip.logit_scale:.4g}.")]
    return ModelCard(
        title=f"RegionCLIP {what} {clip.name}",
        task="zero-shot-image-classification",
        library="open_clip",
        summary=origin,
        usage=usage,
        sections=(*sections, *_run_sections(facts, what), ("Intended use", INTENDED_USE), ("Limits", LIMITS_OF_CLIP)),
        tags=("clip", "open-vocabulary"),
        results=_results(facts, "clip" if what == "teacher" else "regionclip", "zero-shot"),
    )


def detector_card(model: RegionModel, name: str, facts: RunFacts | None) -> ModelCard:
    """The card of a detector; `name` is its name in the run."""
    base, novel = len(model.vocabulary.base), len(model.vocabulary.novel)
    split = f" ({base} base, {novel} novel)" if base and novel else ""
    trained = {
        "regionclip": "finetuned from the student of region-text pretraining on boxes of base categories",
        "clip": "finetuned from CLIP itself on boxes of base categories, as a baseline",
        "oracle": "finetuned from the student of region-text pretraining on boxes of all categories, novel ones "
        "included: an upper bound, no open-vocabulary result",
    }
    return ModelCard(
        title=f"RegionCLIP detector {model.clip_name}",
        task="zero-shot-object-detection",
        library="regionclip",
        summary=f"An open-vocabulary detector (RegionCLIP, arXiv 2112.09106), {trained.get(name, 'as imported')}. "
        f"It comes with {len(model.vocabulary)} names{split}; others can be given in words.",
        usage=detect_usage(model.proposer is not None, model.text is not None),
        sections=(
            ("Model", architecture_text(config_of(model))),
            *_run_sections(facts, "detector"),
            ("Intended use", INTENDED_USE),
            ("Limits", LIMITS),
        ),
        tags=("object-detection", "open-vocabulary-detection"),
        results=_results(facts, name, "open-vocabulary"),
    )


def _run_sections(facts: RunFacts | None, what: str) -> list[tuple[str, str]]:
    if facts is None:
        return [("Training", "Not trained by the program that wrote this card; see `import.json` where it is there.")]
    config = facts.config.model_dump(mode="json")
    found = []
    if facts.stages:
        groups = {}
        if facts.vocabulary is not None:
            groups = {"base": len(facts.vocabulary.base_ids), "novel": len(facts.vocabulary.novel_ids)}
        found.append(("Data", data_text(config["data"]["splits"], facts.images, groups)))
    shown = [name for name in _TRAINED_BY[what] if name != "data"]
    found.append(("Settings", settings_text(config, ["seed", *shown])))
    if facts.metrics is not None:
        text = results_text(paper_numbers(facts.metrics))
        where = f"Measured by the run on {facts.metrics['images']} images of the split `{facts.config.evaluate.split}`."
        found.append(("Results", f"{where}\n\n{text}" if text else where))
    else:
        found.append(("Results", "Not measured: the run's evaluate stage had not finished when this was exported."))
    if facts.stages:
        found.append(("Where it came from", provenance_text(facts.stages)))
    return found


def _results(facts: RunFacts | None, model: str, kind: str) -> tuple[Result, ...]:
    """The numbers of one model in the tables whose title begins with `kind`."""
    if facts is None or facts.metrics is None:
        return ()
    split = f"{facts.config.data.categories.split('/')[-1]}, split {facts.config.evaluate.split}"
    found = []
    for title, models in paper_numbers(facts.metrics).items():
        if not title.startswith(kind) or model not in models:
            continue
        setting, _, metric = title.rpartition(", ")
        for column, value in models[model].items():
            if value is not None:
                name = column if column.startswith("AP") else f"{metric} {column}"
                found.append(Result(f"{split}: {setting}", name, value))
    return tuple(found)
