"""From pixels to latents: Fourier features, three down stages, middle blocks, mean and log variance."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.config import TEMPORAL_FACTORS, TIME_FACTOR, EncoderConfig
from daifuku.errors import InvalidRequest
from daifuku.model.vae.layers import CausalConv3d, NormSiLU, Pointwise, ResBlock
from daifuku.model.vae.past_frames import CarryOver, PastFrames, Replicate, Resized, Video

FOURIER_OCTAVES = (6, 7)


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """The Gaussian that the encoder sees in a clip, per latent value."""

    mean: Float[Tensor, "b c t h w"]
    logvar: Float[Tensor, "b c t h w"]

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c t h w"]:
        """One draw; the noise comes from `generator` on its own device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean.device)


def add_fourier_features(video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 15 t h w"]:
    """RGB, then sines, then cosines of each colour times 2^6 and 2^7 turns, computed in float32 whatever comes in."""
    radians = torch.tensor([2 * math.pi * 2**octave for octave in FOURIER_OCTAVES], device=video.device)
    angles = torch.einsum("bcthw,f->bcfthw", video.float(), radians)
    angles = rearrange(angles, "b c f t h w -> b (c f) t h w")
    return torch.cat([video.float(), angles.sin(), angles.cos()], dim=1)


class DownStage(nn.Module):
    """A strided convolution, then residual blocks."""

    def __init__(self, channels: int, out_channels: int, num_blocks: int, time_factor: int, attention: bool) -> None:
        super().__init__()
        kernel = (time_factor, 2, 2)
        self.down = CausalConv3d(channels, out_channels, kernel, stride=kernel)
        self.blocks = nn.ModuleList(ResBlock(out_channels, attention) for _ in range(num_blocks))

    def forward(self, video: Video, past: PastFrames) -> Resized:
        video = self.down(self.down.extend(video, past))
        for block in self.blocks:
            video = block(video, past)
        return video


class Encoder(nn.Module):
    """Video [b, 3, 6k+1, height, width] in [-1, 1] to a posterior over latents [b, 12, k+1, height/8, width/8]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, num_blocks, attention = config.channels, config.num_blocks, config.attention
        self.input = Pointwise(3 * (1 + 2 * len(FOURIER_OCTAVES)), channels[0])
        self.first = nn.ModuleList(ResBlock(channels[0], attention[0]) for _ in range(num_blocks[0]))
        self.stages = nn.ModuleList(
            DownStage(channels[i], channels[i + 1], num_blocks[i + 1], TEMPORAL_FACTORS[i], attention[i + 1])
            for i in range(3)
        )
        self.middle = nn.ModuleList(ResBlock(channels[3], attention[4]) for _ in range(num_blocks[4]))
        self.norm = NormSiLU(channels[3])
        self.output = Pointwise(channels[3], 2 * config.latent_channels, bias=False)

    def forward(self, video: Float[Tensor, "b 3 frames height width"]) -> Posterior:
        """The whole clip at once."""
        return self._encode(video, Replicate())

    def chunks(self, pieces: Iterable[Float[Tensor, "b 3 _frames height width"]]) -> Iterator[Posterior]:
        """Encodes a clip that arrives in pieces of any length: a posterior for each latent frame, as soon as it can be.

        Together they equal the whole encode. Only the keys and values of the attention grow with the clip, as it looks
        back to the first frame: per frame of 480x848 the published model keeps 112 million numbers, 223 MB in bfloat16.
        The rest stays constant. Raises InvalidRequest at the end of a clip that does not have 6k+1 frames.
        """
        past = CarryOver()
        for frames in _per_latent_frame(pieces):
            yield self._encode(frames, past)
            past.starts_clip = False

    def _encode(self, video: Video, past: PastFrames) -> Posterior:
        hidden = self.input(add_fourier_features(video).to(self.input.weight.dtype))
        for block in self.first:
            hidden = block(hidden, past)
        for stage in self.stages:
            hidden = stage(hidden, past)
        for block in self.middle:
            hidden = block(hidden, past)
        mean, logvar = self.output(self.norm(hidden)).chunk(2, dim=1)
        return Posterior(mean=mean, logvar=logvar)


def _per_latent_frame(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same frames in other pieces: first 1, then 6 each."""
    waiting, wanted, arrived = None, 1, 0
    for piece in pieces:
        arrived += piece.shape[2]
        waiting = piece if waiting is None else torch.cat([waiting, piece], dim=2)
        while waiting.shape[2] >= wanted:
            yield waiting[:, :, :wanted]
            waiting, wanted = waiting[:, :, wanted:], TIME_FACTOR
    if arrived % TIME_FACTOR != 1:
        near = max(arrived - (arrived - 1) % TIME_FACTOR, 1)
        raise InvalidRequest(
            f"a clip has {TIME_FACTOR}k+1 frames, but {arrived} came. Try {near} or {near + TIME_FACTOR}."
        )
