"""The transformer's blocks as compiled code: one compilation for all blocks, whatever the length of a prompt.

PyTorch keeps what it compiled in a folder of its own, so the next program starts faster.
"""

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from daifuku.model.attention import Lengths
from daifuku.model.block import AsymmBlock
from daifuku.model.dit import AsymmDiT
from daifuku.model.rope import Rotation

COMPILERS = ("g++", "clang++", "cl")


def available(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device; None where it can."""
    if device.type == "cuda":
        try:
            import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError:
            return "triton is not installed"
        return None
    if device.type == "cpu":
        return None if any(map(shutil.which, COMPILERS)) else f"there is no C++ compiler ({' or '.join(COMPILERS)})"
    return f"nothing is compiled for {device.type}"


def compile_blocks(dit: AsymmDiT, *, backend: str | Callable[..., Any] = "inductor") -> AsymmDiT:
    """The transformer with compiled blocks: the same weights under the same names.

    The first pass compiles: two graphs, since the last block is not like the others, and two more when a caption
    without tokens comes. Results differ from the layers' own by rounding.
    """
    compiled = torch.compile(AsymmBlock.forward, fullgraph=True, backend=backend)
    dit.blocks = nn.ModuleList(_CompiledBlock(block, compiled) for block in dit.blocks if isinstance(block, AsymmBlock))
    return dit


class _CompiledBlock(AsymmBlock):
    """A block whose forward is compiled. Its tensors may be exchanged, as streaming does."""

    def __init__(self, block: AsymmBlock, compiled: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super(AsymmBlock, self).__init__()
        for name, part in block.named_children():
            setattr(self, name, part)
        self.text_mlp = block.text_mlp
        self._compiled = compiled

    def forward(
        self, video: Tensor, text: Tensor, conditioning: Tensor, turn: Rotation, lengths: Lengths
    ) -> tuple[Tensor, Tensor]:
        if text.shape[1] > 1:
            # Else each length of a prompt would be compiled for.
            torch._dynamo.mark_dynamic(text, 1)
        return self._compiled(self, video, text, conditioning, turn, lengths)
