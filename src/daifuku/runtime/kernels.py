"""Attention kernels as plugins: what one is, how it gets into a transformer, and which one is the fastest here."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from daifuku.config import ATTENTION_KERNELS
from daifuku.model.attention import Kernel, Lengths, local, sdpa
from daifuku.model.block import AsymmBlock
from daifuku.model.dit import AsymmDiT
from daifuku.registry import Plugin, load, load_all
from daifuku.runtime.measured import fastest_way

MOST_TOKENS = {"cpu": 2048, "cuda": 32768, "mps": 4096}
"""Longer sequences are not measured: there the order of kernels no longer changes, and seconds would add up."""

MOST_SCORE_BYTES = 2**28
"""A kernel that stores all scores is no candidate where they need more memory."""


@dataclass(frozen=True, kw_only=True)
class Attention(Plugin):
    """A plugin of `runtime/attention/`."""

    kernel: Kernel
    exact: bool = True
    """Whether it computes softmax attention up to rounding, and may therefore be chosen without being asked for."""
    devices: tuple[str, ...]
    half_only: tuple[str, ...] = ()
    """Devices on which it takes 16-bit numbers only."""
    learns_on: tuple[str, ...] = ("cpu", "cuda", "mps")
    """Devices on which it has a gradient."""
    stores_scores: bool = False
    """Whether its memory grows with the square of the tokens."""
    compiles: bool = False
    """Whether its first call compiles it, which takes too long for a kernel that is only tried."""

    def unfit(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on a device in a precision; None where it can."""
        if device.type not in self.devices:
            return f"it runs on {' and '.join(self.devices)}, not on {device.type}"
        if device.type in self.half_only and dtype.itemsize != 2:
            return "it takes 16-bit numbers only: try bfloat16"
        return self.available()


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """What a kernel is measured on."""

    num_heads: int
    num_tokens: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def measured_tokens(self) -> int:
        """The next power of two: similar lengths share a measurement."""
        return min(1 << (self.num_tokens - 1).bit_length(), MOST_TOKENS[self.device.type])

    @property
    def score_bytes(self) -> int:
        return 4 * self.num_heads * self.num_tokens**2


def set_kernel(dit: AsymmDiT, kernel: Kernel) -> None:
    """Puts an attention kernel into every block."""
    for block in blocks_of(dit):
        block.attention.attend = local(kernel)


def blocks_of(dit: AsymmDiT) -> list[AsymmBlock]:
    """The blocks, typed."""
    return [block for block in dit.blocks if isinstance(block, AsymmBlock)]


def one_backend(backend: SDPBackend) -> Kernel:
    """One of PyTorch's fused kernels and no other."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q, k, v, lengths)

    return kernel


def each_alone(kernel: Kernel) -> Kernel:
    """For a kernel without masks: sequences of different lengths go through it one by one, each cut to its own."""

    def alone(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
        if lengths is None:
            return kernel(q, k, v, None)
        sequences = zip(q.split(1), k.split(1), v.split(1), lengths.tolist(), strict=True)
        return torch.cat([kernel(q, k[:, :, :length], v[:, :, :length], None) for q, k, v, length in sequences])

    return alone


def fastest(shape: AttentionShape, folder: Path) -> Attention:
    """The fastest exact kernel for a shape on this machine: measured once, then remembered in `folder`."""
    fit = _candidates(shape)
    size = (3, 1, shape.num_heads, shape.measured_tokens, shape.head_dim)
    qkv = cache(lambda: torch.randn(size, device=shape.device).to(shape.dtype).unbind())
    ways = {name: lambda kernel=attention.kernel: kernel(*qkv(), None) for name, attention in fit.items()}
    subject = f"{shape.num_heads} heads of {shape.head_dim}, {shape.measured_tokens} tokens, {shape.dtype}"
    name = fastest_way(ways, shape.device, subject, folder)
    return load(ATTENTION_KERNELS, "sdpa", Attention) if name is None else fit[name]


def _candidates(shape: AttentionShape) -> dict[str, Attention]:
    """Kernels that may be chosen without being asked for, by name."""
    return {
        name: attention
        for name, attention in load_all(ATTENTION_KERNELS, Attention).items()
        if attention.exact
        and not attention.compiles
        and attention.unfit(shape.device, shape.dtype) is None
        and not (attention.stores_scores and shape.score_bytes > MOST_SCORE_BYTES)
    }
