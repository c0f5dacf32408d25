"""The recipe of the built-in model: what it is, what it sees, how long it trains. `make tiny` runs it.

Five stages, each resumable on its own: the VAE, the decoder once more with the encoder frozen, latents of many clips,
the DiT with its text encoder, and a LoRA with which it needs few steps of one pass each. Everything is a function of
the settings below.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from transformers import PreTrainedTokenizerFast

from daifuku import world
from daifuku.config import DecoderConfig, DiTConfig, EncoderConfig, LatentStats
from daifuku.errors import TrainingError
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.runtime import preview
from daifuku.train import fast
from daifuku.train.captions import longest, new_text_encoder, new_tokenizer
from daifuku.train.checkpoint import newest_checkpoint
from daifuku.train.dit import DiTLossSettings, TextToVideo, train_dit
from daifuku.train.fast import FastSettings, add_fast_lora, train_fast, write_fast_lora
from daifuku.train.initialise import initialise_dit
from daifuku.train.latents import LatentSet, channel_stats, encode_clips, read_clips
from daifuku.train.loop import LoopSettings, Report
from daifuku.train.muon import OptimiserSettings
from daifuku.train.vae import Batch, VAELossSettings, train_vae
from daifuku.weights import save

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
UNIT_STATS = LatentStats(mean=(0.0,) * 12, std=(1.0,) * 12)

VALIDATION_SEED = 1_000_003
"""Seed of the clips that are only measured on; training uses seeds near zero."""

CAPTIONS_PER_CLIP = 4

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
    num_steps=1500,
    optimiser=OptimiserSettings(kind="adamw", lr=2e-3),
    warmup_steps=30,
    decay_share=0.5,
    ema_decay=0.99,
    frozen_too=False,
    validate_every=230,
)
DIT_LOOP = LoopSettings(num_steps=3900, optimiser=OptimiserSettings(lr=3e-3))

DEFAULTS: dict[str, Any] = {
    "presets": {fast.PRESET: fast.DEFAULTS},
    "height": 64,
    "width": 64,
    "num_frames": 31,
    "fps": 20,
    "num_inference_steps": 32,
    "guidance_scale": 3.0,
    "threshold_noise": 0.1,
}
"""What a request that leaves these open gets from the built-in model."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """The clips that the built-in model learns."""

    size: int = 64
    num_frames: int = 31
    pair_share: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TinySettings:
    """Everything that decides the result, up to the machine's arithmetic."""

    folder: Path
    device: str = "cpu"
    world: WorldSettings = field(default_factory=WorldSettings)
    bfloat16: bool = True
    """Matrix products in bfloat16: faster on GPUs and on CPUs that have AMX or AVX512-BF16. Norms' statistics, the
    features of the pixels, losses and optimiser stay in float32."""
    compile: bool = True
    """Compile the DiT's blocks: three times the speed for a minute of waiting."""
    vae: LoopSettings = VAE_LOOP
    vae_losses: VAELossSettings = field(default_factory=VAELossSettings)
    decoder: LoopSettings = DECODER_LOOP
    num_clips: int = 16 * 1024
    """Clips whose latents the DiT learns from."""
    num_validation_clips: int = 24
    """Clips that the VAE is measured on."""
    num_validation_latents: int = 256
    """Clips that the DiT is measured on."""
    dit: LoopSettings = DIT_LOOP
    dit_losses: DiTLossSettings = field(default_factory=DiTLossSettings)
    fast: LoopSettings = FAST_LOOP
    fast_lora: FastSettings = field(default_factory=FastSettings)


Stage = Callable[[TinySettings], Iterator[Report]]


WINDOWS = ((13, 8), (13, 8), (13, 8), (25, 4))
"""(frames, clips) of consecutive VAE steps: mostly short windows, some longer ones for the causal past."""

CROP_SHARE, CROP = 0.75, 0.75
"""Over the first part of the steps the VAE sees a part of each side only: twice the steps in the same time."""


def vae_batch(settings: WorldSettings, step: int, crop_steps: int) -> Batch:
    """A window at a random time, and at first at a random place, in each of a few fresh clips."""
    num_frames, count = WINDOWS[step % len(WINDOWS)]
    side = int(settings.size * CROP) if step < CROP_SHARE * crop_steps else settings.size
    rng = np.random.default_rng([settings.seed, step])
    clips = world.clips(
        settings.seed,
        step * 8,
        count,
        size=settings.size,
        num_frames=settings.num_frames,
        pair_share=settings.pair_share,
    )
    limits = (settings.num_frames - num_frames + 1, settings.size - side + 1, settings.size - side + 1)
    windows = [
        (slice(start, start + num_frames), slice(row, row + side), slice(col, col + side))
        for start, row, col in rng.integers(0, limits, (count, 3))
    ]
    frames = np.stack([clip.frames[window] for clip, window in zip(clips, windows, strict=True)])
    return frames, np.stack([clip.mask[window] for clip, window in zip(clips, windows, strict=True)])


