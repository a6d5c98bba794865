"""The text side: text tower, prompt average, token ids, prompt filling, category names."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.config.tree import ClipArchitecture
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.vocabulary import clean_lvis_name
from regionclip_core.models.clip import ClipModel, build_clip, small_architecture
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.prompts import embed_texts, fill_template

ENCODER, TOKENS = "text_encoder.npz", "tokenizer.json"
_SPECIAL = {"<|startoftext|>": "<start_of_text>", "<|endoftext|>": "<end_of_text>"}
"""CLIP's special tokens as open_clip writes them; the official spelling is ordinary text to it."""


@functools.cache
def golden_clip() -> ClipModel:
    """A CLIP whose text tower holds the golden weights, built as every other model here."""
    architecture = small_architecture(ClipArchitecture(vision_width=8))
    architecture |= {"embed_dim": 24, "quick_gelu": True}
    architecture["text_cfg"] = {"context_length": 77, "vocab_size": 512, "width": 32, "heads": 2, "layers": 2}
    clip = build_clip(architecture, "golden", 0)
    weights = {k[2:]: v for k, v in arrays(ENCODER).items() if k.startswith("w/")}
    unknown = clip.model.load_state_dict(weights, strict=False).unexpected_keys
    assert not unknown, unknown
    return clip


@torch.no_grad()
def encoder_errors() -> Errors:
    """Embeddings of the texts, and of every position before one is picked."""
    golden, model = arrays(ENCODER), golden_clip().model
    picked: list[Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda _, args, out: picked.append(out))
    features = model.encode_text(golden["tokens"])
    hook.remove()
    every = picked[0] @ model.text_projection
    # The pooled row is the one at the end token: find it again among all positions.
    distance = (every - features[:, None]).abs().amax(2)
    return {
        "text_features": error(features, golden["text_features"]),
        "all_token_features_first3": error(every[:3], golden["all_token_features_first3"]),
        "eot_index": error(distance.argmin(1), golden["eot_index"]),
    }


def average_errors() -> Errors:
    """The raw average over prompts, with the golden tokens in place of six prompts."""
    golden, clip = arrays(ENCODER), golden_clip()
    rows = iter(golden["tokens"][:6].split(4))
    tokenizer, clip.tokenizer = clip.tokenizer, lambda texts: next(rows)
    try:
        mean = embed_texts(clip, ["anything"], ["{}"] * 6, normalize_prompts=False, batch_size=4)[0]
    finally:
        clip.tokenizer = tokenizer
    return {"template_mean_of_first6": error(mean, golden["template_mean_of_first6"])}


def _text(case: dict[str, Any]) -> str:
    text: str = case["text"]
    for official, ours in _SPECIAL.items():
        text = text.replace(official, ours)
    return text


def token_errors() -> Errors:
    """Texts whose ids or padded rows differ, and the tokenizer's constants."""
    golden, tokenizer = arrays(TOKENS), SimpleTokenizer(context_length=77)
    wrong_ids, wrong_rows = 0, 0
    for case in golden["texts"]:
        row = tokenizer([_text(case)])[0].tolist()
        prefix = list(case["padded77_nonzero_prefix"])
        if len(case["ids"]) + 2 > 77:
            prefix[-1] = golden["eot"]  # the official row ends without it
        wrong_ids += tokenizer.encode(_text(case)) != case["ids"]
        wrong_rows += row != prefix + [0] * (77 - len(prefix))
    return {
        "texts/ids": float(wrong_ids),
        "texts/padded77_nonzero_prefix": float(wrong_rows),
        "sot": error(tokenizer.sot_token_id, golden["sot"]),
        "eot": error(tokenizer.eot_token_id, golden["eot"]),
        "vocab_size": error(tokenizer.vocab_size, golden["vocab_size"]),
    }


def prompt_errors() -> Errors:
    """Templates, filling, and the ids of one name in all of them."""
    golden, templates = arrays(TOKENS), prompt_templates("clip81")
    tokenizer = SimpleTokenizer(context_length=77)
    examples = golden["prompt_engineering_examples"]
    ids = [tokenizer([fill_template(t, "hot dog, sausage")])[0] for t in templates]
    return {
        "n_templates": error(len(templates), golden["n_templates"]),
        "first_templates": error(list(templates[:3]), golden["first_templates"]),
        "prompt_engineering_examples/result": float(
            sum(fill_template(e["template"], e["name"]) != e["result"] for e in examples)
        ),
        "hot_dog_sausage_all_templates_ids": error(
            [row[row != 0].tolist() for row in ids], golden["hot_dog_sausage_all_templates_ids"]
        ),
    }


