"""Rotary positions with learned frequencies: every head projects (frame, row, column) to its own angles."""

import math

import torch
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor

REFERENCE_AREA = 192 * 192
"""Rows and columns are scaled so that every resolution covers this area: positions mean the same at any size."""


def token_positions(frames: int, rows: int, cols: int, device: torch.device | str = "cpu") -> Float[Tensor, "tokens 3"]:
    """(frame index, row, column) of each token, in that order; rows and columns are the centres of centred bins."""
    scale = math.sqrt(REFERENCE_AREA / (rows * cols))
    return torch.cartesian_prod(
        torch.arange(frames, device=device, dtype=torch.float32),
        (torch.arange(rows, device=device) + 0.5 - rows / 2) * scale,
        (torch.arange(cols, device=device) + 0.5 - cols / 2) * scale,
    )


Rotation = Complex[Tensor, "heads tokens pairs"]
"""What turns each pair of a head's features, as a complex number of length one."""


def rotation(frequencies: Float[Tensor, "3 heads pairs"], positions: Float[Tensor, "tokens 3"]) -> Rotation:
    """The angles of every token in every head: learned frequencies times positions."""
    # Angles grow with the frame number: in half precision late frames would be off by whole degrees.
    with torch.autocast(positions.device.type, enabled=False):
        angles = torch.einsum("na,ahp->nhp", positions, frequencies.float())
    return rearrange(torch.complex(angles.cos(), angles.sin()), "n h p -> h n p")


def rotate(x: Float[Tensor, "b heads tokens d"], by: Rotation) -> Float[Tensor, "b heads tokens d"]:
    """Rotates the interleaved pairs (2i, 2i+1) of x, float32."""
    pairs = torch.view_as_complex(rearrange(x, "b h n (pairs two) -> b h n pairs two", two=2))
    return rearrange(torch.view_as_real(pairs * by), "b h n pairs two -> b h n (pairs two)")