def validation_batch(settings: WorldSettings, count: int) -> Batch:
    """Whole clips of combinations never trained on."""
    clips = world.clips(VALIDATION_SEED, 0, count, size=settings.size, num_frames=settings.num_frames, split="unseen")
    return np.stack([clip.frames for clip in clips]), np.stack([clip.mask for clip in clips])


def new_vae() -> AsymmVAE:
    """The built-in VAE with random weights."""
    torch.manual_seed(0)
    return AsymmVAE(Encoder(ENCODER), Decoder(DECODER), UNIT_STATS)


def stage_vae(settings: TinySettings) -> Iterator[Report]:
    """Both halves of the VAE."""
    yield from _train_vae(new_vae(), settings, settings.vae, "vae", settings.vae.num_steps)


def stage_decoder(settings: TinySettings) -> Iterator[Report]:
    """The decoder alone, on whole pictures, from where the first stage left it."""
    vae = trained_vae(settings, stage="vae")
    assert vae.encoder is not None, "new_vae makes both halves"
    vae.encoder.requires_grad_(False)
    yield from _train_vae(vae, settings, settings.decoder, "decoder", 0)


def _train_vae(
    vae: AsymmVAE, settings: TinySettings, loop: LoopSettings, stage: str, crop_steps: int
) -> Iterator[Report]:
    folder = settings.folder / stage
    folder.mkdir(parents=True, exist_ok=True)
    yield from train_vae(
        vae.to(settings.device),
        lambda step: vae_batch(settings.world, step, crop_steps),
        loop,
        settings.vae_losses,
        folder,
        validation=validation_batch(settings.world, settings.num_validation_clips),
        bfloat16=settings.bfloat16,
    )


def trained_vae(settings: TinySettings, stage: str) -> AsymmVAE:
    """The averaged weights of a finished VAE stage."""
    vae = new_vae()
    _load_averaged(vae, settings.folder / stage)
    return vae.to(settings.device)


def stage_latents(settings: TinySettings) -> Iterator[Report]:
    """Latents of the clips that the DiT learns from, and of those it is measured on."""
    vae = trained_vae(settings, stage="vae")
    for name, seed, split, count in (
        ("validation", VALIDATION_SEED, "unseen", settings.num_validation_latents),
        ("train", settings.world.seed + 1, "train", settings.num_clips),
    ):

        def clips(start: int, num: int, seed: int = seed, split: str = split) -> list[tuple[world.Clip, list[str]]]:
            return captioned_clips(settings.world, seed, split, start, num)

        folder = settings.folder / "latents" / name
        for done in encode_clips(vae, clips, folder, count, settings.bfloat16):
            yield Report(step=done, num_steps=count, values={}, seconds=0.0)


def captioned_clips(
    settings: WorldSettings, seed: int, split: str, start: int, count: int
) -> list[tuple[world.Clip, list[str]]]:
    """Clips of the numbered stream, each with several captions of its scene."""
    made = []
    for index in range(start, start + count):
        clip = world.clip(
            seed,
            index,
            size=settings.size,
            num_frames=settings.num_frames,
            pair_share=settings.pair_share if split == "train" else 0.0,
            split=split,
        )
        rng = np.random.default_rng([seed, index, 1])
        made.append((clip, [clip.caption] + [world.describe(clip.scene, rng) for _ in range(CAPTIONS_PER_CLIP - 1)]))
    return made


def stage_dit(settings: TinySettings) -> Iterator[Report]:
    """The DiT and its text encoder, together."""
    folder = settings.folder / "dit"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, sets = _latent_sets(settings)
    model = new_text_to_video(len(tokenizer)).to(settings.device)
    if settings.compile:
        _compile(model.dit, sets["train"].num_tokens)
    yield from train_dit(
        model,
        lambda step: sets["train"].batch(step, settings.dit_losses.batch_size, settings.dit.seed),
        settings.dit,
        settings.dit_losses,
        folder,
        validation=sets["validation"].first(settings.num_validation_latents),
        bfloat16=settings.bfloat16,
    )


