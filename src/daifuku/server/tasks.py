"""What a worker is asked for, and what it says while it works: all of it JSON, so a worker can be anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daifuku.server.jobs import Kind

VIDEO, THUMBNAIL, SPRITESHEET, LATENTS = "video", "thumbnail", "spritesheet", "latents"

FILES: Mapping[str, tuple[str, str]] = {
    VIDEO: ("video.mp4", "video/mp4"),
    THUMBNAIL: ("video.thumbnail.png", "image/png"),
    SPRITESHEET: ("video.spritesheet.png", "image/png"),
    LATENTS: ("video.latents.safetensors", "application/octet-stream"),
}
"""What a finished job leaves in its folder, by variant: file name and media type."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which model a worker loads, and how it works."""

    model: str | None = None
    revision: str | None = None
    variant: str | None = None
    device: str | None = None
    device_memory: str | None = None
    """Of the device, such as 12GiB."""
    served_as: str | None = None
    """What published clips call the model, in place of a path of this machine."""
    process_bytes: int | None = None
    """Address space that the process may take."""
    preview_every: int = 0
    """Steps between two preview pictures; 0 for none."""
    checkpoint_every_s: float = 2.0
    alive_every_s: float = 1.0
    """Seconds between two signs of life."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a worker tells about the model that it has loaded."""

    name: str
    identity: str | None
    device: str
    defaults: Mapping[str, Any]
    """Of a request's fields, where they differ from the published model's."""
    tokenizer: str | None = None
    """Path of its folder or its one file."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One claim of one job."""

    kind: Kind
    request: Mapping[str, Any]
    """Resolved, with LoRAs by path."""
    lora_names: tuple[str, ...]
    """What the record of the clip calls them."""
    folder: str
    """Empty, and this claim's alone: what is finished goes there."""
    checkpoint: str
    """The file that lets the next claim go on."""
    latents: str | None = None
    """What to decode, where nothing is sampled."""


# What a worker reports, as messages: {"event": one of these, ...}.
READY, UNUSABLE = "ready", "unusable"
ALIVE, STAGE, STEP, PREVIEW = "alive", "stage", "step", "preview"
DONE, FAILED, CANCELLED, STOPPED = "done", "failed", "cancelled", "stopped"
ENDS = (DONE, FAILED, CANCELLED, STOPPED)
"""A task ends with one of them, or with the death of its worker."""
