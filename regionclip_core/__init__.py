"""The library under the pipeline: models, losses, parsing, artifacts. It knows nothing of ray, typer or stages."""

__version__ = "0.1.0"
