"""LoRAs from any layout to any other: the same change, and the same matrices wherever both layouts can hold them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.weights.files import Entry, metadata, places
from daifuku.weights.lora import FILES, NUM_SHOWN, PEFT_CONFIG, Lora
from daifuku.weights.lora_names import Role, Slot, role_of, slots, without_prefix
from daifuku.weights.lora_scale import read_alphas
from daifuku.weights.names import Layout, name_table
from daifuku.weights.rearrange import CPU
from daifuku.weights.tensors import raw

LoraTarget = Literal["original", "diffusers", "comfy"]

GROUPS = {"qkv_proj": ("attn.qkv_x", "attn.qkv_y"), "out_proj": ("attn.proj_x", "attn.proj_y")}
"""All that the original can change; each group has one rank and one alpha in its metadata."""

ABOUT_ALPHAS = ("kwargs", "lora_adapter_metadata")
"""What metadata say about ranks and alphas, which is another thing in every layout."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two matrices of a file: a change is up @ down, times alpha / rank. With a magnitude it is a DoRA."""

    down: Float[Tensor, "rank cols"]
    up: Float[Tensor, "rows rank"]
    alpha: float
    magnitude: Float[Tensor, " rows"] | None = None
    """Of a DoRA; nan for rows that have none."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def mixed(self) -> bool:
        """Whether it is a DoRA for some of its rows only."""
        return self.magnitude is not None and bool(self.magnitude.isnan().any())

    @property
    def changes_nothing(self) -> bool:
        return self.magnitude is None and not self.up.any()

    def same_input(self, other: "Pair") -> bool:
        """Whether both could be one, with more rows."""
        return self.alpha == other.alpha and torch.equal(self.down, other.down)


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a LoRA file consists of."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


def lora_content(lora: Lora, to: LoraTarget, dtype: torch.dtype | None = None) -> LoraFile:
    """The file of a layout that changes the same layers in the same way. `dtype` None keeps the precision.

    Raises InvalidRequest for what the layout has no place for: most layers and magnitudes in the original, and in
    others what is a DoRA in part.
    """
    fused = {layer: _fused(parts) for layer, parts in _read(lora).items()}
    about = {key: value for key, value in metadata(lora.path).items() if key not in (*ABOUT_ALPHAS, "format")}
    return pairs_content(fused, to, about=about, dtype=dtype, called=str(lora.path))


def pairs_content(
    fused: Mapping[str, Pair],
    to: LoraTarget,
    *,
    about: Mapping[str, str],
    dtype: torch.dtype | None = None,
    called: str = "this LoRA",
) -> LoraFile:
    """The same for changes by the layers of ours, with metadata of its own. `called` is its name in errors."""
    about = dict(about)
    if to == "diffusers":
        pairs = {name: pair for layer, pair in fused.items() for name, pair in _named(layer, pair, "diffusers")}
        _check_magnitudes(pairs, to, called)
        entries = _entries(pairs, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", dtype)
        entries += _magnitudes(pairs, "transformer.{}.lora_magnitude_vector", dtype)
        about["lora_adapter_metadata"] = json.dumps(_peft(pairs), sort_keys=True)
        return LoraFile(entries=tuple(entries), metadata=about)
    pairs = {name: pair for layer, pair in fused.items() for name, pair in _named(layer, pair, "original")}
    _check_magnitudes(pairs, to, called)
    if to == "comfy":
        prefix = "diffusion_model.{}"
        entries = _entries(pairs, f"{prefix}.lora_down.weight", f"{prefix}.lora_up.weight", dtype)
        entries += _magnitudes(pairs, f"{prefix}.dora_scale", dtype, one_each="rows -> rows 1")
        for name, pair in pairs.items():
            alpha = torch.tensor(pair.alpha)
            entries.append(_entry(f"{prefix.format(name)}.alpha", alpha, None))
        return LoraFile(entries=tuple(entries), metadata=about)
    pairs, kwargs = _in_groups(pairs, called)
    entries = _entries(pairs, "{}.lora_A", "{}.lora_B", dtype)
    return LoraFile(entries=tuple(entries), metadata=about | {"kwargs": json.dumps(kwargs)})


def _read(lora: Lora) -> dict[str, list[tuple[Slot, Pair]]]:
    """The matrices as the file has them, by our layers; their names were checked when the LoRA was read."""
    found = places(lora.path)
    modules: dict[str, dict[Role, str]] = {}
    for name in found:
        role = role_of(name)
        assert role is not None, "only LoRAs are read"
        modules.setdefault(role[0], {})[role[1]] = name
    config = lora.path.with_name(PEFT_CONFIG)
    peft = json.loads(config.read_text("utf-8")) if lora.path.name == FILES[0] and config.is_file() else {}
    alphas = read_alphas(metadata(lora.path), peft)
    bare = {module: without_prefix(module)[0] for module in modules}
    known = slots(bare.values())
    layers: dict[str, list[tuple[Slot, Pair]]] = {}
    for module, roles in modules.items():
        tensors = raw({role: found[name] for role, name in roles.items()}, CPU)
        down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
        alpha, rank = tensors["alpha"].item() if "alpha" in roles else alphas.of(bare[module]), down.shape[0]
        # Divided by the root of the rank elsewhere, and by the rank in every layout that is written.
        alpha = float(alpha) if alpha is not None and not alphas.by_root else alphas.scale(alpha, rank) * rank
        slot = known[bare[module]]
        magnitude = tensors["magnitude"].flatten() if "magnitude" in tensors else None
        pair = Pair(down=down, up=up, alpha=alpha, magnitude=magnitude)
        layers.setdefault(slot.layer, []).append((slot, pair))
    return layers


def _fused(parts: Sequence[tuple[Slot, Pair]]) -> Pair:
    """The change of a whole layer of ours.

    Parts that share their first matrix stack up; others take turns along the rank, each in its own rows.
    """
    slot, first = parts[0]
    if slot.num_parts == 1:
        return _halves_swapped(first) if slot.swapped else first
    by_part = {slot.part: pair for slot, pair in parts}
    shared = all(first.same_input(pair) for pair in by_part.values())
    pairs = list(by_part.values()) if shared else _same_scale(list(by_part.values()))
    by_part = dict(zip(by_part, pairs, strict=True))
    rank = first.rank if shared else sum(pair.rank for pair in pairs)
    rows = first.up.shape[0]
    up = torch.zeros(rows * slot.num_parts, rank, dtype=pairs[0].up.dtype)
    start = 0
    for part, pair in sorted(by_part.items()):
        up[part * rows : (part + 1) * rows, start : start + pair.rank] = pair.up
        start += 0 if shared else pair.rank
    down = first.down if shared else torch.cat([by_part[part].down for part in sorted(by_part)])
    alpha = first.alpha if shared else pairs[0].scale * rank
    return Pair(down=down, up=up, alpha=alpha, magnitude=_stacked_magnitudes(by_part, rows, slot.num_parts))


def _named(layer: str, pair: Pair, layout: Layout) -> list[tuple[str, Pair]]:
    """The change of a layer of ours as the modules of a layout."""
    # Of the last block diffusers calls one layer differently: the one that does not have four parts.
    last = layer.endswith(".text_modulation") and pair.up.shape[0] < pair.down.shape[1]
    block = int(layer.split(".")[1]) if layer.startswith("blocks.") else 0
    num_blocks = block + (1 if last else 2)
    stored = name_table("dit", layout, (f"blocks.{i}." for i in range(num_blocks))).stored(layer)
    if stored.swapped:
        return [(stored.names[0], _halves_swapped(pair))]
    parts = zip(stored.names, _split(pair, len(stored.names)), strict=True)
    return [(name, part) for name, part in parts if part.rank and not (pair.mixed and part.changes_nothing)]


def _split(pair: Pair, num_parts: int) -> list[Pair]:
    """The parts of a change by the rows that they are for; those that took turns along the rank are separate again."""
    ups = pair.up.chunk(num_parts)
    magnitudes = [None] * num_parts if pair.magnitude is None else pair.magnitude.chunk(num_parts)
    magnitudes = [None if m is None or m.isnan().all() else m for m in magnitudes]
    used = torch.stack([up.any(dim=0) for up in ups])
    # A magnitude changes a part whose second matrix is all zeros too.
    without = any(m is not None and not columns.any() for m, columns in zip(magnitudes, used, strict=True))
    if num_parts == 1 or without or not used.any(dim=0).all() or (used.sum(dim=0) > 1).any():
        return [replace(pair, up=up, magnitude=m) for up, m in zip(ups, magnitudes, strict=True)]
    return [
        Pair(down=pair.down[columns], up=up[:, columns], alpha=pair.scale * int(columns.sum()), magnitude=m)
        for up, columns, m in zip(ups, used, magnitudes, strict=True)
    ]


def _same_scale(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose alphas divided by their ranks agree; where they do not, they go into the matrices."""
    if len({pair.scale for pair in pairs}) <= 1:
        return list(pairs)
    return [
        replace(pair, up=(pair.up.float() * pair.scale).to(pair.up.dtype), alpha=float(pair.rank)) for pair in pairs
    ]


