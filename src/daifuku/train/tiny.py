"""The recipe of the built-in model: what it is, what it sees, how long it trains. `make tiny` runs it.

Stages, each resumable on its own: the VAE, the decoder once more with the encoder frozen, latents of many clips, the
DiT with its text encoder; and where few steps shall do, the DiT once more for those, and that as a LoRA. Everything is
a function of its settings, `tiny_settings.py`, and for its clips `tiny_clips.py`. The shipped model takes two runs: one
with the settings as they stand, and one in a larger world that begins with what the first has learnt.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from daifuku import world
from daifuku.config import DiTConfig, LatentStats
from daifuku.errors import InvalidRequest, TrainingError
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.runtime import preview
from daifuku.train import fast
from daifuku.train.ahead import made_ahead
from daifuku.train.captions import longest, new_text_encoder, new_tokenizer, take_text_encoder
from daifuku.train.checkpoint import newest_checkpoint
from daifuku.train.dit import TextToVideo, train_dit
from daifuku.train.fast import add_fast_lora, train_fast, train_matrices_only, write_fast_lora
from daifuku.train.initialise import initialise_dit
from daifuku.train.latents import LatentSet, channel_stats, encode_clips, read_clips
from daifuku.train.loop import LoopSettings, Report
from daifuku.train.lora import kept_pairs
from daifuku.train.tiny_clips import VALIDATION_SEED, WorldSettings, captioned_clips, vae_batch, validation_batch
from daifuku.train.tiny_settings import TinySettings
from daifuku.train.vae import read_vae, train_vae
from daifuku.weights import save
from daifuku.weights.load import load_dit

UNIT_STATS = LatentStats(mean=(0.0,) * 12, std=(1.0,) * 12)

NUM_SHOWN = 64
"""Clips that show which inputs the layers of the student get."""

Stage = Callable[[TinySettings], Iterator[Report]]


def new_vae(settings: TinySettings) -> AsymmVAE:
    """The VAE as training begins: with random weights, or with those of another model."""
    if settings.vae_from is not None:
        return read_vae(settings.vae_from)
    torch.manual_seed(0)
    return AsymmVAE(Encoder(settings.networks.encoder), Decoder(settings.networks.decoder), UNIT_STATS)


def stage_vae(settings: TinySettings) -> Iterator[Report]:
    """Both halves of the VAE."""
    yield from _train_vae(new_vae(settings), settings, settings.vae, "vae", settings.vae.num_steps)


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
        made_ahead(partial(vae_batch, settings.world, crop_steps=crop_steps, cuts=settings.cuts), settings.num_workers),
        loop,
        settings.vae_losses,
        folder,
        validation=validation_batch(settings.world, settings.num_validation_clips),
        bfloat16=settings.bfloat16,
    )


def trained_vae(settings: TinySettings, stage: str) -> AsymmVAE:
    """The averaged weights of a finished VAE stage."""
    vae = new_vae(settings)
    _load_averaged(vae, settings.folder / stage)
    return vae.to(settings.device)


def stage_latents(settings: TinySettings) -> Iterator[Report]:
    """Latents of the clips that the DiT learns from, and of those it is measured on."""
    vae = trained_vae(settings, stage="vae")
    for name, seed, split, count in (
        ("validation", VALIDATION_SEED, "unseen", settings.num_validation_latents),
        ("train", settings.world.seed + 1, "train", settings.num_clips),
    ):
        chunks = made_ahead(partial(captioned_clips, settings.world, seed, split), settings.num_workers)
        folder, at_once = settings.folder / "latents" / name, settings.clips_at_once
        for done in encode_clips(vae, chunks, folder, count, bfloat16=settings.bfloat16, at_once=at_once):
            yield Report(step=done, num_steps=count, values={}, seconds=0.0)


def stage_dit(settings: TinySettings) -> Iterator[Report]:
    """The DiT and its text encoder, together."""
    folder = settings.folder / "dit"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, sets = _latent_sets(settings)
    model = new_text_to_video(settings.networks.dit, len(tokenizer))
    if settings.dit_from is not None:
        begin_from(settings.dit_from, model, tokenizer)
    model = model.to(settings.device)
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
    """The DiT once more, for few steps of one pass each; the text encoder stays as it is."""
    tokenizer, sets = _latent_sets(settings)
    model = _trained_text_to_video(settings, len(tokenizer))
    teacher = deepcopy(model.dit)
    if settings.fast_from is not None:
        begin_fast_from(settings.fast_from, model.dit)
    train_matrices_only(model.dit)
    yield from _distil(model, teacher, sets, settings, settings.fast, "fast")


def stage_fast_lora(settings: TinySettings) -> Iterator[Report]:
    """What that stage taught as a LoRA, which learns on to make good for what its rank leaves out."""
    tokenizer, sets = _latent_sets(settings)
    model, student = _trained_text_to_video(settings, len(tokenizer)), AsymmDiT(settings.networks.dit)
    _load_averaged(student, settings.folder / "fast")
    model, student = model.to(settings.device), student.to(settings.device)
    teacher = deepcopy(model.dit)
    shown = sets["train"].first(min(NUM_SHOWN, settings.num_clips))
    add_fast_lora(model, student, settings.fast_student.rank, shown)
    yield from _distil(model, teacher, sets, settings, settings.fast_lora, "fast_lora")


def _distil(
    model: TextToVideo,
    teacher: AsymmDiT,
    sets: Mapping[str, LatentSet],
    settings: TinySettings,
    loop: LoopSettings,
    stage: str,
) -> Iterator[Report]:
    folder = settings.folder / stage
    folder.mkdir(parents=True, exist_ok=True)
    model, teacher = model.to(settings.device), teacher.requires_grad_(False).to(settings.device)
    if settings.compile:
        for dit in (model.dit, teacher):
            _compile(dit, sets["train"].num_tokens)
    yield from train_fast(
        model,
        teacher,
        lambda step: sets["train"].batch(step, settings.fast_student.batch_size, loop.seed),
        loop,
        folder,
        validation=sets["validation"].first(settings.num_validation_latents),
        bfloat16=settings.bfloat16,
        settings=settings.fast_student,
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
        new_tokenizer(captions, settings.networks.vocabulary).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def new_text_to_video(sizes: DiTConfig, vocabulary: int) -> TextToVideo:
    """DiT and text encoder with fresh weights."""
    torch.manual_seed(0)
    dit, text_encoder = AsymmDiT(sizes), new_text_encoder(vocabulary, sizes.text_features)
    initialise_dit(dit, torch.Generator().manual_seed(0))
    return TextToVideo(dit, text_encoder)


def begin_from(source: Path, model: TextToVideo, tokenizer: PreTrainedTokenizerFast) -> None:
    """Gives the model the weights of another. Raises InvalidRequest where that has other sizes."""
    _check_sizes(source, model.dit.config)
    model.dit.load_state_dict(load_dit(source).state_dict())
    take_text_encoder(model.text_encoder, tokenizer, source)


@torch.no_grad()
def begin_fast_from(source: Path, dit: AsymmDiT) -> None:
    """Adds to the weights what the LoRA of another built-in model adds to its own, in place.

    Raises InvalidRequest where that has other sizes.
    """
    _check_sizes(source, dit.config)
    plain, fast_one = (load_dit(source, loras=loras) for loras in ((), (source / fast.FILE,)))
    for parameter, before, after in zip(dit.parameters(), plain.parameters(), fast_one.parameters(), strict=True):
        parameter.add_(after - before)


def _check_sizes(source: Path, sizes: DiTConfig) -> None:
    found = load_dit(source, device="meta").config
    others = [f"{name} = {value}" for name, value in asdict(found).items() if value != getattr(sizes, name)]
    if others:
        raise InvalidRequest(f"{source} is a model of other sizes than networks.dit: try {', '.join(others)}")


def _trained_text_to_video(settings: TinySettings, vocabulary: int) -> TextToVideo:
    """The averaged weights of the finished stage."""
    model = new_text_to_video(settings.networks.dit, vocabulary)
    _load_averaged(model, settings.folder / "dit")
    return model


def export(settings: TinySettings, target: Path) -> None:
    """Writes the trained model as a diffusers folder in bfloat16: what ships as `assets/tiny`."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings.folder / "tokenizer")
    latents, _ = read_clips(settings.folder / "latents" / "train")
    vae = trained_vae(settings, stage="decoder").cpu()
    vae.stats = channel_stats(latents)
    model = _trained_text_to_video(settings, len(tokenizer))
    save.save_vae(vae, target, dtype=torch.bfloat16)
    save.save_dit(model.dit, target, dtype=torch.bfloat16)
    torch.nn.Module.to(model.text_encoder, torch.bfloat16)
    model.text_encoder.save_pretrained(target / "text_encoder")
    tokenizer.save_pretrained(target / "tokenizer")
    save.write_scheduler(target)
    save.write_model_index(target, zero_empty=True)
    save.write_defaults(target, defaults(settings))
    preview_map(vae, settings.world).save(target / preview.FILE)
    if settings.few_steps:
        export_fast(settings, target)


