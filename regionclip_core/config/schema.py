"""The configuration as a JSON Schema, by which editors complete and check YAML files."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.loading import PRESETS
from regionclip_core.config.tree import Config

SCHEMA_FILE = PRESETS / "config.schema.json"
"""What `regionclip config --schema` prints; a test compares them."""


def json_schema() -> dict[str, Any]:
    """Return the schema of a config file.

    It requires nothing, since a file may say only what is different from another one (`extends:`, several --config),
    and so a split must fit one of the sources and not only one. What is missing is found when the config is loaded.
    """
    schema = _nothing_required(Config.model_json_schema())
    extends = {
        "type": "string",
        "description": "Name of a preset, or a file beside this one; this file then says only what is different.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"extends": extends, **schema["properties"]},
    }


def _nothing_required(node: Any) -> Any:
    """Return a part of a schema without what makes partial files wrong, and without the defaults of whole sections."""
    if isinstance(node, list):
        return [_nothing_required(one) for one in node]
    if not isinstance(node, dict):
        return node
    left_out = {"discriminator", "minProperties", *(["default"] if "$ref" in node else [])}
    if isinstance(node.get("required"), list):  # and no setting of this name
        left_out.add("required")
    return {
        "anyOf" if key == "oneOf" else key: _nothing_required(value)
        for key, value in node.items()
        if key not in left_out
    }
