"""Weights onto a model: built on the meta device, filled from memory-mapped files, without a second copy."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from daifuku.config import MOCHI_STATS
from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.names import Layout, NameTable, Part, name_table, of_part, recognise
from daifuku.weights.sizes import Shapes, UnknownSize, decoder_config, dit_config, encoder_config
from daifuku.weights.tensors import TensorFiles

Model = TypeVar("Model", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FLOAT32_ALWAYS = frozenset({"pos_frequencies"})
"""Tensors that stay float32 in every model and file: angles grow with the frame number, and half precision would turn
late frames by whole degrees."""

NUM_SHOWN = 3


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name. Raises InvalidRequest naming the choices."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InvalidRequest(f"there is no dtype {dtype!r} for weights: choose one of {', '.join(DTYPES)}")
    return found


def load_dit(
    source: str | Path | ModelFiles,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> AsymmDiT:
    """The diffusion transformer of a model folder, a single file or a hub id, in evaluation mode.

    Its sizes come from the shapes in the file. Raises ModelNotFound, or CheckpointError naming the tensors that are
    missing, too many or of the wrong shape.
    """
    dtype = as_dtype(dtype)
    files = TensorFiles(_located(source, "transformer", revision, variant).transformer)
    layout, _ = _recognised(files, {"dit"})
    return _load(files, "dit", layout, _build_dit, dtype, torch.device(device))


def load_vae(
    source: str | Path | ModelFiles | Sequence[str | Path],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> AsymmVAE:
    """The autoencoder of a model folder, a hub id, or one or two files; without the half whose file is not given.

    Errors are those of `load_dit`.
    """
    dtype, device = as_dtype(dtype), torch.device(device)
    sources = [source] if isinstance(source, str | Path | ModelFiles) else list(source)
    encoder, decoder, stats = None, None, MOCHI_STATS
    for one in sources:
        located = _located(one, "vae", revision, variant)
        stats = located.stats if located.layout == "diffusers" else stats
        for files in _vae_files(located):
            layout, parts = _recognised(files, {"encoder", "decoder"})
            if "encoder" in parts:
                encoder = _load(files, "encoder", layout, _build_encoder, dtype, device)
            if "decoder" in parts:
                decoder = _load(files, "decoder", layout, _build_decoder, dtype, device)
    return AsymmVAE(encoder, decoder, stats).eval()


def _located(source: str | Path | ModelFiles, part: str, revision: str | None, variant: str | None) -> ModelFiles:
    if isinstance(source, ModelFiles):
        return source
    return locate(source, revision=revision, variant=variant, parts=[part])


def _vae_files(located: ModelFiles) -> list[TensorFiles]:
    """In the original layout each half has a file and they share names; elsewhere all files make one whole."""
    if located.layout == "original":
        return [TensorFiles([path]) for path in located.vae]
    return [TensorFiles(located.vae)]


def _recognised(files: TensorFiles, wanted: set[Part]) -> tuple[Layout, frozenset[Part]]:
    """Layout and parts by the tensors' names. Raises CheckpointError when none of the wanted parts is there."""
    where = ", ".join(str(path) for path in files.paths)
    found = recognise(files.shapes)
    if found is None:
        names = ", ".join(list(files.shapes)[:NUM_SHOWN])
        raise CheckpointError(f"{where} holds no part of a Mochi model in a known layout; its tensors: {names}, ...")
    if not found[1] & wanted:
        parts = " and ".join(sorted(found[1]))
        raise CheckpointError(f"{where} holds the {parts} where the {' or '.join(sorted(wanted))} was expected")
    return found


def _build_dit(shapes: Shapes) -> AsymmDiT:
    return AsymmDiT(dit_config(shapes))


def _build_encoder(shapes: Shapes) -> Encoder:
    return Encoder(encoder_config(shapes))


def _build_decoder(shapes: Shapes) -> Decoder:
    return Decoder(decoder_config(shapes))


def _load(
    files: TensorFiles,
    part: Part,
    layout: Layout,
    build: Callable[[Shapes], Model],
    dtype: torch.dtype,
    device: torch.device,
) -> Model:
    """Builds a part on the meta device from the shapes in the files, checks every tensor, and fills it."""
    names = of_part(files.shapes, part, layout)
    table = name_table(part, layout, names)
    where = ", ".join(str(path) for path in files.paths)
    try:
        with torch.device("meta"):
            model = build(_our_shapes(files, table, names))
    except UnknownSize as error:
        theirs = table.stored(error.tensor).names[0]
        raise CheckpointError(
            f"{where}: the tensor {theirs} {error.problem}, so the model's size is unknown"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{where}: these tensor shapes make no Mochi model: {error}") from error
    _check(model, files, table, names)
    tensors = {
        name: files.tensor(table.stored(name), torch.float32 if name in FLOAT32_ALWAYS else dtype, device)
        for name in model.state_dict()
    }
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _our_shapes(files: TensorFiles, table: NameTable, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of our tensors, as far as the file has them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        ours = table.ours(name)
        if ours is not None:
            rows, *rest = files.shapes[name]
            shapes[ours] = (rows * len(table.stored(ours).names), *rest)
    return shapes


def _check(model: nn.Module, files: TensorFiles, table: NameTable, names: Iterable[str]) -> None:
    """Raises CheckpointError unless the files hold exactly the model's tensors; in the file's own names."""
    expected: dict[str, list[int]] = {}
    for name, tensor in model.state_dict().items():
        stored = table.stored(name).names
        expected |= {key: [tensor.shape[0] // len(stored), *tensor.shape[1:]] for key in stored}
    names = set(names)
    missing = [name for name in expected if name not in names]
    extra = sorted(names - expected.keys())
    misshapen = [
        f"{name} is {list(files.shapes[name])} instead of {shape}"
        for name, shape in expected.items()
        if name in names and list(files.shapes[name]) != shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:NUM_SHOWN])}{', ...' if len(found) > NUM_SHOWN else ''}"
        for what, found in (("missing", missing), ("unknown", extra), ("of the wrong shape", misshapen))
        if found
    ]
    if problems:
        where = ", ".join(str(path) for path in files.paths)
        raise CheckpointError(f"{where} does not fit the model. Tensors {'; '.join(problems)}")
