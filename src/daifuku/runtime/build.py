"""From the name of a model to its networks on a device: files are found at once, weights read when first needed."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from daifuku.config import ATTENTION_KERNELS, MAX_TOKENS, STORED, DiTConfig, RuntimeConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.presets import LORAS
from daifuku.registry import load
from daifuku.request import ResolvedRequest
from daifuku.runtime import compile as compiler
from daifuku.runtime import preview
from daifuku.runtime.adapters import merged_tensors
from daifuku.runtime.batching import batching_wins
from daifuku.runtime.captions import CaptionMemory, captions_depend_on
from daifuku.runtime.chunked import chunk_tokens
from daifuku.runtime.estimate import ModelSizes, may_batch
from daifuku.runtime.kernels import Attention, AttentionShape, fastest, set_kernel
from daifuku.runtime.machine import cache_folder, host_free_bytes
from daifuku.runtime.modulation import is_modulation
from daifuku.runtime.preview import LatentToRGB, read_latent_to_rgb
from daifuku.runtime.quantiser import quantise
from daifuku.runtime.residency import kept, pinned, place, stream_blocks
from daifuku.text import TextEncoder, load_text_encoder
from daifuku.text.t5 import is_tied, read_tokenizer, t5_encoder, tie
from daifuku.values import Loras, as_loras
from daifuku.weights.ahead import reading_ahead
from daifuku.weights.identity import model_identity, part_identities
from daifuku.weights.load import as_dtype, decoder_sizes, dit_sizes, load_vae, open_dit, open_text, text_shapes
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.lora import Deltas, merge
from daifuku.weights.names import Part
from daifuku.weights.sizes import Shapes, t5_sizes
from daifuku.weights.tensors import TensorFiles
from daifuku.weights.unread import Unread

BUILT_IN = "built-in"
"""The name of the small model that comes with the package."""

BUILT_IN_FOLDER = Path(__file__).parent.parent / "assets" / "tiny"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Which model made a video, and how it ran: enough to load it again."""

    name: str
    revision: str | None
    variant: str | None
    identity: str | None
    """Fingerprint of the weight files; None for networks that come from no file."""
    device: str
    loras: list[str] = field(default_factory=list)
    """Fingerprints of the LoRA files: those of the preset, then those of the request."""


@runtime_checkable
class ReadDiT(Protocol):
    """Reads the transformer for a way of running, onto a device."""

    def __call__(self, run: RuntimeConfig, device: torch.device, deltas: Deltas = ...) -> AsymmDiT:
        """`deltas` are what LoRAs add to its weights, where that way of running merges them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a model. Each is a function that reads the network for a way of running, onto a device."""

    text: Callable[[RuntimeConfig, torch.device], TextEncoder]
    dit: ReadDiT
    vae: Callable[[RuntimeConfig, torch.device, Part], AsymmVAE]
    """Of the autoencoder one half, "encoder" or "decoder"."""
    read: Callable[[RuntimeConfig, str], Tensor]
    """A single tensor of the transformer, by its name."""
    sizes: Callable[[], ModelSizes]
    remembered: Callable[[RuntimeConfig], CaptionMemory | None] = lambda _: None
    """Captions of earlier runs, where they may be kept."""
    reading_ahead: Callable[[], AbstractContextManager[None]] = nullcontext
    """Fetches from disk what comes after the text encoder, while a block lasts."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Precision of the transformer and the VAE where memory is no matter."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The model's own values for what a request leaves None."""
    preset_loras: Callable[[str], Loras] = lambda _: ()
    """The model's own LoRAs that act in a preset, by its name."""
    name: str = "in memory"
    revision: str | None = None
    variant: str | None = None
    tokenizer: Path | None = None
    """Its folder or its one file."""
    identity: Callable[[], str | None] = lambda: None
    identities: Callable[[], Mapping[str, str]] = dict
    """Of the VAE and of the text encoder: see `weights/identity.py`."""
    preview: Callable[[], LatentToRGB | None] = lambda: None
    """How latents become colours, where that is known."""
    remember_preview: Callable[[LatentToRGB], None] = lambda _: None
    notices: list[str] = field(default_factory=list)
    """What there is to say about networks that were read, for the run that reads them to take and tell."""

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.name,
            revision=self.revision,
            variant=self.variant,
            identity=self.identity(),
            device=str(self.device),
        )


