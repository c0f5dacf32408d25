"""From latents to pixels: middle blocks at latent size, three up stages, output blocks at full size."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.config import TEMPORAL_FACTORS, DecoderConfig
from daifuku.model.vae.layers import CausalConv3d, Pointwise, ResBlock, depth_to_space_time
from daifuku.model.vae.past_frames import CarryOver, PastFrames, Replicate, Resized, Video

AT_ONCE = 6
"""Frames that pass through the large stages at a time: as many as a latent frame stands for."""


class UpStage(nn.Module):
    """Residual blocks, then twice the size in space and `time_factor` times the frames."""

    def __init__(self, channels: int, out_channels: int, num_blocks: int, time_factor: int) -> None:
        super().__init__()
        self.time_factor = time_factor
        self.blocks = nn.ModuleList(ResBlock(channels) for _ in range(num_blocks))
        self.proj = Pointwise(channels, out_channels * time_factor * 4)

    def forward(self, video: Video, past: PastFrames) -> Resized:
        for block in self.blocks:
            video = block(video, past)
        video = depth_to_space_time(self.proj(video), self.time_factor, 2)
        # The first latent frame stands for one pixel frame only; the frames unfolded before it never existed.
        return video[:, :, self.time_factor - 1 :] if past.starts_clip else video


class Decoder(nn.Module):
    """Latents [b, 12, t, h, w], on the encoder's scale, to video [b, 3, 6(t-1)+1, 8h, 8w] around [-1, 1]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        full, half, quarter, deep = config.channels
        n = config.num_blocks
        self.input = CausalConv3d(config.latent_channels, deep, 1)
        self.middle = nn.ModuleList(ResBlock(deep) for _ in range(n[4]))
        first, second, third = TEMPORAL_FACTORS
        self.stages = nn.ModuleList(
            [
                UpStage(deep, quarter, n[3], third),
                UpStage(quarter, half, n[2], second),
                UpStage(half, full, n[1], first),
            ]
        )
        self.last = nn.ModuleList(ResBlock(full) for _ in range(n[0]))
        self.output = Pointwise(full, 3)

    def forward(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 frames height width"]:
        """The whole clip at once."""
        return self._paint(self._unfold(latent, Replicate()), CarryOver())

    def chunks(self, latent: Float[Tensor, "b c t h w"]) -> Iterator[Float[Tensor, "b 3 frames height width"]]:
        """Decodes one latent frame at a time: first 1 frame, then 6 each. Together they equal the whole decode.

        Memory does not depend on the number of frames.
        """
        past = CarryOver()
        for one in latent.split(1, dim=2):
            yield self._paint(self._unfold(one, past), past)
            past.starts_clip = False

    def _unfold(self, latent: Video, past: PastFrames) -> Resized:
        """Up to the stages that turn one frame into several."""
        video = self.input(latent)
        for block in self.middle:
            video = block(video, past)
        for stage in self.stages[:-1]:
            video = stage(video, past)
        return video

    def _paint(self, video: Video, past: CarryOver) -> Resized:
        """From there to pixels: most of the memory, so a few frames at a time."""
        painted = []
        for few in video.split(AT_ONCE, dim=2):
            few = self.stages[-1](few, past)
            for block in self.last:
                few = block(few, past)
            painted.append(self.output(F.silu(few)))
        return torch.cat(painted, dim=2)