def export_fast(settings: TinySettings, target: Path) -> None:
    """Writes the LoRA of the stage `fast_lora` alone, beside the model that it was trained for."""
    write_fast_lora(kept_pairs(_averaged(settings.folder / "fast_lora")), target)


def defaults(settings: TinySettings) -> dict[str, Any]:
    """What a request that leaves these open gets from a model that was trained so."""
    quick = {"preset": fast.PRESET, "presets": {fast.PRESET: fast.DEFAULTS}}
    return (quick if settings.few_steps else {}) | {
        "height": settings.world.size,
        "width": settings.world.size,
        "num_frames": settings.world.num_frames,
        "fps": settings.world.fps,
        "num_inference_steps": 32,
        "guidance_scale": fast.TEACHER.guidance_scale,
        "threshold_noise": 0.1,
    }


@torch.inference_mode()
def preview_map(vae: AsymmVAE, settings: WorldSettings, num_clips: int = 64) -> preview.LatentToRGB:
    """What shows latents of the VAE as colours, fitted to rendered clips."""
    frames = [world.clip(0, index, **settings.shown()).frames for index in range(num_clips)]
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
    "fast_lora": stage_fast_lora,
}
"""In the order in which they run; each picks up what the ones before it left in the folder."""

FOR_FEW_STEPS = frozenset(("fast", "fast_lora"))


