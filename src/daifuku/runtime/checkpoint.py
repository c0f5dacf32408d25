"""Sampler checkpoints: a file that lets a run that was killed go on from its last step, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.events import Step
from daifuku.sample.solver import State
from daifuku.weights.files import published

ENDING = ".resume.safetensors"
"""What the name of a clip's checkpoint ends in, in place of the clip's suffix."""

EVERY_S = 2.0
"""Seconds between two checkpoints: quick runs write none, slow ones after every step."""

_KEY = "daifuku"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: at the noise, or where an earlier run of the same request stopped."""

    index: int
    """Steps that are done."""
    latent: Float[Tensor, "c t h w"]
    states: Mapping[str, State] = field(default_factory=dict)
    """What step caches and guidance remember, and which frames are given."""


def copied(states: Mapping[str, State], device: torch.device) -> dict[str, State]:
    """What is remembered at this moment: the tensors in it are never changed, only replaced."""
    return {
        name: {key: value.to(device) if isinstance(value, Tensor) else value for key, value in state.items()}
        for name, state in states.items()
    }


class Checkpoints:
    """Keeps the last step of a run in a file while it samples.

    `about` is JSON that comes back with it. The file is replaced as a whole, at most every `every_s` seconds. Writing
    raises UnwritableOutput; the file of the step before is then still there.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, every_s: float) -> None:
        self.path = path
        self.about = about
        self._every_s = every_s
        self._written_at = monotonic()
        self._pending: Step | None = None

    def take(self, step: Step) -> None:
        """Remembers a step, and writes it when it is time."""
        self._pending = step
        if monotonic() - self._written_at >= self._every_s:
            self.flush()

    def flush(self) -> None:
        """Writes the last step, unless it is written already."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        tensors, numbers = {"latent": step.latent.cpu().contiguous()}, {}
        for name, state in step.states.items():
            for key, value in state.items():
                kept = tensors if isinstance(value, Tensor) else numbers
                kept[f"{name}.{key}"] = value.cpu().contiguous() if isinstance(value, Tensor) else value
        about = {"about": self.about, "index": step.index, "numbers": numbers}
        with published(self.path) as file:
            file.write(save(tensors, {_KEY: json.dumps(about)}))
        self._written_at = monotonic()

    def discard(self) -> None:
        """The run is complete: nothing needs to go on."""
        self._pending = None
        self.path.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], Start]:
    """What was told about the run, and where it goes on. Raises InvalidRequest for a file that is no checkpoint."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            latent = tensors.pop("latent")
            states: dict[str, State] = {}
            for name, value in (tensors | found["numbers"]).items():
                who, _, key = name.partition(".")
                states.setdefault(who, {})[key] = value
            return found["about"], Start(index=found["index"], latent=latent, states=states)
    except OSError as error:
        raise InvalidRequest(f"the checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{path} is no checkpoint of a run, or is damaged ({error!r}). They are called CLIP{ENDING}."
        ) from error
