"""Root-mean-square norms of the DiT, computed in float32 whatever the stream's precision.

Every step here is one pass over the tokens, and each pass costs: hence the products in place and `addcmul`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

MODULATION_EPS = 1e-6
HEAD_EPS = 1e-5


def inverse_rms(x: Float[Tensor, "*shape width"], eps: float = MODULATION_EPS) -> Float[Tensor, "*shape 1"]:
    """1 / rms(x) over the last axis, in float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (length.square() / x.shape[-1] + eps).rsqrt()


def modulated_norm(x: Float[Tensor, "b n width"], scale: Float[Tensor, "b width"]) -> Float[Tensor, "b n width"]:
    """x / rms(x) * (1 + scale), in the precision of x."""
    return (x * inverse_rms(x)).mul_((1 + scale.float()).unsqueeze(1)).to(x.dtype)


def gated_residual(
    x: Float[Tensor, "b n width"], update: Float[Tensor, "b n width"], gate: Float[Tensor, "b width"]
) -> Float[Tensor, "b n width"]:
    """x + update / rms(update) * tanh(gate): the sandwich norm keeps every block's contribution bounded."""
    return torch.addcmul(x, update * inverse_rms(update), gate.float().tanh().unsqueeze(1)).to(x.dtype)


class HeadNorm(nn.Module):
    """RMS norm with a learned weight over the width of one attention head. Its output is float32, to be rotated."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        return (x * inverse_rms(x, HEAD_EPS)).mul_(self.weight.float())
