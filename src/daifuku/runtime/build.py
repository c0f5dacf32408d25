"""From the name of a model to its networks on a device: files are found at once, weights read when first needed."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.runtime import preview
from daifuku.runtime.estimate import ModelSizes
from daifuku.runtime.machine import cache_folder
from daifuku.runtime.preview import LatentToRGB, read_latent_to_rgb
from daifuku.text import TextEncoder, load_text_encoder
from daifuku.text.encoder import MAX_TOKENS
from daifuku.weights.identity import model_identity
from daifuku.weights.load import as_dtype, decoder_sizes, dit_sizes, load_dit, load_vae
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.tensors import TensorFiles

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


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a model. Each is a function that reads the network for a way of running, onto a device."""

    text: Callable[[RuntimeConfig, torch.device], TextEncoder]
    dit: Callable[[RuntimeConfig, torch.device], AsymmDiT]
    vae: Callable[[RuntimeConfig, torch.device], AsymmVAE]
    sizes: Callable[[], ModelSizes]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Precision of the transformer and the VAE where memory is no matter."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The model's own values for what a request leaves None."""
    name: str = "in memory"
    revision: str | None = None
    variant: str | None = None
    identity: Callable[[], str | None] = lambda: None
    preview: Callable[[], LatentToRGB | None] = lambda: None
    """How latents become colours, where that is known."""
    remember_preview: Callable[[LatentToRGB], None] = lambda _: None

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
    place = find_device(device)
    model = BUILT_IN if model is None else model
    files = locate(BUILT_IN_FOLDER if model == BUILT_IN else model, revision=revision, variant=variant)
    identity = cache(lambda: model_identity(files))

    def learnt() -> Path:
        return cache_folder() / "latent_rgb" / f"{identity()}.json"

    return Parts(
        text=partial(_read_text, files),
        dit=partial(_read_dit, files),
        vae=partial(_read_vae, files),
        sizes=cache(lambda: _sizes(files)),
        device=place,
        dtype=default_dtype(files, place),
        defaults=files.defaults,
        name=_lasting_name(model),
        revision=revision,
        variant=variant,
        identity=identity,
        preview=lambda: read_latent_to_rgb(files.root / preview.FILE) or read_latent_to_rgb(learnt()),
        remember_preview=lambda to_rgb: to_rgb.save(learnt()),
    )


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
    stored: Counter[str] = Counter()
    for path in files.transformer:
        with safe_open(path, "pt") as file:
            stored.update(file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
    return torch.float32 if stored.most_common(1)[0][0] == "F32" else torch.bfloat16


def _read_text(files: ModelFiles, run: RuntimeConfig, device: torch.device) -> TextEncoder:
    assert files.text_encoder is not None and files.tokenizer is not None, "a whole model was located"
    return load_text_encoder(
        files.text_encoder,
        files.tokenizer,
        zero_empty=files.zero_empty,
        dtype=as_dtype(run.text_dtype or "float32"),
        device=device,
        variant=files.text_variant,
    )


def _read_dit(files: ModelFiles, run: RuntimeConfig, device: torch.device) -> AsymmDiT:
    return load_dit(files, dtype=run.dtype or "float32", device=device)


def _read_vae(files: ModelFiles, run: RuntimeConfig, device: torch.device) -> AsymmVAE:
    return load_vae(files, dtype=run.dtype or "float32", device=device)


def _sizes(files: ModelFiles) -> ModelSizes:
    """Read off the shapes in the files."""
    text = TensorFiles(files.text_weights).shapes.values()
    return ModelSizes(
        dit=dit_sizes(files),
        decoder=decoder_sizes(files),
        text_parameters=sum(math.prod(shape) for shape in text),
        text_tokens=MAX_TOKENS,
    )


def _lasting_name(model: str | Path) -> str:
    """A local path in full, so that it is found again from another folder; any other name as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() and model != BUILT_IN else str(model)