def load_parts(
    model: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Parts:
    """Finds a model's files. None or "built-in" is the small model of the package.

    Without a device it is the first of cuda, mps and cpu that is there. Raises ModelNotFound, or InvalidRequest for a
    device that is not here.
    """
    compute = find_device(device)
    model = BUILT_IN if model is None else model
    files = locate(BUILT_IN_FOLDER if model == BUILT_IN else model, revision=revision, variant=variant)
    notices: list[str] = []
    identity = cache(lambda: model_identity(files))

    @cache
    def opened(dtype: str) -> Unread[AsymmDiT]:
        return open_dit(files, dtype=dtype, device=compute)

    def remembered(run: RuntimeConfig) -> CaptionMemory | None:
        if not run.remember_text:
            return None
        return CaptionMemory(cache_folder() / "captions", captions_depend_on(identity(), run, compute))

    def learnt() -> Path:
        return cache_folder() / "latent_rgb" / f"{identity()}.json"

    return Parts(
        text=partial(_read_text, files, notices),
        dit=partial(_read_dit, files, compute, notices),
        read=lambda run, name: opened(run.dtype or "float32").read(name)[name],
        vae=partial(_read_vae, files),
        remembered=remembered,
        reading_ahead=lambda: reading_ahead((*files.transformer, *files.vae), host_free_bytes() // 2),
        sizes=cache(lambda: _sizes(files)),
        device=compute,
        dtype=default_dtype(files, compute),
        defaults=files.defaults,
        preset_loras=partial(_preset_loras, files),
        name=_lasting_name(model),
        revision=revision,
        variant=variant,
        tokenizer=files.tokenizer,
        identity=identity,
        identities=lambda: part_identities(files),
        preview=lambda: read_latent_to_rgb(files.root / preview.FILE) or read_latent_to_rgb(learnt()),
        remember_preview=lambda to_rgb: to_rgb.save(learnt()),
        notices=notices,
    )


def _preset_loras(files: ModelFiles, preset: str) -> Loras:
    """Their paths are relative to where the model lies."""
    folder = files.root if files.root.is_dir() else files.root.parent
    own = files.defaults.get("presets", {}).get(preset, {}).get(LORAS, ())
    return tuple((str(folder / path), strength) for path, strength in as_loras(LORAS, own))


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name, or the best one here. Raises InvalidRequest, naming those that there are."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if device is None:
        return torch.device(here[0])
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InvalidRequest(f"device={str(device)!r} is unknown. Try {' or '.join(here)}.") from None
    if found.type not in here:
        raise InvalidRequest(f"device={str(device)!r} is not on this machine. Try {' or '.join(here)}.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise InvalidRequest(f"device={str(device)!r} is not on this machine: its GPUs are cuda:0 to cuda:{last}.")
    return found


def default_dtype(files: ModelFiles, device: torch.device) -> torch.dtype:
    """float32 on a CPU. Elsewhere float32 for a transformer stored so, and bfloat16 for any narrower one.

    The published model was trained in bfloat16; float16 does not reach as far and might overflow.
    """
    if device.type == "cpu":
        return torch.float32
    stored = Counter(tensor.words for tensor in TensorFiles(files.transformer).tensors.values())
    return torch.float32 if stored.most_common(1)[0][0] == "float32" else torch.bfloat16


def _read_text(files: ModelFiles, notices: list[str], run: RuntimeConfig, device: torch.device) -> TextEncoder:
    assert files.tokenizer is not None, "a whole model was located"
    dtype = as_dtype(run.text_dtype or "float32")
    if files.text_encoder is None:
        unread = _open_text(files, dtype, device)
        t5 = unread.load(without=is_tied, encoded=run.quantise_text == STORED)
        tie(t5)
        text = TextEncoder(t5, read_tokenizer(files.tokenizer), width=t5.config.d_model, zero_empty=files.zero_empty)
    else:
        text = load_text_encoder(
            files.text_encoder,
            files.tokenizer,
            zero_empty=files.zero_empty,
            dtype=dtype,
            device=device,
            variant=files.text_variant,
        )
    if run.quantise_text not in (None, "none", STORED):
        notices.append(f"text: {quantise(text.t5, run.quantise_text)}")
    return text


def _read_dit(
    files: ModelFiles,
    compute: torch.device,
    notices: list[str],
    run: RuntimeConfig,
    device: torch.device,
    deltas: Deltas = MappingProxyType({}),
) -> AsymmDiT:
    """The one fixed order: read, merge LoRAs, quantise, chunk, choose the kernel, compile, place; blocks that stream
    stay behind.

    `device` is where the transformer waits, and `compute` where it works.
    """
    streams = run.residency == "stream"
    from_files = _streams_from_files(run, compute)
    first = device if run.quantise == "none" and not streams else torch.device("cpu")
    unread = open_dit(files, dtype=run.dtype or "float32", device=first)

    def left_out(name: str) -> bool:
        return (bool(run.tabulate) and is_modulation(name)) or (from_files and name.startswith("blocks."))

    dit = unread.load(without=left_out, encoded=run.quantise == STORED)
    merge(dit, deltas)
    if run.quantise == STORED and (stored := unread.stored) is not None:
        notices.append(f"the transformer stays {stored.words}, as its file has it; --quantise none decodes it once")
    if run.quantise not in (None, "none", STORED):
        notices.append(str(quantise(dit, run.quantise)))
    prepare(dit, run, compute)
    if not streams:
        return place(dit, device)
    if not from_files:
        return stream_blocks(dit, pinned(dit.blocks) if compute.type == "cuda" else kept(dit.blocks), compute)

    def from_file(index: int) -> dict[str, Tensor]:
        prefix = f"blocks.{index}."
        names = [name for name in unread.shapes if name.startswith(prefix)]
        tensors = unread.read(*(name for name in names if not (run.tabulate and is_modulation(name))))
        return {name.removeprefix(prefix): tensor for name, tensor in merged_tensors(tensors, deltas).items()}

    return stream_blocks(dit, from_file, compute)


def prepare(dit: AsymmDiT, run: RuntimeConfig, device: torch.device) -> AsymmDiT:
    """What a way of running changes about a transformer that has been read. Raises InvalidRequest where it cannot."""
    if run.kernel not in (None, "auto"):
        attention = load(ATTENTION_KERNELS, run.kernel, Attention)
        if (reason := attention.unfit(device, dit.text_proj.weight.dtype)) is not None:
            raise InvalidRequest(f"kernel={run.kernel!r} does not run here: {reason}. Try 'auto'.")
        set_kernel(dit, attention.kernel)
    if run.chunk_tokens:
        chunk_tokens(dit, run.chunk_tokens)
    if run.compile:
        if (reason := compiler.available(device)) is not None:
            raise InvalidRequest(f"blocks cannot be compiled here: {reason}. Try --no-compile.")
        compiler.compile_blocks(dit)
    return dit


def settled(run: RuntimeConfig, config: DiTConfig, request: ResolvedRequest, device: torch.device) -> RuntimeConfig:
    """The same with a choice for everything that is still open: what was measured to be the fastest here."""
    shape = request.latent_shape
    if run.lora_mode == "auto":
        high_precision = run.quantise in (None, "none") and not _streams_from_files(run, device)
        run = replace(run, lora_mode="merged" if high_precision else "live")
    dtype, folder = as_dtype(run.dtype or "float32"), cache_folder()
    if run.kernel == "auto":
        measured = AttentionShape(
            num_heads=config.num_heads,
            num_tokens=shape.num_tokens,
            head_dim=config.head_dim,
            dtype=dtype,
            device=device,
        )
        run = replace(run, kernel=fastest(measured, folder).name)
    if run.batch_guidance is None:
        # Without guidance there is nothing to send through together, and nothing to measure.
        trial = len(request.captions) > 1 and may_batch(config, shape, device)
        run = replace(run, batch_guidance=trial and batching_wins(config, shape, dtype, device, folder))
    return run


def _streams_from_files(run: RuntimeConfig, compute: torch.device) -> bool:
    """Whether blocks are read at every pass. Quantised ones wait in memory, and beside a GPU all do."""
    return run.residency == "stream" and compute.type == "cpu" and run.quantise == "none"


def _read_vae(files: ModelFiles, run: RuntimeConfig, device: torch.device, half: Part) -> AsymmVAE:
    return load_vae(files, dtype=run.dtype or "float32", device=device, halves=(half,))


def _open_text(
    files: ModelFiles, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Unread[Any]:
    """A T5 that was found by its tensors."""
    return open_text(files.text_weights, _build_text, dtype=dtype, device=device or torch.device("cpu"))


def _build_text(shapes: Shapes) -> nn.Module:
    return t5_encoder(t5_sizes(shapes))


def _num_parameters(paths: Sequence[Path]) -> int:
    """Of a T5 encoder: what is not its own, such as the decoder of a whole T5, is not read."""
    return sum(map(math.prod, text_shapes(paths).values()))


def _sizes(files: ModelFiles) -> ModelSizes:
    """Read off the shapes in the files."""
    return ModelSizes(
        dit=dit_sizes(files),
        decoder=decoder_sizes(files),
        text_parameters=_num_parameters(files.text_weights),
        text_tokens=MAX_TOKENS,
        dit_bits=_bits(open_dit(files)),
        text_bits=_bits(_open_text(files)) if files.text_encoder is None and files.text_weights else None,
    )


def _bits(unread: Unread[Any]) -> float | None:
    return None if unread.stored is None else unread.stored.bits


def as_stored(sizes: ModelSizes) -> RuntimeConfig:
    """What a quantised file suggests: it stays as it is unless something else is asked for."""
    return RuntimeConfig(
        quantise=None if sizes.dit_bits is None else STORED, quantise_text=None if sizes.text_bits is None else STORED
    )


def _lasting_name(model: str | Path) -> str:
    """A local path in full, so that it is found again from another folder; any other name as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() and model != BUILT_IN else str(model)
