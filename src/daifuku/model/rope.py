"""Rotary positions with learned frequencies: every head projects (frame, row, column) to its own angles."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
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


Rotation = tuple[Float[Tensor, "heads tokens pairs"], Float[Tensor, "heads tokens pairs"]]
"""Cosine and sine of each token's angles, float32."""


def rotation(frequencies: Float[Tensor, "3 heads pairs"], positions: Float[Tensor, "tokens 3"]) -> Rotation:
    """The angles of every token in every head: learned frequencies times positions."""
    angles = torch.einsum("na,ahp->hnp", positions, frequencies.float())
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "b heads tokens d"], by: Rotation) -> Float[Tensor, "b heads tokens d"]:
    """Rotates the interleaved pairs (2i, 2i+1) of x."""
    cos, sin = by
    even, odd = rearrange(x.float(), "b h n (pairs two) -> two b h n pairs", two=2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
