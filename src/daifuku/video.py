"""A finished clip, and the record of how it was made."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku.config import RuntimeConfig
from daifuku.media.write import VideoWriter
from daifuku.request import ResolvedRequest
from daifuku.runtime.build import ModelInfo
from daifuku.version import VERSION


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A finished clip, and all that it takes to make it again."""

    frames: UInt8[np.ndarray, "frames height width 3"]
    latents: Float[Tensor, "c t h w"]
    """Whitened, on the CPU."""
    request: ResolvedRequest
    model: ModelInfo
    runtime: RuntimeConfig
    """How it was computed."""
    timings: Mapping[str, float]
    """Seconds of each stage, reading weights not included."""
    noise_from_seed: bool
    """False when the noise was given: the request alone then does not make the same clip."""

    @property
    def fps(self) -> int:
        return self.request.fps

    def save(self, path: str | Path) -> Path:
        """Writes .mp4, .webm, .gif, or a folder of PNG frames, with a .json of the provenance beside it.

        Returns where it lies: a name that is taken gets a number. Raises UnwritableOutput for a name that no format
        answers to, and MediaError where the file cannot be written.
        """
        size = self.frames.shape[1], self.frames.shape[2]
        with VideoWriter(path, fps=self.fps, size=size, metadata=provenance(self)) as writer:
            writer.write(self.frames)
        return writer.path


def provenance(video: Video) -> dict[str, Any]:
    """How a video came to be, as JSON: `request` and `model` make it again."""
    record = run_record(video.request, video.model, video.runtime, noise_from_seed=video.noise_from_seed)
    return record | {"timings": dict(video.timings)}


def run_record(
    request: ResolvedRequest, model: ModelInfo, runtime: RuntimeConfig, *, noise_from_seed: bool
) -> dict[str, Any]:
    """All that decides what a run makes, as JSON."""
    return {
        "request": request.to_dict(),
        "noise_from_seed": noise_from_seed,
        "model": asdict(model),
        "runtime": asdict(runtime),
        "versions": {"daifuku": VERSION, "torch": torch.__version__, "python": platform.python_version()},
    }
