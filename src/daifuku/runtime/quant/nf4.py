"""NormalFloat (Dettmers et al., 2023, arXiv 2305.14314): four bits, with levels that suit normal distributions."""

import logging
from importlib import import_module
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.runtime.quantiser import QuantisedLinear, Quantiser

GROUP = 64


class NF4Linear(QuantisedLinear):
    """Packed by bitsandbytes: a level and, for each group of neighbours, the largest value."""

    codes: Tensor
    largest: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        _register_operators()

        codes, largest = torch.ops.bitsandbytes.quantize_4bit(linear.weight, GROUP, "nf4", torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("largest", largest.to(torch.bfloat16))

    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        # One group a row: on a CPU the operator misreads rows that are no multiple of the group.
        shape = [self.largest.numel(), GROUP]
        weight = torch.ops.bitsandbytes.dequantize_4bit(self.codes, self.largest.float(), GROUP, "nf4", shape, dtype)
        return weight.view(self.out_features, self.in_features)


def _register_operators() -> None:
    """Imports bitsandbytes, without its warnings about parts that nobody here uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import_module("bitsandbytes")
    finally:
        logging.disable(before)


def _available() -> str | None:
    return None if find_spec("bitsandbytes") else "bitsandbytes is not installed (pip install 'daifuku[nf4]')"


QUANTISER = Quantiser(
    name="nf4",
    help="4-bit NormalFloat of bitsandbytes, computed in the network's own precision. The least memory, visibly off.",
    available=_available,
    bits=4.25,
    max_error=0.1,
    pack=NF4Linear,
    multiple=8,
)
