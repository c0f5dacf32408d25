"""Writes models in either layout, so that this package and diffusers load them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daifuku.config import MOCHI_STATS, TEMPORAL_FACTORS, DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.weights.files import Entry, write_json, write_safetensors, write_shards
from daifuku.weights.load import as_dtype
from daifuku.weights.locate import STEM
from daifuku.weights.names import Layout, Part, Stored, name_table, to_theirs
from daifuku.weights.unread import FLOAT32_ALWAYS

DIFFUSERS_VERSION = "0.32.0"
"""The release of diffusers that brought this layout."""

MAX_SHARD_BYTES = 10 * 10**9


def save_dit(
    model: AsymmDiT,
    folder: str | Path,
    *,
    layout: Layout = "diffusers",
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the transformer into a model folder: `transformer/` with its configuration, or `dit.safetensors`.

    `dtype` None keeps the model's precision; the rotary frequencies always stay float32. Raises InvalidRequest when the
    sizes do not fit the layout, UnwritableOutput when the folder cannot be written.
    """
    entries = _entries(model, "dit", layout, dtype)
    if layout == "original":
        write_safetensors(Path(folder) / "dit.safetensors", entries)
        return
    config = transformer_config(model.config)
    write_shards(Path(folder) / "transformer", STEM, entries, max_shard_bytes)
    write_json(Path(folder) / "transformer" / "config.json", config)


def save_vae(
    model: AsymmVAE,
    folder: str | Path,
    *,
    layout: Layout = "diffusers",
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the autoencoder: `vae/` with its configuration, or `encoder.safetensors` and `decoder.safetensors`.

    The original layout takes either half alone, but only the published latent statistics, since it stores none; the
    diffusers layout takes any statistics, but both halves, with equal block counts. Raises InvalidRequest otherwise.
    """
    folder = Path(folder)
    halves: dict[Part, nn.Module | None] = {"encoder": model.encoder, "decoder": model.decoder}
    entries = {part: _entries(half, part, layout, dtype) for part, half in halves.items() if half is not None}
    if layout == "original":
        if model.stats != MOCHI_STATS:
            raise InvalidRequest(
                "the original layout has no place for other latent statistics: the diffusers layout has one"
            )
        for part, its_entries in entries.items():
            write_safetensors(folder / f"{part}.safetensors", its_entries)
        return
    config = vae_config(model)
    write_shards(folder / "vae", STEM, [entry for part in entries.values() for entry in part], max_shard_bytes)
    write_json(folder / "vae" / "config.json", config)


def write_model_index(folder: str | Path, *, zero_empty: bool) -> None:
    """Writes model_index.json, which makes a folder a pipeline. `zero_empty`: an empty prompt takes no part."""
    content = {
        "_class_name": "MochiPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "force_zeros_for_empty_prompt": zero_empty,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "MochiTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLMochi"],
    }
    write_json(Path(folder) / "model_index.json", content)


def write_scheduler(folder: str | Path) -> None:
    """Writes scheduler/: Euler over inverted sigmas, with the values that were published with Mochi 1."""
    content = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "invert_sigmas": True,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }
    write_json(Path(folder) / "scheduler" / "scheduler_config.json", content)


def write_defaults(folder: str | Path, defaults: Mapping[str, Any]) -> None:
    """Writes generation_config.json: the request that suits this model where a user leaves a field open."""
    write_json(Path(folder) / "generation_config.json", defaults)


def _entries(model: nn.Module, part: Part, layout: Layout, dtype: str | torch.dtype | None) -> list[Entry]:
    """A model's tensors as the layout names and arranges them; copies are made only when each is written."""
    state = model.state_dict()
    table = name_table(part, layout, state)
    entries: list[Entry] = []
    for name, tensor in state.items():
        stored = table.stored(name)
        precision = torch.float32 if name in FLOAT32_ALWAYS else as_dtype(dtype or tensor.dtype)
        shape = (tensor.shape[0] // len(stored.names), *tensor.shape[1:])
        for piece, theirs in enumerate(stored.names):
            read = partial(_piece, stored, tensor, piece)
            entries.append(Entry(name=theirs, shape=shape, dtype=precision, read=read))
    return entries


def _piece(stored: Stored, tensor: Tensor, piece: int) -> Tensor:
    return to_theirs(stored, tensor)[piece]


def transformer_config(config: DiTConfig) -> dict[str, Any]:
    """What transformer/config.json says. Raises InvalidRequest when diffusers cannot build these sizes."""
    widths = {"video": (config.video_width, config.video_mlp_width), "text": (config.text_width, config.text_mlp_width)}
    for stream, (width, mlp_width) in widths.items():
        # diffusers has no setting for this width: it computes it, and a model without text MLPs has none.
        fitting = 4 * width * 2 // 3
        if mlp_width != fitting and not (stream == "text" and config.num_blocks == 1):
            raise InvalidRequest(
                f"the diffusers layout fixes the MLP of a {stream} stream of width {width} to {fitting}, "
                f"and this model's has {mlp_width}, which only the original layout can hold: try {fitting}"
            )
    return {
        "_class_name": "MochiTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "activation_fn": "swiglu",
        "attention_head_dim": config.head_dim,
        "in_channels": config.latent_channels,
        "max_sequence_length": 256,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_blocks,
        "out_channels": None,
        "patch_size": 2,
        "pooled_projection_dim": config.text_width,
        "qk_norm": "rms_norm",
        "text_embed_dim": config.text_features,
        "time_embed_dim": config.time_features,
    }


def vae_config(model: AsymmVAE) -> dict[str, Any]:
    """What vae/config.json says. Raises InvalidRequest when diffusers cannot build these sizes."""
    if model.encoder is None or model.decoder is None:
        raise InvalidRequest("the diffusers layout holds a whole VAE, and one half is absent: use the original layout")
    encoder, decoder = model.encoder.config, model.decoder.config
    if encoder.num_blocks != decoder.num_blocks:
        raise InvalidRequest(
            f"the diffusers layout has one list of block counts for both halves of the VAE, and the encoder has "
            f"{list(encoder.num_blocks)}, the decoder {list(decoder.num_blocks)}: use the original layout"
        )
    return {
        "_class_name": "AutoencoderKLMochi",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "add_attention_block": list(encoder.attention),
        "decoder_block_out_channels": list(decoder.channels),
        "encoder_block_out_channels": list(encoder.channels),
        "in_channels": 15,
        "latent_channels": encoder.latent_channels,
        "latents_mean": list(model.stats.mean),
        "latents_std": list(model.stats.std),
        "layers_per_block": list(encoder.num_blocks),
        "out_channels": 3,
        "scaling_factor": 1.0,
        "spatial_expansions": [2, 2, 2],
        "temporal_expansions": list(TEMPORAL_FACTORS),
    }
