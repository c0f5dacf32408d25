"""A run from its configuration: the model and the data are opened, the loop trains, and what comes out is written."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from daifuku.config import ATTENTION_KERNELS, PATCH, SPACE_FACTOR, DiTConfig, RuntimeConfig
from daifuku.errors import InvalidRequest, UnwritableOutput
from daifuku.model.dit import AsymmDiT
from daifuku.presets import without_loras
from daifuku.registry import load
from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER, Parts, load_parts
from daifuku.runtime.kernels import Attention, blocks_of, set_kernel
from daifuku.runtime.machine import resident_bytes
from daifuku.runtime.residency import place
from daifuku.sample.guidance import Caption
from daifuku.train.checkpoint import Say
from daifuku.train.config import TrainConfig
from daifuku.train.dataset import Batches, PreparedFolder, Sample, open_prepared
from daifuku.train.distill import objective
from daifuku.train.ema import EMA
from daifuku.train.flow import Objective, Recipe, flow_loss, validation_loss
from daifuku.train.initialise import initialise_dit
from daifuku.train.loop import Company, LoopSettings, Report, new_ema, train
from daifuku.train.lora import add_lora
from daifuku.train.muon import OptimiserSettings
from daifuku.train.outputs import Outcome, write_outcome
from daifuku.train.ranks import ALONE, Ranks
from daifuku.train.recompute import recompute
from daifuku.version import VERSION
from daifuku.weights.identity import part_identities
from daifuku.weights.locate import ModelFiles, locate
from daifuku.weights.save import transformer_config


@runtime_checkable
class ShowClips(Protocol):
    """Makes the clips that show how far a run is, with the transformer as it is now."""

    def __call__(self, step: int, parts: Parts) -> object:
        """`parts` are the model's, with that transformer."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A run that is ready to begin."""

    config: TrainConfig
    parts: Parts
    files: ModelFiles
    dit: AsymmDiT
    recipe: Recipe
    batches: Batches
    folders: tuple[PreparedFolder, ...]
    measured: tuple[Sample, ...]
    """What it is measured on."""
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @property
    def bfloat16(self) -> bool:
        return self.config.compute.precision == "bfloat16"

    def conditions(self) -> dict[str, str]:
        """All that has to be the same for the run to go on bit for bit."""
        about = machine_conditions(self.device, self.ranks) | {"base": str(self.parts.identity())}
        data = zip(self.folders, self.config.data, strict=True)
        about |= {f"data.{i}": f"{folder.fingerprint} x {own.weight}" for i, (folder, own) in enumerate(data)}
        return about | self.config.conditions()

    def with_whole(self, do: Callable[[AsymmDiT], object]) -> None:
        """`do` is given the transformer as it is now, whole, in the first process; the others wait."""
        self.ranks.with_whole(self.dit, lambda: _transformer(self.config, self.parts, self.parts.sizes().dit), do)


def open_task(config: TrainConfig, ranks: Ranks = ALONE) -> Task:
    """Finds and reads everything. Raises InvalidRequest for what does not go together, before the first step."""
    own = config.model
    parts = load_parts(own.name, device=ranks.device(config.compute.device), revision=own.revision, variant=own.variant)
    found = BUILT_IN_FOLDER if own.name == BUILT_IN else own.name
    files = locate(found, revision=own.revision, variant=own.variant)
    folders = tuple(open_prepared(each.folder) for each in config.data)
    measured = config.validation.folder and open_prepared(config.validation.folder)
    weights = [each.weight for each in config.data]
    batches = Batches(
        list(zip(folders, weights, strict=True)), size=config.batch.size, sizes=config.batch.sizes, seed=config.seed
    )
    sizes = parts.sizes().dit
    for folder in (*folders, *([measured] if measured else [])):
        _check_fits(folder, sizes)
    dit = _transformer(config, parts, sizes)
    if config.method != "lora":
        # What comes out is written in the diffusers layout, too: what that cannot hold is no news for the last step.
        transformer_config(dit.config)
    dit = ranks.sharded(dit)
    longest = max(count for folder in folders for sample in folder.samples for count in sample.num_tokens)
    if config.compute.compile:
        dit.text_multiple = longest
    return Task(
        config=config,
        parts=parts,
        files=files,
        dit=dit,
        recipe=Recipe(
            stats=files.stats,
            null=_null(files, parts, sizes),
            sigmas=config.sigmas,
            caption_dropout=config.caption_dropout,
            accumulate=config.batch.accumulate,
            seed=config.seed,
            num_tokens=longest if config.compute.compile else None,
            given_share=config.given_share,
        ),
        batches=batches,
        folders=folders,
        measured=measured.samples[: config.validation.num_samples] if measured else (),
        ranks=ranks,
    )


