"""Less memory for the same result: MLPs over some tokens at a time, attention over some heads at a time."""

import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.model.attention import QKV, JointAttend, Lengths
from daifuku.model.block import AsymmBlock, SwiGLU
from daifuku.model.dit import AsymmDiT

NUM_HEADS = 6
"""Heads that attend at a time: of the published 24, that leaves a quarter of the joint queries, keys and values."""


class ChunkedSwiGLU(SwiGLU):
    """The same layers over `num_tokens` tokens at a time: between them a token is several times as wide."""

    def __init__(self, mlp: SwiGLU, num_tokens: int) -> None:
        super(SwiGLU, self).__init__()
        self.up, self.down, self.num_tokens = mlp.up, mlp.down, num_tokens

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        out = torch.empty_like(x)
        for start in range(0, x.shape[1], self.num_tokens):
            some = slice(start, start + self.num_tokens)
            out[:, some] = super().forward(x[:, some])
        return out


def in_head_groups(attend: JointAttend, num_heads: int) -> JointAttend:
    """Attention of `num_heads` heads at a time; heads do not know each other, so the result is the same."""

    def attend_in_groups(video: QKV, text: QKV, lengths: Lengths) -> tuple[Tensor, Tensor]:
        video_out, text_out = torch.empty_like(video.v), torch.empty_like(text.v)
        for start in range(0, video.v.shape[1], num_heads):
            some = slice(start, start + num_heads)
            few_video, few_text = (QKV(*(x[:, some] for x in stream)) for stream in (video, text))
            video_out[:, some], text_out[:, some] = attend(few_video, few_text, lengths)
        return video_out, text_out

    return attend_in_groups


def chunk_tokens(dit: AsymmDiT, num_tokens: int) -> AsymmDiT:
    """The transformer with the MLPs of video over `num_tokens` tokens at a time, and attention in groups of heads."""
    for block in dit.blocks:
        assert isinstance(block, AsymmBlock), "blocks are chunked before they are streamed"
        block.video_mlp = ChunkedSwiGLU(block.video_mlp, num_tokens)
        block.attention.attend = in_head_groups(block.attention.attend, NUM_HEADS)
    return dit
