"""Everything that decides what the recipe of the built-in model makes. A TOML file may change each of it."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from daifuku.config import TIME_FACTOR, DecoderConfig, DiTConfig, EncoderConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.train.captions import LEAST_VOCABULARY, VOCABULARY
from daifuku.train.config import explained, read_toml
from daifuku.train.dit import DiTLossSettings
from daifuku.train.fast import FastSettings
from daifuku.train.loop import LoopSettings
from daifuku.train.muon import OptimiserSettings
from daifuku.train.sections import Count, Positive
from daifuku.train.tiny_clips import CUTS, CutSettings, WorldSettings
from daifuku.train.vae import VAELossSettings
from daifuku.weights.save import transformer_config

ENCODER = EncoderConfig(
    channels=(16, 32, 64, 64), num_blocks=(0, 1, 1, 1, 1), attention=(False, False, False, True, True)
)
DECODER = DecoderConfig(channels=(16, 32, 96, 96), num_blocks=(0, 1, 1, 1, 1))
DIT = DiTConfig(
    num_blocks=6,
    num_heads=6,
    head_dim=32,
    text_width=96,
    video_mlp_width=512,
    text_mlp_width=256,
    text_features=128,
)
VAE_LOOP = LoopSettings(num_steps=3600, optimiser=OptimiserSettings(lr=3e-3), ema_decay=0.998, validate_every=200)
DECODER_LOOP = LoopSettings(
    num_steps=400,
    optimiser=OptimiserSettings(lr=2e-3),
    warmup_steps=30,
    decay_share=0.7,
    ema_decay=0.99,
    validate_every=100,
)
FAST_LOOP = LoopSettings(
    num_steps=6000,
    optimiser=OptimiserSettings(lr=5e-4),
    warmup_steps=30,
    decay_share=0.5,
    ema_decay=0.99,
    validate_every=240,
)
FAST_LORA_LOOP = LoopSettings(
    num_steps=400,
    optimiser=OptimiserSettings(kind="adamw", lr=4e-4),
    warmup_steps=20,
    decay_share=0.7,
    ema_decay=0.98,
    frozen_too=False,
    validate_every=200,
)
DIT_LOOP = LoopSettings(num_steps=3900, optimiser=OptimiserSettings(lr=3e-3))


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Sizes of what is trained. The text encoder is as wide as the text features of the DiT.

    Raises InvalidRequest for sizes that cannot be.
    """

    encoder: EncoderConfig = ENCODER
    decoder: DecoderConfig = DECODER
    dit: DiTConfig = DIT
    vocabulary: Positive = VOCABULARY
    """Words and letters that the tokenizer knows, at most."""

    def __post_init__(self) -> None:
        if self.vocabulary < LEAST_VOCABULARY:
            raise InvalidRequest(
                f"a vocabulary of {self.vocabulary} pieces has no room for the letters: try {LEAST_VOCABULARY}"
            )
        transformer_config(self.dit)
        try:
            with torch.device("meta"):
                Encoder(self.encoder)
                Decoder(self.decoder)
                AsymmDiT(self.dit)
        except ValueError as error:
            raise InvalidRequest(f"no networks have these sizes: {error}") from error


@dataclass(frozen=True, kw_only=True)
class TinySettings:
    """Everything that decides the result, up to the machine's arithmetic. Raises InvalidRequest where it cannot be."""

    folder: Path
    device: str = "cpu"
    world: WorldSettings = field(default_factory=WorldSettings)
    num_workers: Count = 0
    """Processes that render clips ahead of their use, one less than there are cores; with 0 all waits for rendering."""
    networks: Networks = field(default_factory=Networks)
    bfloat16: bool = True
    """Matrix products in bfloat16: faster on GPUs and on CPUs that have AMX or AVX512-BF16. Norms' statistics, the
    features of the pixels, losses and optimiser stay in float32."""
    compile: bool = True
    """Compile the DiT's blocks: three times the speed for a minute of waiting."""
    vae_from: Path | None = None
    """A model whose VAE is where the stage `vae` begins, and whose sizes it has, instead of random weights."""
    vae: LoopSettings = VAE_LOOP
    vae_losses: VAELossSettings = field(default_factory=VAELossSettings)
    cuts: CutSettings = CUTS
    decoder: LoopSettings = DECODER_LOOP
    num_clips: Positive = 16 * 1024
    """Clips whose latents the DiT learns from."""
    clips_at_once: Positive = 1
    """Clips that are encoded together: on a GPU many, up to a chunk of 16."""
    num_validation_clips: Positive = 24
    """Clips that the VAE is measured on."""
    num_validation_latents: Positive = 256
    """Clips that the DiT is measured on."""
    dit_from: Path | None = None
    """A built-in model whose transformer and text encoder are where the stage `dit` begins, instead of random weights:
    of the same sizes; a word that its vocabulary lacks begins as the mean of the pieces that it is there."""
    dit: LoopSettings = DIT_LOOP
    dit_losses: DiTLossSettings = field(default_factory=DiTLossSettings)
    few_steps: bool = False
    """Also train a LoRA with which eight steps of one pass do: the stages `fast` and `fast_lora`."""
    fast_from: Path | None = None
    """A built-in model whose LoRA for few steps is where the stage `fast` begins: with what that changes there."""
    fast: LoopSettings = FAST_LOOP
    fast_lora: LoopSettings = FAST_LORA_LOOP
    fast_student: FastSettings = field(default_factory=FastSettings)

    def __post_init__(self) -> None:
        largest = max(self.dit_losses.batch_size, self.fast_student.batch_size)
        if largest > self.num_clips:
            raise InvalidRequest(
                f"batches of {largest} samples do not go with num_clips={self.num_clips}: try {self.num_clips}"
            )
        for frames, _ in self.cuts.windows:
            if frames % TIME_FACTOR != 1 or frames > self.world.num_frames:
                raise InvalidRequest(
                    f"cuts.windows are of 6k+1 frames and at most world.num_frames={self.world.num_frames}, and not of "
                    f"{frames}: try {min(frames, self.world.num_frames) // TIME_FACTOR * TIME_FACTOR + 1}"
                )


def read_settings(path: Path, folder: Path, device: str) -> TinySettings:
    """The recipe with what a TOML file changes of it: its tables and keys are the fields of `TinySettings`.

    Where a run is kept and on which device it trains is no matter of the file. Raises InvalidRequest naming the key,
    and the nearest that works.
    """
    own = {"folder": folder, "device": device}
    plain = {name: value for name, value in asdict(TinySettings(folder=folder)).items() if name not in own}
    changed = _changed(plain, read_toml(path), str(path), "")
    try:
        return TypeAdapter(TinySettings).validate_python(changed | own)
    except ValidationError as error:
        raise InvalidRequest(f"{path}: {'; '.join(explained(each) for each in error.errors())}") from None


def _changed(plain: Mapping[str, Any], changes: Mapping[str, Any], where: str, table: str) -> dict[str, Any]:
    """A table with some of its keys changed, and those of tables in it."""
    changed = dict(plain)
    for name, value in changes.items():
        if name not in plain:
            near = difflib.get_close_matches(name, plain, n=1)
            what = f"try {table}{near[0]}" if near else f"there are {', '.join(plain)}"
            raise InvalidRequest(f"{where}: there is no {table}{name}: {what}")
        if isinstance(plain[name], dict) and isinstance(value, dict):
            value = _changed(plain[name], value, where, f"{table}{name}.")
        changed[name] = value
    return changed