def stages(settings: TinySettings) -> list[str]:
    """Names of the stages that a model with these settings needs."""
    return [name for name in STAGES if settings.few_steps or name not in FOR_FEW_STEPS]


def check(settings: TinySettings, wanted: Collection[str]) -> None:
    """Whether those stages can run, as far as that can be told before the first.

    Raises InvalidRequest for stages that the settings leave out, and for models to begin from of other sizes or without
    a LoRA; ModelNotFound where there is none.
    """
    if not settings.few_steps and (unasked := FOR_FEW_STEPS.intersection(wanted)):
        raise InvalidRequest(
            f"the settings ask for no model of few steps, as {min(unasked)} makes: set few_steps = true"
        )
    for stage, source in (("dit", settings.dit_from), ("fast", settings.fast_from)):
        if stage in wanted and source is not None:
            _check_sizes(source, settings.networks.dit)
    if "fast" in wanted and settings.fast_from is not None and not (settings.fast_from / fast.FILE).is_file():
        raise InvalidRequest(
            f"fast_from: {settings.fast_from} has no {fast.FILE}: leave fast_from out, and it begins anew"
        )


@torch.no_grad()
def _load_averaged(model: torch.nn.Module, folder: Path) -> None:
    averaged = _averaged(folder)
    for name, parameter in model.named_parameters():
        parameter.copy_(averaged[name])


def _averaged(folder: Path) -> dict[str, Tensor]:
    found = newest_checkpoint(folder)
    if found is None:
        raise TrainingError(f"{folder} holds no checkpoint: run the stage {folder.name!r} first")
    return found.groups["ema"]
