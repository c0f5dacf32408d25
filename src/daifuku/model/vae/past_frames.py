"""Where a causal layer gets the frames before its input: the one seam between whole-clip and streaming computation."""

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Video = Float[Tensor, "b c t h w"]

Resized = Float[Tensor, "b c2 t2 h2 w2"]
"""A video with other channels, frames or sides than the one that came in."""

Pixels = Float[Tensor, "n heads t d"]
"""What an attention along time keeps of each pixel and frame."""


@runtime_checkable
class PastFrames(Protocol):
    """Gives causal layers their past. A layer asks once for each piece of the clip, in order."""

    starts_clip: bool
    """True while the frames now passing through include the first of the clip."""

    def before(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        """The `num_frames` frames before `video`. Those before the clip are its first frame, repeated."""
        ...

    def since_start(self, layer: Hashable, pixels: Pixels) -> Float[Tensor, "n heads t2 d"]:
        """`pixels` behind those of all earlier frames of the clip."""
        ...


class Replicate:
    """The input is the whole clip: there is nothing to remember."""

    starts_clip = True

    def before(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        return torch.cat([video[:, :, :1]] * num_frames, dim=2)

    def since_start(self, layer: Hashable, pixels: Pixels) -> Float[Tensor, "n heads t2 d"]:
        return pixels


class CarryOver:
    """The clip arrives in pieces: each layer remembers what it will need, so the result is the whole clip's.

    Convolutions remember a fixed number of frames, attention all of them.
    """

    def __init__(self) -> None:
        self.starts_clip = True
        self._kept: dict[Hashable, Tensor] = {}

    def before(self, layer: Hashable, video: Video, num_frames: int) -> Resized:
        earlier = self._kept.get(layer)
        if earlier is None:
            earlier = Replicate().before(layer, video, num_frames)
        latest = video[:, :, -num_frames:]
        # A copy even where `latest` is enough, lest it keep the memory of the whole piece.
        self._kept[layer] = torch.cat([earlier[:, :, latest.shape[2] :], latest], dim=2)
        return earlier

    def since_start(self, layer: Hashable, pixels: Pixels) -> Float[Tensor, "n heads t2 d"]:
        earlier = self._kept.get(layer)
        pixels = pixels.clone() if earlier is None else torch.cat([earlier, pixels], dim=2)
        self._kept[layer] = pixels
        return pixels
