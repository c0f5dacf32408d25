"""A cheap look at a clip while it is being sampled: one small picture per latent frame, by a linear map to colours.

The map belongs to a VAE. It is fitted by least squares to clips that were decoded: a latent cell against the mean
colour of the pixels that it stands for.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku.config import SPACE_FACTOR, TIME_FACTOR
from daifuku.errors import CheckpointError
from daifuku.weights.files import write_json

FILE = "latent_rgb.json"
"""Where a model folder keeps its map."""

Latents = Float[Tensor, "c t h w"]
Colours = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True, kw_only=True)
class LatentToRGB:
    """Colours, in [0, 1], from whitened latents: weight @ latent + bias."""

    weight: Float[Tensor, "3 c"]
    bias: Float[Tensor, " 3"]

    def __call__(self, latents: Latents) -> Colours:
        """One frame for each latent frame, of a pixel for each latent cell."""
        colours = torch.einsum("kc,cthw->thwk", self.weight, latents.detach().float().cpu()) + self.bias
        return (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def save(self, path: Path) -> None:
        """As JSON. Raises UnwritableOutput."""
        write_json(path, {"weight": self.weight.tolist(), "bias": self.bias.tolist()})


def read_latent_to_rgb(path: Path) -> LatentToRGB | None:
    """What `save` wrote; None where there is no file. Raises CheckpointError for a file that is damaged."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        weight, bias = torch.tensor(found["weight"]), torch.tensor(found["bias"])
        if weight.ndim != 2 or weight.shape[0] != 3 or bias.shape != (3,):
            raise ValueError(f"a weight {list(weight.shape)} and a bias {list(bias.shape)} make no colours")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no map from latents to colours ({error}); remove it") from error
    return LatentToRGB(weight=weight, bias=bias)


def fit(clips: Iterable[tuple[Latents, UInt8[np.ndarray, "frames height width 3"]]]) -> LatentToRGB:
    """The map that fits decoded clips best: pairs of whitened latents and their frames."""
    inputs, targets = [], []
    for latents, frames in clips:
        cells = rearrange(latents.double().cpu(), "c t h w -> (t h w) c")
        inputs.append(torch.cat([cells, torch.ones(len(cells), 1, dtype=torch.float64)], dim=1))
        targets.append(rearrange(_mean_colours(frames), "t h w k -> (t h w) k"))
    # A little ridge: a clip of one colour everywhere would otherwise leave the map undetermined.
    x, y = torch.cat(inputs), torch.cat(targets)
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return LatentToRGB(weight=solution[:-1].T.contiguous(), bias=solution[-1])


def clean_estimate(before: Latents, after: Latents, sigma_before: float, sigma_after: float) -> Latents:
    """Where a step is heading: its velocity, followed from `after` down to sigma 0."""
    return after + sigma_after * (after - before) / (sigma_before - sigma_after)


def _mean_colours(frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "t h w 3"]:
    """Of the pixels that each latent cell stands for: the first frame alone, then six at a time."""
    pixels = torch.from_numpy(frames).double() / 255
    pattern = "(t n) (h p) (w q) k -> t h w k"
    first = reduce(pixels[:1], pattern, "mean", n=1, p=SPACE_FACTOR, q=SPACE_FACTOR)
    rest = reduce(pixels[1:], pattern, "mean", n=TIME_FACTOR, p=SPACE_FACTOR, q=SPACE_FACTOR)
    return torch.cat([first, rest])
