"""Sizes of the networks. A checkpoint's tensor shapes decide them (`weights/sizes.py`); nobody types them in."""

from dataclasses import dataclass

TEMPORAL_FACTORS = (1, 2, 3)
"""Time compression of the VAE's three stages, from pixels to latents."""

SPACE_FACTOR = 8
"""Pixels per latent cell along height and along width."""

TIME_FACTOR = 6
"""Frames per latent frame, after the first frame, which has a latent of its own."""

PATCH = 2
"""Latent cells per token along height and along width."""

GROUPS = 32
"""Groups of every group norm in the VAE."""

VAE_HEAD_DIM = 32
"""Width of one head of the VAE's temporal attention."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of an asymmetric diffusion transformer."""

    num_blocks: int = 48
    num_heads: int = 24
    head_dim: int = 128
    text_width: int = 1536
    video_mlp_width: int = 8192
    text_mlp_width: int = 4096
    text_features: int = 4096
    """Width of the text encoder's output."""
    time_features: int = 256
    latent_channels: int = 12

    @property
    def video_width(self) -> int:
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the VAE's encoder, by stage from pixels to latents: input, three down stages, middle."""

    channels: tuple[int, int, int, int] = (64, 128, 256, 384)
    num_blocks: tuple[int, int, int, int, int] = (3, 3, 4, 6, 3)
    attention: tuple[bool, bool, bool, bool, bool] = (False, True, True, True, True)
    latent_channels: int = 12


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of the VAE's decoder, in the encoder's order: pixels first, latents last."""

    channels: tuple[int, int, int, int] = (128, 256, 512, 768)
    num_blocks: tuple[int, int, int, int, int] = (3, 3, 4, 6, 3)
    latent_channels: int = 12


@dataclass(frozen=True, kw_only=True)
class LatentStats:
    """Mean and standard deviation of each latent channel, as the VAE encodes; whitening removes them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


MOCHI_STATS = LatentStats(
    mean=(
        -0.06730895953510081,
        -0.038011381506090416,
        -0.07477820912866141,
        -0.05565264470995561,
        0.012767231469026969,
        -0.04703542746246419,
        0.043896967884726704,
        -0.09346305707025976,
        -0.09918314763016893,
        -0.008729793427399178,
        -0.011931556316503654,
        -0.0321993391887285,
    ),
    std=(
        0.9263795028493863,
        0.9248894543193766,
        0.9393059390890617,
        0.959253732819592,
        0.8244560132752793,
        0.917259975397747,
        0.9294154431013696,
        1.3720942357788521,
        0.881393668867029,
        0.9168315692124348,
        0.9185249279345552,
        0.9274757570805041,
    ),
)
"""Statistics of the published VAE. The original layout stores none, so its files mean these."""
