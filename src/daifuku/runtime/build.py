"""From the name of a model to its networks on a device: files are found at once, weights read when first needed."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.text import TextEncoder, load_text_encoder
from daifuku.weights.identity import model_identity
from daifuku.weights.load import as_dtype, load_dit, load_vae
from daifuku.weights.locate import ModelFiles, locate

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
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The networks of a model. Each is a function that gives the network, so that none is read before it is needed."""

    text: Callable[[], TextEncoder]
    dit: Callable[[], AsymmDiT]
    vae: Callable[[], AsymmVAE]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Precision of the transformer and the VAE. Text is always encoded in float32, since T5 overflows below that."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The model's own values for what a request leaves None."""
    name: str = "in memory"
    revision: str | None = None
    variant: str | None = None
    identity: Callable[[], str | None] = lambda: None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self.name,
            revision=self.revision,
            variant=self.variant,
            identity=self.identity(),
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
        )


def load_parts(
    model: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> Parts:
    """Finds a model's files; each network is read when it is first asked for, and then kept.

    None or "built-in" is the small model of the package. Without a device it is the first of cuda, mps and cpu that is
    there; without a dtype, what `default_dtype` says. Raises ModelNotFound, or InvalidRequest for a device or dtype
    that does not work here.
    """
    place = find_device(device)
    precision = None if dtype is None else as_dtype(dtype)
    model = BUILT_IN if model is None else model
    files = locate(BUILT_IN_FOLDER if model == BUILT_IN else model, revision=revision, variant=variant)
    precision = precision or default_dtype(files, place)
    return Parts(
        text=cache(lambda: _load_text(files, place)),
        dit=cache(lambda: load_dit(files, dtype=precision, device=place)),
        vae=cache(lambda: load_vae(files, dtype=precision, device=place)),
        device=place,
        dtype=precision,
        defaults=files.defaults,
        name=_lasting_name(model),
        revision=revision,
        variant=variant,
        identity=cache(lambda: model_identity(files)),
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


def _load_text(files: ModelFiles, device: torch.device) -> TextEncoder:
    assert files.text_encoder is not None and files.tokenizer is not None, "a whole model was located"
    return load_text_encoder(
        files.text_encoder,
        files.tokenizer,
        zero_empty=files.zero_empty,
        dtype=torch.float32,
        device=device,
        variant=files.text_variant,
    )


def _lasting_name(model: str | Path) -> str:
    """A local path in full, so that it is found again from another folder; any other name as it is."""
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() and model != BUILT_IN else str(model)
