"""bf16 beside float32, by the CPU's autocast: what runs in it, what doesn't, and how far off it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_artifacts import rows_of, tiny_clip, tiny_config, write_proposals
from small_towers import EVA, PE, SIGLIP, VIT, small_clip
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from two_ranks import clip_case, finetune_case, pretrain_case, random

from regionclip_core.config.tree import OptimConfig
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection import losses as detector_losses
from regionclip_core.models.clip import save_clip
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.folded_convolutions import FoldedConv
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.models.towers import region_encoder
from regionclip_core.precision import in_float32, networks, precision_used, set_precision
from regionclip_core.pretraining import losses
from regionclip_core.pretraining.labelling import Labeller
from regionclip_core.proposals.network import build_network
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import fit

TOWERS = {
    "resnet": tiny_clip,
    **{name: partial(small_clip, one) for name, one in {"vit": VIT, "eva": EVA, "pe": PE, "siglip": SIGLIP}.items()},
}
BOXES = [torch.tensor([[3.0, 4, 40, 50], [0, 0, 64, 96], [30, 8, 90, 60]]), torch.tensor([[10.0, 10, 30, 60]])]


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    set_precision("float32", "cpu")


def in_both(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """What comes out in float32 and in bf16."""
    found = []
    for precision in ("float32", "bf16"):
        set_precision(precision, "cpu")
        found.append(compute())
    return found[0], found[1]


class Types(TorchDispatchMode):
    """The types of what convolutions and softmaxes work on, by operation; autocast is above, its casts are seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in ("convolution", "_log_softmax", "_softmax", "logsumexp", "binary_cross_entropy_with_logits"):
            self.seen.setdefault(name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def single(value: Any) -> Any:
    """Tensors in a batch from float64 to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list):
        return [single(one) for one in value]
    if is_dataclass(value):
        return replace(value, **{field.name: single(getattr(value, field.name)) for field in fields(value)})
    return value


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "teacher": lambda: clip_case(slice(None)),
    "pretrain": lambda: pretrain_case(slice(None)),
    "finetune": lambda: finetune_case(slice(None), 0.5, masks=True),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_are_float32_and_close(name: str) -> None:
    def compute() -> tuple[dict[str, Tensor], Types]:
        model, batch = CASES[name]()
        with networks("cpu"), Types() as types:
            return model.float()(single(batch)), types

    (exact, types), (found, lower) = in_both(compute)
    assert types.seen["_log_softmax"] == {torch.float32}
    assert lower.seen.pop("convolution") == {torch.bfloat16}
    assert set().union(*lower.seen.values()) == {torch.float32}
    for key, value in found.items():
        assert value.dtype == torch.float32 and value != exact[key], key
        torch.testing.assert_close(value, exact[key], rtol=0.03, atol=0.01, msg=key)


def test_a_training_keeps_weights_and_state_in_float32(tmp_path: Path) -> None:
    """The steps are nearly those of float32, and the checkpoints hold nothing of bf16."""
    turn = iter("ab")

    def train() -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        model, batch = pretrain_case(slice(None))
        folder = tmp_path / next(turn)
        at = {"steps": 3, "checkpoints": Folder(str(folder)), "checkpoint_every": 3}
        result = fit(
            model.float(), lambda _: single(batch), optim=OptimConfig(lr=1e-3), seed=0, progress=print, **at
        )  # fmt: skip
        [file] = folder.iterdir()
        saved = torch.load(file)
        moments = [v for state in saved["optimizer"]["state"].values() for v in state.values()]
        assert {v.dtype for v in [*saved["parameters"].values(), *moments]} == {torch.float32}
        return saved["parameters"], result.history

    (exact, history), (found, log) = in_both(train)
    assert log[-1]["loss"] != history[-1]["loss"]
    assert log[-1]["loss"] == pytest.approx(history[-1]["loss"], rel=0.02)
    for name, value in found.items():
        torch.testing.assert_close(value, exact[name], rtol=0, atol=7e-3, msg=name)  # two times three steps of 1e-3


def features(count: int = 5) -> Tensor:
    return random(count, 16, seed=3).bfloat16()


IDS = torch.tensor([0, 3, 3, 1, 2])
TOP = torch.stack([IDS, (IDS + 1) % 6], dim=1)
P = torch.tensor(0.3)
MATCHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrast": lambda x, c: losses.region_concept_contrastive(x, c, IDS, 0.1),
    "distillation": lambda x, c: losses.region_distillation(x, c, TOP, P.expand(5, 2), P.expand(5), 0.1),
    "image text": lambda x, c: losses.image_text_contrastive(x, c[:5], 0.1),
    "masks": lambda x, c: detector_losses.mask_loss(x[:, None], x[:, None] > 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", MATCHES)
def test_cosines_under_autocast_are_those_of_float32(name: str) -> None:
    concepts = random(6, 16, seed=4).float()
    expected = MATCHES[name](features().float(), concepts)
    with torch.autocast("cpu", torch.bfloat16):
        found = MATCHES[name](features(), concepts)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_the_detectors_logits_and_deltas_are_float32() -> None:
    model, _ = finetune_case(slice(None), 0.5)
    detector = model.float().detector
    expected = detector._head(features().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = detector._head(features())
        torch.testing.assert_close(detector.classify(features()), expected.logits, rtol=0, atol=0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_float64_stays_float64() -> None:
    assert in_float32(lambda x: x)(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


# ---------------------------------------------------------------- the encoders


def encode(encoder: RegionEncoder) -> Tensor:
    images = random(2, 3, 64, 96, seed=1).float()
    with networks("cpu"):
        return encoder(images, BOXES, [(64, 96), (64, 80)])


@pytest.mark.parametrize("tower", TOWERS)
def test_region_embeddings_are_close(tower: str) -> None:
    encoder = region_encoder(TOWERS[tower]())
    exact, found = in_both(lambda: encode(encoder))
    assert not torch.equal(exact, found.float())
    assert float(torch.cosine_similarity(exact, found.float(), dim=1).min().detach()) > 0.999
    found.float().square().sum().backward()
    assert {p.grad.dtype for p in encoder.parameters() if p.grad is not None} == {torch.float32}


def test_the_kernels_that_are_float32s_own_step_aside() -> None:
    """Neither Winograd's form nor the call of oneDNN by its name knows autocast."""
    conv, norm = nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128).eval()
    x = random(1, 128, 6, 6).float()
    plain = FoldedConv(conv, norm)
    assert plain.transformed is not None and plain(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        folded = FoldedConv(conv, norm)
        assert folded.transformed is None and folded(x).dtype == torch.bfloat16


class Kept:
    """Bytes that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.nbytes
        return tensor


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("tower", TOWERS)
def test_recomputed_activations_give_the_same_gradients_from_less_memory(tower: str, precision: str) -> None:
    set_precision(precision, "cpu")
    results, kept = [], []
    for recompute in (False, True):
        encoder = region_encoder(TOWERS[tower]())
        encoder.freeze(1)
        encoder.recompute_activations = recompute
        count = Kept()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found = encode(encoder)
        found.float().square().sum().backward()
        results.append({"": found, **{n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}})
        kept.append(count.bytes)
    assert results[0].keys() == results[1].keys() and len(results[0]) > 10
    assert [name for name, value in results[0].items() if not torch.equal(value, results[1][name])] == []
    assert kept[1] < 0.6 * kept[0]


PARTED = {
    "pretrain": lambda: pretrain_case(slice(0, 6), crop_weight=2.0),
    "finetune": lambda: finetune_case(slice(None), 0.5),
    "masks": lambda: finetune_case(slice(None), 0.5, masks=True),
}


@pytest.mark.parametrize("case", PARTED)
def test_a_batch_in_parts_has_the_whole_batchs_gradients_from_less_memory(case: str) -> None:
    results, kept = [], []
    for at_once in (None, 2):
        model, batch = PARTED[case]()
        encoder = next(module for module in model.modules() if isinstance(module, RegionEncoder))
        encoder.images_at_once = at_once
        count = Kept()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses = model(batch)
        sum(losses.values()).backward()
        results.append(losses | {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        kept.append(count.bytes)
    assert results[0].keys() == results[1].keys() and len(results[0]) > 10
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-9, atol=1e-12, msg=name)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_towers_images_in_parts_give_the_same_embeddings(tower: str) -> None:
    encoder = region_encoder(TOWERS[tower]())
    whole = encode(encoder)
    encoder.images_at_once = 1
    torch.testing.assert_close(encode(encoder), whole, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- labels and proposals


@pytest.mark.parametrize("mode", ["roi", "crop"])
def test_labels_are_close(boxes_data: Folder, tmp_path: Path, mode: str) -> None:
    teacher, labels, proposals = (Folder(str(tmp_path / name)) for name in ("teacher", "labels", "proposals"))
    save_clip(tiny_clip(), teacher)
    save_embeddings(labels, Vocabulary(tuple("abcdefg")), random(7, 16).float())
    boxes = {row.key: torch.from_numpy(row.boxes) for row in rows_of(boxes_data, "train") if row.ok}
    write_proposals(proposals, boxes_data, "train", boxes, torch.linspace(3, -3, 9))
    config = tiny_config(labels={"mode": mode, "temperature": 0.05})

    def label() -> tuple[Tensor, list[int]]:
        rows = Labeller(config, teacher, labels, "cpu").label_shard(boxes_data, proposals, 0)[0].to_pylist()
        return torch.tensor([s for row in rows for s in row["score"]]), [i for row in rows for i in row["concept_id"]]

    (exact, ids), (found, others) = in_both(label)
    assert len(exact) == 6 and ids == others
    assert not torch.equal(exact, found)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


def test_proposals_are_close_and_their_logits_have_all_bits(boxes_data: Folder) -> None:
    config = tiny_config(proposals={"method": "rpn", "max_regions": 40})
    rows = [row for row in rows_of(boxes_data, "train") if row.ok]
    images = [ImageReader(boxes_data).read_tensor(row) for row in rows]
    network = build_network(config.rpn, 0).eval()
    exact, found = in_both(lambda: NetworkBoxes(network, config.rpn, config.proposals)(rows, images))
    for one, other in zip(exact, found, strict=True):
        assert other.boxes.dtype == other.logits.dtype == torch.float32
        assert len(other.logits.unique()) > 0.9 * len(other.logits)  # rounded to bf16 many would be equal
        assert not torch.equal(one.logits, other.logits)
        torch.testing.assert_close(other.logits.mean(), one.logits.mean(), rtol=0, atol=1e-3)


def test_crops_come_out_in_float32() -> None:
    set_precision("bf16", "cpu")
    image = (random(3, 40, 40).abs() * 100).clamp(max=255).to(torch.uint8)
    assert CropEncoder(tiny_clip())([image], [BOXES[1]]).dtype == torch.float32


# ---------------------------------------------------------------- the setting


@pytest.mark.parametrize("has_bf16", [True, False])
def test_what_each_value_means_on_a_gpu(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    """As torch would say of a GPU; none is used."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)

    def chosen(precision: str) -> tuple[str | None, bool, bool]:
        set_precision(precision, "cuda:1")
        networks("cpu")
        return precision_used(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    assert chosen("tf32") == ("tf32", True, True)
    assert chosen("float32") == ("float32", False, False)
    assert chosen("auto") == ("bf16" if has_bf16 else "float32", False, False)
    if has_bf16:
        assert chosen("bf16") == ("bf16", False, False)
    else:
        with pytest.raises(ValueError, match=r"execution\.precision is bf16, which cuda:1 here does not have"):
            set_precision("bf16", "cuda:1")


def test_on_a_cpu_auto_is_float32() -> None:
    set_precision("auto", "cpu")
    assert precision_used() is None
    with networks("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    assert precision_used() == "float32"
    with pytest.raises(ValueError, match=r"execution\.precision is tf32, which cpu here does not have"):
        set_precision("tf32", "cpu")


def test_somebody_elses_autocast_is_left_on() -> None:
    with torch.autocast("cpu", torch.bfloat16), networks("cpu"):
        assert torch.is_autocast_enabled("cpu")
