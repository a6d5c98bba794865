"""Objects named by their masks: each tower's pool over a part of its bins, and the row of `evaluate.masks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_samples import coded, decoded, triangle
from small_artifacts import run_stage, tiny_clip, tiny_config
from small_towers import EVA, PE, SIGLIP, VIT, small_clip
from torch import Tensor, nn

from regionclip_core.config.checks import check_config
from regionclip_core.datasets.index import index_name, read_index, write_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.metrics import measure
from regionclip_core.evaluation.passes import GIVEN, PROPOSED, zero_shot
from regionclip_core.models.region_encoder import RegionEncoder, mask_shares
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import Resized, batch_resized, resize_image
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES

CLIPS = {"resnet": None, "vit": VIT, "siglip": SIGLIP, "eva": EVA, "pe": PE}


@pytest.fixture(params=CLIPS)
def encoder(request: pytest.FixtureRequest) -> RegionEncoder:
    description = CLIPS[request.param]
    clip = tiny_clip(image_size=128) if description is None else small_clip(description)
    return region_encoder(clip).double().eval()


def regions(encoder: RegionEncoder, count: int = 3) -> Tensor:
    size = (count, encoder.feature_dim, encoder.bins, encoder.bins)
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def pooled_by_hand(encoder: RegionEncoder, maps: Tensor, half: list[int]) -> Tensor:
    """The embeddings [R, D] where only the bins of `half`, half of all, are there."""
    bins = maps.flatten(2)[:, :, half]  # [R, C, N / 2]
    pool: Any = getattr(encoder, "attnpool", None)
    if pool is None:
        trunk: Any = getattr(encoder, "trunk", None)
        if trunk is None:
            return bins.mean(2) @ encoder.proj
        return trunk.head(bins.mean(2) if trunk.attn_pool is None else trunk.attn_pool(bins.transpose(1, 2)))
    # All bins but these are gone, and these are there twice, so that the mean token keeps its part.
    positions = pool.positional_embedding
    tokens = bins.permute(2, 0, 1)
    mean = tokens.mean(0, keepdim=True) + positions[0]
    own = tokens + positions[1:][half][:, None]
    x, _ = F.multi_head_attention_forward(
        query=mean, key=torch.cat([mean, own, own]), value=torch.cat([mean, own, own]),
        embed_dim_to_check=tokens.shape[2], num_heads=pool.num_heads, in_proj_weight=None,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), bias_k=None, bias_v=None,
        add_zero_attn=False, dropout_p=0.0, out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True, training=False, need_weights=False,
    )  # fmt: skip
    return x[0]


@torch.no_grad()
def test_only_the_bins_of_the_mask_are_pooled(encoder: RegionEncoder) -> None:
    maps, bins = regions(encoder), encoder.bins**2
    half = torch.randperm(bins, generator=torch.Generator().manual_seed(1))[: bins // 2].sort().values.tolist()
    cover = torch.zeros(len(maps), bins, dtype=torch.float64)
    cover[:, half] = 0.3  # the part that is covered counts beside the other bins' alone
    found = encoder.pool(maps, mask_shares(cover.view(-1, encoder.bins, encoder.bins)))
    if isinstance(getattr(encoder, "attnpool", None), nn.Module):
        assert 2 * len(half) == bins, "an even number of bins: half of them, twice"
    torch.testing.assert_close(found, pooled_by_hand(encoder, maps, half), rtol=1e-9, atol=1e-9)
    assert (found - encoder.pool(maps)).abs().max() > 1e-3


@torch.no_grad()
def test_all_bins_alike_are_the_box(encoder: RegionEncoder) -> None:
    maps = regions(encoder)
    for value in (1.0, 0.2, 0.0):  # a mask that covers none counts as one that covers all
        shares = mask_shares(torch.full((len(maps), encoder.bins, encoder.bins), value, dtype=torch.float64))
        torch.testing.assert_close(encoder.pool(maps, shares), encoder.pool(maps), rtol=1e-9, atol=1e-9)


def with_masks(tmp_path: Path, whole: bool) -> tuple[EvaluationData, Any]:
    """The tiny world, whose objects get a mask each: a triangle, or the whole image."""
    config = tiny_config(evaluate={"split": "val", "colours": False})
    data, proposals = Folder(str(tmp_path / "data")), Folder(str(tmp_path / "proposals"))
    run_stage(STAGES["data"], StageContext(config, data, {}))
    for shard in data.read_json("splits.json")["val"]["shards"]:
        rows = [
            replace(
                row,
                box_masks=[
                    coded(np.ones(size, np.uint8) if whole else triangle(box, size))
                    for box in row.boxes
                    if (size := (row.height, row.width))
                ],
            )
            for row in read_index(data, shard)
        ]
        digest = Vocabulary.from_json(data.read_json("categories.json")).digest
        with data.write(index_name(shard)) as file:
            write_index(file, rows, digest)
    run_stage(STAGES["proposals"], StageContext(config, proposals, {"data": data}))
    evaluate = config.evaluate.model_copy(update={"masks": True})
    config = config.model_copy(update={"evaluate": evaluate})
    return EvaluationData(config, data, proposals), config


def test_a_mask_of_everything_is_the_box(tmp_path: Path) -> None:
    evaluation, config = with_masks(tmp_path, whole=True)
    results = list(zero_shot(tiny_clip(), config, evaluation, "cpu", lambda n: None))
    assert sum(len(result.image.boxes) for result in results) > 5
    for result in results:
        assert result.given_masks is not None
        torch.testing.assert_close(result.given_masks, result.given[GIVEN], rtol=1e-4, atol=1e-4)
    scores = measure(results, evaluation.evaluator, (GIVEN, PROPOSED))
    for group in ("base", "novel", "all"):
        assert scores[GIVEN][group]["mask_top1"] == scores[GIVEN][group]["top1"]
        assert scores[GIVEN][group]["mask_mean_class_top1"] == scores[GIVEN][group]["mean_class_top1"]
        assert "mask_top1" not in scores[PROPOSED][group]


@torch.no_grad()
def test_triangles_against_a_loop(tmp_path: Path) -> None:
    """One object at a time, its bins' cover counted in the bitmap at a hundred points each."""
    evaluation, config = with_masks(tmp_path, whole=False)
    clip = tiny_clip(image_size=128)
    encoder = region_encoder(clip).eval()
    classes = F.normalize(embed_names(clip, evaluation.vocabulary.names, config.teacher), dim=1)
    results = list(zero_shot(clip, config, evaluation, "cpu", lambda n: None))
    right, number, far = 0, 0, 0.0
    for result in results:
        image = result.image
        size = (image.row.height, image.row.width)
        resized = resize_image(image.pixels, config.evaluate.image_size, config.evaluate.max_size).pixels
        batch = batch_resized([Resized(resized, size)], clip.mean, clip.std, "cpu")
        maps = encoder.features(batch.tensor, batch.sizes)
        for row, (box, label) in enumerate(zip(image.boxes, image.labels.tolist(), strict=True)):
            x0, y0, x1, y1 = box.tolist()
            steps = (np.arange(encoder.bins * 10) + 0.5) / (encoder.bins * 10)
            columns = np.clip((x0 + (x1 - x0) * steps).astype(int), 0, size[1] - 1)
            lines = np.clip((y0 + (y1 - y0) * steps).astype(int), 0, size[0] - 1)
            points = decoded(image.masks[row], size)[np.ix_(lines, columns)].astype(np.float32)
            cover = points.reshape(encoder.bins, 10, encoder.bins, 10).mean((1, 3))
            shares = torch.from_numpy(cover / cover.sum()).flatten()[None]
            feature = encoder.embed(maps, [batch.to_input(0, box[None])], shares)
            expected = F.normalize(feature, dim=1) @ classes.T
            assert result.given_masks is not None
            found = result.given_masks[row] / clip.logit_scale
            assert (found - expected[0]).abs().max() < 0.02
            far = max(far, float((result.given[GIVEN][row] / clip.logit_scale - expected[0]).abs().max()))
            right, number = right + int(result.given_masks[row].argmax() == label), number + 1
    assert far > 0.05, "the boxes give other logits than the masks"
    scores = measure(results, evaluation.evaluator, (GIVEN, PROPOSED))
    assert scores[GIVEN]["all"]["mask_top1"] == pytest.approx(100 * right / number)


def test_a_split_without_masks_is_refused() -> None:
    config = tiny_config(evaluate={"split": "val", "masks": True})
    said = "evaluate.masks: the split 'val' reads none; set data.splits.val.masks"
    assert any(line.startswith(said) for line in check_config(config, ["evaluate"]))
