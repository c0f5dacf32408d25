"""FlashAttention from its authors' package, often ahead of what PyTorch brings."""

from importlib.util import find_spec

import torch
from einops import rearrange
from torch import Tensor

from daifuku.model.attention import Lengths
from daifuku.runtime.kernels import Attention, each_alone


def flash_attn(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """The package wants tokens before heads."""
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    assert lengths is None, "each sequence comes alone"
    out = flash_attn_func(*(rearrange(x, "b h n d -> b n h d") for x in (q, k, v)))
    return rearrange(out, "b n h d -> b h n d")


def available() -> str | None:
    """What is missing."""
    if find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return None if torch.cuda.is_available() else "there is no CUDA GPU"


ATTENTION = Attention(
    name="flash_attn",
    help="FlashAttention of the package flash-attn, for 16-bit numbers.",
    available=available,
    kernel=each_alone(flash_attn),
    devices=("cuda",),
    half_only=("cuda",),
)
