"""What enters the transformer and what leaves it: patches, time, the pooled caption, the final layer."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daifuku.config import PATCH, DiTConfig

TIME_SCALE = 1000.0
MAX_PERIOD = 10000.0
POOL_HEADS = 8


class PatchEmbed(nn.Module):
    """Latents [b, 12, t, h, w] to tokens in order frame, row, column: one strided convolution."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.latent_channels, config.video_width, PATCH, stride=PATCH)

    def forward(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n dv"]:
        frames = rearrange(latent, "b c t h w -> (b t) c h w")
        return rearrange(self.proj(frames), "(b t) d h w -> b (t h w) d", b=latent.shape[0])


class TimeEmbed(nn.Module):
    """Sinusoids of (1 - sigma) * 1000, cosines first, through a small MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_features = config.time_features
        self.up = nn.Linear(config.time_features, config.video_width)
        self.down = nn.Linear(config.video_width, config.video_width)

    def forward(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b dv"]:
        half = self.num_features // 2
        exponent = torch.arange(half, device=sigma.device, dtype=torch.float32) / half
        rates = torch.exp(-math.log(MAX_PERIOD) * exponent)
        angles = torch.outer((1 - sigma.float()) * TIME_SCALE, rates)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(features)))


class CaptionPool(nn.Module):
    """The whole caption as one vector: attention pooling whose query is the mean of the valid tokens.

    The mean joins the tokens as one more key, never masked, so an empty caption pools to the value of zero.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.text_features
        self.key_value = nn.Linear(width, 2 * width)
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, config.video_width)

    def forward(self, text: Float[Tensor, "b l w"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b dv"]:
        weight = mask.to(text.dtype).unsqueeze(-1)
        mean = (text * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)
        tokens = torch.cat([mean, text], dim=1)
        visible = F.pad(mask, (1, 0), value=True)[:, None, None]
        k, v = rearrange(self.key_value(tokens), "b l (two h d) -> two b h l d", two=2, h=POOL_HEADS)
        q = rearrange(self.query(mean), "b l (h d) -> b h l d", h=POOL_HEADS)
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out(rearrange(pooled, "b h 1 d -> b (h d)"))


class FinalLayer(nn.Module):
    """Layer norm, shift and scale from the conditioning, and a linear layer back to patches."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.video_width
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, PATCH * PATCH * config.latent_channels)

    def forward(self, video: Float[Tensor, "b n dv"], conditioning: Float[Tensor, "b dv"]) -> Float[Tensor, "b n p"]:
        shift, scale = self.modulation(conditioning).unsqueeze(1).chunk(2, dim=-1)
        normed = F.layer_norm(video.float(), video.shape[-1:], eps=1e-6)
        return self.linear(torch.addcmul(shift.float(), normed, 1 + scale.float()).to(video.dtype))


def unpatchify(patches: Float[Tensor, "b n p"], frames: int, rows: int, cols: int) -> Float[Tensor, "b c t h w"]:
    """Tokens whose features are (row in patch, column in patch, channel), back to a latent."""
    return rearrange(patches, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=rows, w=cols, p=PATCH, q=PATCH)
