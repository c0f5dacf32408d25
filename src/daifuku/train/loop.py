"""The training loop: a step at a time, with EMA, checkpoints and exact resume.

Everything random in step n derives from (seed, n), so a resumed run sees the same data and noise as an unbroken one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from daifuku.errors import TrainingError
from daifuku.train.checkpoint import Checkpoint, Groups, Say, newest_checkpoint, save_checkpoint
from daifuku.train.ema import EMA, held
from daifuku.train.muon import AdamShare, OptimiserSettings, vectors_by_adam
from daifuku.train.optimisers import Optimiser, new_optimiser
from daifuku.train.ranks import ALONE, Passed, Ranks
from daifuku.weights.files import published

LOG = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long, how fast and how often."""

    num_steps: int
    optimiser: OptimiserSettings
    warmup_steps: int = 100
    decay: Literal["linear", "cosine"] = "linear"
    decay_share: float = 0.25
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    num_micro_steps: int = 1
    """Passes whose gradients are averaged for one step."""
    ema_decay: float | None = 0.999
    clip_norm: float = 1.0
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    frozen_too: bool = True
    """Whether checkpoints and averages also hold what is not trained, and so are whole models."""
    validate_every: int = 500
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one step, or one validation, measured."""

    step: int
    num_steps: int
    values: dict[str, float]
    seconds: float
    samples: tuple[str, ...] = ()
    """Ids of the samples that it learnt from."""


@dataclass(frozen=True, kw_only=True)
class Company:
    """What goes on beside the steps. Nothing of it changes a weight."""

    samples: Callable[[int], Sequence[str]] | None = None
    """Ids of the samples of a micro-step."""
    show: Callable[[int], object] | None = None
    """Is told the step after every `show_every` steps and the last, with the averaged weights in the model."""
    show_every: int = 0
    stop: Callable[[], bool] = lambda: False
    """Asked after every step: when it says so, the run is saved and ends."""
    say: Say = lambda _: None
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What has to be the same for a resumed run to be exact."""
    allow_inexact: bool = False


Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(micro-step, its random numbers) -> loss, and what else is worth telling. Step n starts at micro-step n * k."""


def lr_factor(step: int, settings: LoopSettings) -> float:
    """Linear warm-up, a plateau, and a fall to zero: a longer run differs only in where the fall begins."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    left = (settings.num_steps - step) / max(1.0, settings.decay_share * settings.num_steps)
    fall = min(left, 1.0)
    return min(warm, fall if settings.decay == "linear" else (1 - math.cos(math.pi * fall)) / 2)


