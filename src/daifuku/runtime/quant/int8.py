"""Eight-bit integers with one scale for each row."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.runtime.quantiser import QuantisedLinear, Quantiser

LARGEST = 127


class Int8Linear(QuantisedLinear):
    """Weight = codes * scales; the largest value of a row is 127 of its scales."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.float()
        scales = (weight.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(linear.weight.dtype).tiny)
        # Codes are made for the scales as they are kept, so that their rounding does no harm.
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        codes = (weight / self.scales.float()).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("codes", codes.to(torch.int8))

    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        return self.codes.to(dtype) * self.scales


QUANTISER = Quantiser(
    name="int8",
    help="8-bit integers, computed in the network's own precision. The most exact at half the memory of bfloat16.",
    bits=8.0,
    max_error=0.01,
    pack=Int8Linear,
    devices=("cpu", "cuda", "mps"),
)
