"""Weights onto a model: from a folder, a file or a hub id to a network that runs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig
from daifuku.errors import CheckpointError, InvalidRequest, ModelNotFound
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.values import Loras, as_loras
from daifuku.weights.contents import Content, contents, named, of_vae
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.lora import combined, linear_shapes, merge, read_lora
from daifuku.weights.names import PART_NAMES, Part, of_part
from daifuku.weights.sizes import Shapes, decoder_config, dit_config, encoder_config
from daifuku.weights.tensors import TensorFiles
from daifuku.weights.unread import NUM_SHOWN, Each, Model, Unread

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

HALVES: tuple[Part, ...] = ("encoder", "decoder")
"""Of a VAE."""


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name. Raises InvalidRequest naming the choices."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InvalidRequest(f"there is no dtype {dtype!r} for weights: choose one of {', '.join(DTYPES)}")
    return found


def open_dit(
    source: str | Path | ModelFiles,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> Unread[AsymmDiT]:
    """The diffusion transformer of a model folder, a single file or a hub id. Only headers of files are read.

    Its sizes come from the shapes in the file. Raises ModelNotFound, or CheckpointError naming the tensors that are
    missing, too many or of the wrong shape.
    """
    dtype = as_dtype(dtype)
    files = TensorFiles(_located(source, "transformer", revision, variant).transformer)
    content = _expected(files, ("dit",))[0]
    return _unread(files, content, _build_dit, dtype, torch.device(device))


def open_text(
    paths: Sequence[Path], build: Callable[[Shapes], Model], *, dtype: str | torch.dtype, device: str | torch.device
) -> Unread[Model]:
    """The T5 encoder in some files, as a model whose tensors are named as `transformers` names them.

    Only headers of files are read. Raises CheckpointError when the files hold no T5, or not all of it.
    """
    files = TensorFiles(paths)
    return _unread(files, _expected(files, ("text",))[0], build, as_dtype(dtype), torch.device(device))


def text_shapes(paths: Sequence[Path]) -> Shapes:
    """Shapes of the tensors of the T5 encoder in some files. Only headers are read. Errors are those of `open_text`."""
    files = TensorFiles(paths)
    content = _expected(files, ("text",))[0]
    return {name: files.shapes[content.names[name]] for name in of_part(content.names, "text", content.naming)}


def load_dit(
    source: str | Path | ModelFiles,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    without: Callable[[str], bool] | None = None,
    each: Each | None = None,
    encoded: bool = False,
    loras: Sequence[Any] = (),
) -> AsymmDiT:
    """The diffusion transformer, ready to run: `open_dit` explains where from, `Unread.load` the options after them.

    `loras`, such as [("style.safetensors", 0.8)], are merged into the weights. Raises InvalidRequest for weights that
    stay encoded, and what `read_lora` raises.
    """
    unread = open_dit(source, dtype=dtype, device=device, revision=revision, variant=variant)
    if loras:
        if encoded:
            raise InvalidRequest("LoRAs cannot be merged into weights that stay encoded. Try encoded=False.")
        each = _merging(unread, as_loras("loras", loras), each)
    return unread.load(without=without, each=each, encoded=encoded)


def load_vae(
    source: str | Path | ModelFiles | Sequence[str | Path],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    halves: Collection[Part] = HALVES,
) -> AsymmVAE:
    """The autoencoder of a model folder, a hub id, or one or two files.

    Without the half that is not among `halves`, or whose file is not given. Errors are those of `open_dit`, and
    ModelNotFound where the only half that is asked for is not there.
    """
    dtype, device = as_dtype(dtype), torch.device(device)
    sources = [source] if isinstance(source, str | Path | ModelFiles) else list(source)
    stats = MOCHI_STATS
    loaded: dict[Part, Any] = {}
    for one in sources:
        located = _located(one, "vae", revision, variant)
        stats = located.stats if located.stats != MOCHI_STATS else stats
        for half in _open_halves(located, dtype, device):
            if half.part in halves:
                loaded[half.part] = half.load()
    if not loaded:
        raise _no_half(halves, [path for one in sources for path in _located(one, "vae", revision, variant).vae])
    return AsymmVAE(loaded.get("encoder"), loaded.get("decoder"), stats).eval()


def dit_sizes(located: ModelFiles) -> DiTConfig:
    """The sizes of a model's transformer; only the headers of its files are read. Errors are those of `open_dit`."""
    return dit_config(open_dit(located).shapes)


