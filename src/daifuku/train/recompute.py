"""Activation checkpointing: which parts of which blocks are computed again on the way back, instead of being kept."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import blocks_of
from daifuku.train.sections import RecomputeSection


def recompute(dit: AsymmDiT, policy: RecomputeSection) -> AsymmDiT:
    """The transformer that keeps less for the backward pass; what it computes stays the same, bit for bit."""
    for index, block in enumerate(blocks_of(dit)):
        mlps = [block.video_mlp, block.text_mlp]
        parts: tuple[tuple[int, list[nn.Module | None]], ...] = (
            (policy.attention, [block.attention]),
            (policy.mlp, mlps),
            (policy.block, [block]),
        )
        for count, modules in parts:
            if count == -1 or index < count:
                for module in modules:
                    _wrap(module)
    return dit


def _wrap(module: nn.Module | None) -> None:
    if module is not None:
        # Nothing in a block draws random numbers.
        again = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
        module.forward = again