def generator_for(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train(
    model: nn.Module,
    loss: Loss,
    settings: LoopSettings,
    folder: Path,
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    adam_share: AdamShare = vectors_by_adam,
    company: Company | None = None,
    ranks: Ranks = ALONE,
    ema: EMA | None = None,
) -> Iterator[Report]:
    """Trains `model` in place and leaves its averaged weights in it; `validate` measures with those in the model.

    Goes on from the newest sound checkpoint in `folder`; `folder/log.jsonl` keeps the curve. Closing the iterator
    stops after the step at hand. A loss that looks at the averaged weights brings the `ema` that is to keep them.
    Raises TrainingError when a loss or gradient is not finite, before any weight is touched by it, and where a resumed
    run would not be exact and nobody allowed that.
    """
    beside = company or Company()
    run = _Run(model, settings, folder, adam_share, ranks, ema)
    step = run.resume(beside)
    while step < settings.num_steps:
        started = time.monotonic()
        values = run.learn(step, loss, beside)
        step += 1
        stopped, done = ranks.any(beside.stop()), step == settings.num_steps
        values |= run.measure(step, validate, beside)
        report = Report(
            step=step,
            num_steps=settings.num_steps,
            values=values,
            seconds=time.monotonic() - started,
            samples=run.samples(step - 1, beside),
        )
        # Before it is saved: a step that is not made again has its line.
        run.log(report)
        if done or stopped or step % settings.checkpoint_every == 0:
            run.save(step, beside.conditions)
        yield report
        if stopped and not done:
            return
    if run.ema is not None:
        run.ema.leave_in(model)


def new_ema(model: nn.Module, settings: LoopSettings) -> EMA | None:
    """The average that a run keeps, if it keeps one."""
    decay = settings.ema_decay
    return None if decay is None else EMA(model, decay, frozen_too=settings.frozen_too)


class _Run:
    """A model on its way, with all that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        settings: LoopSettings,
        folder: Path,
        adam_share: AdamShare,
        ranks: Ranks,
        ema: EMA | None,
    ) -> None:
        self.settings, self.folder, self._ranks = settings, folder, ranks
        self._model = model
        self._optimiser: Optimiser = new_optimiser(model, settings.optimiser, adam_share)
        self.ema = new_ema(model, settings) if ema is None else ema
        self._held = held(model, frozen_too=settings.frozen_too)
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def learn(self, step: int, loss: Loss, beside: Company) -> dict[str, float]:
        """One step of the optimiser."""
        many = self.settings.num_micro_steps
        own = self._ranks.own(range(step * many, (step + 1) * many))
        passed: list[Passed] = []
        for micro in own:
            value, about = loss(micro, generator_for(self.settings.seed, micro))
            (value / len(own)).backward()
            passed.append(Passed(micro=micro, loss=value.item(), about=about))
        total, values = 0.0, {}
        for each in self._ranks.gathered(passed):
            if not math.isfinite(each.loss):
                raise self._not_finite(step, f"loss {each.loss}", _ids(beside, [each.micro]))
            total += each.loss / many
            for name, number in each.about.items():
                values[name] = values.get(name, 0.0) + number / many
        norm = self._ranks.number(nn.utils.clip_grad_norm_(self._trained, self.settings.clip_norm))
        if not math.isfinite(norm):
            raise self._not_finite(step, f"loss {total}, gradient norm {norm}", self.samples(step, beside))
        factor = lr_factor(step, self.settings)
        self._optimiser.step(factor)
        for parameter in self._trained:
            parameter.grad = None
        if self.ema is not None:
            self.ema.update(self._model)
        return {"loss": total, "grad_norm": norm, "lr": factor * self.settings.optimiser.lr} | values

    def samples(self, step: int, beside: Company) -> tuple[str, ...]:
        """Ids of what a step learnt from."""
        many = self.settings.num_micro_steps
        return _ids(beside, range(step * many, (step + 1) * many))

    def measure(self, step: int, validate: Callable[[], dict[str, float]] | None, beside: Company) -> dict[str, float]:
        """What validation finds, when it is time for it; and shows the model, when it is time for that."""
        done = step == self.settings.num_steps
        validate = validate if done or step % self.settings.validate_every == 0 else None
        show = beside.show if beside.show_every and (done or step % beside.show_every == 0) else None
        if validate is None and show is None:
            return {}
        with self.ema.swapped_in(self._model) if self.ema is not None else nullcontext(), torch.no_grad():
            if show is not None:
                show(step)
            return {} if validate is None else validate()

    def save(self, step: int, conditions: Mapping[str, str]) -> None:
        """Raises TrainingError for weights that are not finite: a checkpoint is always sound."""
        groups: Groups = {"model": dict(self._held), "optimiser": self._optimiser.state()}
        if self.ema is not None:
            groups["ema"] = self.ema.state()
        whole = self._ranks.whole(groups)

        def write() -> None:
            for name, parameter in whole["model"].items():
                if not bool(torch.isfinite(parameter).all()):
                    raise TrainingError(
                        f"after step {step} the weight {name} is not finite, so this step is not saved; the last "
                        f"checkpoint in {self.folder} is sound. Try a lower learning rate."
                    )
            save_checkpoint(self.folder, step, whole, conditions=conditions, keep=self.settings.keep_checkpoints)

        self._ranks.on_first(write)

    def resume(self, beside: Company) -> int:
        """The step to go on from: that of the newest checkpoint, or 0."""
        # The first sets damaged ones aside before the others look.
        found = self._ranks.first_before_others(lambda: newest_checkpoint(self.folder, beside.say))
        if not self._ranks.alike(found and found.step):
            raise TrainingError(f"{self.folder} is not the same folder for every process of the run: share it")
        if found is None:
            self._forget_after(0)
            return 0
        _check_conditions(found, beside)
        groups = {name: self._ranks.spread(group, self._held) for name, group in found.groups.items()}
        try:
            with torch.no_grad():
                for name, parameter in self._held.items():
                    parameter.copy_(groups["model"][name])
            self._optimiser.load_state(groups["optimiser"])
            if self.ema is not None:
                self.ema.load_state(groups["ema"])
        except (KeyError, RuntimeError) as error:
            raise TrainingError(
                f"{found.path} belongs to a model of other sizes ({error}). Use another folder, or delete it."
            ) from error
        self._forget_after(found.step)
        return found.step

    def log(self, report: Report) -> None:
        """A line in the run's log."""
        if not self._ranks.is_first:
            return
        about = {"step": report.step, "seconds": round(report.seconds, 4)} | report.values
        if report.samples:
            about["samples"] = list(report.samples)
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(about) + "\n")

    def _forget_after(self, step: int) -> None:
        """Steps that are going to be made again leave the log, and so does a line that a kill cut short."""
        path = self.folder / LOG
        if self._ranks.is_first and path.exists():
            lines = [line for line in path.read_text("utf-8").splitlines() if 0 < _step_of(line) <= step]
            with published(path) as file:
                file.write("".join(f"{line}\n" for line in lines).encode())

    def _not_finite(self, step: int, what: str, samples: Sequence[str]) -> TrainingError:
        of = f" on the samples {', '.join(samples)}" if samples else ""
        return TrainingError(
            f"step {step}: {what}{of}. No weight was touched by it, and the last checkpoint in {self.folder} is sound. "
            "Try a lower learning rate, or leave those samples out."
        )


def _ids(beside: Company, micro_steps: Sequence[int]) -> tuple[str, ...]:
    return () if beside.samples is None else tuple(each for micro in micro_steps for each in beside.samples(micro))


def _step_of(line: str) -> int:
    """0 for a line that is not whole."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return 0


OFF = ("None", "False", "0.0", "0")
"""A new condition that says this changes nothing: what wrote the checkpoint could not do what it stands for."""


def _check_conditions(found: Checkpoint, beside: Company) -> None:
    """Raises TrainingError where what comes would not be what an unbroken run computes, unless that is allowed."""
    before, now = dict(found.conditions), dict(beside.conditions)
    if not before:
        return
    changed = [
        f"{key} is {now.get(key)} and was {before.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and (key in before or now[key] not in OFF)
    ]
    if not changed:
        return
    what = f"going on from step {found.step} would not be exact: {'; '.join(changed)}"
    if not beside.allow_inexact:
        raise TrainingError(f"{what}. Put that back, give another output, or allow it with --allow-inexact.")
    beside.say(f"{what}; it goes on, as allowed")
