"""A detector as one folder, in the layout of a Hugging Face model repository: written and read here alone.

config.json (what builds the modules), model.safetensors (`detector.*`, `rpn.*`), vocabulary.json, README.md and,
where new names can be embedded, text/ with a CLIP model. K names, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from regionclip_core.config.tree import ProposalsConfig, RpnConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.models.checkpoint_files import load_strictly
from regionclip_core.models.clip import ClipModel, Triple, lean_clip, load_clip, save_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import read_section
from regionclip_core.storage.folder import Folder

MODEL_TYPE, FORMAT = "regionclip", 1
CONFIG, WEIGHTS, VOCABULARY, CARD, TEXT = "config.json", "model.safetensors", "vocabulary.json", "README.md", "text"


@dataclass(frozen=True)
class Preprocess:
    """How images reach the detector."""

    image_size: int
    """Shorter side of the input, pixels."""
    max_size: int
    """Longer side, pixels, at most."""
    mean: Triple
    """Of RGB in 0..1."""
    std: Triple


@dataclass(frozen=True)
class LoadedModel:
    """A detector folder, read: modules on the CPU in evaluation mode."""

    detector: OpenVocabularyDetector
    network: ProposalNetwork | None
    """The proposal network, if the folder has one."""
    config: dict[str, Any]
    """config.json."""
    vocabulary: Vocabulary
    text: ClipModel | None
    """The CLIP model whose text encoder embeds new names, if the folder has one."""

    @property
    def preprocess(self) -> Preprocess:
        """How images reach the detector."""
        section = self.config["preprocess"]
        return Preprocess(section["image_size"], section["max_size"], tuple(section["mean"]), tuple(section["std"]))

    @property
    def inference(self) -> InferenceSettings:
        """How its detections are scored and chosen."""
        return InferenceSettings(**self.config["inference"])

    @property
    def rpn(self) -> tuple[RpnConfig, ProposalsConfig] | None:
        """What builds and feeds the proposal network, and chooses among its boxes; None where there is none."""
        return None if self.config["rpn"] is None else read_section(self.config["rpn"], CONFIG)


def is_model_folder(folder: Folder) -> bool:
    """Whether a detector folder lies there (its files are not checked)."""
    if not folder.exists(CONFIG):
        return False
    config = folder.read_json(CONFIG)
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def model_config(
    *,
    clip_architecture: Mapping[str, Any],
    clip_name: str,
    names: Sequence[str],
    temperature: float,
    background: str,
    mask_head: bool,
    preprocess: Preprocess,
    inference: InferenceSettings,
    rpn: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """config.json of a detector; `rpn` as `rpn_folder.rpn_section` gives it, None without a network."""
    return {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "clip_architecture": dict(clip_architecture),
        "clip_name": clip_name,
        "names": list(names),
        "temperature": temperature,
        "background": background,
        "mask_head": mask_head,
        "preprocess": asdict(preprocess),
        "inference": asdict(inference),
        "rpn": None if rpn is None else dict(rpn),
    }


def save_model(
    folder: Folder,
    detector: OpenVocabularyDetector,
    network: ProposalNetwork | None,
    *,
    clip_architecture: Mapping[str, Any],
    clip_name: str,
    vocabulary: Vocabulary,
    preprocess: Preprocess,
    inference: InferenceSettings,
    rpn: Mapping[str, Any] | None,
    card: str,
    text: ClipModel | None = None,
) -> None:
    """Write a detector folder. Raises ValueError if the names differ from the vocabulary's, or `rpn` is half given.

    Args:
        clip_architecture: ClipModel.architecture of the model that the encoder was taken from; clip_name its name.
        rpn: `rpn_folder.rpn_section` of the proposal network, None without one.
        card: text of README.md.
        text: the CLIP model whose text encoder embeds new names.
    """
    if (network is None) != (rpn is None):
        raise ValueError("save_model: a proposal network and its `rpn` settings come together, or not at all")
    tensors = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    if network is not None:
        tensors |= {f"rpn.{name}": tensor for name, tensor in network.state_dict().items()}
    config = model_config(
        clip_architecture=clip_architecture,
        clip_name=clip_name,
        names=detector.names,
        temperature=detector.temperature,
        background=detector.background,
        mask_head=detector.mask_head is not None,
        preprocess=preprocess,
        inference=inference,
        rpn=rpn,
    )
    write_model(folder, tensors, config, vocabulary, card)
    if text is not None:
        save_clip(text, folder.child(TEXT))


def write_model(
    folder: Folder, tensors: Mapping[str, Tensor], config: Mapping[str, Any], vocabulary: Vocabulary, card: str
) -> None:
    """Write the files of a detector folder but `text/`; tensors keep their dtype, config.json is written last."""
    from safetensors.torch import save

    if tuple(config["names"]) != vocabulary.names:
        raise ValueError(
            f"the detector classifies into {len(config['names'])} names {list(config['names'])[:3]} ..., the "
            f"vocabulary has {len(vocabulary)}, {list(vocabulary.names[:3])} ...: they must be the same, in order"
        )
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    folder.write_bytes(WEIGHTS, save(plain, metadata={"format": "pt"}))
    folder.write_json(VOCABULARY, vocabulary.to_json(), indent=1)
    folder.write_bytes(CARD, card.encode())
    folder.write_json(CONFIG, config, indent=1)


def load_model(folder: Folder, with_text: bool = True) -> LoadedModel:
    """What `save_model` or `regionclip import` wrote; `with_text=False` leaves the text encoder on the disk.

    Raises FileNotFoundError where there is no detector folder, ValueError if its files don't fit each other.
    """
    config = read_config(folder)
    vocabulary = Vocabulary.from_json(folder.read_json(VOCABULARY))
    if tuple(config["names"]) != vocabulary.names:
        raise ValueError(f"{folder.url}: {VOCABULARY} and the names in {CONFIG} differ; write the folder again")
    tensors = read_tensors(folder)
    detector = _build_detector(config, tensors, folder.url)
    load_strictly(detector, _section(tensors, "detector."), f"{folder.path(WEIGHTS)}, detector")
    network = None
    if config["rpn"] is not None:
        network = ProposalNetwork(read_section(config["rpn"], folder.path(CONFIG))[0])
        load_strictly(network, _section(tensors, "rpn."), f"{folder.path(WEIGHTS)}, proposal network")
        network.eval().to(memory_format=torch.channels_last)
    text = load_clip(folder.child(TEXT)) if with_text and folder.exists(TEXT) else None
    return LoadedModel(detector.eval(), network, config, vocabulary, text)


def read_config(folder: Folder) -> dict[str, Any]:
    """config.json of a detector folder; FileNotFoundError or ValueError if there is none that this code reads."""
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


def read_tensors(folder: Folder) -> dict[str, Tensor]:
    """Everything in model.safetensors, as stored. ValueError where the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(folder.read_bytes(WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{folder.path(WEIGHTS)} is damaged or cut short ({error}); copy or import it again") from None


def _build_detector(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> OpenVocabularyDetector:
    embeddings = tensors.get("detector.class_embeddings")
    if embeddings is None:
        raise ValueError(f"{where}/{WEIGHTS}: detector.class_embeddings is missing; import or export the model again")
    return OpenVocabularyDetector(
        region_encoder(lean_clip(config["clip_architecture"], config["clip_name"])),
        embeddings,
        config["names"],
        config["temperature"],
        config["background"],
        mask_head=config["mask_head"],
    )


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
