"""Layers shared by the encoder and the decoder: causal convolution, per-frame group norm, residual block."""

import torch.nn.functional as F
from einops import rearrange
from torch import nn

from daifuku.config import GROUPS, VAE_HEAD_DIM
from daifuku.model.vae.past_frames import PastFrames, Resized, Video


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that never looks ahead in time.

    Time is extended by `kernel - 1` earlier frames. Space is padded by replication when the kernel overlaps itself,
    and not at all when the stride equals the kernel.
    """

    def forward(self, video: Video, past: PastFrames) -> Resized:  # pyright: ignore[reportIncompatibleMethodOverride]
        video = past(self, video, self.kernel_size[0] - 1)
        rows, cols = ((k - 1) // 2 if s == 1 else 0 for k, s in zip(self.kernel_size[1:], self.stride[1:], strict=True))
        video = F.pad(video, (cols, cols, rows, rows, 0, 0), mode="replicate")
        return F.conv3d(video, self.weight, self.bias, self.stride)


class Pointwise(nn.Linear):
    """A linear layer over the channels of a video."""

    def forward(self, video: Video) -> Resized:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(video.movedim(1, -1)).movedim(-1, 1)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm whose statistics stay within one frame, so that no frame sees another."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, video: Video) -> Video:  # pyright: ignore[reportIncompatibleMethodOverride]
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=video.shape[0])


class TemporalAttention(nn.Module):
    """Each pixel attends to itself in the present and past frames.

    Queries and keys have unit length and the softmax scale is 1/sqrt(head width), so the weights stay nearly uniform:
    this is how the published encoder was trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, video: Video) -> Video:
        height, width = video.shape[-2:]
        pixels = rearrange(self.norm(video), "b c t h w -> (b h w) t c")
        q, k, v = rearrange(self.qkv(pixels), "n t (three heads d) -> three n heads t d", three=3, d=VAE_HEAD_DIM)
        mixed = F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, is_causal=True)
        pixels = self.out(rearrange(mixed, "n heads t d -> n t (heads d)"))
        return video + rearrange(pixels, "(b h w) t c -> b c t h w", h=height, w=width)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input; then temporal attention where the stage has it."""

    def __init__(self, channels: int, attention: bool = False) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(channels)
        self.conv1 = CausalConv3d(channels, channels, 3)
        self.norm2 = FrameGroupNorm(channels)
        self.conv2 = CausalConv3d(channels, channels, 3)
        self.attention = TemporalAttention(channels) if attention else None

    def forward(self, video: Video, past: PastFrames) -> Video:
        inner = self.conv1(F.silu(self.norm1(video)), past)
        video = video + self.conv2(F.silu(self.norm2(inner)), past)
        return video if self.attention is None else self.attention(video)


def depth_to_space_time(video: Video, time: int, space: int) -> Resized:
    """Unfolds channels ordered (channel, time, row, col) into frames, rows and columns."""
    return rearrange(video, "b (c ft fh fw) t h w -> b c (t ft) (h fh) (w fw)", ft=time, fh=space, fw=space)
