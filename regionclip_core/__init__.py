"""The library under the pipeline: models, losses, parsing, artifacts. It knows nothing of ray, typer or stages.

Its public door: `load` and `open_artifact`, of `door.py`, `ConceptPool` and `parse_captions`, of
`concepts/caption_pool.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from regionclip_core.threads import set_usual_threads

if TYPE_CHECKING:
    from regionclip_core.concepts.caption_pool import ConceptPool, parse_captions
    from regionclip_core.door import load, open_artifact

__version__ = "0.1.0"
__all__ = ["ConceptPool", "load", "open_artifact", "parse_captions"]


def __getattr__(name: str) -> Any:
    """Load the door with its first use: torch and Arrow take seconds, and `--help` imports this package too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    set_usual_threads()
    of_captions = name in ("ConceptPool", "parse_captions")
    try:
        return getattr(import_module(f"{__name__}.{'concepts.caption_pool' if of_captions else 'door'}"), name)
    except ModuleNotFoundError as error:
        if not of_captions:
            raise
        raise ImportError(
            f"{name} needs {error.name}: pip install 'regionclip[pipeline]' (in a clone: '.[pipeline]')"
        ) from error


def __dir__() -> list[str]:
    return [*globals(), *__all__]
