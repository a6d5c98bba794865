"""The report page: one HTML file with everything inside, no scripts, nothing fetched.

It depends on the artifacts and the settings alone: the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.data_sections import (
    Sources,
    concepts_section,
    data_section,
    labels_section,
    proposals_section,
)
from regionclip_core.report.detections import MAX_DRAWN, SCORE_THRESHOLD, detection_pictures
from regionclip_core.report.markup import escape, section
from regionclip_core.report.results_section import results_section
from regionclip_core.report.style import STYLE
from regionclip_core.report.training_sections import (
    artifacts_section,
    finetune_section,
    pretrain_section,
    rpn_section,
    teacher_section,
)
from regionclip_core.storage.records import Folder, read_manifest

_STAGES = ("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs", "pretrain", "finetune", "evaluate")


def build_page(config: Config, inputs: Mapping[str, Folder]) -> str:
    """The whole page as HTML.

    Args:
        inputs: finished artifacts by stage name; those that the run had no use for may be missing.

    Raises:
        ValueError: an input has no manifest, i.e. its stage is not finished.
    """
    sources = _sources(config, inputs)
    metrics = inputs["evaluate"].read_json("metrics.json")
    sections = [
        ("results", "Results", results_section(metrics, sources.vocabulary)),
        ("detections", "Detections", _detections(sources)),
        ("data", "Data", data_section(sources)),
        ("concepts", "Concepts", concepts_section(sources)),
        ("teacher", "Teacher", teacher_section(sources)),
        ("rpn", "Proposal network", rpn_section(sources)),
        ("proposals", "Proposals", proposals_section(sources)),
        ("labels", "Pseudo labels", labels_section(sources)),
        ("pretrain", "Pretraining", pretrain_section(sources)),
        ("finetune", "Finetuning", finetune_section(sources)),
        ("artifacts", "Artifacts", artifacts_section(sources)),
    ]
    shown = [entry for entry in sections if entry[2]]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in shown)
    body = "\n".join(part for _, _, part in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>RegionCLIP report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><div>{_introduction(sources)}</div></header>\n<nav><div>{links}</div></nav>\n"
        f"<main>\n{body}\n<footer>One self-contained page: nothing on it is fetched from elsewhere.</footer>\n</main>\n"
        f"{sources.book.definitions()}\n</body>\n</html>\n"
    )


def _sources(config: Config, inputs: Mapping[str, Folder]) -> Sources:
    folders = {name: inputs[name] for name in _STAGES if name in inputs}
    manifests = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"report: {folder.url} has no manifest.json; run the {name} stage first")
        manifests[name] = manifest
    vocabulary = Vocabulary.from_json(folders["data"].read_json("categories.json"))
    return Sources(config, folders, manifests, vocabulary)


def _introduction(sources: Sources) -> str:
    config = sources.config
    training = "trained here" if config.teacher.weights == "train" else f"weights {config.teacher.weights}"
    facts = f"Teacher {config.teacher.model} ({training}) · seed {config.seed}"
    return (
        "<h1>RegionCLIP: report of a run</h1>\n"
        "<p>RegionCLIP (Zhong et al., CVPR 2022) teaches CLIP to name regions of an image instead of whole images. "
        "Nouns are parsed from captions, a teacher CLIP matches them to proposed regions, and a student is pretrained "
        "on these pseudo labels without any box label. A detector that starts from the student is then finetuned on "
        "boxes of base categories and measured on base and on novel categories, whose boxes it never saw. "
        "This page shows whether that worked in this run, and what each stage did.</p>\n"
        f"<p class='note'>{escape(facts)}</p>"
    )


def _detections(sources: Sources) -> str:
    config = sources.config
    pictures = detection_pictures(
        sources.folders["data"],
        sources.folders["evaluate"],
        config.evaluate.split,
        config.report.images,
        sources.vocabulary,
        sources.book,
    )
    if not pictures:
        return ""
    return section(
        "detections",
        "Detections",
        f"<p>Images of the split <code>{escape(config.evaluate.split)}</code>, spread evenly over those with a novel "
        "object, not chosen by result. Both detectors were finetuned on the same base boxes. Drawn are the best "
        f"{MAX_DRAWN} detections an image with a score from {SCORE_THRESHOLD:g}.</p>",
        "<p class='legend'><span><i class='key box base'></i>base category</span>"
        "<span><i class='key box novel'></i>novel category</span>"
        "<span><i class='key box'></i>solid: right, an object of that category at IoU 0.5</span>"
        "<span><i class='key box dashed'></i>dashed: wrong</span></p>",
        pictures,
    )
