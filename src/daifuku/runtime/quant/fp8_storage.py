"""Eight-bit floats with one scale for each row, a power of two: weights that were stored as fp8 pass unchanged."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.runtime.quantiser import QuantisedLinear, Quantiser

LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Fp8Linear(QuantisedLinear):
    """Weight = codes * scales; scales use the format's range up to its largest value."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.float()
        largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(linear.weight.dtype).tiny * LARGEST)
        scales = torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.register_buffer("codes", (weight / scales).to(torch.float8_e4m3fn))

    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        return self.codes.to(dtype) * self.scales


QUANTISER = Quantiser(
    name="fp8_storage",
    help="8-bit floats, computed in the network's own precision. Exact for checkpoints that are fp8 already.",
    bits=8.0,
    max_error=0.03,
    pack=Fp8Linear,
)
