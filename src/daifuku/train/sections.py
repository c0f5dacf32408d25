"""The tables of a training configuration: their keys, what each may be, and what it is when left out."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from daifuku.config import ATTENTION_KERNELS, QUANTISERS, TIME_FACTOR
from daifuku.errors import InvalidRequest
from daifuku.registry import names
from daifuku.request import GenerateRequest

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSection(Section):
    """The model to start from. Its VAE and text encoder are the ones that prepared the data."""

    name: str = "built-in"
    """A folder, a file, a hub id, or "built-in"."""
    revision: str | None = None
    """A branch, tag or commit of a hub id."""
    variant: str | None = None
    """Which of the published weights, such as bf16."""


class ScratchSection(Section):
    """Sizes of a transformer with fresh weights; what is left out is as in the published model."""

    num_blocks: Positive = 48
    """Blocks of the transformer."""
    num_heads: Positive = 24
    """Attention heads."""
    head_dim: Positive = 128
    """Width of a head; with the number of heads, the width of the video stream."""
    text_width: Positive = 1536
    """Width of the text stream."""
    video_mlp_width: Positive = 8192
    """The diffusers layout holds 8/3 of the stream's width only."""
    text_mlp_width: Positive = 4096
    """Likewise."""


class VAESection(Section):
    """What of a VAE is trained, on windows of video files."""

    parts: Literal["decoder", "both"] = "decoder"
    """With the decoder alone, latents stay what they are; after both, a transformer has to be trained anew."""
    num_frames: Positive = 13
    """Of a window: 6k+1."""
    side: Annotated[int, Field(ge=16, multiple_of=8)] = 64
    """Height and width of a window, in pixels."""
    kl_weight: Annotated[float, Field(ge=0)] = 3e-3
    """Of the pull towards a unit Gaussian, beside the mean of absolute and squared errors."""

    @model_validator(mode="after")
    def _whole_latents(self) -> "VAESection":
        if self.num_frames % TIME_FACTOR != 1:
            raise ValueError(f"num_frames is 6k+1: try {self.num_frames // TIME_FACTOR * TIME_FACTOR + 1}")
        return self


class DataSection(Section):
    """A folder that `daifuku prepare` wrote; for the VAE one of video files, which have no weight."""

    folder: Path
    """Where it is."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an epoch sees each of its samples: 2 is twice, 0.5 every other one."""


class ValidationSection(Section):
    """What the run is measured on."""

    folder: Path | None = None
    """Prepared like the data; without it nothing is measured."""
    num_samples: Positive = 16
    """The first so many of it."""
    every: Positive = 100
    """Steps from one measurement to the next."""


class KindSection(Section):
    """A LoRA for one kind of layer."""

    rank: Count = 16
    """0 leaves these layers as they are."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """A change is scaled by alpha / rank."""


class LoraSection(Section):
    """Which layers of the blocks get a LoRA, by kind. Without being named, MLPs get none."""

    video_qkv: KindSection = KindSection()
    video_out: KindSection = KindSection()
    text_qkv: KindSection = KindSection()
    text_out: KindSection = KindSection()
    video_mlp: KindSection = KindSection(rank=0)
    text_mlp: KindSection = KindSection(rank=0)
    dora: bool = False
    """Learns directions and lengths of the weights' rows apart: a DoRA, which costs a norm of each weight in a step."""

    @model_validator(mode="after")
    def _has_one(self) -> "LoraSection":
        if not any(kind.rank for kind in self.kinds.values()):
            raise ValueError("every rank is 0, so nothing would be trained: give one kind a rank of 1 or more")
        return self

    @property
    def kinds(self) -> dict[str, KindSection]:
        return {name: value for name, value in self if isinstance(value, KindSection)}


class SigmaSection(Section):
    """How noise levels are drawn, from 0 (clean) to 1 (noise)."""

    sampling: Literal["uniform", "logit-normal", "stratified"] = "stratified"
    """stratified is uniform with the same number of samples in each equal part of the range, over a whole step."""
    mean: float = 0.0
    """Of the logit, for logit-normal."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Its standard deviation."""


