"""Weights onto a model: from a folder, a file or a hub id to a network that runs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig
from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.names import Layout, Part, recognise
from daifuku.weights.sizes import Shapes, decoder_config, dit_config, encoder_config
from daifuku.weights.tensors import TensorFiles
from daifuku.weights.unread import NUM_SHOWN, Each, Unread

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
    layout, _ = _recognised(files, {"dit"})
    return Unread(files=files, part="dit", layout=layout, build=_build_dit, dtype=dtype, device=torch.device(device))


def load_dit(
    source: str | Path | ModelFiles,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
    without: Callable[[str], bool] | None = None,
    each: Each | None = None,
) -> AsymmDiT:
    """The diffusion transformer, ready to run: `open_dit` explains where from, `Unread.load` the last two options."""
    unread = open_dit(source, dtype=dtype, device=device, revision=revision, variant=variant)
    return unread.load(without=without, each=each)


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

    Without the half that is not among `halves`, or whose file is not given. Errors are those of `open_dit`.
    """
    dtype, device = as_dtype(dtype), torch.device(device)
    sources = [source] if isinstance(source, str | Path | ModelFiles) else list(source)
    stats = MOCHI_STATS
    loaded: dict[Part, Any] = {}
    for one in sources:
        located = _located(one, "vae", revision, variant)
        stats = located.stats if located.layout == "diffusers" else stats
        for half in _open_halves(located, dtype, device):
            if half.part in halves:
                loaded[half.part] = half.load()
    return AsymmVAE(loaded.get("encoder"), loaded.get("decoder"), stats).eval()


def dit_sizes(located: ModelFiles) -> DiTConfig:
    """The sizes of a model's transformer; only the headers of its files are read. Errors are those of `open_dit`."""
    return dit_config(open_dit(located).shapes)


def decoder_sizes(located: ModelFiles) -> DecoderConfig:
    """The sizes of a model's VAE decoder; only the headers of its files are read. Errors are those of `open_dit`."""
    halves = _open_halves(located, torch.float32, torch.device("cpu"))
    return decoder_config(next(half for half in halves if half.part == "decoder").shapes)


def _open_halves(located: ModelFiles, dtype: torch.dtype, device: torch.device) -> Iterator[Unread[nn.Module]]:
    """The halves of a VAE that the files hold."""
    # In the original layout each half has a file and they share names; elsewhere all files make one whole.
    groups = [[path] for path in located.vae] if located.layout == "original" else [located.vae]
    for files in map(TensorFiles, groups):
        layout, parts = _recognised(files, set(HALVES))
        for part in HALVES:
            if part in parts:
                build = _build_encoder if part == "encoder" else _build_decoder
                yield Unread(files=files, part=part, layout=layout, build=build, dtype=dtype, device=device)


def _located(source: str | Path | ModelFiles, part: str, revision: str | None, variant: str | None) -> ModelFiles:
    if isinstance(source, ModelFiles):
        return source
    return locate(source, revision=revision, variant=variant, parts=[part])


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
