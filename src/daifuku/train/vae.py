"""Training the autoencoder: reconstruction that minds the moving object, and a light pull towards a unit Gaussian."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.encoder import Posterior
from daifuku.train.loop import Company, LoopSettings, Report, train
from daifuku.weights.load import load_vae

Batch = tuple[UInt8[np.ndarray, "b t h w 3"], Bool[np.ndarray, "b t h w"]]
"""Clips, and which of their pixels belong to an object."""


@dataclass(frozen=True, kw_only=True)
class VAELossSettings:
    """Weights of the terms of the loss."""

    object_weight: float = 8.0
    kl_weight: float = 3e-3


def to_video(frames: UInt8[np.ndarray, "b t h w 3"], device: torch.device | str) -> Float[Tensor, "b 3 t h w"]:
    """Frames 0..255 to the VAE's [-1, 1]."""
    video = torch.from_numpy(frames).to(device).float() / 127.5 - 1
    return rearrange(video, "b t h w c -> b c t h w").contiguous()


def pixel_weights(mask: Bool[Tensor, "b t h w"], object_weight: float) -> Float[Tensor, "b 1 t h w"]:
    """1 on the background, `object_weight` on objects and two pixels around them, where edges are learnt."""
    grown = F.max_pool2d(mask.float(), 5, stride=1, padding=2)
    return (1 + (object_weight - 1) * grown).unsqueeze(1)


def kl_divergence(posterior: Posterior) -> Float[Tensor, ""]:
    """Mean over latent values of KL(posterior || unit Gaussian), in nats."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def read_vae(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    variant: str | None = None,
) -> AsymmVAE:
    """Both halves of a model's VAE, ready to be trained.

    Raises InvalidRequest for half a VAE, and what `load_vae` raises.
    """
    vae = load_vae(source, device=device, revision=revision, variant=variant)
    if vae.encoder is None or vae.decoder is None:
        raise InvalidRequest(f"{source} holds one half of a VAE, and training needs both: give a whole model")
    for parameter in vae.parameters():
        # Weights may still be views of their file.
        parameter.data = parameter.data.clone()
    return vae.requires_grad_(True)


def train_vae(
    vae: AsymmVAE,
    batches: Callable[[int], Batch],
    settings: LoopSettings,
    losses: VAELossSettings,
    folder: Path,
    *,
    validation: Batch,
    bfloat16: bool,
    company: Company | None = None,
) -> Iterator[Report]:
    """Trains both halves, or, when the encoder's parameters do not require gradients, the decoder alone."""
    assert vae.encoder is not None, "a VAE is trained with its encoder"
    assert vae.decoder is not None, "a VAE is trained with its decoder"
    encoder, decoder = vae.encoder, vae.decoder
    device = next(vae.parameters()).device

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        frames, mask = batches(step)
        video = to_video(frames, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            posterior = encoder(video)
            rebuilt = decoder(posterior.sample(generator))
        error = rebuilt.float() - video
        weights = pixel_weights(torch.from_numpy(mask).to(device), losses.object_weight)
        rebuild = (weights * (error.abs() + error.square())).mean()
        kl = kl_divergence(posterior)
        return rebuild + losses.kl_weight * kl, {"rebuild": rebuild.item(), "kl": kl.item()}

    def validate() -> dict[str, float]:
        return measure_reconstruction(vae, validation, bfloat16)

    yield from train(vae, loss, settings, folder, validate=validate, company=company)


@torch.no_grad()
def measure_reconstruction(vae: AsymmVAE, batch: Batch, bfloat16: bool) -> dict[str, float]:
    """PSNR in dB of the posterior mean's decode, over all pixels and over the pixels of objects."""
    frames, mask = batch
    device = next(vae.parameters()).device
    whole, on_object = [], []
    for clip, inside in zip(frames, mask, strict=True):
        video = to_video(clip[None], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            rebuilt = vae.decode(vae.encode(video).mean)
        error = ((rebuilt.float().clamp(-1, 1) - video) / 2).square()
        whole.append(float(error.mean()))
        on_object.append(float(error[:, :, torch.from_numpy(inside)].mean()))
    return {"psnr": _decibel(whole), "psnr_object": _decibel(on_object)}


def _decibel(squared_errors: list[float]) -> float:
    return float(np.mean(-10 * np.log10(squared_errors)))
