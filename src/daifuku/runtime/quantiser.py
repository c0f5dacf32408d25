"""What a quantiser is: a way to keep the weights of a network's large layers in fewer bits. Approximate.

`docs/quantisation.md` says which layers those are, why, and what each quantiser costs.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
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

IN_A_BLOCK = re.compile(r"blocks\.\d+\.")
"""How the names of the layers begin that repeat: nearly all weights are theirs."""

KEPT = ".wo"
"""How the one layer of a T5 block is called that stays as it is: its inputs are far larger than all others."""

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
    """What quantising did to the layers that it changed, measured on the weights in use."""

    quantiser: str
    num_layers: int
    bytes_before: int
    bytes_after: int
    mean_error: float
    """|quantised - exact| / |exact| of a weight as a Euclidean norm, averaged over the layers."""
    worst_error: float
    worst_layer: str

    def __str__(self) -> str:
        share = self.bytes_after / self.bytes_before
        return (
            f"{self.quantiser}: {self.num_layers} layers take {share:.0%} of their memory and are off by "
            f"{self.mean_error:.1%} on average, {self.worst_error:.1%} at worst ({self.worst_layer})"
        )


class Quantisation:
    """Quantises a network piece by piece, as its weights arrive, and adds up what that did.

    With a device, the layers go there one by one, and their neighbours stay where they are. Raises InvalidRequest where
    the quantiser does not run.
    """

    def __init__(self, name: str, *, device: torch.device | None = None) -> None:
        self._quantiser = registry.load(QUANTISERS, name, Quantiser)
        if (reason := self._quantiser.available()) is not None:
            raise InvalidRequest(f"quantiser {name!r} does not run here: {reason}. Try 'int8'.")
        self._device = device
        self._errors: dict[str, float] = {}
        self._bytes_before, self._bytes_after = 0, 0

    @torch.no_grad()
    def __call__(self, piece: str, module: nn.Module) -> None:
        """Quantises the large layers of a piece of that name in place; a name of "" means the whole network.

        Weights in high precision go away layer by layer; those on the meta device are left alone. Raises
        InvalidRequest, and leaves the piece as it was, where the quantiser cannot do it.
        """
        within = f"{piece}." if piece else ""
        layers = {
            name: within + name
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear) and is_large(within + name) and not layer.weight.is_meta
        }
        _check(module, self._quantiser, layers, self._device)
        for name, full_name in layers.items():
            self._replace(module, name, full_name)

    def _replace(self, module: nn.Module, name: str, full_name: str) -> None:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear), "only linear layers are looked for"
        packed = self._quantiser.pack_layer(full_name, layer.to(self._device))
        module.set_submodule(name, packed)
        self._errors[full_name] = _relative_error(packed.dequantised(layer.weight.dtype), layer.weight)
        self._bytes_before += stored_bytes(layer)
        self._bytes_after += stored_bytes(packed)

    @property
    def report(self) -> QuantisationReport:
        """What was done so far."""
        assert self._errors, "blocks of linear layers are quantised before they are wrapped or streamed"
        worst = max(self._errors, key=lambda layer: self._errors[layer])
        return QuantisationReport(
            quantiser=self._quantiser.name,
            num_layers=len(self._errors),
            bytes_before=self._bytes_before,
            bytes_after=self._bytes_after,
            mean_error=fmean(self._errors.values()),
            worst_error=self._errors[worst],
            worst_layer=worst,
        )


def quantise(model: nn.Module, name: str, *, device: torch.device | None = None) -> QuantisationReport:
    """Quantises a transformer or a T5 encoder in place, as `Quantisation` does, whose errors it raises."""
    quantisation = Quantisation(name, device=device)
    quantisation("", model)
    return quantisation.report


def is_large(name: str) -> bool:
    """Whether a linear layer of that name is quantised."""
    return IN_A_BLOCK.match(name) is not None and not name.endswith(KEPT)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all tensors of a module, quantised or not."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _relative_error(found: Float[Tensor, "rows cols"], exact: Float[Tensor, "rows cols"]) -> float:
    wrong, whole = 0.0, 0.0
    # In pieces, since float32 copies of a large bfloat16 weight would be the peak of the memory.
    for some, right in zip(found.split(ROWS_AT_ONCE), exact.split(ROWS_AT_ONCE), strict=True):
        wrong += float((some.float() - right.float()).square().sum())
        whole += float(right.float().square().sum())
    return (wrong / whole) ** 0.5 if whole else 0.0


def _check(module: nn.Module, quantiser: Quantiser, names: Iterable[str], device: torch.device | None) -> None:
    """Raises InvalidRequest with the reason why these layers cannot be quantised so."""
    name = quantiser.name
    if any(isinstance(layer, QuantisedLinear) for layer in module.modules()):
        raise InvalidRequest(f"these weights are quantised already, so {name!r} cannot be. Load the model again.")
    for each in names:
        weight = module.get_submodule(each).weight
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
