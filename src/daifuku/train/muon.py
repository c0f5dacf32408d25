"""Muon for matrices and AdamW for everything else, as one optimiser with one state.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest
orthogonal matrix, found with a Newton-Schulz iteration. Updates are scaled to AdamW's usual size,
0.2 * sqrt(longer side), as Liu et al. 2025 (arXiv 2502.16982) propose, so that both share one learning rate.
`torch.optim.Muon` takes matrices one by one and no convolutions; here equal shapes are stacked into one product.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """Which optimiser, its learning rate at its peak, and the constants of its rules."""

    lr: float
    kind: Literal["muon", "adamw", "adamw8bit"] = "muon"
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    eps: float = 1e-8


def orthogonalise(matrices: Float[Tensor, "n rows cols"], steps: int = 5) -> Float[Tensor, "n rows cols"]:
    """Pushes all singular values towards 1, in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


AdamShare = Callable[[str, Tensor], float | None]
"""Which parameters leave Muon for AdamW, and at what share of the learning rate; None stays with Muon."""


def vectors_by_adam(name: str, parameter: Tensor) -> float | None:
    """The usual split: biases and norm weights by AdamW, everything with two axes or more by Muon."""
    return 1.0 if parameter.ndim < 2 else None


class Muon:
    """Steps the parameters of `model` that require gradients, each by the rule that `adam_share` gives it."""

    def __init__(self, model: nn.Module, settings: OptimiserSettings, adam_share: AdamShare = vectors_by_adam) -> None:
        self.settings = settings
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._matrices: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
        self._others: dict[nn.Parameter, float] = {}
        for parameter, name in self._names.items():
            share = adam_share(name, parameter)
            if share is None:
                self._matrices[parameter.shape[0], parameter[0].numel()].append(parameter)
            else:
                self._others[parameter] = share
        self._first = {parameter: torch.zeros_like(parameter) for parameter in self._names}
        self._second = {parameter: torch.zeros_like(parameter) for parameter in self._others}
        self.num_steps = 0

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        """One update from the gradients in `.grad`, at `lr_factor` times the peak learning rate."""
        self.num_steps += 1
        lr = self.settings.lr * lr_factor
        for shape, parameters in self._matrices.items():
            self._step_matrices(shape, parameters, lr)
        self._step_others(lr)

    def _step_matrices(self, shape: tuple[int, int], parameters: list[nn.Parameter], lr: float) -> None:
        beta = self.settings.momentum
        updates = []
        for parameter in parameters:
            gradient = _gradient(parameter)
            momentum = self._first[parameter].lerp_(gradient, 1 - beta)
            updates.append(gradient.lerp(momentum, beta).reshape(shape))
        scale = 0.2 * max(shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * self.settings.weight_decay)
            parameter.add_(update.reshape(parameter.shape), alpha=-lr * scale)

    def _step_others(self, lr: float) -> None:
        beta1, beta2 = self.settings.betas
        correction1, correction2 = 1 - beta1**self.num_steps, 1 - beta2**self.num_steps
        for parameter, share in self._others.items():
            gradient = _gradient(parameter)
            first = self._first[parameter].lerp_(gradient, 1 - beta1)
            second = self._second[parameter].lerp_(gradient.square(), 1 - beta2)
            parameter.sub_(share * lr * (first / correction1) / ((second / correction2).sqrt() + self.settings.eps))

    def state(self) -> dict[str, Tensor]:
        """Everything but the weights, as named tensors."""
        moments = {f"first.{self._names[p]}": m for p, m in self._first.items()}
        moments |= {f"second.{self._names[p]}": m for p, m in self._second.items()}
        return moments | {"num_steps": torch.tensor(self.num_steps)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.num_steps = int(state["num_steps"])
        for prefix, moments in (("first", self._first), ("second", self._second)):
            for parameter, moment in moments.items():
                moment.copy_(state[f"{prefix}.{self._names[parameter]}"])


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "a trained parameter got no gradient"
    return parameter.grad
