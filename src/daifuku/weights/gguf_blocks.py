"""The weights in blocks of GGUF files, in torch, so that a layer can keep its blocks and unpack them wherever it runs.

A block holds the codes of neighbouring weights and what they are multiplied with; the formats are those of
ggml-quants.h (github.com/ggml-org/ggml). The package `gguf` knows more types and unpacks them on a CPU.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku.weights.gguf_file import BLOCK_TYPES

Blocks = UInt8[Tensor, "blocks bytes"]
Weights = Float[Tensor, "blocks block"]


def unpack(kind: str, data: UInt8[Tensor, " bytes"]) -> Float[Tensor, " weights"]:
    """The weights, float32, of blocks of a type in `SIZES`, one block after the other."""
    blocks = rearrange(data, "(blocks bytes) -> blocks bytes", bytes=SIZES[kind][1])
    return _UNPACK[kind](blocks).flatten()


def unpack_elsewhere(kind: str, data: UInt8[Tensor, " bytes"]) -> Float[Tensor, " weights"]:
    """The same, of any type that the package `gguf` unpacks, on a CPU. Raises NotImplementedError for others."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights = dequantize(data.cpu().numpy(), GGMLQuantizationType[kind])
    return torch.from_numpy(weights).to(data.device)


def _half(blocks: Blocks, start: int) -> Float[Tensor, "blocks 1"]:
    """The 16-bit float at a byte of every block."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(codes: UInt8[Tensor, "*groups bytes"]) -> UInt8[Tensor, "*groups codes"]:
    """4-bit codes of a group: first all lower halves of its bytes, then all upper ones."""
    return torch.cat((codes & 15, codes >> 4), dim=-1)


def _bits(data: UInt8[Tensor, "*groups bytes"], width: int) -> UInt8[Tensor, "*groups parts bytes"]:
    """Every byte in parts of `width` bits, lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=data.device).unsqueeze(-1)
    return (data.unsqueeze(-2) >> shifts) & (2**width - 1)


def _fifth_bits(data: UInt8[Tensor, "blocks 4"]) -> UInt8[Tensor, "blocks 32"]:
    """One bit for each of 32 codes."""
    return rearrange(_bits(data, 1), "blocks bit byte -> blocks (byte bit)") << 4


def _q4_0(blocks: Blocks) -> Weights:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Blocks) -> Weights:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Weights:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Blocks) -> Weights:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: Blocks) -> Weights:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(blocks: Blocks) -> Weights:
    scales, codes = blocks[:, :16], rearrange(blocks[:, 16:80], "blocks (half byte) -> blocks half byte", half=2)
    scale = _half(blocks, 80) * (scales & 15).float()
    least = _half(blocks, 82) * (scales >> 4).float()
    weights = rearrange(_bits(codes, 2), "blocks half part (some code) -> blocks (half part some) code", some=2)
    return (scale.unsqueeze(-1) * weights.float() - least.unsqueeze(-1)).flatten(1)


def _q3_k(blocks: Blocks) -> Weights:
    high, codes, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    # Four lower bits of 16 scales in eight bytes, then two upper bits of each in four.
    lower = _nibbles(packed[:, :8])
    upper = rearrange(_bits(packed[:, 8:], 2), "blocks part byte -> blocks (part byte)")
    scale = _half(blocks, 108) * ((lower | (upper << 4)).float() - 32)
    low = _bits(rearrange(codes, "blocks (half byte) -> blocks half byte", half=2), 2)
    bit = rearrange(_bits(high, 1), "blocks (half part) byte -> blocks half part byte", half=2)
    weights = low.float() - 4 * (1 - bit.float())
    weights = rearrange(weights, "blocks half part (some code) -> blocks (half part some) code", some=2)
    return (scale.unsqueeze(-1) * weights).flatten(1)


def _scales_and_least(packed: UInt8[Tensor, "blocks 12"]) -> tuple[Tensor, Tensor]:
    """Eight scales and eight smallest values of six bits each."""
    first, second, mixed = packed.split(4, dim=1)
    scales = torch.cat((first & 63, (mixed & 15) | ((first >> 6) << 4)), dim=1)
    least = torch.cat((second & 63, (mixed >> 4) | ((second >> 6) << 4)), dim=1)
    return scales.float(), least.float()


def _k_groups(blocks: Blocks, codes: UInt8[Tensor, "blocks 8 32"]) -> Weights:
    """Eight groups of 32 codes, each with its own scale and smallest value."""
    scales, least = _scales_and_least(blocks[:, 4:16])
    scale, offset = _half(blocks, 0) * scales, _half(blocks, 2) * least
    return (scale.unsqueeze(-1) * codes.float() - offset.unsqueeze(-1)).flatten(1)


def _q4_k(blocks: Blocks) -> Weights:
    return _k_groups(blocks, _four_bits(blocks[:, 16:]))


def _q5_k(blocks: Blocks) -> Weights:
    return _k_groups(blocks, _four_bits(blocks[:, 48:]) | (_bits(blocks[:, 16:48], 1) << 4))


def _four_bits(codes: UInt8[Tensor, "blocks 128"]) -> UInt8[Tensor, "blocks 8 32"]:
    pairs = _bits(rearrange(codes, "blocks (pair byte) -> blocks pair byte", pair=4), 4)
    return rearrange(pairs, "blocks pair part byte -> blocks (pair part) byte")


def _q6_k(blocks: Blocks) -> Weights:
    low = rearrange(blocks[:, :128], "blocks (half byte) -> blocks half byte", half=2)
    high = rearrange(blocks[:, 128:192], "blocks (half byte) -> blocks half byte", half=2)
    lower = rearrange(_bits(low, 4), "blocks half part (some byte) -> blocks half (part some) byte", some=2)
    codes = lower | (_bits(high, 2) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    scale = repeat(_half(blocks, 208) * scales, "blocks group -> blocks (group 16)")
    return scale * (codes.flatten(1).float() - 32)


_UNPACK = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0}
_UNPACK |= {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}

SIZES = {kind: (length, width) for kind, length, width in BLOCK_TYPES.values() if kind in _UNPACK}
"""Weights and bytes of a block, by type, of all types that are unpacked here."""
