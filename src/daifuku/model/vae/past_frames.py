"""Where a causal layer gets the frames before its input: the one seam between whole-clip and streaming computation."""

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Video = Float[Tensor, "b c t h w"]

Resized = Float[Tensor, "b c2 t2 h2 w2"]
"""A video with other channels, frames or sides than the one that came in."""


@runtime_checkable
class PastFrames(Protocol):
    """Gives causal layers their past."""

    starts_clip: bool
    """True while the frames now passing through include the first of the clip."""

    def __call__(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        """`video` with `num_frames` earlier frames in front."""
        ...


class Replicate:
    """The input is the whole clip: what came before it is its first frame, repeated."""

    starts_clip = True

    def __call__(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        if num_frames == 0:
            return video
        return torch.cat([video[:, :, :1].expand(-1, -1, num_frames, -1, -1), video], dim=2)


class CarryOver:
    """The clip arrives in pieces: each layer remembers the last frames it saw, so the result is the whole clip's."""

    def __init__(self) -> None:
        self.starts_clip = True
        self._kept: dict[Hashable, Tensor] = {}

    def __call__(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        if num_frames == 0:
            return video
        past = self._kept.get(layer)
        extended = Replicate()(layer, video, num_frames) if past is None else torch.cat([past, video], dim=2)
        self._kept[layer] = extended[:, :, -num_frames:].clone()
        return extended
