"""Optimisers by name. Each steps the trained parameters of a model, and gives its state as named tensors."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from daifuku.errors import InvalidRequest
from daifuku.train.muon import AdamShare, Muon, OptimiserSettings, vectors_by_adam


@runtime_checkable
class Optimiser(Protocol):
    """What the loop uses of an optimiser."""

    def step(self, lr_factor: float) -> None:
        """One update from the gradients in `.grad`, at `lr_factor` times the peak learning rate."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything but the weights, as named tensors."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...


class TorchOptimiser:
    """An optimiser of PyTorch's kind. Weight decay is for matrices; vectors do without."""

    def __init__(
        self, model: nn.Module, settings: OptimiserSettings, make: Callable[..., torch.optim.Optimizer]
    ) -> None:
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._lr = settings.lr
        groups = [
            {"params": [p for p in self._names if (p.ndim >= 2) == decayed], "weight_decay": decay}
            for decayed, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        self._own = make([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps)

    def step(self, lr_factor: float) -> None:
        for group in self._own.param_groups:
            group["lr"] = self._lr * lr_factor
        self._own.step()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{key}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
            for parameter, name in self._names.items()
            for key, value in self._own.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        names = {name: parameter for parameter, name in self._names.items()}
        if missing := names.keys() - {key.partition(".")[2] for key in state}:
            raise KeyError(min(missing))
        for key, value in state.items():
            kind, _, name = key.partition(".")
            # A count that the optimiser keeps as a number is one again; PyTorch's own is a tensor of the host.
            whole = value.ndim == 0 and not value.is_floating_point()
            moved = value if value.ndim == 0 else value.to(names[name].device)
            self._own.state[names[name]][kind] = int(value) if whole else moved


def new_optimiser(model: nn.Module, settings: OptimiserSettings, adam_share: AdamShare = vectors_by_adam) -> Optimiser:
    """The optimiser that the settings name. Raises InvalidRequest where it does not run here."""
    if settings.kind == "muon":
        return Muon(model, settings, adam_share)
    if settings.kind == "adamw":
        return TorchOptimiser(model, settings, torch.optim.AdamW)
    device = next(p for p in model.parameters() if p.requires_grad).device
    if (reason := _without_8bit(device)) is not None:
        raise InvalidRequest(f"optimiser.name='adamw8bit' does not run here: {reason}. Try 'adamw'.")
    from bitsandbytes.optim.adamw import AdamW8bit

    return TorchOptimiser(model, settings, AdamW8bit)


def _without_8bit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it runs on cuda, not on {device.type}"
    return None if find_spec("bitsandbytes") else "bitsandbytes is not installed (pip install 'daifuku[nf4]')"
