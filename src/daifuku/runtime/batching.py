"""Whether prompt and negative prompt go through the transformer together: measured, as nothing but rounding differs."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.block import AsymmBlock
from daifuku.request import LatentShape
from daifuku.runtime.measured import fastest_way

NUM_TEXT = 16
"""Tokens of the prompt that is tried; the negative prompt has none that count."""


def batching_wins(
    config: DiTConfig, shape: LatentShape, dtype: torch.dtype, device: torch.device, folder: Path
) -> bool:
    """Whether a pass over a batch of two is quicker here than two passes: tried on a block, remembered in `folder`."""
    made = cache(lambda: _Trial(config, shape, dtype, device))
    ways = {"apart": lambda: made().apart(), "together": lambda: made().together()}
    subject = f"captions of {config.num_heads} heads of {config.head_dim}, {shape.num_tokens} tokens, {dtype}"
    return fastest_way(ways, device, subject, folder) == "together"


class _Trial:
    """A block with random weights, and what passes through it."""

    def __init__(self, config: DiTConfig, shape: LatentShape, dtype: torch.dtype, device: torch.device) -> None:
        tokens, half = shape.num_tokens, config.head_dim // 2
        self._block = AsymmBlock(config, updates_text=True).to(device, dtype)
        self._video = torch.randn(2, tokens, config.video_width, device=device).to(dtype)
        self._text = torch.randn(2, NUM_TEXT, config.text_width, device=device).to(dtype)
        self._conditioning = torch.randn(2, config.video_width, device=device).to(dtype)
        self._turn = torch.ones(config.num_heads, tokens, half, device=device, dtype=torch.complex64)
        self._lengths = torch.tensor([NUM_TEXT, 0], device=device)

    def together(self) -> Tensor:
        return self._block(self._video, self._text, self._conditioning, self._turn, self._lengths)[0]

    def apart(self) -> Tensor:
        video, text, conditioning = self._video.split(1), self._text.split(1), self._conditioning.split(1)
        self._block(video[0], text[0], conditioning[0], self._turn, None)
        return self._block(video[1], text[1][:, :0], conditioning[1], self._turn, None)[0]
