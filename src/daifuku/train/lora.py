"""LoRAs to be trained: PEFT's layers on our transformer, and the file that comes out."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.quantiser import QuantisedLinear
from daifuku.text.quiet import quiet
from daifuku.train.sections import KindSection
from daifuku.weights.lora_write import Pair

ADAPTER = "default"

LAYERS = {
    "video_qkv": r"attention\.video_qkv",
    "video_out": r"attention\.video_out",
    "text_qkv": r"attention\.text_qkv",
    "text_out": r"attention\.text_out",
    "video_mlp": r"video_mlp\.(?:up|down)",
    "text_mlp": r"text_mlp\.(?:up|down)",
}
"""What the layers of a kind are called inside a block."""

_TRAINED = re.compile(rf"(?P<layer>.+)\.lora_(?P<role>A|B|magnitude_vector)\.{ADAPTER}\.weight")


class FrozenLinear(nn.Module):
    """Takes the place of a quantised layer that gradients pass: they meet the weight that the layer stands for.

    That weight is made anew on the way back; else every layer would keep one in high precision until then.
    """

    def __init__(self, layer: QuantisedLinear) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @property
    def weight(self) -> Tensor:
        """What the layer stands for: PEFT looks for its device, and of a DoRA for the norms of its rows."""
        return self.layer.dequantised(torch.float32)

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Float[Tensor, "*shape cols"]) -> Float[Tensor, "*shape rows"]:
        return _Through.apply(x, self.layer)  # pyright: ignore[reportReturnType]


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


def add_lora(dit: AsymmDiT, kinds: Mapping[str, KindSection], seed: int, *, dora: bool = False) -> AsymmDiT:
    """Freezes the transformer and puts PEFT's LoRA layers, in float32, around the layers of these kinds.

    A new LoRA changes nothing: its second matrix is zero, and of a DoRA the magnitudes are those of the weight. Raises
    InvalidRequest where PEFT is not installed, and for a DoRA of a weight with rows of zeros.
    """
    try:
        with quiet():
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.lora import Linear
    except ImportError as error:
        raise InvalidRequest("LoRAs are trained with PEFT, which is not installed: pip install 'daifuku[train]'") from (
            error
        )
    dit.requires_grad_(False)
    for name, layer in list(dit.named_modules()):
        if isinstance(layer, QuantisedLinear):
            dit.set_submodule(name, FrozenLinear(layer))
    wanted = {name: kind for name, kind in kinds.items() if kind.rank}
    patterns = {name: rf"blocks\.\d+\.{LAYERS[name]}" for name in wanted}
    config = LoraConfig(
        target_modules="|".join(patterns.values()),
        rank_pattern={patterns[name]: kind.rank for name, kind in wanted.items()},
        alpha_pattern={patterns[name]: kind.alpha for name, kind in wanted.items()},
        use_dora=dora,
    )
    config._register_custom_module({FrozenLinear: Linear})
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet():
        # It was told how to treat the layers that it does not know.
        warnings.filterwarnings("ignore", "Unsupported layer type")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, dit, adapter_name=ADAPTER)
    for parameter in dit.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if dora:
        _measure_exactly(dit)
    return dit


@contextmanager
def without_lora(dit: AsymmDiT) -> Iterator[None]:
    """The transformer as it was before `add_lora`, while the block lasts."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in dit.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _measure_exactly(dit: AsymmDiT) -> None:
    """Magnitudes from weights in float32: PEFT rounds them as the weights are rounded, and is then off from the start.

    A weight's row of zeros has no direction, and PEFT divides by its norm.
    """
    layers: list[tuple[str, Any]] = [(n, m) for n, m in dit.named_modules() if hasattr(m, "lora_magnitude_vector")]
    for name, layer in layers:
        norms = torch.linalg.norm(layer.get_base_layer().weight.detach().float(), dim=1)
        if not norms.all():
            kind = next(kind for kind, pattern in LAYERS.items() if re.search(pattern, name))
            raise InvalidRequest(
                f"the weight of {name} has rows of zeros, which have no direction that a DoRA could keep: leave it out "
                f"with lora.{kind}.rank = 0, or train with lora.dora = false"
            )
        layer.lora_magnitude_vector[ADAPTER].weight.data = norms


def lora_pairs(dit: AsymmDiT) -> dict[str, Pair]:
    """What a LoRA learnt, by the layers of ours that it changes, in float32 on the CPU."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, parameter in dit.named_parameters():
        if found := _TRAINED.fullmatch(name):
            layers.setdefault(found["layer"], {})[found["role"]] = parameter.detach().float().cpu()
    pairs: dict[str, Pair] = {}
    for layer, trained in layers.items():
        alpha: Any = dit.get_submodule(layer).lora_alpha
        magnitude = trained.get("magnitude_vector")
        pairs[layer] = Pair(down=trained["A"], up=trained["B"], alpha=float(alpha[ADAPTER]), magnitude=magnitude)
    return pairs
