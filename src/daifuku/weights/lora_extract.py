"""The LoRA that turns one model into another, as nearly as its rank allows."""

import torch
from torch import nn

from daifuku.weights.lora_write import Pair


@torch.no_grad()
def extracted(before: nn.Module, after: nn.Module, rank: int) -> dict[str, Pair]:
    """What was learnt by the linear layers of a model, by their names.

    The first singular vectors of each difference make the change of that rank that is nearest to it (Eckart and Young,
    1936). Layers that differ in nothing are left out.
    """
    layers = {name: layer for name, layer in before.named_modules() if isinstance(layer, nn.Linear)}
    pairs: dict[str, Pair] = {}
    for name, layer in layers.items():
        change = (after.get_parameter(f"{name}.weight") - layer.weight).float()
        if not change.any():
            continue
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        kept = slice(min(rank, len(values)))
        root = values[kept].sqrt()
        pairs[name] = Pair(down=root[:, None] * right[kept], up=left[:, kept] * root, alpha=float(len(root)))
    return pairs
