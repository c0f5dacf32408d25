"""Reading clips, and what they say about how they were made."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8

from daifuku.errors import MediaError
from daifuku.media.encode import TAG


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video file as it was read."""

    frames: UInt8[np.ndarray, "t h w 3"]
    fps: Fraction | None
    """None for a folder of PNG frames, which keeps no time."""
    metadata: dict[str, Any] | None
    """What `VideoWriter` was given, or None for a clip of another origin."""


def read_video(path: str | Path) -> Clip:
    """All frames of a video file or of a folder of PNG frames. Raises MediaError if that cannot be read."""
    path = Path(path)
    if not path.exists():
        raise MediaError(f"There is no file {path}.")
    metadata = read_metadata(path)
    if path.is_dir():
        frames = [frame for file in sorted(path.glob("*.png")) for frame in _decode(file)[0]]
        fps = None
    else:
        frames, fps = _decode(path)
    if not frames:
        raise MediaError(f"{path} holds no frames.")
    return Clip(frames=np.stack(frames), fps=fps, metadata=metadata)


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """What the writer of a clip recorded: from inside the file, or else from the .json beside it, or from a .json.

    None if nobody recorded anything. Raises MediaError if the file cannot be read or its record is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise MediaError(f"There is no file {path}.")
    record = None
    if path.suffix not in (".json", ".gif") and not path.is_dir():
        with _opened(path) as container:
            # Matroska writes the names of its entries in capitals.
            record = {name.lower(): value for name, value in container.metadata.items()}.get(TAG)
    beside = path.with_name(f"{path.name if path.is_dir() else path.stem}.json")
    if record is None and not beside.exists():
        return None
    try:
        metadata = json.loads(beside.read_text("utf-8") if record is None else record)
    except (OSError, ValueError) as error:
        raise MediaError(f"The record of {path} is damaged: {error}.") from error
    if not isinstance(metadata, dict):
        raise MediaError(f"The record of {path} is damaged: it is not a JSON object.")
    return metadata


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    """A file given as an open file, never as a name: FFmpeg would follow one to devices and internet addresses."""
    try:
        with path.open("rb") as file, av.open(file, "r") as container:
            yield container
    except (OSError, FFmpegError) as error:
        raise MediaError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decode(path: Path) -> tuple[list[UInt8[np.ndarray, "h w 3"]], Fraction | None]:
    with _opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path} holds no video.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream.average_rate
