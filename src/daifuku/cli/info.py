"""daifuku info: what a model or a LoRA consists of, without reading the weights of a model."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.flags import Json, Revision, Variant
from daifuku.cli.lora_page import describe_lora, lora_page
from daifuku.errors import CheckpointError, ModelNotFound

if TYPE_CHECKING:
    from daifuku.weights.locate import ModelFiles

PARTS = ("transformer", "vae", "text")
TEXT_SIZES = ("num_layers", "num_heads", "d_model", "d_ff", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of a model, as its files describe it."""

    name: str
    parameters: int
    tensors: int
    dtypes: Mapping[str, int]
    """Parameters by the precision they are stored in."""
    sizes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What there is to know about a model."""

    name: str
    root: str
    layout: str
    identity: str | None
    """Fingerprint of the weights; None while a part is missing."""
    parts: list[Part] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of each weight file."""
    defaults: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a part is not there."""


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Model folder, weight file, LoRA or hub id; without one, the built-in model."
        ),
    ] = None,
    revision: Revision = None,
    variant: Variant = None,
    as_json: Json = False,
) -> None:
    """Show what a model or a LoRA consists of; weights of a model are neither read nor downloaded."""
    from daifuku.weights.lora import holds_lora

    if model is not None and holds_lora(model):
        lora = describe_lora(model)
        print(json.dumps(asdict(lora), indent=2) if as_json else lora_page(lora))
        return
    found = describe(model, revision=revision, variant=variant)
    print(json.dumps(asdict(found), indent=2) if as_json else _page(found))


def describe(model: str | None, *, revision: str | None, variant: str | None) -> Description:
    """Raises ModelNotFound when nothing of the model is there, CheckpointError when its tensors make no model."""
    from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER
    from daifuku.weights.identity import model_identity
    from daifuku.weights.locate import locate

    name = BUILT_IN if model is None else model
    root = locate(BUILT_IN_FOLDER if name == BUILT_IN else name, revision=revision, parts=()).root
    found: dict[str, ModelFiles] = {}
    missing: dict[str, str] = {}
    for part in PARTS:
        try:
            found[part] = locate(root, variant=variant, parts=[part])
        except ModelNotFound as error:
            missing[part] = str(error)
    if not found:
        raise ModelNotFound("; ".join(missing.values()))
    files = next(iter(found.values()))
    described = [part for name, located in found.items() for part in _parts(name, located)]
    weights = [path for each in found.values() for path in (*each.transformer, *each.vae, *each.text_weights)]
    return Description(
        name=name,
        root=str(root),
        layout=files.layout,
        identity=None if missing else model_identity(locate(root, variant=variant)),
        parts=described,
        files={str(path): path.stat().st_size for path in weights},
        defaults=files.defaults,
        missing=missing,
    )


def _parts(name: str, files: "ModelFiles") -> Iterator[Part]:
    """The networks of a located part. Building them on the meta device checks their tensors and tells their sizes."""
    from daifuku.weights.load import load_dit, load_vae

    if name == "transformer":
        yield _part(name, files.transformer, asdict(load_dit(files, device="meta").config))
    elif name == "vae":
        vae = load_vae(files, device="meta")
        for half, network in (("encoder", vae.encoder), ("decoder", vae.decoder)):
            if network is not None:
                # The diffusers layout keeps both halves in one file, the original each in its own.
                its_own = [path for path in files.vae if path.stem == half]
                prefix = f"{half}." if files.layout == "diffusers" else ""
                yield _part(f"vae {half}", its_own or files.vae, asdict(network.config), prefix)
    else:
        assert files.text_encoder is not None, "the text encoder was located"
        config = json.loads((files.text_encoder / "config.json").read_text("utf-8"))
        yield _part("text encoder", files.text_weights, {key: config[key] for key in TEXT_SIZES if key in config})


def _part(name: str, paths: Sequence[Path], sizes: Mapping[str, Any], prefix: str = "") -> Part:
    """Counts what the headers of the files list."""
    from safetensors import SafetensorError, safe_open

    dtypes: Counter[str] = Counter()
    num_tensors = 0
    for path in paths:
        if path.suffix != ".safetensors":
            continue  # a pickle has no header
        try:
            with safe_open(path, "pt") as file:
                for key in list(file.keys()):
                    if key.startswith(prefix):
                        stored = file.get_slice(key)
                        dtypes[stored.get_dtype()] += prod(stored.get_shape())
                        num_tensors += 1
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}); download or copy it again.") from error
    return Part(name=name, parameters=sum(dtypes.values()), tensors=num_tensors, dtypes=dict(dtypes), sizes=sizes)


def _page(found: Description) -> str:
    """The description for a person to read."""
    lines = [f"{found.name}", f"  at        {found.root}", f"  layout    {found.layout}"]
    lines.append(f"  identity  {found.identity or 'unknown while a part is missing'}")
    for part in found.parts:
        dtypes = ", ".join(f"{name} {count:,}" for name, count in part.dtypes.items())
        lines += ["", f"{part.name}: {part.parameters:,} parameters in {part.tensors} tensors ({dtypes})"]
        lines += [f"  {name:<18} {_value(value)}" for name, value in part.sizes.items()]
    for part, reason in found.missing.items():
        lines += ["", f"{part}: missing; {reason}"]
    if found.defaults:
        lines += ["", "defaults"]
        lines += [f"  {name:<20} {_value(value)}" for name, value in found.defaults.items()]
    lines += ["", "files"]
    lines += [f"  {size:>15,} bytes  {path}" for path, size in found.files.items()]
    return "\n".join(lines)


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


COMMAND = info
