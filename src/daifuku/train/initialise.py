"""Fresh weights for a transformer."""

import math

import torch
from torch import nn

from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import blocks_of


@torch.no_grad()
def initialise_dit(dit: AsymmDiT, generator: torch.Generator) -> None:
    """Blocks that start as the identity, an output of zero, and rotary frequencies that tell near from far tokens.

    One third of a head's pairs turns with each axis: per frame 0.1 to 2 radians, per unit of space 0.004 to 0.06.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in blocks_of(dit):
        nn.init.zeros_(block.video_modulation.weight)
        nn.init.zeros_(block.text_modulation.weight)
    nn.init.zeros_(dit.final.modulation.weight)
    nn.init.zeros_(dit.final.linear.weight)
    axes, heads, pairs = dit.pos_frequencies.shape
    spread = torch.linspace(0, 1, math.ceil(pairs / axes))
    ranges = ((0.1, 2.0), (0.004, 0.06), (0.004, 0.06))
    dit.pos_frequencies.zero_()
    for axis, (slow, fast) in enumerate(ranges):
        rates = slow * (fast / slow) ** spread[: len(range(axis, pairs, axes))]
        signs = torch.randint(0, 2, (heads, len(rates)), generator=generator) * 2 - 1
        dit.pos_frequencies[axis, :, axis::axes] = rates * signs
