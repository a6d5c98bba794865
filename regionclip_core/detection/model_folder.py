"""A detector as one folder, in the layout of a Hugging Face model repository; only this file writes and reads it.

config.json (what builds the modules), model.safetensors (`detector.*`, `rpn.*`), vocabulary.json, README.md, the code
by which transformers opens the folder and, where new names can be embedded, text/ with a CLIP model and its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import describe_detector, rebuild_detector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.checkpoint_files import load_strictly, read_safetensors
from regionclip_core.models.clip import load_clip, save_clip
from regionclip_core.models.text_embeddings import read_prompts, write_prompts
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.proposals.rpn_folder import read_section, rpn_section
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import DETECTOR_FILES, MODEL_TYPE

FORMAT = 1
CONFIG, WEIGHTS, VOCABULARY = DETECTOR_FILES
CARD, TEXT = "README.md", "text"
CODE = "modeling_regionclip.py"
_CODE_MODULE = CODE.removesuffix(".py")
FOR_TRANSFORMERS: Mapping[str, Any] = {
    "auto_map": {
        "AutoConfig": f"{_CODE_MODULE}.RegionClipConfig",
        "AutoModelForZeroShotObjectDetection": f"{_CODE_MODULE}.RegionClipForZeroShotObjectDetection",
    },
    "custom_pipelines": {
        "zero-shot-object-detection": {
            "impl": f"{_CODE_MODULE}.RegionClipPipeline",
            "pt": ["AutoModelForZeroShotObjectDetection"],
        }
    },
}
"""Keys of config.json that only transformers reads; the classes are in `transformers_model.py`."""
_CODE = '''"""Opens this folder in transformers, by the package regionclip."""

try:
    from regionclip_core.detection.transformers_model import (  # noqa: F401
        RegionClipConfig,
        RegionClipForZeroShotObjectDetection,
        RegionClipPipeline,
    )
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "regionclip_core":
        raise
    raise ImportError("this model needs the package regionclip: `pip install .` in a clone of it") from error
'''


def model_config(
    clip_name: str,
    description: Mapping[str, Any],
    preprocess: Preprocess,
    inference: InferenceSettings,
    rpn: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return config.json of a detector.

    Args:
        description: as `describe_detector` gives it.
        rpn: as `rpn_folder.rpn_section` gives it; None without a proposal network.
    """
    parts = {"preprocess": asdict(preprocess), "inference": asdict(inference), "rpn": rpn}
    own = {"model_type": MODEL_TYPE, "format": FORMAT, "clip_name": clip_name}
    return {**own, **description, **parts, **FOR_TRANSFORMERS}


def config_of(model: RegionModel) -> dict[str, Any]:
    """Return config.json of a model."""
    description = describe_detector(model.detector, model.clip_architecture) | {"names": list(model.vocabulary.names)}
    if model.drawings_only:
        description["trained_on"] = "drawings"
    rpn = None if model.proposer is None else rpn_section(model.proposer.rpn, model.proposer.settings)
    return model_config(model.clip_name, description, model.preprocess, model.inference, rpn)


def save_model(folder: Folder, model: RegionModel, card: str) -> None:
    """Write a detector folder; `card` is the text of README.md."""
    tensors = {f"detector.{name}": tensor for name, tensor in model.detector.state_dict().items()}
    tensors["detector.class_embeddings"] = model.embeddings  # not those of the last names that it was asked for
    if model.proposer is not None:
        tensors |= {f"rpn.{name}": tensor for name, tensor in model.proposer.network.state_dict().items()}
    write_model(folder, tensors, config_of(model), model.vocabulary, card)
    if model.text is not None:
        save_clip(model.text, folder.child(TEXT))
        write_prompts(folder.child(TEXT), model.prompts)


def write_model(
    folder: Folder, tensors: Mapping[str, Tensor], config: Mapping[str, Any], vocabulary: Vocabulary, card: str
) -> None:
    """Write the files of a detector folder but `text/`; tensors keep their dtype, config.json is written last."""
    rows = len(tensors["detector.class_embeddings"])
    if tuple(config["names"]) != vocabulary.names or rows != len(vocabulary):
        raise ValueError(
            f"the detector classifies into {rows} names {list(config['names'])[:3]} ..., the vocabulary has "
            f"{len(vocabulary)}, {list(vocabulary.names[:3])} ...: they must be the same, in order"
        )
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    folder.write_bytes(WEIGHTS, save_tensors(plain, metadata={"format": "pt"}))
    folder.write_json(VOCABULARY, vocabulary.to_json(), indent=1)
    folder.write_bytes(CARD, card.encode())
    folder.write_bytes(CODE, _CODE.encode())
    folder.write_json(CONFIG, config, indent=1)


def load_model(folder: Folder, with_text: bool = True) -> RegionModel:
    """Load what `save_model` or `regionclip import` wrote, on the CPU in evaluation mode.

    Args:
        with_text: False leaves the text encoder on the disk.

    Raises:
        FileNotFoundError: where there is no detector folder.
        ValueError: if its files don't fit each other.
    """
    config = read_config(folder)
    vocabulary = Vocabulary.from_json(folder.read_json(VOCABULARY))
    if tuple(config["names"]) != vocabulary.names:
        raise ValueError(f"{folder.url}: {VOCABULARY} and the names in {CONFIG} differ; write the folder again")
    parts: dict[str, dict[str, Tensor]] = {"detector": {}, "rpn": {}}
    for name, tensor in read_safetensors(folder, WEIGHTS).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    detector = rebuild_detector(config, parts["detector"], f"{folder.path(WEIGHTS)}, detector")
    proposer = None
    if config["rpn"] is not None:
        rpn, proposals = read_section(config["rpn"], folder.path(CONFIG))
        network = ProposalNetwork(rpn)
        load_strictly(network, parts["rpn"], f"{folder.path(WEIGHTS)}, proposal network")
        proposer = NetworkBoxes(network.eval().to(memory_format=torch.channels_last), rpn, proposals)
    to = config["preprocess"]
    words = folder.child(TEXT)
    return RegionModel(
        detector,
        vocabulary,
        detector.class_embeddings,
        Preprocess(to["image_size"], to["max_size"], tuple(to["mean"]), tuple(to["std"])),
        InferenceSettings(**config["inference"]),
        config["clip_name"],
        config["clip_architecture"],
        proposer,
        load_clip(words) if with_text and folder.exists(TEXT) else None,
        read_prompts(words),
        drawings_only=config.get("trained_on") == "drawings",
    )


def read_config(folder: Folder) -> dict[str, Any]:
    """Return config.json of a detector folder; FileNotFoundError or ValueError if there is none for this version."""
    if not folder.exists(CONFIG):
        raise FileNotFoundError(
            f"{folder.url} is no detector folder: it has no {CONFIG}. `regionclip import` and `regionclip export` make "
            "such folders"
        )
    config = folder.read_json(CONFIG)
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise ValueError(f"{folder.path(CONFIG)}: expected model_type {MODEL_TYPE!r}: this is another project's model")
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{folder.path(CONFIG)}: format {config.get('format')!r}, but this version reads {FORMAT}; use the version "
            "that wrote the folder, or write it again"
        )
    return config
