"""The tokenizer of a CLIP architecture: CLIP's own, or a Hugging Face one from files on this machine.

Shapes: B texts, L context length.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import TOKENIZER_FILES


def make_tokenizer(text_config: dict[str, Any], folder: Folder | None = None) -> Callable[[list[str]], Tensor]:
    """Return the function from texts to ids [B, L] int64; text that is too long is cut and keeps the end token.

    Args:
        text_config: a description's `text_cfg`.
        folder: of the weights; a Hugging Face tokenizer is looked for there first.
    """
    if text_config.get("hf_tokenizer_name"):
        return LocalTokenizer(text_config, folder)
    options = {"context_length": text_config["context_length"], **(text_config.get("tokenizer_kwargs") or {})}
    own: Callable[[list[str]], Tensor] = clip_tokenizer(json.dumps(options))
    return own


@cache
def clip_tokenizer(options: str = "{}") -> SimpleTokenizer:
    """Return CLIP's own tokenizer, with options as JSON; one for all models: it takes 0.1 s, a small model less."""
    return SimpleTokenizer(**json.loads(options))


class LocalTokenizer:
    """A Hugging Face tokenizer (SigLIP has one), loaded with the first text, and never from the network."""

    def __init__(self, text_config: dict[str, Any], folder: Folder | None = None) -> None:
        self.name: str = text_config["hf_tokenizer_name"]
        self._text_config = text_config
        self._folder = folder

    def __call__(self, texts: list[str]) -> Tensor:
        """Return ids [B, L] int64, padded with the tokenizer's own padding."""
        return self._tokenizer(texts)  # type: ignore[no-any-return]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name.

        Looked for in the folder of the weights, then in the folder that `hf_tokenizer_name` names, then in
        huggingface_hub's cache. Raises FileNotFoundError, saying how to get them, where there are none.
        """
        found: dict[str, bytes] = {}
        if self._folder is not None:
            found = {name: self._folder.read_bytes(name) for name in TOKENIZER_FILES if self._folder.exists(name)}
        if not found:
            paths = {name: Path(self.name, name) for name in TOKENIZER_FILES if Path(self.name, name).is_file()}
            if not paths and self.name.count("/") <= 1 and not self.name.startswith(("/", ".")):  # else it is a path
                cached = {name: try_to_load_from_cache(self.name, name) for name in TOKENIZER_FILES}
                paths = {name: Path(path) for name, path in cached.items() if isinstance(path, str)}
            found = {name: path.read_bytes() for name, path in paths.items()}
        main = TOKENIZER_FILES[0]
        if main not in found:
            fetch = f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{self.name}')"
            raise FileNotFoundError(
                f"the tokenizer {self.name} is not on this machine, and a run downloads nothing. Fetch it once with\n"
                f'  python -c "{fetch}"\nor put its {main} and tokenizer_config.json beside the weights'
            )
        return found

    @cached_property
    def _tokenizer(self) -> HFTokenizer:
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(
                f"the tokenizer {self.name} needs the package transformers (extra `siglip`): pip install transformers"
            )
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                Path(folder, name).write_bytes(content)
            return HFTokenizer(
                folder,
                context_length=self._text_config["context_length"],
                tokenizer_mode=self._text_config.get("tokenizer_mode"),
                local_files_only=True,
                trust_remote_code=False,
                **(self._text_config.get("tokenizer_kwargs") or {}),
            )
