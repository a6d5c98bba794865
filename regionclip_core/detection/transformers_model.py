"""A detector folder in Hugging Face's transformers; the file that `save_model` writes into the folder imports this.

docs/install.md has the lines that use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig, PreTrainedModel, ZeroShotObjectDetectionPipeline
from transformers.image_utils import load_image

from regionclip_core.detection.given_images import ImageLike
from regionclip_core.detection.model_folder import load_model
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.detection.results import NamedDetections
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import MODEL_TYPE

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class RegionClipConfig(PreTrainedConfig):  # type: ignore[misc]
    """The content of config.json."""

    model_type = MODEL_TYPE


class RegionClipForZeroShotObjectDetection(PreTrainedModel):  # type: ignore[misc]
    """A RegionModel whose networks are modules of this one, so that `to` moves them."""

    config_class = RegionClipConfig

    def __init__(self, config: RegionClipConfig, model: RegionModel) -> None:
        super().__init__(config)
        self.detector = model.detector
        self.rpn = model.proposer and model.proposer.network
        self.region_model = model

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], *_: Any, config: RegionClipConfig, **options: Any) -> Self:
        """Load a folder, or a repository of the Hub, in evaluation mode and float32.

        Raises:
            ValueError: for a `dtype` or `device_map`, which would be left without effect.
        """
        for name, usual in (("dtype", "auto"), ("device_map", None)):
            if options.get(name) not in (None, usual):
                raise ValueError(f"{name}={options[name]!r}: leave it out; .to(device) or device= moves the model")
        folder = os.fspath(place)
        if not os.path.isdir(folder):
            folder = snapshot_download(folder, **{name: options[name] for name in _OF_THE_HUB if name in options})
        model = cls(config, load_model(Folder(folder)))
        model.eval()
        return model

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuse: the folder that the model comes from is already in this form."""
        raise ValueError("copy the folder that the model was loaded from, or write one with `regionclip export`")

    def forward(
        self, images: ImageLike | Sequence[ImageLike], classes: Sequence[str] = (), against: Sequence[str] = ()
    ) -> list[NamedDetections]:
        """See `RegionModel.detect`, as which this can also be called."""
        return self.region_model.to(str(self.device)).detect(images, classes, against)

    detect = forward


class RegionClipPipeline(ZeroShotObjectDetectionPipeline):  # type: ignore[misc]
    """The pipeline of that task, but all labels are looked for at once.

    transformers' own gives a model one label after the other; here labels compete in a softmax.
    """

    _load_tokenizer = _load_image_processor = False  # the model does both itself

    def check_model_type(self, _: Any) -> None:
        """Accept the model: transformers only knows its own by name, and reports others as errors."""

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = None) -> Iterator[dict[str, Any]]:
        labels = inputs["candidate_labels"]
        labels = labels.split(",") if isinstance(labels, str) else list(labels)
        yield {"is_last": True, "image": load_image(inputs["image"], timeout=timeout), "labels": labels}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        [found] = self.model(inputs["image"], inputs["labels"])
        return {"is_last": inputs["is_last"], "found": found}

    def postprocess(
        self, outputs: Sequence[dict[str, Any]], threshold: float = 0.1, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Return score, label and box in whole pixels, as this task's pipelines do; highest score first."""
        found = outputs[0]["found"].at_least(threshold)
        rows = zip(found.scores.tolist(), found.names, found.boxes, strict=True)
        results = [{"score": s, "label": name, "box": self._get_bounding_box(box)} for s, name, box in rows]
        return results[:top_k] if top_k else results
