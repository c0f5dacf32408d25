"""Attention for training on CPUs: its scores stay in the processor's cache, and its gradient computes them again."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from daifuku.model.attention import Kernel, Lengths, sdpa, valid_tokens

SCORES_AT_ONCE = 2**21
"""Scores that the gradient computes at a time. All of a batch at once would pass through memory at every operation."""


def kernel_for(device: torch.device) -> Kernel:
    """What small models are trained with on a device: elsewhere the gradient of fused attention is fast too."""
    return recomputing if device.type == "cpu" else sdpa


def recomputing(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"], lengths: Lengths
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's fused attention, with a gradient of matrix products: a few heads at a time, of scores made anew.

    In bfloat16 so are the probabilities that the gradient sees.
    """
    return _outside_graphs(q, k, v, lengths)


class _Recomputing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        ctx.save_for_backward(q, k, v, lengths)
        return sdpa(q, k, v, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, lengths = ctx.saved_tensors
        batch, heads, num_queries, width = q.shape
        num_keys, scale = k.shape[2], width**-0.5
        bias = q.new_zeros(batch, 1, 1, num_keys)
        if lengths is not None:
            bias.masked_fill_(~valid_tokens(lengths, num_keys)[:, None, None], float("-inf"))
        at_once = max(SCORES_AT_ONCE // (num_queries * num_keys), 1)
        flat = (rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v, *gradients, bias.expand(-1, heads, -1, -1)))
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for own_q, own_k, own_v, gradient, own_bias in zip(*(x.split(at_once) for x in flat), strict=True):
            chances = torch.baddbmm(own_bias, own_q, own_k.mT, alpha=scale).softmax(dim=-1)
            wanted = gradient @ own_v.mT
            scores = torch.ops.aten._softmax_backward_data(wanted, chances, -1, chances.dtype)
            found.append((scale * (scores @ own_k), scale * (scores.mT @ own_q), chances.mT @ gradient))
        whole = (rearrange(torch.cat(x), "(b h) n d -> b h n d", h=heads) for x in zip(*found, strict=True))
        return *whole, None


_outside_graphs: Any = torch.compiler.disable(_Recomputing.apply)
"""A compiled block takes it as it is: its loop would be unrolled."""
