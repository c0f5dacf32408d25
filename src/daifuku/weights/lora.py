"""LoRA files of every layout: what they add to the linear layers of the transformer, by our names."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from daifuku.errors import CheckpointError, ModelNotFound
from daifuku.weights.files import damaged, metadata, places
from daifuku.weights.lora_names import (
    PEFT_MAGNITUDE,
    LoraLayout,
    Role,
    Slot,
    is_lora,
    other_kind,
    role_of,
    slots,
    without_prefix,
)
from daifuku.weights.lora_scale import Alphas, number, read_alphas
from daifuku.weights.low_rank import Dora, LowRank, merged

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder."""

PEFT_CONFIG = "adapter_config.json"

NUM_SHOWN = 3

KEPT_BYTES = 16 * 2**20
"""The largest file of a LoRA that stays in memory, at twice its size in float32, after it was used."""

Mismatches = dict[str, str]
"""Why a module does not match, by its name in the file."""


Deltas = Mapping[str, LowRank]
"""What is added to each layer, by the layer's name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """A LoRA in float32, at strength 1."""

    path: Path
    layout: LoraLayout
    deltas: Deltas
    theirs: Mapping[str, str]
    """What the file calls each layer."""
    ranks: Mapping[int, int]
    """Modules of the file by their rank."""
    alphas: Mapping[float | None, int]
    """Modules of the file by their alpha; None where nothing tells it."""
    num_doras: int
    """Modules of the file that have a magnitude."""
    dtypes: tuple[str, ...]
    metadata: Mapping[str, str]
    fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """One module of the file."""

    slot: Slot
    down: Tensor
    up: Tensor
    alpha: float | None
    scale: float
    magnitude: Tensor | None


def lora_file(path: str | Path) -> Path:
    """The file of a LoRA, which may also be named by its folder. Raises ModelNotFound."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    named = [path / name for name in FILES if (path / name).is_file()]
    found = named or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        what = "several .safetensors files" if found else "no .safetensors file"
        raise ModelNotFound(f"{path} holds {what}, so no LoRA is found there: name its file")
    return found[0]


def holds_lora(path: str | Path) -> bool:
    """Whether a file or folder is a LoRA, by the names of its tensors. Raises CheckpointError for a damaged file."""
    path = Path(path).expanduser()
    if path.is_dir():
        return any((path / name).is_file() for name in (*FILES, PEFT_CONFIG))
    return path.is_file() and is_lora(places(path))


def fingerprint(path: str | Path) -> str:
    """16 hex digits that tell LoRAs apart: of its whole file, and PEFT's configuration. Raises ModelNotFound."""
    file = lora_file(path)
    try:
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256")
    except FileNotFoundError as error:
        raise ModelNotFound(f"there is no LoRA {file}") from error
    config = file.with_name(PEFT_CONFIG)
    if file.name == FILES[0] and config.is_file():
        digest.update(config.read_bytes())
    return digest.hexdigest()[:16]


def read_lora(path: str | Path) -> Lora:
    """Reads a LoRA of any layout; its tensors' names and its metadata tell which.

    A small one is kept, since whoever asks for it is likely to ask again; a file that has changed is read anew. Raises
    ModelNotFound where there is none, and CheckpointError for a pickle, a damaged file, what is neither LoRA nor
    DoRA, and a file of which any module is unknown, has no partner or the wrong shape.
    """
    file = lora_file(path)
    version = tuple(_version(each) for each in (file, file.with_name(PEFT_CONFIG)))
    return _kept(file, version) if 0 < version[0][0] <= KEPT_BYTES else _read_lora(file)


def _version(file: Path) -> tuple[int, ...]:
    """Another one after every change of a file; zeros for one that is not there."""
    try:
        about = file.stat()
    except OSError:
        return 0, 0, 0
    return about.st_size, about.st_mtime_ns, about.st_ino


@lru_cache(maxsize=2)
def _kept(file: Path, version: tuple[tuple[int, ...], ...]) -> Lora:
    # It outlives the mode that the caller computes in.
    with torch.inference_mode(False):
        return _read_lora(file)


