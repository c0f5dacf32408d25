"""daifuku info: what a model or a LoRA consists of, without reading the weights of a model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daifuku.cli.flags import Json, Revision, Variant
from daifuku.cli.lora_page import describe_lora, lora_page
from daifuku.errors import ModelNotFound

if TYPE_CHECKING:
    from daifuku.weights.locate import ModelFiles

PARTS = ("transformer", "vae", "text")
NAMES = {"dit": "transformer", "encoder": "vae encoder", "decoder": "vae decoder", "text": "text encoder"}
TEXT_SIZES = ("num_layers", "num_heads", "d_model", "d_ff", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One network of a model, as its files describe it."""

    name: str
    found: str
    """What it is, whose names its tensors have, and how they are encoded."""
    parameters: int
    tensors: int
    dtypes: Mapping[str, int]
    """Parameters by the way they are stored."""
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
    from daifuku.weights.contents import contents, of_vae
    from daifuku.weights.load import load_dit, load_vae, text_shapes
    from daifuku.weights.sizes import t5_sizes
    from daifuku.weights.tensors import TensorFiles

    if name == "transformer":
        paths, sizes = files.transformer, {"dit": asdict(load_dit(files, device="meta").config)}
    elif name == "vae":
        vae = load_vae(files, device="meta")
        halves = {"encoder": vae.encoder, "decoder": vae.decoder}
        paths = files.vae
        sizes = {half: asdict(network.config) for half, network in halves.items() if network is not None}
    elif files.text_encoder is None:
        paths, sizes = files.text_weights, {"text": t5_sizes(text_shapes(files.text_weights))}
    else:
        config = json.loads((files.text_encoder / "config.json").read_text("utf-8"))
        paths, sizes = files.text_weights, {"text": {key: config[key] for key in TEXT_SIZES if key in config}}
    groups = of_vae(paths) if name == "vae" else [TensorFiles(paths)]
    for content in (each for some in groups for each in contents(some)):
        if content.part in sizes:
            yield Part(
                name=NAMES[content.part],
                found=str(content),
                parameters=sum(content.counts.values()),
                tensors=content.num_tensors,
                dtypes=content.counts,
                sizes=sizes[content.part],
            )


def _page(found: Description) -> str:
    """The description for a person to read."""
    lines = [f"{found.name}", f"  at        {found.root}", f"  layout    {found.layout}"]
    lines.append(f"  identity  {found.identity or 'unknown while a part is missing'}")
    for part in found.parts:
        dtypes = ", ".join(f"{name} {count:,}" for name, count in part.dtypes.items())
        lines += ["", f"{part.name}: {part.parameters:,} parameters in {part.tensors} tensors ({dtypes})"]
        lines += [f"  {'found':<18} {part.found}"]
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
