"""What every tool calls the tensors of a LoRA, and which layer of ours each belongs to."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT
from daifuku.weights.names import name_table

LoraLayout = Literal["original", "diffusers", "peft", "comfy", "kohya"]

Role = Literal["down", "up", "alpha", "magnitude"]
"""A change is up @ down, times alpha / rank. PEFT calls these matrices B and A. A magnitude makes it a DoRA."""

_PREFIXES: tuple[tuple[str, LoraLayout], ...] = (
    ("base_model.model.", "peft"),
    ("transformer.", "diffusers"),
    ("model.diffusion_model.", "comfy"),
    ("diffusion_model.", "comfy"),
    ("lora_unet_", "kohya"),
    ("lora_transformer_", "kohya"),
)

_DOWN = r"lora_A|lora_down|lora\.down|lora_linear_layer\.down"
_UP = r"lora_B|lora_up|lora\.up|lora_linear_layer\.up"

_MATRIX = re.compile(rf"(?P<module>.+)\.(?:(?P<down>{_DOWN})|(?P<up>{_UP}))(?:\.(?!weight$|bias$)\w+)?(?:\.weight)?")
"""PEFT may put the name of the adapter between the matrix and `.weight`."""

PEFT_MAGNITUDE = "lora_magnitude_vector"

_MAGNITUDE = re.compile(rf"(?P<module>.+)\.(?:dora_scale|{PEFT_MAGNITUDE}(?:\.(?!weight$)\w+)?(?:\.weight)?)")

_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    ("LoHa", r"\.hada_w\d"),
    ("LoKr", r"\.lokr_[wt]\d"),
    ("OFT", r"\.oft_"),
    ("(IA)3", r"\.ia3_"),
    ("a LoRA with a third matrix", r"\.lora_mid\b"),
    ("a LoRA with biases", r"\.lora_B(\.\w+)?\.bias$"),
    ("a file of whole differences", r"\.diff(_b)?$"),
)
"""What is no plain LoRA, by the names of its tensors."""

_BLOCK = re.compile(r"(?:^|[._])blocks[._](\d{1,3})[._]")

_LAST_BLOCK = re.compile(r"blocks[._](\d{1,3})[._]norm1_context[._]linear_1\b")
"""diffusers calls one layer of the last block differently."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of a change: a layer of ours, or one of the `num_parts` that its outputs are stacked of."""

    layer: str
    part: int
    num_parts: int
    swapped: bool
    """The two halves of the outputs stand in the other order in the file."""


def role_of(name: str) -> tuple[str, Role] | None:
    """The module that a tensor belongs to, and what it is there; None for one that no LoRA has."""
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha"), "alpha"
    if found := _MAGNITUDE.fullmatch(name):
        return found["module"], "magnitude"
    if (found := _MATRIX.fullmatch(name)) is None:
        return None
    return found["module"], "down" if found["down"] else "up"


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names make a LoRA, or something of its kind."""
    return any(_MATRIX.fullmatch(name) or other_kind([name]) for name in names)


def other_kind(names: Iterable[str]) -> str | None:
    """What a file is that changes a model otherwise than by two matrices for each layer."""
    for name in names:
        for kind, mark in _OTHER_KINDS:
            if re.search(mark, name):
                return kind
    return None


def without_prefix(module: str) -> tuple[str, LoraLayout | None]:
    """A module's name as its model has it, and whose habit the prefix was."""
    layout: LoraLayout | None = None
    while found := next((each for each in _PREFIXES if module.startswith(each[0])), None):
        module, layout = module.removeprefix(found[0]), layout or found[1]
    return module, layout


def slots(modules: Iterable[str]) -> dict[str, Slot]:
    """Where a change goes, by every name that a layer has anywhere, with dots or underscores.

    `modules` are those of a file, without prefix: only the blocks that they name are listed.
    """
    modules = list(modules)
    blocks = sorted({int(found[1]) for module in modules if (found := _BLOCK.search(module))})
    last = next((int(found[1]) for module in modules if (found := _LAST_BLOCK.search(module))), None)
    # Where no name tells, no block that the file names is taken for the last one.
    num_blocks = max(blocks, default=0) + 2 if last is None else last + 1
    places: dict[str, Slot] = {}
    for layout in ("original", "diffusers"):
        table = name_table("dit", layout, (f"blocks.{block}." for block in range(num_blocks)))
        for layer in _layers(blocks):
            stored = table.stored(layer)
            for part, name in enumerate(stored.names):
                slot = Slot(layer=layer, part=part, num_parts=len(stored.names), swapped=stored.swapped)
                places[name] = places[name.replace(".", "_")] = slot
    return places


def _layers(blocks: Iterable[int]) -> Iterator[str]:
    """Names of all linear layers, for these blocks."""
    blocks = list(blocks)
    for name in _layers_of_one_block():
        if name.startswith("blocks.0."):
            yield from (name.replace("blocks.0.", f"blocks.{block}.", 1) for block in blocks)
        else:
            yield name


@cache
def _layers_of_one_block() -> tuple[str, ...]:
    # Of two blocks the first has all layers that a block can have.
    with torch.device("meta"):
        dit = AsymmDiT(DiTConfig(num_blocks=2))
    layers = (name for name, layer in dit.named_modules() if isinstance(layer, nn.Linear))
    return tuple(name for name in layers if not name.startswith("blocks.1."))