def _read_lora(file: Path) -> Lora:
    names = places(file)
    if (kind := other_kind(names)) is not None:
        raise CheckpointError(
            f"{file} is {kind}, and only LoRAs and DoRAs can be used. Merge it into the model with the tool that it "
            "comes from, or extract a LoRA from it there"
        )
    config = _peft_config(file)
    about = metadata(file)
    try:
        alphas = read_alphas(about, config)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    modules, wrong = _by_module(names)
    prefixes = {module: without_prefix(module) for module in modules}
    known = slots(bare for bare, _ in prefixes.values())
    wrong |= {module: "no layer of the transformer" for module in modules if prefixes[module][0] not in known}
    # PEFT gives a magnitude to all modules or to none; elsewhere each module may be the one or the other.
    all_doras = alphas.dora or any(PEFT_MAGNITUDE in name for name in names)
    wrong |= _incomplete(modules, {name: place.shape for name, place in names.items()}, all_doras=all_doras)
    if wrong or not modules:
        raise _mismatch(file, wrong, len(modules))
    tensors = _read(file)
    parts = {
        module: _part(file, known[prefixes[module][0]], module, alphas, {r: tensors[n] for r, n in roles.items()})
        for module, roles in modules.items()
    }
    layers: dict[str, list[str]] = {}
    for module, part in parts.items():
        layers.setdefault(part.slot.layer, []).append(module)
    deltas = {layer: _stacked(file, {module: parts[module] for module in names}) for layer, names in layers.items()}
    return Lora(
        path=file,
        layout=_layout(prefixes.values()),
        deltas=deltas,
        theirs={layer: ", ".join(names) for layer, names in layers.items()},
        ranks=Counter(part.down.shape[0] for part in parts.values()),
        alphas=Counter(part.alpha for part in parts.values()),
        num_doras=sum(part.magnitude is not None for part in parts.values()),
        dtypes=tuple(sorted({place.dtype for name, place in names.items() if not name.endswith(".alpha")})),
        metadata=about | {key: str(config[key]) for key in ("base_model_name_or_path",) if config.get(key)},
        fingerprint=fingerprint(file),
    )


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """[rows, cols] of the layers that a LoRA can change."""
    # Layers that stand for linear ones say their sizes as these do.
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "out_features")}
    return {name: (int(layer.out_features), int(layer.in_features)) for name, layer in layers.items()}  # type: ignore[arg-type]


def combined(loras: Sequence[tuple[Lora, float]], shapes: Mapping[str, tuple[int, int]]) -> dict[str, LowRank]:
    """What several LoRAs, each with its strength, add to a model: at strength 0 nothing at all.

    A DoRA measures the model's own weights, so the order makes no difference.

    `shapes` are the [rows, cols] of its layers. Raises CheckpointError where one does not fit them.
    """
    found: dict[str, list[LowRank]] = {}
    for lora, strength in loras:
        _check_fits(lora, shapes)
        for layer, delta in lora.deltas.items() if strength else ():
            doras = tuple(replace(dora, strength=strength) for dora in delta.doras)
            found.setdefault(layer, []).append(LowRank(down=delta.down, up=delta.up * strength, doras=doras))
    return {
        layer: LowRank(
            down=torch.cat([one.down for one in each]),
            up=torch.cat([one.up for one in each], dim=1),
            doras=tuple(dora for one in each for dora in one.doras),
        )
        for layer, each in found.items()
    }


def merge(model: nn.Module, deltas: Deltas) -> None:
    """Adds to the weights of a model's linear layers. Layers without data, and those of another kind, stay as they are.

    The tensors that a weight was before are never changed: they may be views of a file.
    """
    for name, delta in deltas.items():
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
            layer.weight = nn.Parameter(merged(layer.weight, delta), layer.weight.requires_grad)


def _peft_config(file: Path) -> Mapping[str, Any]:
    path = file.with_name(PEFT_CONFIG)
    if file.name != FILES[0] or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(found, dict):
        raise damaged(path, "it holds no JSON object")
    return found


def _by_module(names: Collection[str]) -> tuple[dict[str, dict[Role, str]], Mismatches]:
    """The tensors of each module, and the tensors that belong to none."""
    found: dict[str, dict[Role, str]] = {}
    wrong: Mismatches = {}
    for name in names:
        role = role_of(name)
        if role is None:
            wrong[name] = "no tensor of a LoRA"
        elif role[1] in found.setdefault(role[0], {}):
            wrong[name] = "a second one for the same module"
        else:
            found[role[0]][role[1]] = name
    return found, wrong


def _layout(modules: Iterable[tuple[str, LoraLayout | None]]) -> LoraLayout:
    """Told by the prefix, and without one by the names of the blocks."""
    modules = list(modules)
    for _, layout in modules:
        if layout is not None:
            return layout
    return "diffusers" if any(name.startswith("transformer_blocks.") for name, _ in modules) else "original"


