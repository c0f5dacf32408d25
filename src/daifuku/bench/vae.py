"""Latents to pixels and back."""

from pathlib import Path

import torch
from torch import Tensor

from daifuku.bench.case import Action
from daifuku.bench.dit import Shape
from daifuku.bench.exact import in_float64
from daifuku.bench.models import their_vae
from daifuku.config import SPACE_FACTOR, TIME_FACTOR
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.weights.load import as_dtype, load_vae


def ours_decode(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu") -> Action:
    """The whole clip at once."""
    return _decode(load_vae(folder, dtype=dtype, device=device), _latent(shape, as_dtype(dtype), device))


def ours_decode_streaming(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu") -> Action:
    """One latent frame at a time. As in the pipeline, frames that came out are let go."""
    vae = load_vae(folder, dtype=dtype, device=device)
    latent = _latent(shape, as_dtype(dtype), device)
    assert vae.decoder is not None, "the folder holds a whole VAE"
    decoder = vae.decoder

    @torch.inference_mode()
    def run() -> None:
        for _ in decoder.chunks(latent):
            pass

    @torch.inference_mode()
    def output() -> Tensor:
        return torch.cat(list(decoder.chunks(latent)), dim=2)

    return Action(run=run, output=output)


def exact_decode(folder: Path, *, shape: Shape) -> Action:
    """Ours in float64."""
    vae = load_vae(folder, dtype="float32").double()
    return in_float64(_decode(vae, _latent(shape, torch.float64, "cpu")))


def diffusers_decode(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu", tiled: bool = False) -> Action:
    """The whole clip at once, or by the tiles that its manual recommends where memory is short."""
    return _their_decode(folder, _latent(shape, as_dtype(dtype), device), tiled)


def exact_diffusers_decode(folder: Path, *, shape: Shape) -> Action:
    """Theirs in float64: the first frames differ from ours by what the two programs mean, not by rounding."""
    return in_float64(_their_decode(folder, _latent(shape, torch.float64, "cpu"), False))


def ours_encode(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu") -> Action:
    """The whole clip at once."""
    return _encode(load_vae(folder, dtype=dtype, device=device), _video(shape, as_dtype(dtype), device))


def ours_encode_streaming(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu") -> Action:
    """Frames as they arrive."""
    vae, video = load_vae(folder, dtype=dtype, device=device), _video(shape, as_dtype(dtype), device)
    assert vae.encoder is not None, "the folder holds a whole VAE"
    encoder = vae.encoder

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.cat([latent.mean for latent in encoder.chunks(video.split(TIME_FACTOR, dim=2))], dim=2)

    return Action(run=run, output=run)


def exact_encode(folder: Path, *, shape: Shape) -> Action:
    """Ours in float64."""
    vae = load_vae(folder, dtype="float32").double()
    return in_float64(_encode(vae, _video(shape, torch.float64, "cpu")))


def diffusers_encode(folder: Path, *, shape: Shape, dtype: str, device: str = "cpu") -> Action:
    """The whole clip at once: it has no other way."""
    model, video = their_vae(folder, as_dtype(dtype), device), _video(shape, as_dtype(dtype), device)

    @torch.no_grad()
    def run() -> Tensor:
        return model.encode(video).latent_dist.mean

    return Action(run=run, output=run)


def _decode(vae: AsymmVAE, latent: Tensor) -> Action:
    @torch.inference_mode()
    def run() -> Tensor:
        return vae.decode(latent)

    return Action(run=run, output=run)


def _their_decode(folder: Path, latent: Tensor, tiled: bool) -> Action:
    model = their_vae(folder, latent.dtype, str(latent.device))
    if tiled:
        model.enable_tiling()

    @torch.no_grad()
    def run() -> Tensor:
        return model.decode(latent).sample

    return Action(run=run, output=run)


def _encode(vae: AsymmVAE, video: Tensor) -> Action:
    @torch.inference_mode()
    def run() -> Tensor:
        return vae.encode(video).mean

    return Action(run=run, output=run)


def _latent(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    noise = torch.randn(1, 12, *shape, generator=torch.Generator().manual_seed(1))
    return noise.bfloat16().to(device, dtype)


def _video(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Smooth pictures that move: noise drawn at the size of latents, made as large as the clip."""
    frames, height, width = shape
    size = (TIME_FACTOR * (frames - 1) + 1, SPACE_FACTOR * height, SPACE_FACTOR * width)
    coarse = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size, mode="trilinear").bfloat16().to(device, dtype)
