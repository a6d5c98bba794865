"""The `embed` command: one embedding per name, in the space of a model's region features."""

from __future__ import annotations

import json
from collections.abc import Sequence

from regionclip_core.storage.folder import Folder, new_file

from .model_choice import ModelChoice


def embed(names: Sequence[str], choice: ModelChoice, out: str) -> None:
    """Write `embeddings`, float32[K, D] with rows of unit length, as safetensors; the names are in its metadata, as
    JSON under `names`.

    Raises:
        ValueError, FileNotFoundError: for what a user can get wrong; most of it before the model is loaded.
    """
    target = new_file(out, ".safetensors")
    model = choice.open()
    from safetensors.torch import save

    embeddings = model.embed(names).contiguous()
    metadata = {"names": json.dumps([*names], ensure_ascii=False), "format": "pt"}
    data = save({"embeddings": embeddings}, metadata=metadata)
    Folder(str(target.absolute().parent)).write_bytes(target.name, data)
    print(f"embeddings of {len(names)} names, {embeddings.shape[1]} numbers each, in {out}")