_LVIS = "REGIONCLIP_LVIS"
_RAW_NAMES = (
    "arctic_(type_of_shoe)",
    "bow_(decorative_ribbons)",
    "railcar_(part_of_a_train)",
    "crisp_(potato_chip)",
    "cleat_(for_securing_rope)",
    "clippers_(for_plants)",
    "cooler_(for_food)",
    "cork_(bottle_plug)",
    "drum_(musical_instrument)",
    "glass_(drink_container)",
    "headstall_(for_horses)",
    "home_plate_(baseball)",
)
"""What LVIS calls the categories of the golden examples."""


def cleaning_errors() -> Errors:
    """Names of LVIS that come out otherwise."""
    ours = [clean_lvis_name(name) for name in _RAW_NAMES]
    return {"lvis_name_cleaning_examples": error(ours, arrays(TOKENS)["lvis_name_cleaning_examples"])}


def lvis_errors() -> Errors:
    """Number and digest of all names and of the base names, read from an LVIS annotation file."""
    golden, ours = arrays(TOKENS), load_categories(os.environ[_LVIS])
    base = [ours.names[i] for i in ours.base_ids]

    def digest(names: Sequence[str]) -> str:
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    found = {
        "lvis_names_count": len(ours),
        "lvis_base_names_count": len(base),
        "lvis_names_sha256": digest(ours.names),
        "lvis_base_names_sha256": digest(base),
    }
    return {name: error(value, golden[name]) for name, value in found.items()}


def coco_errors() -> Errors:
    """How many categories the COCO list has, by set."""
    golden, ours = arrays(TOKENS)["coco_counts"], load_categories("coco_ovd")
    counts = {"base": len(ours.base_ids), "target": len(ours.novel_ids), "all": len(ours)}
    return {f"coco_counts/{name}": error(count, golden[name]) for name, count in counts.items()}


ROWS = [
    Row(ENCODER, "w/* tokens", "input"),
    Row(
        ENCODER,
        "text_features all_token_features_first3 eot_index",
        "clip.ClipModel.encode_text",
        5e-6,
        encoder_errors,
        "row 7 has no end token: its largest id is picked by either",
    ),
    Row(
        ENCODER,
        "template_mean_of_first6",
        "prompts.embed_texts",
        5e-6,
        average_errors,
        "`teacher.normalize_prompts: false`",
    ),
    Row(TOKENS, "texts/text prompt_engineering_examples/name prompt_engineering_examples/template", "input"),
    Row(
        TOKENS,
        "texts/ids texts/padded77_nonzero_prefix sot eot vocab_size",
        "clip.ClipModel.tokenizer",
        0.0,
        token_errors,
        "texts of more than 77 tokens end with the end token, officially not (see below): compared but for that id",
    ),
    Row(
        TOKENS,
        "n_templates first_templates prompt_engineering_examples/result hot_dog_sausage_all_templates_ids",
        "prompt_templates.prompt_templates, prompts.fill_template",
        0.0,
        prompt_errors,
        "`teacher.prompts: clip81`",
    ),
    Row(TOKENS, "coco_counts/base coco_counts/target coco_counts/all", "categories.load_categories", 0.0, coco_errors),
    Row(TOKENS, "coco_counts/all_80", "input", note="a set that nothing here uses"),
    Row(TOKENS, "lvis_name_cleaning_examples", "vocabulary.clean_lvis_name", 0.0, cleaning_errors),
    Row(
        TOKENS,
        "lvis_names_* lvis_base_names_*",
        "categories.load_categories of an LVIS annotation file",
        0.0,
        lvis_errors,
        "LVIS's annotations are no part of this project: measured where `REGIONCLIP_LVIS` is the path of "
        "lvis_v1_val.json or lvis_v1_train.json; it was 0 when this was written",
        needs=_LVIS,
    ),
]
