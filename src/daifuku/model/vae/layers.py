"""Layers shared by the encoder and the decoder: causal convolution, per-frame group norm, residual block."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from daifuku.config import GROUPS, VAE_HEAD_DIM
from daifuku.model.vae.past_frames import PastFrames, Resized, Video

LAYOUT = torch.channels_last_3d
"""Memory order of the videos inside: the channels of a pixel side by side. Convolutions are fastest on it, and layers
over channels need no copy. It is chosen where a video gets its memory; every other layer keeps what it is given."""

MAX_PIXELS = 2**15
"""Pixels that attend along time in one call: CUDA's kernels take less than twice as many, and memory stays low."""


class CausalConv3d(nn.Conv3d):
    """A 3-D convolution that never looks ahead in time, over a video that `extend` prepares."""

    def extend(self, video: Video, past: PastFrames) -> Resized:
        """The video with all that the convolution sees around it.

        That is `kernel - 1` earlier frames, or none but before the clip when the stride is as long as the kernel; and,
        when the kernel overlaps itself in space, one more row or column at each edge, a copy of the outermost.
        """
        num_earlier = self.kernel_size[0] - (1 if past.starts_clip else self.stride[0])
        edge = 1 if self.kernel_size[1] > self.stride[1] else 0
        if num_earlier == edge == 0:
            return video
        b, c, t, h, w = video.shape
        # The one copy that the video needs: padding step by step would make three.
        shape = (b, c, num_earlier + t, h + 2 * edge, w + 2 * edge)
        extended = torch.empty(shape, dtype=video.dtype, device=video.device, memory_format=LAYOUT)
        inner = extended[:, :, :, edge : edge + h, edge : edge + w]
        inner[:, :, num_earlier:] = video
        if num_earlier:
            inner[:, :, :num_earlier] = past.before(self, video, num_earlier)
        if edge:
            extended[:, :, :, 0], extended[:, :, :, -1] = extended[:, :, :, 1], extended[:, :, :, -2]
            extended[..., 0], extended[..., -1] = extended[..., 1], extended[..., -2]
        return extended

    def forward(self, video: Video) -> Resized:  # pyright: ignore[reportIncompatibleMethodOverride]
        if video.device.type == "cpu" and video.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # PyTorch would unfold a small video into a matrix 27 times its size, and be several times slower.
            return torch.mkldnn_convolution(video, self.weight, self.bias, (0, 0, 0), self.stride, (1, 1, 1), 1)
        return super().forward(video)


class Pointwise(nn.Linear):
    """A linear layer over the channels of a video."""

    def forward(self, video: Video) -> Resized:  # pyright: ignore[reportIncompatibleMethodOverride]
        # On strided memory PyTorch would make one small product per row instead of one large one.
        return super().forward(video.movedim(1, -1).contiguous()).movedim(-1, 1)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm whose statistics stay within one frame, so that no frame sees another."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, video: Video) -> Video:  # pyright: ignore[reportIncompatibleMethodOverride]
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        return rearrange(super().forward(frames), "(b t) c h w -> b c t h w", b=video.shape[0])


class NormSiLU(FrameGroupNorm):
    """Norm and activation in one module, so that a kernel which does both can take its place."""

    def forward(self, video: Video) -> Video:
        return F.silu(super().forward(video), inplace=True)


class TemporalAttention(nn.Module):
    """Each pixel attends to itself in the present and past frames.

    Queries and keys have unit length and the softmax scale is 1/sqrt(head width), so the weights stay nearly uniform:
    this is how the published encoder was trained.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(channels)
        self.qkv = Pointwise(channels, 3 * channels, bias=False)
        self.out = Pointwise(channels, channels)

    def forward(self, video: Video, past: PastFrames) -> Video:
        rows = max(1, MAX_PIXELS // (video.shape[0] * video.shape[4]))
        bands = self.norm(video).split(rows, dim=3)
        return video + torch.cat([self._mix(band, past, index) for index, band in enumerate(bands)], dim=3)

    def _mix(self, band: Video, past: PastFrames, index: int) -> Video:
        b, _, t, h, w = band.shape
        q, k, v = rearrange(self.qkv(band), "b (qkv heads d) t h w -> qkv (b h w) heads t d", qkv=3, d=VAE_HEAD_DIM)
        k = past.since_start((self, "keys", index), F.normalize(k, dim=-1))
        v = past.since_start((self, "values", index), v)
        # SDPA's own causal mask pairs the first query with the first key; here the last ones belong together.
        seen = torch.ones(t, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - t)
        mixed = F.scaled_dot_product_attention(F.normalize(q, dim=-1), k, v, attn_mask=seen)
        return self.out(rearrange(mixed, "(b h w) heads t d -> b (heads d) t h w", b=b, h=h, w=w))


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input; then temporal attention where the stage has it."""

    def __init__(self, channels: int, attention: bool = False) -> None:
        super().__init__()
        self.norm1 = NormSiLU(channels)
        self.conv1 = CausalConv3d(channels, channels, 3)
        self.norm2 = NormSiLU(channels)
        self.conv2 = CausalConv3d(channels, channels, 3)
        self.attention = TemporalAttention(channels) if attention else None

    def forward(self, video: Video, past: PastFrames) -> Video:
        # One name for every step: none outlives its use, and three tensors of this size live at the peak.
        hidden = self.conv1.extend(self.norm1(video), past)
        hidden = self.norm2(self.conv1(hidden))
        hidden = self.conv2.extend(hidden, past)
        video = self.conv2(hidden).add_(video)
        del hidden
        return video if self.attention is None else self.attention(video, past)


def depth_to_space_time(video: Video, time: int, space: int) -> Resized:
    """Unfolds channels ordered (channel, time, row, col) into frames, rows and columns."""
    unfolded = rearrange(video, "b (c ft fh fw) t h w -> b (t ft) (h fh) (w fw) c", ft=time, fh=space, fw=space)
    return unfolded.movedim(-1, 1)
