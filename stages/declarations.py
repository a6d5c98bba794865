"""The pipeline at a glance: what each of the eleven stages is, what it reads, and what its result depends on.

A stage's name is its file `stages/<name>.py`, its key in pipeline.yaml, its argument on the command line and its folder
in the workspace. What it writes, and how, is in its file.

The planner and `status` import this file, so it imports neither torch nor Arrow nor spaCy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from regionclip_core.concepts.given_names import given_files
from regionclip_core.concepts.identity import parser_identity
from regionclip_core.config.rounds import is_student
from regionclip_core.config.section import Section
from regionclip_core.config.tree import RPN_FIELDS, CocoSplit, Config, FolderSplit, LvisSplit, TarsSplit, WorldSplit
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.synonyms import synonym_file
from regionclip_core.datasets.world.version import WORLD_VERSION
from regionclip_core.storage.given_files import clip_files, detector_files, rpn_files, text_files, text_settings
from regionclip_core.storage.locations import list_files, printable
from regionclip_core.storage.records import canonical_json

from .base import JobStage, ShardStage, Stage


class Data(ShardStage):
    """Every split as shards of index rows; the embedded world's images are drawn here too."""

    name = "data"
    version = 4

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, what its category list holds, and the names and sizes of tars (never their content)."""
        vocabulary = load_categories(config.data.categories)
        splits = config.data.splits
        settings: dict[str, Any] = {
            # Where the categories were read from makes no difference.
            "data": {**config.data.model_dump(mode="json"), "categories": vocabulary.digest},
            # Shard numbers follow it, and canonical JSON sorts keys.
            "order": list(splits),
        }
        if vocabulary.groups:
            settings["category_groups"] = _digest([[name, list(members)] for name, members in vocabulary.groups])
        if any(isinstance(split, WorldSplit) for split in splits.values()):
            settings |= {"seed": config.seed, "world_version": WORLD_VERSION}
        if tars := {name: split.urls for name, split in splits.items() if isinstance(split, TarsSplit)}:
            settings["tars"] = {name: _listing_digest(name, urls) for name, urls in tars.items()}
        return settings

    def raw_inputs(self, config: Config) -> list[str]:
        """Annotation and caption files."""
        files: set[str] = set()
        for split in config.data.splits.values():
            if isinstance(split, (CocoSplit, LvisSplit)):
                files |= {url for url in (split.instances, split.captions) if url}
            elif isinstance(split, FolderSplit):
                files.add(split.captions)
        return sorted(files)


class Concepts(ShardStage):
    """Captions to a concept pool (paper section 3.2)."""

    name = "concepts"
    version = 1
    for_pretraining = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Captions and the categories' names are in the data artifact."""
        return ("data",)

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, and the parser that it means on this machine: `auto` must not mix two parsers in one pool."""
        unset = _unset(config.concepts, "file", "add", "ban")  # older pools, made before there were any, stay good
        section = config.concepts.model_dump(mode="json", exclude=unset)
        return {"concepts": section, "parser": parser_identity(config.concepts)}

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of names count by their content."""
        return given_files(config.concepts)


class Teacher(JobStage):
    """The CLIP whose knowledge of whole images is carried to regions."""

    name = "teacher"
    version = 4
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Only training reads the data."""
        return ("data",) if config.teacher.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """Prompts and stored embeddings are left out: they concern embeddings of later stages, not this model."""
        training = {"checkpoint_every"} if config.teacher.weights == "train" else True
        unread = {"prompts": True, "normalize_prompts": True, "embeddings": True, "training": training}
        if config.teacher.value_blocks is None:  # older teachers, made before there was this setting, stay good
            unread |= {"value_blocks": True}
        seed = {"seed": config.seed} if config.teacher.weights in ("train", "random") else {}
        precision = _precision(config) if config.teacher.weights == "train" else {}
        return {"teacher": config.teacher.model_dump(mode="json", exclude=unread), **seed, **precision}

    def raw_inputs(self, config: Config) -> list[str]:
        """A local file or folder of weights counts by its content."""
        weights = config.teacher.weights
        if weights in ("train", "random"):
            return []
        # What is there is read, whatever its name; what looks like a path must be there; the rest are tags.
        is_place = Path(weights).exists() or "/" in weights or Path(weights).suffix
        return clip_files(weights, "teacher") if is_place else []


class Rpn(JobStage):
    """A class-agnostic region proposal network, trained on the boxes of base categories only."""

    name = "rpn"
    version = 3
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes, where a network is trained."""
        return ("data",) if config.proposals.method == "rpn" and config.rpn.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """What is read of the section; nothing but `unused` where another proposer is set."""
        if config.proposals.method != "rpn":
            return {"unused": config.proposals.method}
        if config.rpn.weights == "train":
            section = config.rpn.model_dump(mode="json", exclude={"checkpoint_every"})
            return {"rpn": section, "seed": config.seed, **_precision(config)}
        section = config.rpn.model_dump(mode="json", include={"weights", *RPN_FIELDS})
        return {"rpn": section, **({"seed": config.seed} if config.rpn.weights == "random" else {})}

    def raw_inputs(self, config: Config) -> list[str]:
        """A weight file counts by its content, also inside a folder."""
        given = config.proposals.method == "rpn" and config.rpn.weights not in ("train", "random")
        return rpn_files(config.rpn.weights) if given else []


