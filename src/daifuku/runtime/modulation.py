"""All modulations of a run from one table, so that the layers that make them need no memory while it samples.

These layers hold 27 % of the published transformer's weights, yet see one vector per pass: what a noise level and a
caption come to. Both are known before the first step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT, pack_valid
from daifuku.sample.guidance import Caption
from daifuku.sample.solver import Solver, Velocity

Read = Callable[[str], Tensor]
"""A tensor of the transformer by its name, from wherever it is kept."""


def is_modulation(name: str) -> bool:
    """Whether a tensor of the transformer belongs to a layer that a table stands for."""
    return "modulation." in name


def visited_sigmas(solver: Solver, sigmas: Sequence[float]) -> list[float]:
    """Every noise level at which a solver asks for a velocity, in order and without repetition."""
    asked: dict[float, None] = {}

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        asked[sigma] = None
        return torch.zeros_like(latent)

    for _ in solver.run(velocity, torch.zeros(1, 1, 1, 1, 1), sigmas):
        pass
    return list(asked)


@contextmanager
def tabulated(dit: AsymmDiT, captions: Sequence[Caption], sigmas: Sequence[float], read: Read) -> Iterator[None]:
    """The transformer without its modulation layers while the block lasts, good for these captions and sigmas alone.

    `read` gives the layers' tensors one at a time; no two layers are in memory at once. The result is the layers' own,
    up to the rounding of a product of matrices against one of a matrix and a vector.
    """
    with torch.inference_mode():
        keys = torch.cat([_conditionings(dit, caption, sigmas) for caption in captions])
    rows = _Rows(keys)
    layers = {name: layer for name, layer in dit.named_modules() if is_modulation(f"{name}.")}
    try:
        for name, layer in layers.items():
            weight, bias = (read(f"{name}.{kind}").to(keys) for kind in ("weight", "bias"))
            with torch.inference_mode():
                _replace(dit, name, _Table(rows, F.linear(keys, weight, bias)))
            del weight, bias, layer
        yield
    finally:
        for name, layer in layers.items():
            _replace(dit, name, layer)


def only_at(velocity: Velocity, sigmas: Sequence[float]) -> Velocity:
    """The velocity, guarded against noise levels that no table knows."""
    known = frozenset(sigmas)

    def guarded(latent: Tensor, sigma: float) -> Tensor:
        if sigma not in known:
            raise InvalidRequest(f"the solver asks at sigma {sigma}, which was not foreseen. Try --no-tabulate.")
        return velocity(latent, sigma)

    return guarded


class _Rows:
    """Finds the row of a table by the conditioning that it was made for."""

    def __init__(self, keys: Float[Tensor, "rows dv"]) -> None:
        self._keys = keys

    def find(self, conditioning: Float[Tensor, "b dv"]) -> Int[Tensor, " b"]:
        # The nearest, since the last bits of a conditioning may depend on how many are computed at once.
        distance = (self._keys.float() - conditioning.float().unsqueeze(1)).square().sum(dim=-1)
        return distance.argmin(dim=-1)


class _Table(nn.Module):
    """In place of a linear layer: what it would answer."""

    def __init__(self, rows: _Rows, values: Float[Tensor, "rows width"]) -> None:
        super().__init__()
        self._rows = rows
        self._values = values

    def forward(self, conditioning: Float[Tensor, "b dv"]) -> Float[Tensor, "b width"]:
        return self._values[self._rows.find(conditioning)]


def _conditionings(dit: AsymmDiT, caption: Caption, sigmas: Sequence[float]) -> Float[Tensor, "s dv"]:
    """What the blocks are told about a caption at each sigma; computed one by one, as in a pass."""
    text = caption.features.to(dit.text_proj.weight.dtype)
    text, mask, _ = pack_valid(text, caption.mask, dit.text_multiple)
    levels = (torch.tensor([sigma], device=text.device) for sigma in sigmas)
    return torch.cat([dit.condition(level, text, mask) for level in levels])


def _replace(dit: AsymmDiT, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(dit.get_submodule(parent), own, layer)
