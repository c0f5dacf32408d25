"""The LoRA that turns one model into another, as nearly as its rank allows."""

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.weights.lora_write import Pair

Moments = Mapping[str, Float[Tensor, "cols cols"]]
"""E[x x^T] of the inputs x of linear layers, by the names of the layers."""

LEAST_MOMENT = 1e-4
"""Of the mean over directions: what no input ever shows counts a little, so that no direction is left to chance."""


@torch.no_grad()
def input_moments(model: nn.Module, use: Callable[[], object]) -> dict[str, Float[Tensor, "cols cols"]]:
    """What the inputs of the linear layers look like while `use` runs the model, in float64."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = rearrange(inputs[0].double(), "... cols -> (...) cols")
            sums[name] = sums.get(name, 0) + x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return add

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in _linear_layers(model).items()]
    try:
        use()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def extracted(before: nn.Module, after: nn.Module, rank: int, moments: Moments) -> dict[str, Pair]:
    """What was learnt by the linear layers of a model, by their names; those that learnt nothing are left out.

    Of all changes of that rank it is the one whose outputs are nearest to those of the whole change, for inputs with
    these moments: with E[x x^T] = L L^T, the first singular vectors of change @ L (Eckart and Young, 1936), taken back.
    """
    pairs: dict[str, Pair] = {}
    for name, layer in _linear_layers(before).items():
        change = (after.get_parameter(f"{name}.weight") - layer.weight).double()
        if not change.any():
            continue
        moment = moments[name]
        floor = LEAST_MOMENT * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        root = torch.linalg.cholesky(moment + floor)
        left, values, right = torch.linalg.svd(change @ root, full_matrices=False)
        kept = slice(min(rank, len(values)))
        # Up and down of one size, which rounds both alike.
        half = values[kept].sqrt()
        back = torch.linalg.solve_triangular(root, right[kept], upper=False, left=False)
        pairs[name] = Pair(
            down=(half[:, None] * back).float(), up=(left[:, kept] * half).float(), alpha=float(len(half))
        )
    return pairs


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
