"""SageAttention (Zhang et al., 2024, arXiv 2410.02367): products of 8-bit integers, with the keys' mean taken out."""

from importlib.util import find_spec

import torch
from torch import Tensor

from daifuku.model.attention import Lengths
from daifuku.runtime.kernels import Attention, each_alone


def sage(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """The package quantises on the way."""
    from sageattention import sageattn  # pyright: ignore[reportMissingImports]

    assert lengths is None, "each sequence comes alone"
    return sageattn(q, k, v, tensor_layout="HND", is_causal=False)


def available() -> str | None:
    """What is missing."""
    if find_spec("sageattention") is None:
        return "the package sageattention is not installed"
    return None if torch.cuda.is_available() else "there is no CUDA GPU"


ATTENTION = Attention(
    name="sage",
    help="SageAttention of the package sageattention, for 16-bit numbers; approximate.",
    available=available,
    kernel=each_alone(sage),
    exact=False,
    devices=("cuda",),
    half_only=("cuda",),
    learns_on=(),
)
