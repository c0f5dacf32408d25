"""The asymmetric diffusion transformer: embed, blocks, unembed."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daifuku.config import PATCH, DiTConfig
from daifuku.model.attention import Lengths
from daifuku.model.block import AsymmBlock
from daifuku.model.embed import CaptionPool, FinalLayer, PatchEmbed, TimeEmbed, unpatchify
from daifuku.model.rope import Rotation, rotation, token_positions


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Everything the blocks need, and the token grid to go back from."""

    video: Float[Tensor, "b n dv"]
    text: Float[Tensor, "b m dt"]
    conditioning: Float[Tensor, "b dv"]
    """Time and caption, after the SiLU that every modulation starts with."""
    turn: Rotation
    lengths: Lengths
    grid: tuple[int, int, int]


class AsymmDiT(nn.Module):
    """Predicts the velocity (clean - noise) of a noisy latent, given a caption's text features."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.text_multiple = 1
        """Text is cut to a multiple of so many tokens: one large multiple means one shape, and one compilation."""
        self.patch_embed = PatchEmbed(config)
        self.time_embed = TimeEmbed(config)
        self.caption_pool = CaptionPool(config)
        self.text_proj = nn.Linear(config.text_features, config.text_width)
        self.pos_frequencies = nn.Parameter(torch.zeros(3, config.num_heads, config.head_dim // 2))
        last = config.num_blocks - 1
        self.blocks = nn.ModuleList(AsymmBlock(config, updates_text=i < last) for i in range(config.num_blocks))
        self.final = FinalLayer(config)

    def forward(
        self,
        latent: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        text: Float[Tensor, "b l features"],
        mask: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b c t h w"]:
        """Velocity of a whitened latent at noise level sigma (1 noise, 0 clean), for text of which `mask` counts."""
        state = self.embed(latent, sigma, text, mask)
        video, text = state.video, state.text
        for block in self.blocks:
            video, text = block(video, text, state.conditioning, state.turn, state.lengths)
        return self.unembed(video, state)

    def embed(
        self,
        latent: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        text: Float[Tensor, "b l features"],
        mask: Bool[Tensor, "b l"],
    ) -> Embedded:
        """Tokens, conditioning and rotary angles. Padding text is cut off where no caption of the batch needs it."""
        dtype = self.text_proj.weight.dtype
        frames, rows, cols = latent.shape[2], latent.shape[3] // PATCH, latent.shape[4] // PATCH
        text, mask, lengths = pack_valid(text.to(dtype), mask, self.text_multiple)
        return Embedded(
            video=self.patch_embed(latent.to(dtype)),
            text=self.text_proj(text),
            conditioning=self.condition(sigma, text, mask),
            turn=rotation(self.pos_frequencies, token_positions(frames, rows, cols, latent.device)),
            lengths=lengths,
            grid=(frames, rows, cols),
        )

    def condition(
        self, sigma: Float[Tensor, " b"], text: Float[Tensor, "b m features"], mask: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b dv"]:
        """What every modulation is told: noise level and caption, after the SiLU that each of them starts with."""
        return F.silu(self.time_embed(sigma) + self.caption_pool(text, mask))

    def unembed(self, video: Float[Tensor, "b n dv"], state: Embedded) -> Float[Tensor, "b c t h w"]:
        """Video tokens back to a latent."""
        return unpatchify(self.final(video, state.conditioning), *state.grid)


def pack_valid(
    text: Float[Tensor, "b l features"], mask: Bool[Tensor, "b l"], multiple: int = 1
) -> tuple[Float[Tensor, "b m features"], Bool[Tensor, "b m"], Lengths]:
    """Moves the valid tokens to the front and cuts the rest at the first `multiple` where every caption has ended.

    Text carries no positions, so its order does not matter to the model.
    """
    lengths = mask.sum(dim=1)
    kept = min(math.ceil(int(lengths.max()) / multiple) * multiple, mask.shape[1])
    order = mask.int().argsort(dim=1, descending=True, stable=True)[:, :kept]
    packed = torch.take_along_dim(text, order.unsqueeze(-1), dim=1)
    return packed, torch.take_along_dim(mask, order, dim=1), None if int(lengths.min()) == kept else lengths
