"""Mochi 1, the whole text-to-video model, in readable PyTorch.

    import daifuku

    pipe = daifuku.load()
    pipe("a small red ball bouncing on a gray background").save("clip.mp4")

Importing this imports no torch: every name below is looked up when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daifuku.version import VERSION as __version__

if TYPE_CHECKING:
    from daifuku import errors, events
    from daifuku.config import RuntimeConfig
    from daifuku.errors import DaifukuError
    from daifuku.events import Done, Event, Frames, Step, TextReady
    from daifuku.pipeline import Pipeline, load
    from daifuku.request import GenerateRequest
    from daifuku.video import Video
    from daifuku.weights.load import load_dit, load_vae

__all__ = [
    "DaifukuError",
    "Done",
    "Event",
    "Frames",
    "GenerateRequest",
    "Pipeline",
    "RuntimeConfig",
    "Step",
    "TextReady",
    "Video",
    "__version__",
    "errors",
    "events",
    "load",
    "load_dit",
    "load_vae",
]

_HOMES = {
    "DaifukuError": "daifuku.errors",
    "Done": "daifuku.events",
    "Event": "daifuku.events",
    "Frames": "daifuku.events",
    "GenerateRequest": "daifuku.request",
    "Pipeline": "daifuku.pipeline",
    "RuntimeConfig": "daifuku.config",
    "Step": "daifuku.events",
    "TextReady": "daifuku.events",
    "Video": "daifuku.video",
    "load": "daifuku.pipeline",
    "load_dit": "daifuku.weights.load",
    "load_vae": "daifuku.weights.load",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "events"):
        return import_module(f"daifuku.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'daifuku' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