def _in_groups(pairs: Mapping[str, Pair], called: str) -> tuple[dict[str, Pair], dict[str, Any]]:
    """One rank and one alpha for each group of the original: zeros fill up what has a lower rank."""
    groups = {group: [name for name in pairs if name.endswith(ends)] for group, ends in GROUPS.items()}
    homeless = sorted(set(pairs).difference(*groups.values()))
    if homeless:
        more = f" and {len(homeless) - NUM_SHOWN} more" if len(homeless) > NUM_SHOWN else ""
        raise InvalidRequest(
            f"{called} changes {', '.join(homeless[:NUM_SHOWN])}{more}, and the original layout holds changes of "
            "attn.qkv_x, attn.qkv_y, attn.proj_x and attn.proj_y only: convert it to diffusers or comfy, which hold all"
        )
    found: dict[str, Pair] = {}
    kwargs: dict[str, Any] = {}
    for group, names in groups.items():
        even = _same_scale([pairs[name] for name in names])
        rank = max((pair.rank for pair in even), default=0)
        alpha = even[0].alpha if even and even[0].rank == rank else even[0].scale * rank if even else 0
        for name, pair in zip(names, even, strict=True):
            found[name] = _widened(pair, rank, alpha)
        kwargs |= {f"{group}_lora_rank": rank, f"{group}_lora_alpha": alpha, f"{group}_lora_dropout": 0.0}
    return found, kwargs