def stage_fast(settings: TinySettings) -> Iterator[Report]:
    """A LoRA with which the DiT takes few steps of one pass each; the text encoder stays as it is."""
    folder = settings.folder / "fast"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, sets = _latent_sets(settings)
    model = _trained_text_to_video(settings, len(tokenizer)).to(settings.device)
    add_fast_lora(model.dit, settings.fast_lora)
    if settings.compile:
        _compile(model.dit, sets["train"].num_tokens)
    yield from train_fast(
        model,
        lambda step: sets["train"].batch(step, settings.fast_lora.batch_size, settings.fast.seed),
        settings.fast,
        folder,
        validation=sets["validation"].first(settings.num_validation_latents),
        bfloat16=settings.bfloat16,
        given_share=settings.fast_lora.given_share,
    )


def _latent_sets(settings: TinySettings) -> tuple[PreTrainedTokenizerFast, dict[str, LatentSet]]:
    """The tokenizer, and the clips that are learnt from and measured on."""
    latents, captions = read_clips(settings.folder / "latents" / "train")
    flat = [caption for sentences in captions for caption in sentences]
    tokenizer = trained_tokenizer(settings, flat)
    stats, num_tokens = channel_stats(latents), longest(tokenizer, flat)
    sets = {
        name: LatentSet(settings.folder / "latents" / name, tokenizer, stats, num_tokens, settings.device)
        for name in ("train", "validation")
    }
    return tokenizer, sets


def _compile(dit: AsymmDiT, num_tokens: int) -> None:
    dit.text_multiple = num_tokens
    for block in dit.blocks:
        block.compile(dynamic=False)


def trained_tokenizer(settings: TinySettings, captions: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a run, learnt once."""
    folder = settings.folder / "tokenizer"
    if not folder.exists():
        new_tokenizer(captions).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def new_text_to_video(vocabulary: int) -> TextToVideo:
    """The built-in DiT and text encoder with fresh weights."""
    torch.manual_seed(0)
    dit, text_encoder = AsymmDiT(DIT), new_text_encoder(vocabulary)
    initialise_dit(dit, torch.Generator().manual_seed(0))
    return TextToVideo(dit, text_encoder)


def _trained_text_to_video(settings: TinySettings, vocabulary: int) -> TextToVideo:
    """The averaged weights of the finished stage."""
    model = new_text_to_video(vocabulary)
    _load_averaged(model, settings.folder / "dit")
    return model


def export(settings: TinySettings, target: Path) -> None:
    """Writes the trained model as a diffusers folder in bfloat16: what ships as `assets/tiny`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.folder / "tokenizer")
    latents, _ = read_clips(settings.folder / "latents" / "train")
    vae = trained_vae(settings, stage="decoder")
    vae.stats = channel_stats(latents)
    model = _trained_text_to_video(settings, len(tokenizer))
    save.save_vae(vae, target, dtype=torch.bfloat16)
    save.save_dit(model.dit, target, dtype=torch.bfloat16)
    torch.nn.Module.to(model.text_encoder, torch.bfloat16)
    model.text_encoder.save_pretrained(target / "text_encoder")
    tokenizer.save_pretrained(target / "tokenizer")
    save.write_scheduler(target)
    save.write_model_index(target, zero_empty=True)
    save.write_defaults(target, DEFAULTS)
    preview_map(vae).save(target / preview.FILE)
    export_fast(settings, target)


def export_fast(settings: TinySettings, target: Path) -> None:
    """Writes the LoRA of the stage `fast` alone, beside the model that it was trained for."""
    dit = add_fast_lora(AsymmDiT(DIT), settings.fast_lora)
    _load_averaged(dit, settings.folder / "fast")
    write_fast_lora(dit, target)


@torch.inference_mode()
def preview_map(vae: AsymmVAE, num_clips: int = 64) -> preview.LatentToRGB:
    """What shows latents of the built-in model as colours, fitted to rendered clips."""
    frames = [
        each.frames for each in world.clips(0, 0, num_clips, size=DEFAULTS["height"], num_frames=DEFAULTS["num_frames"])
    ]
    videos = (rearrange(torch.from_numpy(each), "t h w c -> 1 c t h w") / 127.5 - 1 for each in frames)
    return preview.fit(
        (vae.whiten(vae.encode(video).mean)[0], each) for video, each in zip(videos, frames, strict=True)
    )


STAGES: dict[str, Stage] = {
    "vae": stage_vae,
    "decoder": stage_decoder,
    "latents": stage_latents,
    "dit": stage_dit,
    "fast": stage_fast,
}
"""In the order in which they run; each picks up what the ones before it left in the folder."""


@torch.no_grad()
def _load_averaged(model: torch.nn.Module, folder: Path) -> None:
    found = newest_checkpoint(folder)
    if found is None:
        raise TrainingError(f"{folder} holds no checkpoint: run the stage {folder.name!r} first")
    averaged = found.groups["ema"]
    for name, parameter in model.named_parameters():
        # Of a LoRA nothing else was kept.
        if parameter.requires_grad:
            parameter.copy_(averaged[name])
