"""Multiplies eight-bit floats: the layers that video tokens pass quantise their inputs too."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from daifuku.runtime.quant.fp8_storage import LARGEST, Fp8Linear
from daifuku.runtime.quantiser import Quantiser

OLDEST = (8, 9)
"""Compute capability of the first GPUs that multiply fp8."""


class Fp8Product(Fp8Linear):
    """Each token of the input has a scale of its own."""

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        tokens = x.flatten(0, -2)
        scales = (tokens.float().abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        found = F.scaled_mm(
            (tokens / scales).to(torch.float8_e4m3fn),
            self.codes.t(),
            scales,
            F.ScalingType.RowWise,
            self.scales.t().float(),
            F.ScalingType.RowWise,
            output_dtype=x.dtype,
            use_fast_accum=True,
        )
        return (found if self.bias is None else found + self.bias).unflatten(0, x.shape[:-1])


def _available() -> str | None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < OLDEST:
        return "the GPU does not multiply fp8: that takes compute capability 8.9 or more"
    return None


QUANTISER = Quantiser(
    name="fp8_dynamic",
    help="8-bit floats, multiplied as such: for GPUs from Ada and Hopper on, together with --compile.",
    available=_available,
    bits=8.0,
    max_error=0.04,
    pack=Fp8Linear,
    pack_video=Fp8Product,
    dtypes=(torch.bfloat16,),
    multiple=16,
)
