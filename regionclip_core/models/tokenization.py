"""The tokenizer of a CLIP architecture: CLIP's own, or a Hugging Face one from files on this machine.

Shapes: B texts, L context length.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from regionclip_core.storage.given_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from regionclip_core.storage.records import Folder

MAIN_FILE = TOKENIZER_FILES[0]


def make_tokenizer(text_config: dict[str, Any], folder: Folder | None = None) -> Callable[[list[str]], Tensor]:
    """Texts to ids [B, L] int64 for a description's `text_cfg`; text that is too long is cut, keeping the end token.

    `folder`: where a Hugging Face tokenizer is looked for first, beside the weights.
    """
    if text_config.get("hf_tokenizer_name"):
        return LocalTokenizer(text_config, folder)
    options = text_config.get("tokenizer_kwargs") or {}
    own: Callable[[list[str]], Tensor] = SimpleTokenizer(context_length=text_config["context_length"], **options)
    return own


class LocalTokenizer:
    """A Hugging Face tokenizer (SigLIP's, for one), read when it is first asked for. Never from the network.

    Its files are looked for in the folder of the weights, then where `hf_tokenizer_name` points to if that is a
    folder, then in huggingface_hub's cache.
    """

    def __init__(self, text_config: dict[str, Any], folder: Folder | None = None) -> None:
        self.name: str = text_config["hf_tokenizer_name"]
        self._text_config = text_config
        self._folder = folder

    def __call__(self, texts: list[str]) -> Tensor:
        """Ids [B, L] int64, padded with the tokenizer's own padding."""
        return self._tokenizer(texts)  # type: ignore[no-any-return]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name, as they were found. FileNotFoundError, saying how to get them, if nowhere."""
        found = self._from_folder() or self._from_path() or self._from_cache()
        if MAIN_FILE not in found:
            fetch = f"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{self.name}')"
            raise FileNotFoundError(
                f"the tokenizer {self.name} is not on this machine, and a run downloads nothing. Fetch it once with\n"
                f'  python -c "{fetch}"\nor put its {MAIN_FILE} and tokenizer_config.json beside the weights'
            )
        return found

    def _from_folder(self) -> dict[str, bytes]:
        folder = self._folder
        if folder is None:
            return {}
        return {name: folder.read_bytes(name) for name in TOKENIZER_FILES if folder.exists(name)}

    def _from_path(self) -> dict[str, bytes]:
        paths = [Path(self.name) / name for name in TOKENIZER_FILES]
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def _from_cache(self) -> dict[str, bytes]:
        from huggingface_hub import try_to_load_from_cache

        if self.name.count("/") > 1 or self.name.startswith(("/", ".")):
            return {}  # a path, of which the cache knows nothing
        paths = {name: try_to_load_from_cache(self.name, name) for name in TOKENIZER_FILES}
        return {name: Path(path).read_bytes() for name, path in paths.items() if isinstance(path, str)}

    @cached_property
    def _tokenizer(self) -> Any:
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(
                f"the tokenizer {self.name} needs the package transformers (extra `siglip`): pip install transformers"
            )
        from open_clip.tokenizer import HFTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            return HFTokenizer(
                folder,
                context_length=self._text_config["context_length"],
                tokenizer_mode=self._text_config.get("tokenizer_mode"),
                local_files_only=True,
                trust_remote_code=False,
                **(self._text_config.get("tokenizer_kwargs") or {}),
            )
