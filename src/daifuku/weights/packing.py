"""Weights in fewer bits as files hold them: 8-bit floats, NF4 and blocks of GGUF. Approximate."""

from importlib import import_module
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.weights.encodings import Encoded
from daifuku.weights.gguf_file import BLOCK_TYPES
from daifuku.weights.names import Part
from daifuku.weights.unread import is_large as is_large_layer

FP8 = torch.float8_e4m3fn

FP8_MAX = torch.finfo(FP8).max

GGUF_KINDS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""What the package `gguf` packs and a layer here can keep."""

BLOCK = 32
"""Numbers in a block of all of them."""

NF4_BLOCK = 64

ROWS_AT_ONCE = 1024
"""Whole blocks of either kind, whatever the number of columns."""

_TABLE = ".relative_attention_bias"
"""In a block of T5: a small table, which no layer multiplies by."""


def is_large(part: Part, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor (our name) is the weight of a linear layer that takes part in quantisation."""
    layer, _, own = name.rpartition(".")
    linear = part in ("dit", "text") and len(shape) == 2 and own == "weight" and not layer.endswith(_TABLE)
    return linear and is_large_layer(layer)


def to_fp8(weight: Tensor) -> Tensor:
    """8-bit floats; what is beyond their range becomes their largest, and not NaN as in older torch."""
    return torch.cat([rows.float().clamp(-FP8_MAX, FP8_MAX).to(FP8) for rows in weight.split(ROWS_AT_ONCE)])


def fp8_scale(weight: Float[Tensor, "rows cols"]) -> Float[Tensor, ""]:
    """What a weight is divided by, so that the whole range of 8-bit floats is used."""
    low, high = weight.aminmax()
    return (torch.maximum(-low, high).float() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)


def to_scaled_fp8(weight: Float[Tensor, "rows cols"], scale: Float[Tensor, ""]) -> Tensor:
    """The weight divided by its scale, in 8-bit floats."""
    return torch.cat([to_fp8(rows.float() / scale) for rows in weight.split(ROWS_AT_ONCE)])


def to_blocks(kind: str, weight: Float[Tensor, "rows cols"]) -> Tensor:
    """The bytes of GGUF blocks, packed by the package `gguf`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    packed = [
        torch.from_numpy(quantize(rows.float().numpy(), GGMLQuantizationType[kind]))
        for rows in weight.split(ROWS_AT_ONCE)
    ]
    return torch.cat(packed)


def to_nf4(weight: Float[Tensor, "rows cols"]) -> tuple[Tensor, Tensor]:
    """Codes, two in a byte, and the largest magnitude of each block, packed by bitsandbytes."""
    quantize_4bit = import_module("bitsandbytes.functional").quantize_4bit
    packed = [quantize_4bit(rows, blocksize=NF4_BLOCK, quant_type="nf4") for rows in weight.split(ROWS_AT_ONCE)]
    return torch.cat([codes for codes, _ in packed]), torch.cat([state.absmax for _, state in packed])


def nf4_levels() -> Tensor:
    """The numbers that the 16 codes stand for."""
    return import_module("bitsandbytes.functional").get_4bit_type("nf4", device="cpu")


def block_kind(encoded: Encoded) -> str | None:
    """The type of GGUF whose blocks hold a weight; None where blocks do not, or do not end with its rows."""
    dtype = encoded.places["weight"].dtype
    kind = dtype.removeprefix("GGUF_") if dtype.startswith("GGUF_") else encoded.words.removesuffix(" blocks")
    known = next((length for name, length, _ in BLOCK_TYPES.values() if name == kind), None)
    return kind if known is not None and encoded.shape and encoded.shape[-1] % known == 0 else None


def is_scaled_fp8(encoded: Encoded) -> bool:
    """Whether a weight is 8-bit floats times one scale."""
    scale = encoded.places.get("scale")
    return encoded.places["weight"].dtype == "F8_E4M3" and scale is not None and prod(scale.shape) == 1
