"""What a quantiser is: a way to keep the weights of a network's large layers in fewer bits. Approximate.

`docs/quantisation.md` says which layers those are, why, and what each quantiser costs.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daifuku import registry
from daifuku.config import QUANTISERS
from daifuku.errors import InvalidRequest
from daifuku.registry import Plugin
from daifuku.weights.unread import is_large

SEES_VIDEO = re.compile(r"video_(qkv|out|mlp\.up|mlp\.down)$")
"""Names of the layers that every video token passes, where the time goes. Others see a caption or a single vector."""

ROWS_AT_ONCE = 1024


class QuantisedLinear(nn.Module, ABC):
    """Takes the place of a linear layer; computes in the precision of its input. Its state is plain tensors."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    @abstractmethod
    def dequantised(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        """The weight as far as it is still known."""

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        return F.linear(x, self.dequantised(x.dtype), self.bias)


Pack = Callable[[nn.Linear], QuantisedLinear]
"""One layer in fewer bits, on the same device. The layer that it is given stays as it was."""


@dataclass(frozen=True, kw_only=True)
class Quantiser(Plugin):
    """A plugin of `runtime/quant/`."""

    bits: float
    """Stored for each weight, scales included."""
    max_error: float
    """|found - exact| / |exact|, as Euclidean norms, of a layer's output where weights and inputs are normal."""
    pack: Pack
    pack_video: Pack | None = None
    """For layers that every video token passes, where they are treated differently."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    """Precisions of the network that it works with."""
    multiple: int = 1
    """What the sides of a weight must be multiples of."""

    def pack_layer(self, name: str, linear: nn.Linear) -> QuantisedLinear:
        """The layer of that name in fewer bits."""
        pack = self.pack_video if self.pack_video and SEES_VIDEO.search(name) else self.pack
        return pack(linear)


@dataclass(frozen=True, kw_only=True)
class QuantisationReport:
    """What quantising did to a network, measured on the weights in use."""

    quantiser: str
    num_layers: int
    bytes_before: int
    """Of the whole network."""
    bytes_after: int
    mean_error: float
    """|quantised - exact| / |exact| of a weight as a Euclidean norm, averaged over the layers."""
    worst_error: float
    worst_layer: str

    def __str__(self) -> str:
        share = self.bytes_after / self.bytes_before
        return (
            f"{self.quantiser}: {self.num_layers} layers, weights take {share:.0%} of their memory and are off by "
            f"{self.mean_error:.1%} on average, {self.worst_error:.1%} at worst ({self.worst_layer})"
        )


@torch.no_grad()
def quantise(model: nn.Module, name: str, *, device: torch.device | None = None) -> QuantisationReport:
    """Quantises the large layers of an AsymmDiT or a T5 encoder in place, one after the other.

    Weights in high precision exist for one layer at a time. With a device, layers go there one by one, so that a
    network whose file is mapped into memory never stands there in high precision. Raises InvalidRequest, and leaves
    the network as it was, where the quantiser does not work.
    """
    quantiser = registry.load(QUANTISERS, name, Quantiser)
    # Layers without data are those that a table is going to stand for.
    names = [name for name in large_layers(model) if not model.get_parameter(f"{name}.weight").is_meta]
    _check(model, quantiser, names, device)
    before = stored_bytes(model)
    errors = {layer: _replace(model, layer, quantiser, device) for layer in names}
    if device is not None:
        model.to(device)
    _leave_files(model)
    worst = max(errors, key=lambda layer: errors[layer])
    return QuantisationReport(
        quantiser=name,
        num_layers=len(names),
        bytes_before=before,
        bytes_after=stored_bytes(model),
        mean_error=fmean(errors.values()),
        worst_error=errors[worst],
        worst_layer=worst,
    )


def large_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that are quantised."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and is_large(name)]


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of a network, quantised or not."""
    # Tied weights stand under several names and lie in memory once.
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.nbytes for tensor in tensors.values())


def _replace(model: nn.Module, name: str, quantiser: Quantiser, device: torch.device | None) -> float:
    """Quantises one layer and returns the relative error of its weight."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear), "only linear layers are looked for"
    packed = quantiser.pack_layer(name, layer.to(device))
    model.set_submodule(name, packed)
    return _relative_error(packed.dequantised(layer.weight.dtype), layer.weight)


def _leave_files(model: nn.Module) -> None:
    """Copies what was not quantised: one tensor that is a view of a file would keep all of the file's map in memory."""
    state = model.state_dict(keep_vars=True)
    rest = {
        name: tensor for name, tensor in state.items() if tensor.device.type == "cpu" and not _is_packed(model, name)
    }
    copies: dict[int, Tensor] = {}
    for name, tensor in rest.items():
        # Tied weights stand under several names and stay one.
        if id(tensor) not in copies:
            copy = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, copies[id(tensor)])


def _is_packed(model: nn.Module, name: str) -> bool:
    parent, _, own = name.rpartition(".")
    return own != "bias" and isinstance(model.get_submodule(parent), QuantisedLinear)


def _relative_error(found: Float[Tensor, "rows cols"], exact: Float[Tensor, "rows cols"]) -> float:
    wrong, whole = 0.0, 0.0
    # In pieces, since float32 copies of a large bfloat16 weight would be the peak of the memory.
    for some, right in zip(found.split(ROWS_AT_ONCE), exact.split(ROWS_AT_ONCE), strict=True):
        wrong += float((some.float() - right.float()).square().sum())
        whole += float(right.float().square().sum())
    return (wrong / whole) ** 0.5 if whole else 0.0


def _check(model: nn.Module, quantiser: Quantiser, names: Sequence[str], device: torch.device | None) -> None:
    """Raises InvalidRequest with the reason why these layers cannot be quantised so."""
    name = quantiser.name
    if (reason := quantiser.available()) is not None:
        raise InvalidRequest(f"quantiser {name!r} does not run here: {reason}. Try 'int8'.")
    if any(isinstance(layer, QuantisedLinear) for layer in model.modules()):
        raise InvalidRequest(f"these weights are quantised already, so {name!r} cannot be. Load the model again.")
    assert names, "a network with blocks of linear layers is quantised before they are wrapped or streamed"
    for each in names:
        weight = model.get_submodule(each).weight
        assert isinstance(weight, Tensor)
        place = (device or weight.device).type
        if place not in quantiser.devices:
            known = " and ".join(quantiser.devices)
            raise InvalidRequest(f"quantiser {name!r} runs on {known}, not on {place}. Try 'int8'.")
        if weight.dtype not in quantiser.dtypes:
            known = " or ".join(str(dtype).removeprefix("torch.") for dtype in quantiser.dtypes)
            raise InvalidRequest(f"quantiser {name!r} computes in {known}, not {weight.dtype}. Try dtype {known}.")
        if any(side % quantiser.multiple for side in weight.shape):
            raise InvalidRequest(
                f"quantiser {name!r} needs sides that are multiples of {quantiser.multiple}, but the weight of {each} "
                f"is {list(weight.shape)}. Try 'int8'."
            )
