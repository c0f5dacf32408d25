"""An exponential moving average of the weights: what is sampled from and shipped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages with decay min(decay, (1 + n) / (10 + n)) after n updates, so that early weights are forgotten soon."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averaged weights inside the block, and its own again after it."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy(self.weights, model)
        try:
            yield
        finally:
            _copy(own, model)

    def state(self) -> dict[str, Tensor]:
        return self.weights | {"num_updates": torch.tensor(self.num_updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.num_updates = int(state["num_updates"])
        for name, weight in self.weights.items():
            weight.copy_(state[name])


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
