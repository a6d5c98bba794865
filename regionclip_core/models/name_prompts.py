"""How a model folder's text encoder embeds names: `prompts.json` beside it.

Without the file it is the official way: the 81 templates, averages of raw embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.prompts import embed_texts, prompt_templates
from regionclip_core.storage.folder import Folder

FILE = "prompts.json"


@dataclass(frozen=True)
class NamePrompts:
    """Templates, each with one `{}`, and whether each prompt's embedding is normalised before the average."""

    templates: tuple[str, ...]
    normalize: bool

    @classmethod
    def from_config(cls, teacher: TeacherConfig) -> NamePrompts:
        """Those of a run."""
        return cls(prompt_templates(teacher.prompts), teacher.normalize_prompts)

    @classmethod
    def official(cls) -> NamePrompts:
        """Those of the official code."""
        return cls(prompt_templates("clip81"), False)

    def embed(self, clip: ClipModel, names: Sequence[str]) -> Tensor:
        """float32[K, D] on the model's device."""
        return embed_texts(clip, names, self.templates, self.normalize)


def write_prompts(folder: Folder, prompts: NamePrompts) -> None:
    """Write `prompts.json`."""
    folder.write_json(FILE, {"templates": list(prompts.templates), "normalize_prompts": prompts.normalize}, indent=1)


def read_prompts(folder: Folder) -> NamePrompts:
    """What `write_prompts` wrote, the official prompts where nothing was written. ValueError for a wrong file."""
    if not folder.exists(FILE):
        return NamePrompts.official()
    found = folder.read_json(FILE)
    templates, normalize = found.get("templates"), found.get("normalize_prompts")
    fits = (
        isinstance(templates, list) and templates and all(isinstance(t, str) and t.count("{}") == 1 for t in templates)
    )
    if not fits or not isinstance(normalize, bool):
        raise ValueError(
            f"{folder.path(FILE)}: expected `templates`, a list of texts with one {{}} each, and `normalize_prompts`, "
            f"true or false, got {found}; delete it to use the official prompts"
        )
    return NamePrompts(tuple(templates), normalize)
