"""Which settings each stage reads while it works on a small world, against what its fingerprint holds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from small_runs import run_small, small_config

from regionclip_core.config.section import Section
from regionclip_core.config.tree import Config
from stages.declarations import STAGES
from stages.engine import work
from stages.engine.plan import setting_changes

Leaves = set[str]
"""Dotted paths of single settings, such as `labels.threshold`."""

TRAINING = {"splits": ["train"], "steps": 1, "batch_size": 4, "min_crop": 0.5}
SPLITS = {
    "train": {"source": "world", "images": 8, "image_size": 80},
    "val": {"source": "world", "kind": "closeup", "images": 4, "image_size": 80},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "trained": {
        "data": {"splits": SPLITS},
        "teacher": {"weights": "train", "training": TRAINING},
        "proposals": {"method": "rpn"},
        "labels": {"mode": "roi"},
        "pretrain": {"gather_regions": False},
        "evaluate": {
            "whole_image_split": "val",
            "nms_kind": "gaussian",
            "given_score_threshold": 0.01,
            "fusion": {"source": "student", "zero_shot": 0.5},
            "synonyms": "world",
            "colours": True,
        },
    },
    "drawn": {
        "proposals": {"method": "random"},
        "labels": {"mode": "roi", "canvas": "padded", "crop_features": True, "grid_scales": [0.5]},
        "pairs": {"other_regions": 4},
        "pretrain": {"crop_weight": 0.5, "weigh_by_score": True, "weight_average": 0.7},
        "finetune": {"sampling": "repeat_factor", "train_sizes": [48, 64], "oracle": False},
    },
    # With a file of labels, which the fixture writes.
    "given": {
        "proposals": {"method": "random"},
        "labels": {"source": "", "unknown_names": "add", "crop_features": True},
    },
    "given and looked at": {
        "proposals": {"method": "random"},
        "labels": {"source": "", "unknown_names": "add", "source_probabilities": "teacher", "mode": "roi"},
    },
}


def walk(section: Section, path: str = "") -> Iterator[tuple[str, Section]]:
    """The sections inside one, and itself, by their dotted paths."""
    yield path, section
    for name, value in dict(section).items():
        inside = value if isinstance(value, dict) else {"": value}
        for key, one in inside.items():
            if isinstance(one, Section):
                yield from walk(one, ".".join(filter(None, (path, name, key))))


def leaves(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path


class Recorder:
    """Writes down which settings of a config are read while a stage works."""

    def __init__(self, config: Config, patch: pytest.MonkeyPatch) -> None:
        self.read: dict[str, Leaves] = defaultdict(set)
        self._paths = {id(section): path for path, section in walk(config)}
        self._all = set(leaves(config.model_dump(mode="json")))
        self._stage: str | None = None
        get, dump = Section.__getattribute__, Section.model_dump

        def attribute(section: Section, name: str) -> Any:
            self._note(section, [name])
            return get(section, name)

        def dumped(section: Section, **options: Any) -> dict[str, Any]:
            found = dump(section, **options)
            self._note(section, leaves(found))
            return found

        patch.setattr(Section, "__getattribute__", attribute)
        patch.setattr(Section, "model_dump", dumped)
        for name in ("shards", "prepare", "merge", "job"):
            patch.setattr(work, name, self._during(getattr(work, name)))
        patch.setattr(work.ShardWorker, "process", self._during(work.ShardWorker.process))

    def _note(self, section: Section, names: Any) -> None:
        if self._stage is not None and (path := self._paths.get(id(section))) is not None:
            found = {f"{path}.{name}" if path else name for name in names}
            self.read[self._stage] |= found & self._all

    def _during(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any, **more: Any) -> Any:
            [task] = [one for one in arguments if isinstance(one, work.StageTask)]
            self._stage = task.stage
            try:
                return call(*arguments, **more)
            finally:
                self._stage = None

        return recorded


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in ("given", "drawn") else name for name in VARIANTS],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Leaves]]:
    """The config, and what each stage read of it."""
    root, sections = tmp_path_factory.mktemp("run"), VARIANTS[request.param]
    if "source" in sections.get("labels", {}):
        rows = [{"image_id": number, "bbox": [5, 5, 40, 40], "name": "cat"} for number in range(8)]
        (root / "rows.json").write_text(json.dumps(rows))
        sections = {**sections, "labels": {**sections["labels"], "source": str(root / "rows.json")}}
    config = small_config(root / "ws", **sections)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(config, patch)
        result = run_small(config, "evaluate")
    assert result.ok, result.messages
    return config, recorder.read


NOT_HELD = {
    "pretrain": {
        "pretrain.checkpoint_every",  # a training goes on bit-equal from wherever it was cut
        *("pretrain.crop_weight", "pretrain.weigh_by_score", "pretrain.weight_average"),  # as those of `labels`
    },
    "concepts": {"concepts.file", "concepts.add", "concepts.ban"},  # as those of `labels`
    "pairs": {"pairs.other_regions"},
    "finetune": {"finetune.checkpoint_every"},
    # Is held where it is set, so that older teachers stay good.
    "teacher": {"teacher.training.checkpoint_every", "teacher.value_blocks"},
    # Are held where they are not the defaults, so that older labels stay good.
    "labels": {"labels.canvas", "labels.objectness_power", "labels.crop_features", "labels.grid_scales"}
    | {f"labels.{name}" for name in ("weights", "source", "corrections", "synonyms")},
    # Are held where they ask for rows of their own.
    "evaluate": {f"evaluate.{name}" for name in ("synonyms", "fixed_ap", "masks", "colours")}
    | {f"evaluate.fusion.{name}" for name in ("source", "base", "novel", "zero_shot", "temperature")},
    "rpn": {"rpn.checkpoint_every", "proposals.method"},  # any other method leaves `unused`
}
"""What a stage reads, and its result doesn't depend on; besides where it runs."""
BESIDES = {
    "data": {"order", "world_version", "data.categories"},
    "concepts": {"parser.parser", "parser.tables", "parser.version"},
    "rpn": {"unused"},
    "pretrain": {"execution.train_workers"},  # the work sees the number of its processes, wherever that comes from
}
"""What a fingerprint holds that the stage's work doesn't read from the config: digests, versions, names."""
IDLE = (
    *(f".optim.{name}" for name in ("momentum", "drops", "drop_factor", "warmup_factor", "clip_per_tensor")),
    "finetune.repeat_threshold",
    "concepts.spacy_model",
    "concepts.merge.people",
    ".source",
)
"""Ends of settings that another setting of these variants makes idle, or that are read as a whole."""