def decoder_sizes(located: ModelFiles) -> DecoderConfig:
    """The sizes of a model's VAE decoder; only the headers of its files are read. Errors are those of `open_dit`."""
    for half in _open_halves(located, torch.float32, torch.device("cpu")):
        if half.part == "decoder":
            return decoder_config(half.shapes)
    raise _no_half(["decoder"], located.vae)


def _open_halves(located: ModelFiles, dtype: torch.dtype, device: torch.device) -> Iterator[Unread[nn.Module]]:
    """The halves of a VAE that the files hold."""
    for files in of_vae(located.vae):
        for content in _expected(files, HALVES):
            build = _build_encoder if content.part == "encoder" else _build_decoder
            yield _unread(files, content, build, dtype, device)


def _no_half(halves: Collection[Part], paths: Sequence[Path]) -> ModelNotFound:
    """What to raise where the half of a VAE that is needed is not there: it names what is."""
    needed = " or ".join(PART_NAMES[half] for half in halves)
    there = "; ".join(f"{path} holds the {named(contents(TensorFiles([path])))}" for path in paths)
    return ModelNotFound(f"there is no {needed}: {there}. Give the file of the other half beside it, or a whole VAE")


def _located(source: str | Path | ModelFiles, part: str, revision: str | None, variant: str | None) -> ModelFiles:
    if isinstance(source, ModelFiles):
        return source
    return locate(source, revision=revision, variant=variant, parts=[part])


def _unread(
    files: TensorFiles, content: Content, build: Callable[[Shapes], Model], dtype: torch.dtype, device: torch.device
) -> Unread[Model]:
    return Unread(
        files=content.of(files), part=content.part, layout=content.naming, build=build, dtype=dtype, device=device
    )


def _expected(files: TensorFiles, wanted: Sequence[Part]) -> list[Content]:
    """Those of the wanted parts that the files hold. Raises CheckpointError when it is none of them."""
    found = contents(files)
    if not found:
        names = ", ".join(list(files.shapes)[:NUM_SHOWN])
        raise CheckpointError(
            f"{files.where} holds no part of a Mochi model in a known layout; its tensors: {names}, ..."
        )
    expected = [content for content in found if content.part in wanted]
    if not expected:
        needed = " or ".join(PART_NAMES[part] for part in wanted)
        raise CheckpointError(f"{files.where} holds the {named(found)} where the {needed} was expected")
    return expected


def _merging(unread: Unread[AsymmDiT], loras: Loras, then: Each | None) -> Each:
    """Adds LoRAs to each piece of a transformer as it is read."""
    shapes = linear_shapes(unread.skeleton())
    deltas = combined([(read_lora(path), strength) for path, strength in loras], shapes)

    def each(piece: str, module: nn.Module) -> None:
        inside = {f"{name}.": delta for name, delta in deltas.items()}
        merge(module, {n[len(piece) + 1 : -1]: delta for n, delta in inside.items() if n.startswith(f"{piece}.")})
        if then is not None:
            then(piece, module)

    return each


def _build_dit(shapes: Shapes) -> AsymmDiT:
    return AsymmDiT(dit_config(shapes))


def _build_encoder(shapes: Shapes) -> Encoder:
    return Encoder(encoder_config(shapes))


def _build_decoder(shapes: Shapes) -> Decoder:
    return Decoder(decoder_config(shapes))
