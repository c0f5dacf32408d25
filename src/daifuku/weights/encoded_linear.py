"""A linear layer that keeps its weight as the file encodes it, and decodes it whenever it computes."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.weights.encodings import Encoded, raw_dtype, raw_shape
from daifuku.weights.place import Place


class EncodedLinear(nn.Module):
    """Takes the place of a linear layer; computes in the precision of its input. Its state is plain tensors."""

    def __init__(self, linear: nn.Linear, parts: Sequence[Encoded], *, swapped: bool) -> None:
        """`parts`: what the weight is the stack of; `swapped`: whether its halves stand in the other order there."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.words = parts[0].words
        self._parts = tuple(parts)
        self._swapped = swapped
        for name, place in self.places.items():
            self.register_buffer(name, torch.empty(raw_shape(place), dtype=raw_dtype(place), device="meta"))

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the file has the tensors of its state, but for the bias."""
        parts = enumerate(self._parts)
        return {_name(role, index): place for index, part in parts for role, place in part.places.items()}

    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        """The weight."""
        weights: list[Tensor] = []
        for index, part in enumerate(self._parts):
            raw = {role: self.get_buffer(_name(role, index)) for role in part.places}
            weights.append(part.decoded(raw, dtype))
        if self._swapped:
            weights = [half for weight in reversed(weights) for half in reversed(weight.chunk(2))]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        return F.linear(x, self.dequantised(x.dtype), self.bias)


def _name(role: str, index: int) -> str:
    return f"{role}_{index}"
