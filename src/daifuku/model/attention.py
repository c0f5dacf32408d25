"""Joint attention of video and text: the projections, and the slot where kernels and parallelism go."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.norms import HeadNorm
from daifuku.model.rope import Rotation, rotate


class QKV(NamedTuple):
    """Queries, keys and values of one stream, each [b, heads, tokens, head_dim]."""

    q: Float[Tensor, "b heads n d"]
    k: Float[Tensor, "b heads n d"]
    v: Float[Tensor, "b heads n d"]


Lengths = Int[Tensor, " b"] | None
"""Number of valid tokens at the front of each sequence; None when all are valid, so that no mask is needed."""

Kernel = Callable[[Tensor, Tensor, Tensor, Lengths], Tensor]
"""Softmax attention: (q, k, v, lengths of the keys) -> out, all [b, heads, tokens, head_dim]."""

JointAttend = Callable[[QKV, QKV, Lengths], tuple[Tensor, Tensor]]
"""(video, text, valid text tokens) -> (video, text). The streams stay apart because parallel ranks split only video."""


def valid_tokens(lengths: Int[Tensor, " b"], num_tokens: int) -> Bool[Tensor, "b n"]:
    """True for the first `lengths[i]` of `num_tokens` tokens."""
    return torch.arange(num_tokens, device=lengths.device) < lengths.unsqueeze(1)


def sdpa(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"], lengths: Lengths
) -> Float[Tensor, "b heads n d"]:
    """PyTorch's fused attention."""
    mask = None if lengths is None else valid_tokens(lengths, k.shape[2])[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def matmul(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"], lengths: Lengths
) -> Float[Tensor, "b heads n d"]:
    """Two matrix products and a float32 softmax: for short sequences on CPUs its backward pass is the faster one.

    Each pass over the scores costs, so they are scaled in place, and masked by adding minus infinity or nothing.
    """
    scores = (q @ k.transpose(-1, -2)).float().mul_(q.shape[-1] ** -0.5)
    if lengths is not None:
        valid = valid_tokens(lengths, k.shape[2])
        scores += torch.where(valid, 0.0, float("-inf"))[:, None, None]
    return scores.softmax(dim=-1).to(v.dtype) @ v


def local(kernel: Kernel) -> JointAttend:
    """Joint attention on one device: text is put behind video, and its padding is neither seen nor updated."""

    def attend(video: QKV, text: QKV, lengths: Lengths) -> tuple[Tensor, Tensor]:
        num_video, num_text = video.q.shape[2], text.q.shape[2]
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(video, text, strict=True))
        keys = None if lengths is None else lengths + num_video
        video_out, text_out = kernel(q, k, v, keys).split([num_video, num_text], dim=2)
        if lengths is not None:
            text_out = text_out * valid_tokens(lengths, num_text)[:, None, :, None]
        return video_out, text_out

    return attend


class JointAttention(nn.Module):
    """Both streams meet here: text is projected up to the width of the video's heads and back."""

    def __init__(self, config: DiTConfig, updates_text: bool) -> None:
        super().__init__()
        video, text, head = config.video_width, config.text_width, config.head_dim
        self.num_heads = config.num_heads
        self.attend: JointAttend = local(sdpa)
        self.video_qkv = nn.Linear(video, 3 * video, bias=False)
        self.text_qkv = nn.Linear(text, 3 * video, bias=False)
        self.video_q_norm, self.video_k_norm = HeadNorm(head), HeadNorm(head)
        self.text_q_norm, self.text_k_norm = HeadNorm(head), HeadNorm(head)
        self.video_out = nn.Linear(video, video)
        self.text_out = nn.Linear(video, text) if updates_text else None

    def forward(
        self, video: Float[Tensor, "b n dv"], text: Float[Tensor, "b m dt"], turn: Rotation, lengths: Lengths
    ) -> tuple[Float[Tensor, "b n dv"], Float[Tensor, "b m dt"] | None]:
        video_qkv, text_qkv = self._video_heads(video, turn), self._text_heads(text)
        video, text = (rearrange(x, "b h n d -> b n (h d)") for x in self.attend(video_qkv, text_qkv, lengths))
        return self.video_out(video), None if self.text_out is None else self.text_out(text)

    def _video_heads(self, video: Float[Tensor, "b n dv"], turn: Rotation) -> QKV:
        q, k, v = self._heads(self.video_qkv(video))
        q, k = (rotate(norm(x), turn).to(v.dtype) for norm, x in ((self.video_q_norm, q), (self.video_k_norm, k)))
        return QKV(q, k, v)

    def _text_heads(self, text: Float[Tensor, "b m dt"]) -> QKV:
        q, k, v = self._heads(self.text_qkv(text))
        return QKV(self.text_q_norm(q).to(v.dtype), self.text_k_norm(k).to(v.dtype), v)

    def _heads(self, qkv: Float[Tensor, "b n w"]) -> Float[Tensor, "3 b heads n d"]:
        return rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