@pytest.mark.parametrize("name", [name for name in STAGES if name != "report"])  # which holds the whole config
def test_a_fingerprint_holds_what_its_stage_reads(run: tuple[Config, dict[str, Leaves]], name: str) -> None:
    config, read = run
    held = set(leaves(STAGES[name].settings(config)))
    assert len(read[name]) >= 3 or name == "rpn"
    unheld = {leaf for leaf in read[name] - held if not leaf.startswith(("execution.", "workspace"))}
    assert unheld <= NOT_HELD.get(name, set())
    assert {leaf for leaf in held - read[name] if not leaf.endswith(IDLE)} <= BESIDES.get(name, set())


GIVEN = {"rpn": {"weights": "a/network.pt"}, "proposals": {"method": "rpn"}, "teacher": {"weights": "a/clip.pt"}}
ELSEWHERE = {"labels": {"source": "a/rows.json"}}
Change = Mapping[str, Mapping[str, Any]]


def held(stage: str, *changes: Change) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {}
    for change in changes:
        for name, values in change.items():
            sections[name] = {**sections.get(name, {}), **values}
    return STAGES[stage].settings(small_config("unused", **sections))


@pytest.mark.parametrize(
    ("stage", "base", "change"),
    [
        ("pretrain", {}, {"pretrain": {"checkpoint_every": 7}}),
        ("pretrain", {}, {"execution": {"train_workers": 2, "backend": "ray"}}),
        ("finetune", {}, {"finetune": {"checkpoint_every": 7}}),
        ("rpn", {"proposals": {"method": "rpn"}}, {"rpn": {"checkpoint_every": 7}}),
        ("rpn", GIVEN, {"rpn": {"optim": {"lr": 0.5}, "steps": 9, "batch_size": 3}}),
        ("teacher", VARIANTS["trained"], {"teacher": {"training": {**TRAINING, "checkpoint_every": 7}}}),
        ("teacher", GIVEN, {"teacher": {"training": TRAINING}}),
        ("proposals", {"proposals": {"method": "grid"}}, {"proposals": {"pre_nms": 9, "nms": 0.1}}),
        ("proposals", {"proposals": {"method": "rpn"}}, {"proposals": {"grid_scales": [0.3]}}),
        ("labels", {"labels": {"mode": "roi"}}, {"labels": {"context": 2.0, "batch_size": 3}}),
        ("labels", {"labels": {"mode": "crop"}}, {"labels": {"image_size": 9, "resize": "pretraining"}}),
        ("labels", {"labels": {"mode": "roi"}}, {"labels": {"images_per_canvas": 5}}),
        ("labels", ELSEWHERE, {"labels": {"mode": "roi", "image_size": 99, "top_k": 9, "temperature": 1.0}}),
        ("labels", ELSEWHERE, {"labels": {"context": 2.0}, "execution": {"precision": "bf16"}}),
    ],
)
def test_settings_that_change_nothing_make_nothing_stale(stage: str, base: Change, change: Change) -> None:
    assert held(stage, base, change) == held(stage, base)


