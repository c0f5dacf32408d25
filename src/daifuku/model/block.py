"""One asymmetric block: joint attention, then an MLP per stream, each modulated by time and caption."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.model.attention import JointAttention, Lengths
from daifuku.model.norms import gated_residual, modulated_norm
from daifuku.model.rope import Rotation


class SwiGLU(nn.Module):
    """down(SiLU(gate) * value), where `up` yields [gate | value]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(value))


class AsymmBlock(nn.Module):
    """The last block of a model does not update text: nothing reads it afterwards."""

    def __init__(self, config: DiTConfig, updates_text: bool) -> None:
        super().__init__()
        video, text = config.video_width, config.text_width
        self.video_modulation = nn.Linear(video, 4 * video)
        self.text_modulation = nn.Linear(video, (4 if updates_text else 1) * text)
        self.attention = JointAttention(config, updates_text)
        self.video_mlp = SwiGLU(video, config.video_mlp_width)
        self.text_mlp = SwiGLU(text, config.text_mlp_width) if updates_text else None

    def forward(
        self,
        video: Float[Tensor, "b n dv"],
        text: Float[Tensor, "b m dt"],
        conditioning: Float[Tensor, "b dv"],
        turn: Rotation,
        lengths: Lengths,
    ) -> tuple[Float[Tensor, "b n dv"], Float[Tensor, "b m dt"]]:
        scale_attention, gate_attention, scale_mlp, gate_mlp = self.video_modulation(conditioning).chunk(4, dim=-1)
        text_scale_attention, *text_rest = self.text_modulation(conditioning).split(text.shape[-1], dim=-1)

        video_update, text_update = self.attention(
            modulated_norm(video, scale_attention), modulated_norm(text, text_scale_attention), turn, lengths
        )
        video = gated_residual(video, video_update, gate_attention)
        video = gated_residual(video, self.video_mlp(modulated_norm(video, scale_mlp)), gate_mlp)

        if self.text_mlp is not None:
            text_gate_attention, text_scale_mlp, text_gate_mlp = text_rest
            text = gated_residual(text, text_update, text_gate_attention)
            text = gated_residual(text, self.text_mlp(modulated_norm(text, text_scale_mlp)), text_gate_mlp)
        return video, text
