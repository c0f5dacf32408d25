"""Training the DiT, and with it the text encoder, by flow matching on whitened latents.

Input (1 - sigma) z + sigma noise, target z - noise. Two anchors tell whether it learns (derived for whitened latents
and sigma uniform in [0, 1]): a model that answers zero has loss 2, one that knows only the marginals has pi / 2.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import T5EncoderModel

from daifuku.model.dit import AsymmDiT
from daifuku.runtime.kernels import set_kernel
from daifuku.train.attention import kernel_for
from daifuku.train.given import Given, beside_given, draw_given, of_open_frames
from daifuku.train.loop import LoopSettings, Report, generator_for, train
from daifuku.train.sections import Positive, Share
from daifuku.train.velocity import VALIDATION_SIGMAS, velocity_error


@dataclass(frozen=True, kw_only=True)
class DiTLossSettings:
    """How noise levels and captions are drawn."""

    batch_size: Positive = 64
    logit_mean: float = 0.5
    logit_std: float = 1.2
    uniform_share: Share = 0.3
    """Share of the samples whose sigma is uniform; the rest is logit-normal. Uniform ones reach the ends."""
    caption_dropout: Share = 0.1
    given_share: Share = 0.0
    """Share of the samples of which some latent frames are given (`given.py`)."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Whitened latents with their tokenised captions."""

    latents: Float[Tensor, "b c t h w"]
    ids: Int[Tensor, "b l"]
    mask: Bool[Tensor, "b l"]


class TextToVideo(nn.Module):
    """The DiT and its text encoder as one model to train."""

    def __init__(self, dit: AsymmDiT, text_encoder: T5EncoderModel) -> None:
        super().__init__()
        self.dit = dit
        self.text_encoder = text_encoder

    def forward(
        self,
        latent: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        ids: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b l"],
        dropped: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b c t h w"]:
        """A dropped caption has no valid token, which is just what the sampler's empty prompt looks like to the DiT."""
        features = self.text_encoder(ids, attention_mask=mask.long()).last_hidden_state
        return self.dit(latent, sigma, features, mask & ~dropped.unsqueeze(1))


def draw_sigmas(settings: DiTLossSettings, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """One sigma per sample, stratified: every batch covers the whole range."""
    quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    quantile = quantile.clamp(1e-4, 1 - 1e-4)
    normal = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    logit_normal = torch.sigmoid(settings.logit_mean + settings.logit_std * normal)
    uniform = torch.rand(count, generator=generator) < settings.uniform_share
    return torch.where(uniform, quantile, logit_normal)


def noise_like(latents: Float[Tensor, "b c t h w"], generator: torch.Generator) -> Float[Tensor, "b c t h w"]:
    """Standard normal noise from the random numbers of a step, on the device of the latents.

    Not a CPU's for every device: that takes longer to draw than a GPU takes for the rest of a small model's step.
    """
    if latents.device.type == "cpu":
        return torch.randn(latents.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    own = torch.Generator(latents.device).manual_seed(seed)
    return torch.randn(latents.shape, generator=own, device=latents.device)


def flow_loss(
    model: TextToVideo,
    batch: Captioned,
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c t h w"],
    dropped: Bool[Tensor, " b"],
    given: Given,
    bfloat16: bool,
) -> Float[Tensor, " b"]:
    """Mean squared error of the velocity over the frames that are not given, per sample."""

    def predict(noisy: Tensor, sigma: Tensor) -> Tensor:
        return model(noisy, sigma, batch.ids, batch.mask, dropped)

    network = beside_given(predict, batch.latents, noise, given)
    return of_open_frames(velocity_error(network, batch.latents, noise, sigma, bfloat16), given)


def train_dit(
    model: TextToVideo,
    batches: Callable[[int], Captioned],
    settings: LoopSettings,
    losses: DiTLossSettings,
    folder: Path,
    *,
    validation: Captioned,
    bfloat16: bool,
) -> Iterator[Report]:
    """Trains DiT and text encoder together; `batches(step)` gives the samples of a step."""
    device = next(model.parameters()).device
    set_kernel(model.dit, kernel_for(device))

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = batches(step)
        count = len(batch.latents)
        noise = noise_like(batch.latents, generator)
        sigma = draw_sigmas(losses, count, generator).to(device)
        dropped = (torch.rand(count, generator=generator) < losses.caption_dropout).to(device)
        given = draw_given(losses.given_share, count, noise.shape[2], generator).to(device)
        return flow_loss(model, batch, sigma, noise, dropped, given, bfloat16).mean(), {}

    def validate() -> dict[str, float]:
        curve = validation_loss(model, validation, bfloat16)
        if losses.given_share:
            curve["val_given"] = validation_loss(model, validation, bfloat16, first_given=True)["val"]
        return curve

    yield from train(model, loss, settings, folder, validate=validate, adam_share=share_of)


@torch.no_grad()
def validation_loss(
    model: TextToVideo, batch: Captioned, bfloat16: bool, *, first_given: bool = False
) -> dict[str, float]:
    """Loss on fixed noise at eight noise levels in the middles of equal bins, and their mean.

    With `first_given` the first latent frame is given, and the others are measured.
    """
    noise = torch.randn(batch.latents.shape, generator=generator_for(0, 0)).to(batch.latents.device)
    kept = torch.zeros(len(noise), dtype=torch.bool, device=noise.device)
    given = torch.zeros(len(noise), noise.shape[2], dtype=torch.bool, device=noise.device)
    given[:, 0] = first_given
    curve = {}
    for level in VALIDATION_SIGMAS:
        sigma = torch.full((len(noise),), level, device=noise.device)
        curve[f"val_{level:.4f}"] = flow_loss(model, batch, sigma, noise, kept, given, bfloat16).mean().item()
    return {"val": sum(curve.values()) / len(curve)} | curve


def share_of(name: str, parameter: Tensor) -> float | None:
    """Embeddings and what touches pixels or positions go by AdamW; frequencies slowly, since space spans 200 units."""
    if "pos_frequencies" in name:
        return 0.01
    tables = ("shared", "embed_tokens", "relative_attention_bias", "patch_embed", "final.linear")
    return 1.0 if parameter.ndim < 2 or any(table in name for table in tables) else None