def _widened(pair: Pair, rank: int, alpha: float) -> Pair:
    """The same change with a higher rank, and the alpha that goes with it."""
    more = rank - pair.rank
    if not more:
        return pair
    down = torch.cat([pair.down, pair.down.new_zeros(more, pair.down.shape[1])])
    return Pair(down=down, up=torch.cat([pair.up, pair.up.new_zeros(pair.up.shape[0], more)], dim=1), alpha=alpha)


def _halves_swapped(pair: Pair) -> Pair:
    magnitude = None if pair.magnitude is None else torch.cat(pair.magnitude.chunk(2)[::-1])
    return replace(pair, up=torch.cat(pair.up.chunk(2)[::-1]), magnitude=magnitude)


def _stacked_magnitudes(by_part: Mapping[int, Pair], rows: int, num_parts: int) -> Tensor | None:
    """Of a whole layer, of which some parts may have none."""
    given = {part: pair.magnitude for part, pair in by_part.items() if pair.magnitude is not None}
    if not given:
        return None
    none = torch.full((rows,), torch.nan, dtype=next(iter(given.values())).dtype)
    return torch.cat([given.get(part, none) for part in range(num_parts)])


def _check_magnitudes(pairs: Mapping[str, Pair], to: LoraTarget, called: str) -> None:
    """Raises InvalidRequest for a DoRA that a layout does not hold."""
    doras = [name for name, pair in pairs.items() if pair.magnitude is not None]
    if doras and to == "original":
        raise InvalidRequest(
            f"{called} is a DoRA, and the original layout holds no magnitudes: convert it to diffusers or comfy"
        )
    plain = sorted(set(pairs).difference(doras))
    if doras and plain and to == "diffusers":
        raise InvalidRequest(
            f"{called} has magnitudes, but none for {', '.join(plain[:NUM_SHOWN])}, and in the diffusers layout all "
            "changes have one or none has: convert it to comfy"
        )
    if mixed := [name for name, pair in pairs.items() if pair.mixed]:
        raise InvalidRequest(
            f"{called} has magnitudes for a part of {', '.join(mixed[:NUM_SHOWN])}, which the {to} layout has as a "
            "whole: convert it to diffusers"
        )


def _peft(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """The configuration of PEFT under the prefix that diffusers gives to that of its transformer."""
    rank = Counter(pair.rank for pair in pairs.values()).most_common(1)[0][0]
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: pair.rank for name, pair in pairs.items() if pair.rank != rank},
        "alpha_pattern": {name: pair.alpha for name, pair in pairs.items() if pair.alpha != alpha},
        "target_modules": sorted(pairs),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": any(pair.magnitude is not None for pair in pairs.values()),
    }
    return {f"transformer.{key}": value for key, value in config.items()}


def _entries(pairs: Mapping[str, Pair], down: str, up: str, dtype: torch.dtype | None) -> list[Entry]:
    return [
        _entry(pattern.format(name), tensor, dtype)
        for name, pair in pairs.items()
        for pattern, tensor in ((down, pair.down), (up, pair.up))
    ]


def _magnitudes(
    pairs: Mapping[str, Pair], name: str, dtype: torch.dtype | None, *, one_each: str = "rows -> rows"
) -> list[Entry]:
    given = {module: pair.magnitude for module, pair in pairs.items() if pair.magnitude is not None}
    return [_entry(name.format(module), rearrange(tensor, one_each), dtype) for module, tensor in given.items()]


def _entry(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Entry:
    return Entry(name=name, shape=tuple(tensor.shape), dtype=dtype or tensor.dtype, read=partial(_same, tensor))


def _same(tensor: Tensor) -> Tensor:
    return tensor
