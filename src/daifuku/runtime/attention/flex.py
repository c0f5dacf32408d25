"""FlexAttention (Dong et al., 2024, arXiv 2412.05496): a kernel that PyTorch compiles, also for CPUs."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from daifuku.model.attention import Lengths
from daifuku.runtime.compile import available as compiles
from daifuku.runtime.kernels import Attention


def flex(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Keys beyond a sequence's length score minus infinity."""

    def visible(score: Tensor, sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert lengths is not None
        return torch.where(key < lengths[sample], score, -torch.inf)

    return _compiled()(q, k, v, score_mod=None if lengths is None else visible)


@cache
def _compiled() -> Callable[..., Tensor]:
    # One compilation for every number of tokens.
    return torch.compile(flex_attention, dynamic=True)


def available() -> str | None:
    """Why PyTorch cannot compile here."""
    return compiles(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


ATTENTION = Attention(
    name="flex",
    help="FlexAttention, compiled by PyTorch; it learns on GPUs only.",
    available=available,
    kernel=flex,
    devices=("cpu", "cuda"),
    learns_on=("cuda",),
    compiles=True,
)