def test_the_seed_counts_where_something_is_drawn() -> None:
    def follows(stage: str, base: Change) -> bool:
        config = small_config("unused", **base)
        other = config.model_copy(update={"seed": config.seed + 1})
        return STAGES[stage].settings(config) != STAGES[stage].settings(other)

    for stage in ("rpn", "teacher", "pretrain", "finetune"):
        assert follows(stage, VARIANTS["trained"]), stage
    assert follows("proposals", {"proposals": {"method": "random"}})
    assert follows("rpn", {**GIVEN, "rpn": {"weights": "random"}})
    assert follows("teacher", {"teacher": {"weights": "random"}})
    for stage in ("rpn", "teacher", "proposals", "labels", "evaluate"):
        assert not follows(stage, GIVEN), stage
    assert not follows("proposals", {"proposals": {"method": "grid"}})


def test_how_many_processes_train_counts_where_each_has_losses_of_its_own() -> None:
    own = {"pretrain": {"gather_regions": False}}
    changes = setting_changes(
        held("pretrain", own), held("pretrain", own, {"execution": {"train_workers": 2, "backend": "ray"}})
    )
    assert changes == ["execution.train_workers 1 -> 2"]


def test_a_named_precision_counts_where_a_network_runs() -> None:
    def follows(base: Any) -> set[str]:
        now = {"execution": {"precision": "bf16"}}
        return {name for name in STAGES if held(name, base, now) != held(name, base)}

    everywhere = {"teacher", "rpn", "proposals", "labels", "pretrain", "finetune", "evaluate"}
    assert follows(VARIANTS["trained"]) == everywhere
    given = {"pretrain": {"weights": "a/student"}, "finetune": {"weights": "a/detector"}}
    assert follows({**GIVEN, **given}) == {"proposals", "labels", "evaluate"}
    assert follows({"proposals": {"method": "grid"}}) == everywhere - {"teacher", "rpn", "proposals"}
    for name in STAGES:
        assert held(name, VARIANTS["trained"], {"execution": {"precision": "auto"}}) == held(name, VARIANTS["trained"])
    both = held("pretrain", VARIANTS["trained"], {"execution": {"precision": "bf16"}})
    assert both["execution"] == {"precision": "bf16", "train_workers": 1}


