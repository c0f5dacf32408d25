"""What the built-in model learns from, by number: clips of the world, as a whole or cut into windows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Bool, UInt8
from pydantic import Field

from daifuku import world
from daifuku.config import PATCH, SPACE_FACTOR, TIME_FACTOR
from daifuku.errors import InvalidRequest
from daifuku.train.sections import Count, Positive, Share

Windows = tuple[UInt8[np.ndarray, "b t h w 3"], Bool[np.ndarray, "b t h w"]]
"""Windows of clips, and which of their pixels belong to what moves."""

VALIDATION_SEED = 1_000_003
"""Seed of the clips that are only measured on; training uses seeds near zero."""

CAPTIONS_PER_CLIP = 4

CHUNK = 16
"""Captioned clips that are rendered at a time."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """The clips that the built-in model learns. Raises InvalidRequest for sizes that it could not."""

    size: int = 64
    num_frames: int = 31
    fps: Positive = 20
    pair_share: Share = 0.1
    """Share of the clips without a fluid that show two objects."""
    fluid_share: Share = 0.0
    """Share of the clips that show a fluid."""
    pace: bool = False
    """Whether captions say how fast something moves."""
    seed: Count = 0

    def __post_init__(self) -> None:
        multiple = SPACE_FACTOR * PATCH
        if self.size < multiple or self.size % multiple:
            near = max(round(self.size / multiple), 1) * multiple
            raise InvalidRequest(f"world.size is a multiple of {multiple}, and not {self.size}: try {near}")
        if self.num_frames < 1 or self.num_frames % TIME_FACTOR != 1:
            near = max(round((self.num_frames - 1) / TIME_FACTOR), 0) * TIME_FACTOR + 1
            raise InvalidRequest(f"world.num_frames is 6k+1, and not {self.num_frames}: try {near}")

    def shown(self) -> Mapping[str, Any]:
        """What every clip has in common, as `world.clip` takes it."""
        return {
            "size": self.size,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "fluid_share": self.fluid_share,
            "pace": self.pace,
        }


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """What of its clips the VAE sees."""

    windows: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] = (
        (13, 8),
        (13, 8),
        (13, 8),
        (25, 4),
    )
    """(frames, clips) of consecutive steps: mostly short windows, some longer ones for the causal past."""
    crop: Share = 0.75
    """Part of each side that is seen at first, down to whole latent cells: twice the steps in the same time."""
    crop_share: Share = 0.75
    """Share of the steps over which that is so."""


CUTS = CutSettings()


def vae_batch(settings: WorldSettings, step: int, crop_steps: int, cuts: CutSettings = CUTS) -> Windows:
    """A window at a random time, and at first at a random place, in each of a few fresh clips."""
    num_frames, count = cuts.windows[step % len(cuts.windows)]
    cropped = max(int(settings.size * cuts.crop) // SPACE_FACTOR, 1) * SPACE_FACTOR
    side = cropped if step < cuts.crop_share * crop_steps else settings.size
    rng = np.random.default_rng([settings.seed, step])
    first = step * max(count for _, count in cuts.windows)
    clips = [
        world.clip(settings.seed, first + number, pair_share=settings.pair_share, **settings.shown())
        for number in range(count)
    ]
    limits = (settings.num_frames - num_frames + 1, settings.size - side + 1, settings.size - side + 1)
    windows = [
        (slice(start, start + num_frames), slice(row, row + side), slice(col, col + side))
        for start, row, col in rng.integers(0, limits, (count, 3))
    ]
    frames = np.stack([clip.frames[window] for clip, window in zip(clips, windows, strict=True)])
    return frames, np.stack([clip.mask[window] for clip, window in zip(clips, windows, strict=True)])


def validation_batch(settings: WorldSettings, count: int) -> Windows:
    """Whole clips of combinations never trained on."""
    clips = [world.clip(VALIDATION_SEED, index, split="unseen", **settings.shown()) for index in range(count)]
    return np.stack([clip.frames for clip in clips]), np.stack([clip.mask for clip in clips])


def captioned_clips(settings: WorldSettings, seed: int, split: str, chunk: int) -> list[tuple[world.Clip, list[str]]]:
    """The `CHUNK` clips of one chunk of the numbered stream, each with several captions of its scene."""
    pair_share = settings.pair_share if split == "train" else 0.0
    made = []
    for index in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        clip = world.clip(seed, index, pair_share=pair_share, split=split, **settings.shown())
        rng = np.random.default_rng([seed, index, 1])
        others = [world.describe(clip.scene, rng, pace=settings.pace) for _ in range(CAPTIONS_PER_CLIP - 1)]
        made.append((clip, [clip.caption, *others]))
    return made
