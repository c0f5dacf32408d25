"""A run that trains a VAE on video files, from its configuration."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from daifuku.config import LatentStats
from daifuku.errors import InvalidRequest
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.runtime.build import BUILT_IN, BUILT_IN_FOLDER, find_device
from daifuku.train.checkpoint import Say
from daifuku.train.clips import ClipFolders
from daifuku.train.config import TrainConfig
from daifuku.train.latents import channel_stats
from daifuku.train.loop import Company, Report
from daifuku.train.run import loop_settings, machine_conditions, make_folder, with_cost
from daifuku.train.vae import Batch, VAELossSettings, read_vae, to_video, train_vae
from daifuku.weights.save import save_vae

NUM_STATS = 64
"""Batches that the statistics of new latents are measured on."""


def run_vae(
    config: TrainConfig,
    *,
    stop: Callable[[], bool] = lambda: False,
    say: Say = lambda _: None,
    allow_inexact: bool = False,
) -> Iterator[Report]:
    """Trains the decoder, or both halves, and writes `OUTPUT/vae` in the layout of diffusers.

    After both halves were trained, the statistics of latents are those of the data. Raises what `train` raises.
    """
    own, batch = config.vae, config.batch
    if config.validation.folder is None:
        raise InvalidRequest("validation.folder is needed to train a VAE: give a folder of video files")

    def clips(*folders: Path) -> ClipFolders:
        return ClipFolders(folders, num_frames=own.num_frames, side=own.side, size=batch.size, seed=config.seed)

    data, measured = clips(*(each.folder for each in config.data)), clips(config.validation.folder)
    vae = _opened(config)
    device = next(vae.parameters()).device
    make_folder(config.output)
    company = Company(
        samples=data.ids,
        stop=stop,
        say=say,
        conditions=machine_conditions(device) | config.conditions() | {"data": _fingerprint(data)},
        allow_inexact=allow_inexact,
    )
    last: Report | None = None
    for last in train_vae(
        vae,
        lambda micro: _everywhere(data.batch(micro)),
        loop_settings(config),
        VAELossSettings(object_weight=1.0, kl_weight=own.kl_weight),
        config.output,
        validation=_everywhere(measured.first(config.validation.num_samples)),
        bfloat16=config.compute.precision == "bfloat16",
        company=company,
    ):
        yield with_cost(last, device)
    if last is None or last.step == config.schedule.steps:
        if own.parts == "both":
            vae.stats = _stats(vae, data)
        save_vae(vae, config.output)
        say(f"wrote {config.output / 'vae'}")


def _opened(config: TrainConfig) -> AsymmVAE:
    own = config.model
    source = BUILT_IN_FOLDER if own.name == BUILT_IN else own.name
    device = find_device(config.compute.device)
    vae = read_vae(source, device=device, revision=own.revision, variant=own.variant)
    assert vae.encoder is not None, "read_vae gives both halves"
    vae.encoder.requires_grad_(config.vae.parts == "both")
    return vae.train()


def _everywhere(frames: UInt8[np.ndarray, "b t h w 3"]) -> Batch:
    """A batch of which every pixel counts alike."""
    return frames, np.ones(frames.shape[:4], dtype=np.bool_)


@torch.no_grad()
def _stats(vae: AsymmVAE, data: ClipFolders) -> LatentStats:
    device = next(vae.parameters()).device
    found = [vae.encode(to_video(data.batch(micro), device)).mean.cpu() for micro in range(NUM_STATS)]
    return channel_stats(torch.cat(found))


def _fingerprint(data: ClipFolders) -> str:
    """Of the files' names and contents."""
    digest = hashlib.sha256()
    for path in data.paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:16]