class DistillSection(Section):
    """What a student learns from its teacher, which is the model as it was, with guidance."""

    method: Literal["guidance", "progressive", "consistency"]
    """guidance: one pass for two; progressive: one step for several of the teacher's; consistency: leaps to an end."""
    guidance_scale: Annotated[float, Field(ge=1)] = 4.0
    """Of the teacher; 1 for one that was distilled before."""
    num_steps: Positive = 50
    """Steps of the schedule that progressive and consistency learn at; for progressive, those of the student."""
    threshold_noise: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of that schedule, as for `daifuku generate`."""
    linear_steps: Count = 37
    """Of that schedule, as for `daifuku generate`."""
    teacher_steps: Positive = 2
    """For progressive: the teacher's steps for one of the student's."""
    num_phases: Positive = 1
    """For consistency: parts of the schedule, each with an end of its own; 1 leaps all the way."""
    huber: Annotated[float, Field(gt=0)] = 1e-3
    """For consistency: errors below it count squared, larger ones as they are."""

    @model_validator(mode="after")
    def _has_a_schedule(self) -> "DistillSection":
        try:
            GenerateRequest(
                prompt="",
                num_inference_steps=self.num_steps,
                threshold_noise=self.threshold_noise,
                linear_steps=self.linear_steps,
            )
        except InvalidRequest as error:
            raise ValueError(str(error)) from error
        if self.num_phases > self.num_steps:
            raise ValueError(f"num_phases is at most the number of steps, {self.num_steps}")
        return self


class BatchSection(Section):
    """How many samples a step learns from."""

    size: Positive = 1
    """Samples of one bucket that are computed together."""
    sizes: dict[Annotated[str, Field(pattern=r"^\d+x\d+x\d+$")], Positive] = {}
    """For single buckets, by their latent size, such as {"7x60x106" = 2}."""
    accumulate: Positive = 1
    """Passes whose gradients make one step."""


class OptimiserSection(Section):
    """The rule that changes the weights."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit is of bitsandbytes, and for GPUs; muon is for full training."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """The learning rate at its peak."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """How long AdamW remembers gradients and their squares."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices; vectors have none."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients longer than this are shortened to it."""


class ScheduleSection(Section):
    """How long, and how the learning rate rises and falls."""

    steps: Positive = 2000
    """Steps of the optimiser."""
    warmup: Count = 200
    """Steps over which the learning rate rises to its peak."""
    fall: Literal["cosine", "linear"] = "cosine"
    """How it falls to zero."""
    fall_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps, at the end, over which it falls to zero."""


class RecomputeSection(Section):
    """Activations that are computed again for the backward pass instead of being kept: less memory, more time.

    Each is a number of blocks, counted from the first; -1 is all of them.
    """

    block: Annotated[int, Field(ge=-1)] = 0
    """Whole blocks: a number of them, from the first on; -1 is all."""
    attention: Annotated[int, Field(ge=-1)] = 0
    """Only their attention, likewise."""
    mlp: Annotated[int, Field(ge=-1)] = 0
    """Only their MLPs, likewise."""


class ComputeSection(Section):
    """How it is computed."""

    device: str | None = None
    """The best one there is when left out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: matrix products, and frozen weights. What is trained, losses and optimiser stay in float32."""
    kernel: str = "sdpa"
    """Attention kernel."""
    quantise: str = "none"
    """Keeps the frozen weights of a LoRA's base in fewer bits."""
    compile: bool = False
    """Compiles the blocks, once for each bucket."""
    recompute: RecomputeSection = RecomputeSection()

    @model_validator(mode="after")
    def _names_plugins(self) -> "ComputeSection":
        _known("kernel", self.kernel, names(ATTENTION_KERNELS))
        _known("quantise", self.quantise, ("none", *names(QUANTISERS)))
        return self


class ParallelSection(Section):
    """How the processes that torchrun starts share the work: replicate x shard x context is their number."""

    replicate: Positive = 1
    """Groups of processes that hold all weights, each in shards: best one for each machine."""
    shard: Positive | None = None
    """Processes over which weights, average and moments are split; left out, all that there are."""
    context: Positive = 1
    """Processes that share the tokens of one clip; weights are split over these too."""
    timeout_s: Positive = 600
    """How long a process waits for the others within a step before the run ends."""


class CheckpointSection(Section):
    """How much a crash costs."""

    every: Positive = 200
    """Steps from one to the next; the last step is always saved."""
    keep: Positive = 2
    """How many are kept."""


class ClipSection(Section):
    """Clips that show how far it is."""

    prompts: tuple[str, ...] = ()
    """One clip for each; without any, no clips are made."""
    every: Positive = 200
    """Steps from one look to the next."""
    seed: int = 0
    """Of their noise."""
    height: Positive | None = None
    """As for `daifuku generate`."""
    width: Positive | None = None
    """As for `daifuku generate`."""
    num_frames: Positive | None = None
    """As for `daifuku generate`."""
    num_inference_steps: Positive | None = None
    """As for `daifuku generate`."""
    guidance_scale: float | None = None
    """As for `daifuku generate`."""


class WatchSection(Section):
    """What can be looked at while it runs."""

    tensorboard: bool = True
    """Curves in OUTPUT/tensorboard, where the extra daifuku[train] is installed."""
    wandb: str | None = None
    """A project of Weights & Biases, where the package wandb is installed."""
    clips: ClipSection = ClipSection()


def _known(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1) or choices
        raise ValueError(f"{key}={value!r} is unknown: the choices are {', '.join(choices)}. Try {near[0]!r}")