CROPS = {"labels": {"crop_features": True, "mode": "roi"}}


@pytest.mark.parametrize(
    ("stage", "base", "key", "value"),
    [
        ("concepts", {}, "file", "a/names.txt"),
        ("concepts", {}, "add", ["red cup"]),
        ("concepts", {}, "ban", ["dog"]),
        ("labels", {}, "objectness_power", 2.0),
        ("labels", {"labels": {"mode": "crop"}}, "crop_features", True),
        ("labels", {}, "synonyms", "world"),
        ("labels", {}, "weights", "a/student"),
        ("labels", {}, "corrections", "a/corrections.csv"),
        ("labels", ELSEWHERE, "unknown_names", "add"),
        ("pairs", CROPS, "other_regions", 3),
        ("pretrain", CROPS, "crop_weight", 1.0),
        ("pretrain", {}, "weigh_by_score", True),
        ("pretrain", {}, "weight_average", 0.7),
    ],
)
def test_newer_settings_count_where_they_are_set(stage: str, base: Change, key: str, value: Any) -> None:
    """Artifacts from before there were any stay good."""
    assert key not in held(stage)[stage]
    changes = setting_changes(held(stage, base), held(stage, base, {stage: {key: value}}))
    assert len(changes) == 1 and changes[0].startswith(f"{stage}.{key} ")


def test_a_file_of_labels_takes_the_place_of_the_proposals() -> None:
    labels, config = STAGES["labels"], small_config("unused", **ELSEWHERE, concepts={"splits": ["train"]})
    assert "proposals" in labels.needs(small_config("unused")) and "proposals" not in labels.needs(config)
    assert labels.raw_inputs(config) == ["a/rows.json"]
    assert held("labels", ELSEWHERE)["labels"]["source"] == "a/rows.json"
    looked_at = {"labels": {"source_probabilities": "teacher"}}
    assert held("labels", ELSEWHERE, looked_at)["labels"]["top_k"] == 3
    corrected = small_config("unused", labels={"splits": ["train"], "corrections": "c.csv", "synonyms": "world"})
    assert [Path(file).name for file in labels.raw_inputs(corrected)] == ["c.csv", "world.yaml"]


def test_how_crops_are_cut_counts_where_roi_labels_have_them() -> None:
    change = {"labels": {"context": 2.0}}
    assert setting_changes(held("labels", CROPS), held("labels", CROPS, change)) == ["labels.context 1.2 -> 2.0"]


def test_teachers_made_before_there_were_values_stay_good() -> None:
    assert "value_blocks" not in held("teacher")["teacher"]
    named = {"model": "ViT-B-16", "weights": "random"}
    changed = held("teacher", {"teacher": {**named, "value_blocks": 3}})
    changes = setting_changes(held("teacher", {"teacher": named}), changed)
    assert len(changes) == 1 and changes[0].startswith("teacher.value_blocks ")


def test_saving_memory_makes_nothing_stale() -> None:
    for name in ("pretrain", "finetune"):
        assert held(name, {}, {"execution": {"recompute_activations": True, "images_at_once": 1}}) == held(name)


def test_the_detectors_temperature_is_that_of_zero_shot_too() -> None:
    taken = {"finetune": {"weights": "a/detector"}}
    change = {"finetune": {"temperature": 1.0}}
    assert held("finetune", taken, change) == held("finetune", taken)
    assert setting_changes(held("evaluate", taken), held("evaluate", taken, change)) == [
        "finetune.temperature null -> 1.0"
    ]


def test_categories_count_by_what_they_are(tmp_path: Path) -> None:
    folder = ROOT / "data"
    copy = tmp_path / "other.yaml"
    copy.write_bytes((folder / "coco_ovd.yaml").read_bytes())
    named, moved, world = (held("data", {"data": {"categories": c}}) for c in ("coco_ovd", str(copy), "world"))
    assert named == moved
    [change] = setting_changes(named, world)
    assert change.startswith("data.categories ")
