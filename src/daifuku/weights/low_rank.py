"""What LoRAs and DoRAs make of the weight of a linear layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Dora:
    """A change that also says how long each row of the weight W is after it (Liu et al., 2024, arXiv 2402.09353).

    W' = magnitude * (W + up @ down) / |W + up @ down|, row by row, and at a strength W + strength (W' - W).
    """

    down: Float[Tensor, "rank cols"]
    up: Float[Tensor, "rows rank"]
    magnitude: Float[Tensor, " rows"]
    """nan for a row that it has none for: that becomes W + up @ down."""
    strength: float = 1.0

    def gain(self, weight: Float[Tensor, "rows cols"]) -> Float[Tensor, " rows"]:
        """What the rows of W + up @ down are multiplied by. One of zeros has no direction, and stays as it is."""
        up, down, magnitude = (tensor.to(weight) for tensor in (self.up, self.down, self.magnitude))
        norms = torch.linalg.norm(torch.addmm(weight, up, down), dim=1)
        return torch.where(magnitude.isnan() | (norms == 0), 1, magnitude / norms)


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """What is added to the weight W of a layer: up @ down, and W' - W of each DoRA."""

    down: Float[Tensor, "rank cols"]
    up: Float[Tensor, "rows rank"]
    doras: tuple[Dora, ...] = ()

    def on(self, weight: Float[Tensor, "rows cols"]) -> "Scaled":
        """The same for a weight that is known, in float32 and on its device."""
        weight = weight.detach().float()
        downs, ups, more = [self.down.to(weight)], [self.up.to(weight)], weight.new_zeros(len(weight))
        for dora in self.doras:
            gain = dora.gain(weight)
            more += dora.strength * (gain - 1)
            downs.append(dora.down.to(weight))
            ups.append(dora.strength * gain[:, None] * dora.up.to(weight))
        return Scaled(more=more, down=torch.cat(downs), up=torch.cat(ups, dim=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled:
    """What is added to the weight W of a layer: more * W + up @ down, with one number of `more` for each row."""

    more: Float[Tensor, " rows"]
    down: Float[Tensor, "rank cols"]
    up: Float[Tensor, "rows rank"]


def merged(weight: Float[Tensor, "rows cols"], delta: LowRank) -> Float[Tensor, "rows cols"]:
    """A new weight: the sum in float32, rounded once."""
    exact = weight.detach().float()
    if not delta.doras:
        return torch.addmm(exact, delta.up.to(weight.device), delta.down.to(weight.device)).to(weight.dtype)
    change = delta.on(exact)
    return torch.addmm((1 + change.more)[:, None] * exact, change.up, change.down).to(weight.dtype)
