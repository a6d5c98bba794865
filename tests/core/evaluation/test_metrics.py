"""metrics.json of whole runs of the evaluate stage: every number that the paper's tables need, and no other keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metrics_layout import COCO_NUMBERS, metric_keys, paths_of
from pycocotools import mask as coco_mask
from reference_evaluators import pycocotools_evaluation
from small_artifacts import TRAIN, VOCABULARY, Picture, rows_of, tiny_clip, tiny_config, write_data, write_proposals

from regionclip_core.config.tree import Config
from regionclip_core.datasets.index import index_name, read_index, split_shards, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector, load_detector, save_detector
from regionclip_core.evaluation.paper_tables import PAPER_TABLES, paper_numbers
from regionclip_core.models.clip import save_clip
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.folder import canonical_json
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.evaluate import WORK

GROUPS = (("rare", ("dog", "cup")), ("common", ("cat",)), ("frequent", ("bus",)))
LVIS = Vocabulary(VOCABULARY.names, VOCABULARY.base, GROUPS)
ONE_OBJECT = [[Picture(40, 40, ((4, 4, 30, 30),), (1,))]]


def box_mask(box: Sequence[float], height: int, width: int) -> bytes:
    mask = np.zeros((height, width), np.uint8, order="F")
    x0, y0, x1, y1 = (int(v) for v in box)
    mask[y0:y1, x0:x1] = 1
    return coco_mask.encode(mask)["counts"]  # type: ignore[no-any-return]


def annotate(data: Folder, masks: bool, lvis: bool) -> None:
    """Give every object its box as a mask, and every image its absent categories."""
    for shard in split_shards(data, ("val",)):
        rows = read_index(data, shard)
        if masks:
            rows = [replace(r, box_masks=[box_mask(box, r.height, r.width) for box in r.boxes]) for r in rows]
        if lvis:
            absent = [np.setdiff1d(np.arange(4), row.box_labels).astype(np.int32)[:2] for row in rows]
            none = np.zeros(0, np.int32)
            rows = [
                replace(row, neg_labels=a, not_exhaustive_labels=none, box_crowd=np.zeros(len(row.boxes), bool))
                for row, a in zip(rows, absent, strict=True)
            ]
        with data.write(index_name(shard)) as file:
            write_index(file, rows, VOCABULARY.digest)


def make_inputs(
    root: Path, config: Config, detectors: Sequence[str], masks: bool = False, mask_head: bool = False
) -> dict[str, Folder]:
    """What the evaluate stage reads: untrained models, annotated boxes and some others as proposals."""
    lvis = config.evaluate.protocol == "lvis"
    inputs = {name: Folder(str(root / name)) for name in ("data", "teacher", "proposals", "pretrain", "finetune")}
    write_data(root / "data", {"val": TRAIN, "closeup": ONE_OBJECT})
    annotate(inputs["data"], masks, lvis)
    inputs["data"].write_json("categories.json", (LVIS if lvis else VOCABULARY).to_json())
    boxes = {
        row.key: torch.cat([torch.from_numpy(row.boxes), torch.tensor([[1.0, 1, 30, 40]])])
        for row in rows_of(inputs["data"], "val")
        if row.status == "ok"
    }
    write_proposals(inputs["proposals"], inputs["data"], "val", boxes, torch.linspace(3, -3, 20))
    clips = {"teacher": tiny_clip(0), "pretrain": tiny_clip(1)}
    for stage, clip in clips.items():
        save_clip(clip, inputs[stage])
    for name in detectors:
        clip = clips["teacher" if name == "clip" else "pretrain"]
        classes = embed_names(clip, ("cat", "bus"), config.teacher)
        torch.manual_seed(0)
        detector = OpenVocabularyDetector(region_encoder(clip), classes, ("cat", "bus"), 0.07, mask_head=mask_head)
        save_detector(detector, inputs["finetune"], clip.architecture, stem=name)
    return inputs


def run(root: Path, config: Config, inputs: dict[str, Folder]) -> tuple[dict[str, Any], dict[str, Any]]:
    """metrics.json and the summary."""
    summary = WORK.run(StageContext(config, Folder(str(root / "evaluate")), inputs))
    return json.loads((root / "evaluate" / "metrics.json").read_text()), summary


def settings(**changes: Any) -> Config:
    splits = {name: {"source": "world", "images": 5, "image_size": 80} for name in ("train", "val", "closeup")}
    limits = {"split": "val", "score_threshold": 0.0, **changes}
    return tiny_config(data={"splits": splits}, evaluate=limits)


def test_coco_run(tmp_path: Path) -> None:
    """With the numbers of table 1 and of both zero-shot tables."""
    config = settings(whole_image_split="closeup")
    names = ("clip", "regionclip", "oracle")
    metrics, summary = run(tmp_path, config, make_inputs(tmp_path, config, names))
    assert paths_of(metrics) == metric_keys(VOCABULARY, "coco", whole_image=True)
    assert metrics["images"] == summary["images"] == 7
    assert set(summary["finetuned"]["oracle"]) == {"base", "novel", "all"}
    for group, only in (("base", "finetuned_base_only"), ("novel", "finetuned_novel_only")):
        assert list(metrics[only]["clip"]["per_category"]) == sorted(getattr(VOCABULARY, group))
        assert metrics[only]["clip"][group]["boxes"] == metrics["finetuned"]["clip"][group]["boxes"]
    tables = paper_numbers(metrics)
    assert list(tables) == list(PAPER_TABLES["coco"])
    first = tables["open-vocabulary detection (table 1), AP50"]["regionclip"]
    assert list(first) == ["novel (17)", "base (48)", "generalised novel", "generalised base", "generalised all"]
    assert first["novel (17)"] == metrics["finetuned_novel_only"]["regionclip"]["novel"]["ap50"]
    assert None not in [value for table in tables.values() for row in table.values() for value in row.values()]
    assert set(tables["zero-shot, RPN boxes, AP50"]) == {"clip", "regionclip"}


@pytest.mark.parametrize("source", ["student", "teacher_crops"])
def test_fused_rows_are_beside_the_others(tmp_path: Path, source: str) -> None:
    """And change none of them."""
    inputs = make_inputs(tmp_path, settings(), ("clip", "regionclip"), mask_head=True)
    plain, _ = run(tmp_path / "plain", settings(), inputs)
    fused, _ = run(tmp_path / "fused", settings(fusion={"source": source, "zero_shot": 0.5}), inputs)
    assert paths_of(fused) == metric_keys(VOCABULARY, "coco", detectors=("clip", "regionclip"), fused=True)
    assert plain == {key: fused[key] for key in plain}
    files = {file.name for file in (tmp_path / "fused" / "evaluate").glob("detections-*")}
    for name in ("clip", "regionclip"):
        own = {f"detections-zero-shot-{kind}-fused-{name}.json" for kind in ("gt", "rpn")}
        assert files >= own | {f"detections-finetuned-fused-{name}.json"}
        for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
            assert fused[f"{setting}_fused"][name] != fused[setting][name]
    rows = json.loads((tmp_path / "fused/evaluate/detections-finetuned-fused-clip.json").read_text())
    assert rows and "segmentation" in rows[0]


def test_fixed_ap_is_beside_lviss_own(tmp_path: Path) -> None:
    """With few detections per image both are the same."""
    config = settings(protocol="lvis", fixed_ap=True)
    inputs = make_inputs(tmp_path, config, ("regionclip",), masks=True, mask_head=True)
    metrics, _ = run(tmp_path, config, inputs)
    scores = metrics["finetuned"]["regionclip"]
    for one in (scores, scores["segm"], metrics["zero_shot_rpn"]["clip"]):
        assert one["lvis_fixed"] == {name: one["lvis"][name] for name in one["lvis_fixed"]} != {}


def test_what_synonyms_cost_is_in_rows_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("cat: [kitten]\ncup: [mug]\n")
    config = settings(synonyms=str(tmp_path / "s.yaml"))
    inputs = make_inputs(tmp_path, config, ("regionclip",))
    plain, _ = run(tmp_path / "plain", settings(), inputs)
    metrics, _ = run(tmp_path / "synonyms", config, inputs)
    assert plain == {key: metrics[key] for key in plain}
    for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
        names, synonyms = metrics[setting]["regionclip"], metrics[f"{setting}_synonyms"]["regionclip"]
        assert synonyms != names
        for group in ("base", "novel", "all"):
            assert synonyms[group]["ap50_drop"] == names[group]["ap50"] - synonyms[group]["ap50"]


def test_lvis_run_with_masks(tmp_path: Path) -> None:
    """With the numbers of table 2 and of both zero-shot tables; only one detector was given."""
    config = settings(protocol="lvis", max_detections=300)
    inputs = make_inputs(tmp_path, config, ("regionclip",), masks=True, mask_head=True)
    metrics, summary = run(tmp_path, config, inputs)
    assert paths_of(metrics) == metric_keys(LVIS, "lvis", detectors=("regionclip",), masks=True)
    assert set(summary["finetuned"]["regionclip"]) == {"APr", "APc", "APf", "AP"}
    scores = metrics["finetuned"]["regionclip"]
    assert scores["segm"] != {key: value for key, value in scores.items() if key != "segm"}
    assert scores["rare"] == scores["novel"]
    tables = paper_numbers(metrics)
    assert list(tables) == list(PAPER_TABLES["lvis"])
    masks = tables["open-vocabulary detection (table 2), mask AP"]
    assert masks == {"regionclip": {name: scores["segm"]["lvis"][name] for name in ("APr", "APc", "APf", "AP")}}
    assert None not in [value for table in tables.values() for row in table.values() for value in row.values()]


def test_detections_as_results(tmp_path: Path) -> None:
    """The file is canonical JSON, pycocotools reads it with its masks, and the report reads it in pieces."""
    config = settings()
    inputs = make_inputs(tmp_path, config, ("clip",), masks=True, mask_head=True)
    metrics, _ = run(tmp_path, config, inputs)
    data = (tmp_path / "evaluate" / "detections-clip.json").read_bytes()
    rows = json.loads(data)
    assert data == canonical_json(rows)
    assert len(rows) > 20
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    truth = {"info": {}, "images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in range(4)]}
    for row in rows_of(inputs["data"], "val"):
        truth["images"].append({"id": row.image_id, "height": row.height, "width": row.width})
        for i in np.flatnonzero(row.box_labels >= 0) if row.status == "ok" else ():
            x0, y0, x1, y1 = row.boxes[i].tolist()
            mask = {"size": [row.height, row.width], "counts": row.box_masks[i].decode()}
            one = {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": mask, "iscrowd": int(row.box_crowd[i])}
            place = {"id": len(truth["annotations"]) + 1, "image_id": row.image_id}
            truth["annotations"].append(
                {**one, **place, "area": float(row.box_area[i]), "category_id": int(row.box_labels[i])}
            )
    for kind, scores in (("bbox", metrics["finetuned"]["clip"]), ("segm", metrics["finetuned"]["clip"]["segm"])):
        dropped = "segmentation" if kind == "bbox" else "bbox"
        found = [{key: value for key, value in row.items() if key != dropped} for row in rows]
        reference = pycocotools_evaluation(truth, found, kind)
        expected = [100 * value if value > -1 else None for value in reference.stats.tolist()]
        assert [scores["coco"][name] for name in COCO_NUMBERS] == pytest.approx(expected, abs=1e-9)


def test_masks_without_annotated_ones_leave_out_mask_ap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings()
    inputs = make_inputs(tmp_path, config, ("clip",), masks=False, mask_head=True)
    metrics, _ = run(tmp_path, config, inputs)
    assert "segm" not in metrics["finetuned"]["clip"]
    assert "no mask AP: the objects of the evaluated split have no masks" in caplog.text
    rows = json.loads((tmp_path / "evaluate" / "detections-clip.json").read_text())
    assert all("segmentation" in row for row in rows)


def test_a_detector_of_another_text_encoder_is_refused(tmp_path: Path) -> None:
    config = settings()
    inputs = make_inputs(tmp_path, config, ("clip",))
    clip = tiny_clip(0)
    swapped = embed_names(clip, ("bus", "cat"), config.teacher)
    detector = OpenVocabularyDetector(region_encoder(clip), swapped, ("cat", "bus"), 0.07)
    save_detector(detector, inputs["finetune"], clip.architecture, stem="clip")
    with pytest.raises(ValueError, match=r"detector clip: .*of 2 names, 2 are nearer .*such as 'cat'"):
        run(tmp_path, config, inputs)


def test_the_detector_is_asked_for_every_name(tmp_path: Path) -> None:
    config = settings()
    inputs = make_inputs(tmp_path, config, ("clip",))
    assert load_detector(inputs["finetune"], stem="clip").names == ("cat", "bus")
    run(tmp_path, config, inputs)
    rows = json.loads((tmp_path / "evaluate" / "detections-clip.json").read_text())
    assert {row["category_id"] for row in rows} == {0, 1, 2, 3}
