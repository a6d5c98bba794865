"""The library under the pipeline: models, losses, parsing, artifacts. It knows nothing of ray, typer or stages.

Its public door: `load`, `open_artifact`, `ConceptPool` and `parse_captions`, of `door.py`.
"""

from typing import TYPE_CHECKING, Any

from regionclip_core.threads import set_usual_threads

if TYPE_CHECKING:
    from regionclip_core.door import ConceptPool, load, open_artifact, parse_captions

__version__ = "0.1.0"
__all__ = ["ConceptPool", "load", "open_artifact", "parse_captions"]


def __getattr__(name: str) -> Any:
    """Load the door with its first use: torch and Arrow take seconds, and `--help` imports this package too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    set_usual_threads()
    from regionclip_core import door

    return getattr(door, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
