"""An exponential moving average of the weights: what is sampled from and shipped."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages with decay min(decay, (1 + n) / (10 + n)) after n updates, so that early weights are forgotten soon."""

    def __init__(self, model: nn.Module, decay: float, *, frozen_too: bool = True) -> None:
        """`frozen_too`: it also holds weights that are not trained, so that it is a whole model by itself."""
        self.decay = decay
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in held(model, frozen_too=frozen_too).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self._of(model):
            self.weights[name].lerp_(parameter, 1 - decay)
        self.num_updates += 1

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averaged weights inside the block, and its own again after it."""
        own = {name: p.detach().clone() for name, p in self._of(model)}
        self.leave_in(model)
        try:
            yield
        finally:
            self._copy(own, model)

    def leave_in(self, model: nn.Module) -> None:
        """The model holds the averaged weights from now on."""
        self._copy(self.weights, model)

    def state(self) -> dict[str, Tensor]:
        return self.weights | {"num_updates": torch.tensor(self.num_updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.num_updates = int(state["num_updates"])
        for name, weight in self.weights.items():
            weight.copy_(state[name])

    def _of(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in model.named_parameters() if name in self.weights)

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor], model: nn.Module) -> None:
        for name, parameter in self._of(model):
            parameter.copy_(weights[name])


def held(model: nn.Module, *, frozen_too: bool) -> dict[str, nn.Parameter]:
    """The parameters that a run keeps: all, or those that it trains."""
    return {name: p for name, p in model.named_parameters() if frozen_too or p.requires_grad}