class Proposals(ShardStage):
    """Boxes that may hold an object, one row per image."""

    name = "proposals"
    version = 3
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """The images, and the network where one proposes."""
        return ("data", "rpn") if config.proposals.method == "rpn" else ("data",)

    def settings(self, config: Config) -> dict[str, Any]:
        """What the method reads; for a network also how it is built and fed: its weights don't say its anchors."""
        method = config.proposals.method
        read = {
            "rpn": ("max_regions", "pre_nms", "nms", "min_objectness"),
            "grid": ("max_regions", "grid_scales"),
            "random": ("max_regions", "grid_scales"),
            "given": (),
        }
        section = config.proposals.model_dump(mode="json", include={"splits", "method", *read[method]})
        if method == "rpn":
            network = config.rpn.model_dump(mode="json", include=set(RPN_FIELDS))
            return {"proposals": section, "rpn": network, **_precision(config)}
        return {"proposals": section, **({"seed": config.seed} if method == "random" else {})}


class Labels(ShardStage):
    """The teacher matches proposals to concepts, once, offline (paper section 3.3, equation 1)."""

    name = "labels"
    version = 4
    uses_gpu = True
    for_pretraining = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Images, pool, teacher and boxes, these from the proposals unless a file has them; in a later round the
        student of the round before.
        """
        needed = ("data", "concepts", "teacher", *_student(config.labels.weights))
        return needed if config.labels.source is not None else (*needed, "proposals")

    def settings(self, config: Config) -> dict[str, Any]:
        """What the mode reads, and what shapes the embeddings of names; nothing is drawn by chance."""
        labels, unread = config.labels, {"later_rounds"}
        crops = set() if labels.crop_features else {"context", "batch_size"}
        unread |= {"roi": crops, "crop": {"image_size", "max_size", "resize"}}[labels.mode]
        unread |= {"canvas", "images_per_canvas"} if labels.canvas == "image" else set()
        by_teacher = labels.source is None or labels.source_probabilities == "teacher"
        if not by_teacher:
            unread |= {"mode", "image_size", "max_size", "resize", "canvas", "images_per_canvas", *crops}
            unread |= {"temperature", "top_k", "weights"}
        unread |= {"unknown_names", "source_probabilities"} if labels.source is None else set()
        precision = _precision(config) if by_teacher or labels.crop_features else {}
        # Older labels, made before there were these settings, stay good.
        newer = ("weights", "objectness_power", "crop_features", "grid_scales", "source", "corrections", "synonyms")
        section = labels.model_dump(mode="json", exclude=unread | _unset(labels, *newer))
        return {"labels": section, "teacher": text_settings(config.teacher), **precision}

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts, embeddings, weights, labels, corrections and synonyms count by their content."""
        labels = config.labels
        given = [file for file in (labels.source, labels.corrections) if file is not None]
        if labels.weights != "teacher" and not is_student(labels.weights):
            given += clip_files(labels.weights, "student")
        return text_files(config.teacher) + given + _synonyms(config)


class Pairs(ShardStage):
    """Images and their pseudo labels as WebDataset tars, ready to stream into training."""

    name = "pairs"
    version = 3
    for_pretraining = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Images and captions from data, regions from labels."""
        return ("data", "labels")

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, and the splits taken; nothing here is random."""
        section = config.pairs.model_dump(mode="json", exclude=_unset(config.pairs, "other_regions"))
        return {"pairs": section, "labels": {"splits": list(config.labels.splits)}}


class Pretrain(JobStage):
    """The student learns regions from the teacher's pseudo labels (paper section 3.3)."""

    name = "pretrain"
    version = 4
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Pairs, the pool's embeddings (kept with the labels), weights to start from; nothing for a given student."""
        needed = ("teacher", "labels", "pairs", *_student(config.pretrain.init))
        return needed if config.pretrain.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """The section and the seed; for a given student its place, and what it must fit.

        How many processes train counts only where each takes the losses over its own regions.
        """
        if config.pretrain.weights != "train":
            return {"pretrain": {"weights": config.pretrain.weights}, "teacher": {"model": config.teacher.model}}
        unset = _unset(config.pretrain, "crop_weight", "weigh_by_score", "weight_average")
        settings = {"pretrain": config.pretrain.model_dump(mode="json", exclude={"checkpoint_every", *unset})}
        execution = _precision(config).get("execution", {})
        if not config.pretrain.gather_regions:
            execution["train_workers"] = config.execution.train_workers
        return {**settings, "seed": config.seed, **({"execution": execution} if execution else {})}

    def raw_inputs(self, config: Config) -> list[str]:
        """A student that is given, or started from, counts by its content."""
        weights = config.pretrain.weights if config.pretrain.weights != "train" else config.pretrain.init
        return [] if weights == "teacher" or is_student(weights) else clip_files(weights, "student")


