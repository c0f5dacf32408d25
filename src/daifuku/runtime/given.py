"""Runs with given frames: pictures become latent frames that are held, and a start that holds them.

What is held is part of a run's states, so a run that was stopped goes on with it from its checkpoint.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from daifuku.config import TIME_FACTOR
from daifuku.errors import InvalidRequest
from daifuku.runtime.checkpoint import Start
from daifuku.sample.given import holding
from daifuku.sample.solver import State, Velocity

Pictures = UInt8[np.ndarray, "frames height width 3"]
Picture = UInt8[np.ndarray, "height width 3"]

_NAME, _FRAMES = "given", "frames"


def encode_given(
    encode: Callable[[Pictures], Tensor], num_frames: int, begins: Pictures, ends: Picture | None = None
) -> tuple[Float[Tensor, "c t h w"], Bool[Tensor, " t"]]:
    """Whitened latents of a clip of `num_frames` frames of which some are given, zero elsewhere; and which are given.

    `begins` are its first 6k+1 frames, one for a picture that is to move. `ends` is its last picture. The last
    latent frame stands for six frames, so that picture stands still in it. `encode` is that of a pipeline. Raises
    InvalidRequest where the clip has no room for them.
    """
    first = encode(begins)
    last = first[:, :0]
    if ends is not None:
        last = encode(repeat(ends, "h w c -> t h w c", t=1 + TIME_FACTOR))[:, 1:]
    num_open = 1 + (num_frames - 1) // TIME_FACTOR - first.shape[1] - last.shape[1]
    if num_open < 1:
        fewest = num_frames + (1 - num_open) * TIME_FACTOR
        raise InvalidRequest(f"what is given fills all of num_frames={num_frames}. Try {fewest} or more.")
    between = first.new_zeros(first.shape[0], num_open, *first.shape[2:])
    given = torch.ones(first.shape[1] + num_open + last.shape[1], dtype=torch.bool)
    given[first.shape[1] : first.shape[1] + num_open] = False
    return torch.cat([first, between, last], dim=1), given


def start_from(noise: Float[Tensor, "c t h w"], latents: Float[Tensor, "c t h w"], given: Bool[Tensor, " t"]) -> Start:
    """A run's start at noise, with the latent frames that are `given` held as they are in `latents`."""
    held = rearrange(given, "t -> 1 t 1 1")
    return Start(index=0, latent=torch.where(held, latents, noise), states={_NAME: {_FRAMES: given}})


def as_held(velocity: Velocity, states: Mapping[str, State]) -> Velocity:
    """The velocity of a run with these states, with the frames that `start_from` gave it held."""
    if _NAME not in states:
        return velocity
    frames = states[_NAME][_FRAMES]
    assert isinstance(frames, Tensor), "start_from puts a mask there"
    return holding(velocity, frames)
