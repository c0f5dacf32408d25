"""LoRAs at work: merged into the weights, or live beside them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.quantiser import QuantisedLinear
from daifuku.values import Loras
from daifuku.weights.encoded_linear import EncodedLinear
from daifuku.weights.lora import Deltas, combined, linear_shapes, read_lora
from daifuku.weights.low_rank import LowRank, merged

Read = Callable[[str], Tensor]
"""A tensor of the transformer by its name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapters:
    """The LoRAs of a request."""

    deltas: Deltas = field(default_factory=dict)
    fingerprints: tuple[str, ...] = ()
    """Of each file, in the order of the request."""
    key: tuple[tuple[str, float], ...] = ()
    """Equal for those that change a model alike: fingerprints and strengths of the LoRAs that act."""


def read_adapters(loras: Loras, sizes: Callable[[], DiTConfig]) -> Adapters:
    """Reads the LoRAs of a request for a transformer of those sizes.

    Raises ModelNotFound for a file that is not there, CheckpointError for one that is no LoRA of such a model.
    """
    if not loras:
        return Adapters()
    with torch.device("meta"):
        shapes = linear_shapes(AsymmDiT(sizes()))
    read = [(read_lora(path), strength) for path, strength in loras]
    return Adapters(
        deltas=combined(read, shapes),
        fingerprints=tuple(lora.fingerprint for lora, _ in read),
        key=tuple((lora.fingerprint, strength) for lora, strength in read if strength),
    )


def merging(read: Read, deltas: Deltas) -> Read:
    """The same, with what LoRAs add to a weight."""
    return lambda name: merged_tensors({name: read(name)}, deltas)[name]


def merged_tensors(tensors: Mapping[str, Tensor], deltas: Deltas) -> dict[str, Tensor]:
    """Tensors of the transformer by name, with what LoRAs add to them."""
    by_name = {f"{layer}.weight": delta for layer, delta in deltas.items()}
    return {name: merged(tensor, by_name[name]) if name in by_name else tensor for name, tensor in tensors.items()}


class LiveLinear(nn.Module):
    """Takes the place of a linear layer, quantised or not, and adds what LoRAs do: layer(x) + up(down(x)).

    DoRAs scale the layer's answer too. They measure the weight that the layer stands for, once, and where it streams,
    when it is first there.
    """

    def __init__(self, layer: nn.Module, delta: LowRank, like: Tensor) -> None:
        super().__init__()
        # The layer's own tensors, under the same names: streaming exchanges them while this stands in its place.
        for kind in ("_parameters", "_buffers", "_modules"):
            self.__dict__[kind] = layer.__dict__[kind]
        self._layer = (layer,)
        self._delta, self._like = delta, like.detach()
        self._more: Tensor | None = None
        self._down, self._up = delta.down.to(like), delta.up.to(like)
        self._measured = not delta.doras
        if not any(tensor.is_meta for tensor in layer.state_dict().values()):
            self._measure()

    def _measure(self) -> None:
        if self._measured:
            return
        change = self._delta.on(_weight(self._layer[0]))
        self._more, self._down, self._up = (t.to(self._like) for t in (change.more, change.down, change.up))
        self._measured = True

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        self._measure()
        found = self._layer[0](x)
        if self._more is not None:
            bias = self._layer[0].bias
            own = found if bias is None else found - bias
            # 1 + more would round more away in half precision.
            found = torch.addcmul(found, own, self._more)
        return found + F.linear(F.linear(x, self._down), self._up)


def _weight(layer: nn.Module) -> Tensor:
    if isinstance(layer, EncodedLinear | QuantisedLinear):
        return layer.dequantised(torch.float32)
    return layer.get_parameter("weight")


@contextmanager
def live(dit: AsymmDiT, deltas: Deltas, *, merged_before: bool) -> Iterator[None]:
    """The transformer with its LoRAs beside the weights while the block lasts.

    Where they were merged before, only layers that kept the encoding of their file, which nothing merges into, still
    need theirs.
    """
    layers = {name: dit.get_submodule(name) for name in deltas}
    if merged_before:
        layers = {name: layer for name, layer in layers.items() if isinstance(layer, EncodedLinear)}
    like = dit.text_proj.weight
    with torch.inference_mode(False):
        wrapped = {name: LiveLinear(layer, deltas[name], like) for name, layer in layers.items()}
    try:
        for name, layer in wrapped.items():
            dit.set_submodule(name, layer)
        yield
    finally:
        for name, layer in layers.items():
            dit.set_submodule(name, layer)