class Finetune(JobStage):
    """Open-vocabulary detectors from base boxes, one from each init, and an oracle that sees every box."""

    name = "finetune"
    version = 4
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes, proposals and both inits; nothing for a given detector."""
        return ("data", "teacher", "proposals", "pretrain") if config.finetune.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """Also what shapes the embeddings of names; for a given detector only its place."""
        if config.finetune.weights != "train":
            return {"finetune": {"weights": config.finetune.weights}}
        section = config.finetune.model_dump(mode="json", exclude={"checkpoint_every"})
        teacher = text_settings(config.teacher)
        return {"finetune": section, "teacher": teacher, "seed": config.seed, **_precision(config)}

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts and of published embeddings, or of a given detector, count by their content."""
        weights = config.finetune.weights
        return text_files(config.teacher) if weights == "train" else detector_files(weights)


class Evaluate(JobStage):
    """Average precision by COCO's or LVIS's rules: zero-shot and finetuned, CLIP beside RegionCLIP."""

    name = "evaluate"
    version = 7
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes and proposals, both inits, the detectors."""
        return ("data", "teacher", "proposals", "pretrain", "finetune")

    def settings(self, config: Config) -> dict[str, Any]:
        """Also what shapes the zero-shot classifier and the teacher's crops."""
        fusion = config.evaluate.fusion
        unset = {"fusion"} if fusion.source == "none" and not fusion.zero_shot else set()
        unset |= {name for name in ("synonyms", "fixed_ap", "masks", "colours") if not getattr(config.evaluate, name)}
        drawn: dict[str, Any] = {}
        if config.evaluate.colours:  # how the images are drawn says their colours
            name, fields = config.evaluate.split, {"kind", "image_size", "objects", "object_size"}
            split = config.data.splits[name].model_dump(mode="json", include=fields)
            drawn = {"seed": config.seed, "data": {"splits": {name: split}}}
        return {
            "evaluate": config.evaluate.model_dump(mode="json", exclude=unset),
            "teacher": text_settings(config.teacher),
            "labels": config.labels.model_dump(mode="json", include={"context", "batch_size"}),
            "finetune": config.finetune.model_dump(mode="json", include={"temperature"}),
            **drawn,
            **_precision(config),
        }

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts, of published embeddings and of synonyms count by their content."""
        synonyms = config.evaluate.synonyms
        return text_files(config.teacher) + ([synonym_file(synonyms)] if synonyms is not None else [])


class Report(JobStage):
    """One self-contained page about the whole run, and its tables as text."""

    name = "report"
    version = 4

    def needs(self, config: Config) -> tuple[str, ...]:
        """Everything that takes part in this run."""
        unused = {"report"} if config.proposals.method == "rpn" else {"report", "rpn"}
        return tuple(name for name, stage in STAGES.items() if name not in unused and stage.by_default(config))

    def settings(self, config: Config) -> dict[str, Any]:
        """The whole config but where it runs: the page prints settings, so it is made again when one changes."""
        return config.model_dump(mode="json", exclude={"execution", "workspace"})

    def raw_inputs(self, config: Config) -> list[str]:
        """The labels' synonyms, which change no artifact's content, and the page shows what they count."""
        return _synonyms(config) if STAGES["labels"].by_default(config) else []


def _student(weights: str) -> tuple[str, ...]:
    """Return the name under which a stage reads the student of the round before, where it does."""
    return ("student",) if is_student(weights) else ()


def _synonyms(config: Config) -> list[str]:
    return [synonym_file(config.labels.synonyms)] if config.labels.synonyms is not None else []


def _unset(section: Section, *names: str) -> set[str]:
    """Return those of these settings that have their default: an artifact from before there were any stays good."""
    return {name for name in names if getattr(section, name) == type(section).model_fields[name].default}


def _precision(config: Config) -> dict[str, Any]:
    """Return the precision of the networks where the config names one: `auto` follows the device, which counts nowhere.

    The manifest says what it was.
    """
    precision = config.execution.precision
    return {"execution": {"precision": precision}} if precision != "auto" else {}


def _listing_digest(name: str, urls: str) -> str:
    try:
        files = list_files(urls)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.splits.{name}.urls: {error}") from error
    if odd := [printable(url) for url, _ in files if printable(url) != url]:
        raise ValueError(f"data.splits.{name}.urls: the name of {odd[0]} is not UTF-8; rename the file")
    return _digest([list(file) for file in files])


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Data(),
        Concepts(),
        Teacher(),
        Rpn(),
        Proposals(),
        Labels(),
        Pairs(),
        Pretrain(),
        Finetune(),
        Evaluate(),
        Report(),
    )
}
"""By name, in the order in which they run: a stage comes after all that it needs."""
