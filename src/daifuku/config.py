"""Sizes of the networks, which a checkpoint's tensor shapes decide (`weights/sizes.py`), and how a model runs."""

import difflib
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, no_type_check

from daifuku.errors import InvalidRequest
from daifuku.registry import names

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

MAX_TOKENS = 256
"""Tokens of a prompt that the published model was trained to read, the end mark included."""


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

ATTENTION_KERNELS = "daifuku.runtime.attention"
QUANTISERS = "daifuku.runtime.quant"
"""Packages whose plugins a runtime may name."""

STORED = "stored"
"""The way of quantising that leaves weights as their file has them."""

MIN_TILE = 8
"""Smallest side of a decoder tile, in latent cells."""

S = TypeVar("S", bool, int, str)


def _setting(kind: type[S], help: str, *choices: str, plugins: str | None = None, low: int = 0) -> Any:
    about = {"help": help, "type": kind, "choices": choices, "plugins": plugins, "min": low}
    return field(default=None, metadata=about)


# Whatever a user writes arrives here: a wrong kind of value is answered by InvalidRequest, not by a type checker.
@no_type_check
@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How a model runs: what a clip shows is the request's matter, what it takes to compute it is decided here.

    A setting left None is chosen by the plan (`runtime/planner.py`). The `metadata` of a field says its `help`, `type`,
    `choices` and `plugins`, the package whose plugins are further choices; flags derive from it. A wrong value raises
    InvalidRequest.
    """

    residency: str | None = _setting(
        str,
        "resident keeps every network on the device; offload only the one at work; stream also lets the "
        "transformer's blocks pass through one by one. Exact.",
        "resident",
        "offload",
        "stream",
    )
    dtype: str | None = _setting(str, "Precision of the transformer and the VAE.", "float32", "bfloat16", "float16")
    quantise: str | None = _setting(
        str,
        "Store the transformer's weights in fewer bits. Approximate, but for stored, which keeps the weights of a "
        "quantised file as they are; none decodes those when they are read.",
        "none",
        STORED,
        plugins=QUANTISERS,
    )
    text_dtype: str | None = _setting(str, "Precision of the text encoder.", "float32", "bfloat16")
    quantise_text: str | None = _setting(
        str, "The same for the text encoder's weights.", "none", STORED, plugins=QUANTISERS
    )
    text_on: str | None = _setting(str, "Encode text on the device or, more slowly, on the host.", "device", "host")
    remember_text: bool | None = _setting(
        bool,
        "Keep the features of prompts in the cache folder, so that the same prompt with another seed needs no text "
        "encoder. Exact.",
    )
    kernel: str | None = _setting(
        str, "Attention kernel; auto measures which is the fastest here.", "auto", plugins=ATTENTION_KERNELS
    )
    compile: bool | None = _setting(bool, "Compile the transformer's blocks: a slower start, faster steps.")
    tabulate: bool | None = _setting(
        bool, "Compute all modulations of a run beforehand, so that a quarter of the weights need no memory. Exact."
    )
    chunk_tokens: int | None = _setting(
        int, "Tokens that a block's MLP takes at a time, to save memory; 0 takes all. Exact."
    )
    batch_guidance: bool | None = _setting(bool, "Ask for prompt and negative prompt in one pass over a batch of two.")
    lora_mode: str | None = _setting(
        str,
        "merged adds LoRAs to the weights as they are read, so that steps cost nothing more; live keeps them beside "
        "the weights, quantised or not, and changes them from one clip to the next without reading the model again; "
        "auto merges where weights are in high precision and in memory.",
        "auto",
        "merged",
        "live",
    )
    decoding: str | None = _setting(
        str,
        "streaming decodes one latent frame at a time; whole all at once; tiled also cuts frames into overlapping "
        "tiles. The first two are exact.",
        "streaming",
        "whole",
        "tiled",
    )
    tile: int | None = _setting(int, "Side of a tile in latent cells, of 8 pixels each.", low=MIN_TILE)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, about = getattr(self, each.name), each.metadata
            if value is None:
                continue
            kind = about["type"]
            if type(value) is not kind:
                raise InvalidRequest(f"{each.name}={value!r} is no {kind.__name__}. {about['help']}")
            allowed = setting_choices(about)
            if kind is str and value not in allowed:
                near = difflib.get_close_matches(value, allowed, n=1) or allowed
                raise InvalidRequest(
                    f"{each.name}={value!r} is unknown: the choices are {', '.join(allowed)}. Try {near[0]}."
                )
            if kind is int and value < about["min"]:
                raise InvalidRequest(f"{each.name}={value} is too small. Try {about['min']} or more.")


def setting_choices(about: Any) -> tuple[str, ...]:
    """The values that a text setting allows, from the `metadata` of its field."""
    package = about["plugins"]
    return (*about["choices"], *(names(package) if package else ()))