def run_task(
    task: Task,
    *,
    show: ShowClips | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Say = lambda _: None,
    allow_inexact: bool = False,
) -> Iterator[Report]:
    """Trains, goes on where an earlier run of the folder stopped, and writes what comes out when the last step is done.

    Raises what `train` raises. When `stop` says so, the step at hand is finished and saved, and the run ends.
    """
    config, folder = task.config, make_folder(task.config.output)
    settings = loop_settings(config)
    ema = new_ema(task.dit, settings)
    learnt = _objective(task, ema)

    def loss(micro: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return learnt(task.recipe.noised(task.batches, micro).to(task.device)).mean(), {}

    validate = partial(validation_loss, learnt, task.recipe, task.measured, device=task.device)
    clips = config.watch.clips
    for notice in _other_networks(task):
        say(notice)
    if config.lora.dora:
        say("the original layout holds no magnitudes, so this DoRA comes out for diffusers and ComfyUI alone")
    company = Company(
        samples=task.batches.ids,
        show=None if show is None or not clips.prompts else partial(_show, task, show),
        show_every=clips.every,
        stop=stop,
        say=say,
        conditions=task.conditions(),
        allow_inexact=allow_inexact,
    )
    last: Report | None = None
    measure = validate if task.measured else None
    beside = {"validate": measure, "company": company, "ranks": task.ranks, "ema": ema}
    for last in train(task.dit, loss, settings, folder, **beside):
        yield with_cost(last, task.device)
    if last is None or last.step == config.schedule.steps:
        task.with_whole(partial(_write, task, say))


def _objective(task: Task, ema: EMA | None) -> Objective:
    """The velocity of the data, or what a teacher does."""
    if task.config.distill is None:
        return partial(flow_loss, task.dit, bfloat16=task.bfloat16)
    averaged = nullcontext if ema is None else partial(ema.swapped_in, task.dit)
    return objective(task.config.distill, task.dit, task.recipe.null, averaged=averaged, bfloat16=task.bfloat16)


def make_folder(folder: Path) -> Path:
    """The folder of a run. Raises UnwritableOutput."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableOutput(f"the run cannot be kept in {folder}: {error.strerror}. Give another output") from error
    return folder


def machine_conditions(device: torch.device, ranks: Ranks = ALONE) -> dict[str, str]:
    """What of the machine and its software decides the last bits."""
    return {
        "daifuku": VERSION,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
        "world_size": ranks.describe(),
    }


def with_cost(report: Report, device: torch.device) -> Report:
    """The same, with what the step cost."""
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()
    cost = {"samples_per_s": len(report.samples) / report.seconds, "memory_gib": memory / 2**30}
    return replace(report, values=report.values | cost)


def loop_settings(config: TrainConfig) -> LoopSettings:
    """The part of a configuration that the loop knows."""
    rule, schedule = config.optimiser, config.schedule
    return LoopSettings(
        num_steps=schedule.steps,
        optimiser=OptimiserSettings(
            kind=rule.name, lr=rule.lr, betas=rule.betas, weight_decay=rule.weight_decay, momentum=0.95
        ),
        warmup_steps=schedule.warmup,
        decay=schedule.fall,
        decay_share=schedule.fall_share,
        num_micro_steps=config.batch.accumulate,
        ema_decay=config.ema_decay or None,
        clip_norm=rule.clip_norm,
        checkpoint_every=config.checkpoints.every,
        keep_checkpoints=config.checkpoints.keep,
        frozen_too=config.method != "lora",
        validate_every=config.validation.every,
        seed=config.seed,
    )


def _transformer(config: TrainConfig, parts: Parts, sizes: DiTConfig) -> AsymmDiT:
    """What is trained: read or made, frozen or not, and computed as the configuration says."""
    compute, device = config.compute, parts.device
    if config.scratch is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            dit = AsymmDiT(DiTConfig(**config.scratch.model_dump(), text_features=sizes.text_features))
        initialise_dit(dit, torch.Generator().manual_seed(config.seed))
        dit = dit.to(device)
    else:
        lora = config.method == "lora"
        dtype = compute.precision if lora else "float32"
        dit = parts.dit(RuntimeConfig(dtype=dtype, quantise=compute.quantise, kernel=None), device)
        if lora:
            add_lora(dit, config.lora.kinds, config.seed, dora=config.lora.dora)
        else:
            # Weights may still be views of their file.
            place(dit, device)
            for parameter in dit.parameters():
                parameter.data = parameter.data.clone()
            dit.requires_grad_(True)
    attention = load(ATTENTION_KERNELS, compute.kernel, Attention)
    if device.type not in attention.learns_on:
        raise InvalidRequest(f"compute.kernel={compute.kernel!r} has no gradient on {device.type}. Try 'sdpa'.")
    precision = torch.bfloat16 if compute.precision == "bfloat16" else torch.float32
    if (reason := attention.unfit(device, precision)) is not None:
        raise InvalidRequest(f"compute.kernel={compute.kernel!r} does not run here: {reason}. Try 'sdpa'.")
    set_kernel(dit, attention.kernel)
    if compute.compile:
        # Inside of what is recomputed: a whole block that is recomputed is compiled all the same.
        for block in blocks_of(dit):
            block.forward = torch.compile(block.forward, dynamic=False)
    recompute(dit, compute.recompute)
    return dit.train()


def _null(files: ModelFiles, parts: Parts, sizes: DiTConfig) -> Caption:
    """What the sampler makes of an empty prompt."""
    if files.zero_empty:
        return Caption(torch.zeros(1, 1, sizes.text_features), torch.zeros(1, 1, dtype=torch.bool))
    found = parts.text(RuntimeConfig(), parts.device).encode([""])
    return Caption(found.features.cpu(), found.mask.cpu())


def _check_fits(folder: PreparedFolder, sizes: DiTConfig) -> None:
    """Raises InvalidRequest for samples that this model cannot learn from."""
    for sample in folder.samples:
        if sample.bucket[1] % PATCH or sample.bucket[2] % PATCH:
            raise InvalidRequest(
                f"{folder.path}: the sample {sample.id} has latents of {'x'.join(map(str, sample.bucket))}, and height "
                f"and width have to be multiples of {PATCH}: prepare it with sides that are multiples of "
                f"{SPACE_FACTOR * PATCH}"
            )
    if (width := folder.features) != sizes.text_features:
        raise InvalidRequest(
            f"{folder.path} has text features of {width} numbers, and this model reads {sizes.text_features}: prepare "
            "it with the model that is trained"
        )


def _show(task: Task, show: ShowClips, step: int) -> None:
    """Shows the model with the transformer as it is now."""
    task.with_whole(lambda dit: show(step, _with_dit(task, dit)))


def _write(task: Task, say: Say, dit: AsymmDiT) -> None:
    config = task.config
    outcome = Outcome(dit=dit, config=config, files=task.files, model=task.parts.info, folders=task.folders)
    for path in write_outcome(outcome, config.output):
        say(f"wrote {path}")


def _other_networks(task: Task) -> Iterator[str]:
    """What is worth saying about data that other files encoded than this model's: those may hold the same weights."""
    own = part_identities(task.files)
    for folder in task.folders:
        for part, words in (("vae_sha256", "VAE"), ("text_encoder_sha256", "text encoder")):
            if folder.model.get(part, own[part]) != own[part]:
                yield (
                    f"warning: {folder.path} was encoded by a {words} of other files than this model's; unless they "
                    "hold the same weights, prepare it with the model that is trained"
                )


def _with_dit(task: Task, dit: AsymmDiT) -> Parts:
    """The model with the transformer as it is now, which no LoRA of the model's presets was made for."""
    return replace(
        task.parts,
        dit=lambda run, device, deltas=None: dit,
        identity=lambda: None,
        defaults=without_loras(task.parts.defaults),
        preset_loras=lambda _: (),
    )
