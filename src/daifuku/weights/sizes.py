"""The sizes of a model, read off the shapes of its tensors (our names)."""

import re
from collections.abc import Mapping

from daifuku.config import DecoderConfig, DiTConfig, EncoderConfig
from daifuku.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


class UnknownSize(CheckpointError):
    """A size cannot be told: `tensor` (our name) is missing or has the wrong number of axes."""

    def __init__(self, tensor: str, problem: str) -> None:
        super().__init__(f"the tensor {tensor} {problem}, and the size of the model cannot be told without it")
        self.tensor = tensor
        self.problem = problem


def dit_config(shapes: Shapes) -> DiTConfig:
    """Raises UnknownSize when a tensor that tells a size is missing."""
    _, num_heads, pairs = _shape(shapes, "pos_frequencies", 3)
    text_width, text_features = _shape(shapes, "text_proj.weight", 2)
    # A model of one block has no text MLP: the usual ratio then stands for a width that nothing has.
    text_mlp = shapes.get("blocks.0.text_mlp.down.weight", (text_width, 8 * text_width // 3))
    return DiTConfig(
        num_blocks=_count(shapes, "blocks"),
        num_heads=num_heads,
        head_dim=2 * pairs,
        text_width=text_width,
        video_mlp_width=_shape(shapes, "blocks.0.video_mlp.down.weight", 2)[1],
        text_mlp_width=text_mlp[-1],
        text_features=text_features,
        time_features=_shape(shapes, "time_embed.up.weight", 2)[1],
        latent_channels=_shape(shapes, "patch_embed.proj.weight", 4)[1],
    )


def encoder_config(shapes: Shapes) -> EncoderConfig:
    """Raises UnknownSize when a tensor that tells a size is missing."""
    stages = ("first", "stages.0.blocks", "stages.1.blocks", "stages.2.blocks", "middle")
    full = _shape(shapes, "input.weight", 2)[0]
    half, quarter, deep = (_shape(shapes, f"stages.{i}.down.weight", 5)[0] for i in range(3))
    blocks = [_count(shapes, stage) for stage in stages]
    attention = [any(name.startswith(f"{stage}.") and ".attention." in name for name in shapes) for stage in stages]
    return EncoderConfig(
        channels=(full, half, quarter, deep),
        num_blocks=(blocks[0], blocks[1], blocks[2], blocks[3], blocks[4]),
        attention=(attention[0], attention[1], attention[2], attention[3], attention[4]),
        latent_channels=_shape(shapes, "output.weight", 2)[0] // 2,
    )


def decoder_config(shapes: Shapes) -> DecoderConfig:
    """Raises UnknownSize when a tensor that tells a size is missing."""
    deep, latent_channels, *_ = _shape(shapes, "input.weight", 5)
    _, quarter = _shape(shapes, "stages.1.proj.weight", 2)
    _, half = _shape(shapes, "stages.2.proj.weight", 2)
    _, full = _shape(shapes, "output.weight", 2)
    stages = ("last", "stages.2.blocks", "stages.1.blocks", "stages.0.blocks", "middle")
    blocks = [_count(shapes, stage) for stage in stages]
    return DecoderConfig(
        channels=(full, half, quarter, deep),
        num_blocks=(blocks[0], blocks[1], blocks[2], blocks[3], blocks[4]),
        latent_channels=latent_channels,
    )


def t5_sizes(shapes: Shapes) -> dict[str, int | str]:
    """The sizes of a T5 encoder, as its configuration in `transformers` calls them; its tensors are named as there.

    Raises UnknownSize when a tensor that tells a size is missing.
    """
    attention, mlp = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    vocabulary, width = _shape(shapes, "shared.weight", 2)
    buckets, heads = _shape(shapes, f"{attention}.relative_attention_bias.weight", 2)
    gated = f"{mlp}.wi.weight" not in shapes
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(shapes, f"{attention}.q.weight", 2)[0] // max(heads, 1),
        "d_ff": _shape(shapes, f"{mlp}.{'wi_0' if gated else 'wi'}.weight", 2)[0],
        "num_layers": _count(shapes, "encoder.block"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def _shape(shapes: Shapes, name: str, num_axes: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise UnknownSize(name, "is missing")
    if len(shape) != num_axes:
        raise UnknownSize(name, f"has shape {list(shape)} where {num_axes} axes belong")
    return shape


def _count(shapes: Shapes, container: str) -> int:
    """How many numbered modules a container has."""
    numbers = re.compile(re.escape(container) + r"\.(\d+)\.")
    return len({found[1] for name in shapes if (found := numbers.match(name))})
