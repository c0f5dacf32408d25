"""Multiplies eight-bit integers: the layers that video tokens pass quantise their inputs too."""

import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.runtime.quant.int8 import LARGEST, Int8Linear
from daifuku.runtime.quantiser import Quantiser

FEWEST_TOKENS = 17
"""CUDA's product of integers takes no fewer rows."""


class Int8Product(Int8Linear):
    """Each token of the input has a scale of its own; sums are exact."""

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        tokens = x.flatten(0, -2)
        if len(tokens) < FEWEST_TOKENS:
            return super().forward(x)
        scales = (tokens.float().abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (tokens / scales).round().to(torch.int8)
        found = (torch.ops.aten._int_mm(codes, self.codes.t()) * scales * self.scales.t()).to(x.dtype)
        return (found if self.bias is None else found + self.bias).unflatten(0, x.shape[:-1])


QUANTISER = Quantiser(
    name="int8_dynamic",
    help="8-bit integers, multiplied as such: for GPUs with fast int8 products, together with --compile.",
    bits=8.0,
    max_error=0.015,
    pack=Int8Linear,
    pack_video=Int8Product,
    multiple=8,
)