def _incomplete(
    modules: Mapping[str, Mapping[Role, str]], shapes: Mapping[str, Sequence[int]], *, all_doras: bool
) -> Mismatches:
    """Modules whose matrices, or magnitudes, are missing or do not go together."""
    wrong: Mismatches = {}
    for module, roles in modules.items():
        if "down" not in roles or "up" not in roles:
            there = next(iter(roles.values())).removeprefix(f"{module}.")
            wrong[module] = f"has {there} without its partner"
            continue
        down, up = shapes[roles["down"]], shapes[roles["up"]]
        # Some tools write a matrix as a convolution of size 1.
        flat = len(down) >= 2 and len(up) >= 2 and {*down[2:], *up[2:]} <= {1}
        if not flat or down[0] != up[1] or not down[0]:
            wrong[module] = f"its matrices {list(up)} and {list(down)} do not go together"
        elif "magnitude" in roles and tuple(shape := shapes[roles["magnitude"]]) not in ((up[0],), (up[0], 1)):
            wrong[module] = f"its magnitudes {list(shape)} are not one for each of its {up[0]} outputs"
        elif all_doras and "magnitude" not in roles:
            wrong[module] = "has no magnitude, and all modules of a DoRA have one"
    return wrong


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(file, error) from error


def _part(file: Path, slot: Slot, module: str, alphas: Alphas, tensors: Mapping[Role, Tensor]) -> _Part:
    down, up = (tensors[role].flatten(1) for role in ("down", "up"))
    try:
        alpha = number(tensors["alpha"].item()) if "alpha" in tensors else alphas.of(without_prefix(module)[0])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file}: the alpha of {module} is no number ({error})") from error
    magnitude = tensors["magnitude"].flatten() if "magnitude" in tensors else None
    if magnitude is not None and not magnitude.isfinite().all():
        raise CheckpointError(f"{file}: a magnitude of {module} is no number")
    scale = alphas.scale(alpha, down.shape[0])
    return _Part(slot=slot, down=down, up=up, alpha=alpha, scale=scale, magnitude=magnitude)


def _stacked(file: Path, parts: Mapping[str, _Part]) -> LowRank:
    """The change of one layer, whose outputs the file may have in several parts: each changes its own rows."""
    each = list(parts.values())
    slot, down = each[0].slot, torch.cat([part.down for part in each])
    if len({part.slot.num_parts for part in each}) > 1 or len({part.slot.part for part in each}) < len(each):
        raise CheckpointError(f"{file} changes the layer {slot.layer} twice: {', '.join(parts)}")
    if len({(part.up.shape[0], part.down.shape[1]) for part in each}) > 1:
        raise CheckpointError(f"{file}: {', '.join(parts)} have different sizes")
    rows = each[0].up.shape[0]
    up = torch.zeros(rows * slot.num_parts, down.shape[0])
    magnitude = torch.full((len(up),), torch.nan)
    start = 0
    for part in each:
        rank, own = part.down.shape[0], slice(part.slot.part * rows, (part.slot.part + 1) * rows)
        up[own, start : start + rank] = part.up * part.scale
        if part.magnitude is not None:
            magnitude[own] = part.magnitude
        start += rank
    if slot.swapped:
        up, magnitude = (torch.cat(tensor.chunk(2)[::-1]) for tensor in (up, magnitude))
    if magnitude.isnan().all():
        return LowRank(down=down, up=up)
    return LowRank(down=down[:0], up=up[:, :0], doras=(Dora(down=down, up=up, magnitude=magnitude),))


def _check_fits(lora: Lora, shapes: Mapping[str, tuple[int, int]]) -> None:
    wrong: Mismatches = {}
    for layer, delta in lora.deltas.items():
        size = delta.up.shape[0], delta.down.shape[1]
        if layer not in shapes:
            wrong[lora.theirs[layer]] = "no layer of this model"
        elif shapes[layer] != size:
            wrong[lora.theirs[layer]] = f"changes {list(size)} where the layer is {list(shapes[layer])}"
    if wrong:
        raise _mismatch(lora.path, wrong, len(lora.deltas))


def _mismatch(file: Path, wrong: Mismatches, total: int) -> CheckpointError:
    if not total:
        return CheckpointError(f"{file} holds no LoRA: no tensor is called like one's")
    reasons = [f"{name} ({why})" for name, why in list(wrong.items())[:NUM_SHOWN]]
    more = f" and {len(wrong) - NUM_SHOWN} more" if len(wrong) > NUM_SHOWN else ""
    fits = "fits nothing of the model" if len(wrong) >= total else "fits the model only in part"
    return CheckpointError(
        f"{file} {fits}: {len(wrong)} do not match, {', '.join(reasons)}{more}. A LoRA works on the model that it was "
        "trained on, which is Mochi 1 of these sizes"
    )
