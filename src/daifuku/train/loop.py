"""The training loop: a step at a time, with EMA, checkpoints and exact resume.

Everything random in step n derives from (seed, n), so a resumed run sees the same data and noise as an unbroken one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from daifuku.errors import TrainingError
from daifuku.train.checkpoint import load_checkpoint, save_checkpoint
from daifuku.train.ema import EMA
from daifuku.train.muon import AdamShare, Muon, OptimiserSettings, vectors_by_adam


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long, how fast and how often."""

    num_steps: int
    optimiser: OptimiserSettings
    warmup_steps: int = 100
    decay_share: float = 0.25
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    checkpoint_every: int = 200
    validate_every: int = 500
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one step, or one validation, measured."""

    step: int
    num_steps: int
    values: dict[str, float]
    seconds: float


def lr_factor(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero: a longer run differs only in where the fall begins."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    left = (settings.num_steps - step) / max(1.0, settings.decay_share * settings.num_steps)
    return min(warm, left, 1.0)


def generator_for(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train(
    model: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    settings: LoopSettings,
    folder: Path,
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    adam_share: AdamShare = vectors_by_adam,
) -> Iterator[Report]:
    """Trains `model` in place and leaves its averaged weights in it; `loss(step, generator)` gives the loss of a step.

    Goes on from `folder/checkpoint.safetensors` when it is there; `folder/log.jsonl` keeps the curve. Closing the
    iterator stops after the step at hand. Raises TrainingError when a loss or gradient is not finite, before any
    weight is touched by it.
    """
    optimiser = Muon(model, settings.optimiser, adam_share)
    ema = EMA(model, settings.ema_decay)
    path = folder / "checkpoint.safetensors"
    step = _resume(path, model, optimiser, ema) if path.exists() else 0
    trained = [p for p in model.parameters() if p.requires_grad]
    while step < settings.num_steps:
        started = time.monotonic()
        value, values = loss(step, generator_for(settings.seed, step))
        value.backward()
        norm = float(nn.utils.clip_grad_norm_(trained, settings.clip_norm))
        if not math.isfinite(norm) or not math.isfinite(value.item()):
            raise TrainingError(
                f"step {step}: loss {value.item()}, gradient norm {norm}. The last checkpoint is sound: {path}. "
                "Try a lower learning rate."
            )
        optimiser.step(lr_factor(step, settings))
        for parameter in trained:
            parameter.grad = None
        ema.update(model)
        step += 1

        done = step == settings.num_steps
        values = {"loss": value.item(), "grad_norm": norm} | values
        if validate is not None and (done or step % settings.validate_every == 0):
            with ema.swapped_in(model), torch.no_grad():
                values |= validate()
        if done or step % settings.checkpoint_every == 0:
            save_checkpoint(path, _state(step, model, optimiser, ema))
        report = Report(step=step, num_steps=settings.num_steps, values=values, seconds=time.monotonic() - started)
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "seconds": round(report.seconds, 4)} | values) + "\n")
        yield report
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(ema.weights[name])


def _state(step: int, model: nn.Module, optimiser: Muon, ema: EMA) -> dict[str, dict[str, Tensor]]:
    return {
        "model": dict(model.named_parameters()),
        "optimiser": optimiser.state(),
        "ema": ema.state(),
        "loop": {"step": torch.tensor(step)},
    }


@torch.no_grad()
def _resume(path: Path, model: nn.Module, optimiser: Muon, ema: EMA) -> int:
    saved = load_checkpoint(path)
    try:
        for name, parameter in model.named_parameters():
            parameter.copy_(saved["model"][name])
        optimiser.load_state(saved["optimiser"])
        ema.load_state(saved["ema"])
    except (KeyError, RuntimeError) as error:
        raise TrainingError(
            f"{path} belongs to a model of other sizes ({error}). Use another folder, or delete it."
        ) from error
    return int(saved["loop"]["step"])
