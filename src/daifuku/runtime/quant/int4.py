"""Four-bit integers between the smallest and the largest value of each group."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.runtime.quantiser import QuantisedLinear, Quantiser

LARGEST = 15
GROUP = 64


class Int4Linear(QuantisedLinear):
    """Weight = lows + codes * scales, by groups of neighbours in a row; a byte holds two codes."""

    codes: Tensor
    lows: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        dtype = linear.weight.dtype
        group = math.gcd(GROUP, self.in_features)
        weight = rearrange(linear.weight.float(), "rows (groups group) -> rows groups group", group=group)
        low, high = weight.aminmax(dim=-1, keepdim=True)
        self.register_buffer("lows", low.to(dtype))
        self.register_buffer("scales", ((high - low) / LARGEST).clamp(min=torch.finfo(dtype).tiny).to(dtype))
        codes = (weight - self.lows.float()).div_(self.scales.float()).round_().clamp_(0, LARGEST).to(torch.uint8)
        self.register_buffer("codes", codes[..., ::2] | codes[..., 1::2] << 4)

    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        codes = torch.stack([self.codes & LARGEST, self.codes >> 4], dim=-1).flatten(-2)
        return torch.addcmul(self.lows, codes.to(dtype), self.scales).flatten(1)


QUANTISER = Quantiser(
    name="int4",
    help="4-bit integers, computed in the network's own precision. A quarter of the memory of bfloat16, visibly off.",
    bits=4.5,
    max_error=0.1,
    pack=Int4Linear,
    devices=("cpu", "cuda", "mps"),
    multiple=8,
)
