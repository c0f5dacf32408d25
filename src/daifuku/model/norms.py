"""Root-mean-square norms of the DiT, computed in float32 whatever the stream's precision."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MODULATION_EPS = 1e-6
HEAD_EPS = 1e-5


def rms_norm(x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
    """x / rms(x) over the last axis, in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=MODULATION_EPS)


def modulated_norm(x: Float[Tensor, "b n width"], scale: Float[Tensor, "b width"]) -> Float[Tensor, "b n width"]:
    """rms_norm(x) * (1 + scale), in the precision of x."""
    return (rms_norm(x) * (1 + scale.float()).unsqueeze(1)).to(x.dtype)


def gated_residual(
    x: Float[Tensor, "b n width"], update: Float[Tensor, "b n width"], gate: Float[Tensor, "b width"]
) -> Float[Tensor, "b n width"]:
    """x + rms_norm(update) * tanh(gate): the sandwich norm keeps every block's contribution bounded."""
    return (x.float() + rms_norm(update) * gate.float().tanh().unsqueeze(1)).to(x.dtype)


class HeadNorm(nn.Module):
    """RMS norm with a learned weight over the width of one attention head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        return (F.rms_norm(x.float(), x.shape[-1:], eps=HEAD_EPS) * self.weight.float()).to(x.dtype)
