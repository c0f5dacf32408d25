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
    wanted = {rf"blocks\.\d+\.{LAYERS[name]}": kind for name, kind in kinds.items() if kind.rank}
    ranks = {pattern: (kind.rank, kind.alpha) for pattern, kind in wanted.items()}
    _inject(dit, "|".join(ranks), ranks, seed, dora=dora)
    if dora:
        _measure_exactly(dit)
    return dit


@torch.no_grad()
def add_known_lora(dit: AsymmDiT, pairs: Mapping[str, Pair]) -> AsymmDiT:
    """The same with matrices that are known, by the layers of ours that they change, to learn on from there."""
    ranks = {re.escape(name): (pair.rank, pair.alpha) for name, pair in pairs.items()}
    _inject(dit, list(pairs), ranks, seed=0, dora=False)
    for name, pair in pairs.items():
        layer: Any = dit.get_submodule(name)
        layer.lora_A[ADAPTER].weight.copy_(pair.down)
        layer.lora_B[ADAPTER].weight.copy_(pair.up)
    return dit


def _inject(
    dit: AsymmDiT, layers: str | list[str], ranks: Mapping[str, tuple[int, float]], seed: int, *, dora: bool
) -> None:
    """Freezes the transformer and puts PEFT's layers around its own; rank and alpha by patterns of their names."""
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
    config = LoraConfig(
        target_modules=layers,
        rank_pattern={pattern: rank for pattern, (rank, _) in ranks.items()},
        alpha_pattern={pattern: alpha for pattern, (_, alpha) in ranks.items()},
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
    layers: dict[str, Any] = {name: layer for name, layer in dit.named_modules() if hasattr(layer, "lora_alpha")}
    return {
        layer: Pair(alpha=float(layers[layer].lora_alpha[ADAPTER]), **matrices)
        for layer, matrices in _matrices(dict(dit.named_parameters())).items()
    }


def kept_pairs(weights: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The same from the weights that a checkpoint kept of it, where every alpha is the rank."""
    return {
        layer: Pair(alpha=float(len(matrices["down"])), **matrices) for layer, matrices in _matrices(weights).items()
    }


def _matrices(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    fields = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if found := _TRAINED.fullmatch(name):
            layers.setdefault(found["layer"], {})[fields[found["role"]]] = weight.detach().float().cpu()
    return layers
