"""Random models on disk, in the layouts that both sides read: same sizes, same weights."""

import shutil
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.weights.names import Layout
from daifuku.weights.save import save_dit, save_vae, write_model_index, write_scheduler

T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model's networks. A network whose size is None is left out."""

    dit: DiTConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig | None = None
    t5: dict[str, int] | None = None


SIZES = {
    "full": Sizes(dit=DiTConfig(), decoder=DecoderConfig(), t5=T5_XXL),
    "quarter dit": Sizes(
        dit=DiTConfig(
            num_blocks=8, num_heads=6, text_width=384, video_mlp_width=2048, text_mlp_width=1024, text_features=1024
        )
    ),
    "gigabyte dit": Sizes(
        dit=DiTConfig(
            num_blocks=10, num_heads=12, text_width=768, video_mlp_width=4096, text_mlp_width=2048, text_features=2048
        )
    ),
    "half vae": Sizes(decoder=DecoderConfig(channels=(64, 128, 256, 384))),
    "tiny": Sizes(
        dit=DiTConfig(
            num_blocks=2, num_heads=2, head_dim=16, text_width=24, video_mlp_width=85, text_mlp_width=64,
            text_features=16, time_features=16,
        ),
        encoder=EncoderConfig(channels=(32, 32, 32, 32), num_blocks=(1, 1, 1, 1, 1)),
        decoder=DecoderConfig(channels=(32, 32, 32, 32), num_blocks=(1, 1, 1, 1, 1)),
        t5={"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    ),
}  # fmt: skip
"""Models by name; "tiny" is for tests of the bench itself."""


def write_model(folder: Path, *, size: str, layout: Layout = "diffusers", dtype: torch.dtype = torch.bfloat16) -> None:
    """A random model of that size in `folder`. Numbers are drawn on the GPU where there is one, which is quicker."""
    sizes = SIZES[size]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        if sizes.dit is not None:
            save_dit(random_dit(sizes.dit).to(dtype), folder, layout=layout)
        if sizes.decoder is not None:
            vae = AsymmVAE(Encoder(sizes.encoder), Decoder(sizes.decoder), MOCHI_STATS)
            save_vae(vae.to(dtype), folder, layout=layout)
        if sizes.t5 is not None:
            _write_text_encoder(folder, sizes.t5, dtype)
            write_scheduler(folder)
            write_model_index(folder, zero_empty=True)


def random_dit(config: DiTConfig) -> AsymmDiT:
    """A transformer as PyTorch initialises its layers, with rotary frequencies that are not all zero."""
    model = AsymmDiT(config)
    torch.nn.init.normal_(model.pos_frequencies, std=0.05)
    return model


def peer() -> Any:
    """The package diffusers, whose own types do not describe what it takes and gives."""
    return import_module("diffusers")


def their_dit(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The transformer as diffusers reads it."""
    model = peer().MochiTransformer3DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype)
    return model.to(device, dtype).eval()


def their_vae(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The autoencoder as diffusers reads it."""
    model = peer().AutoencoderKLMochi.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
    return model.to(device, dtype).eval()


def their_pipeline(transformer: Any = None, text_encoder: Any = None, tokenizer: Any = None) -> Any:
    """A MochiPipeline with the parts that are given, and none of the others."""
    scheduler = peer().FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = peer().MochiPipeline(
        scheduler=scheduler, vae=None, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _write_text_encoder(folder: Path, sizes: dict[str, int], dtype: torch.dtype) -> None:
    """A random T5, with the tokenizer of the built-in model: which words it knows does not matter."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config.from_dict({**sizes, "feed_forward_proj": "gated-gelu"})
    t5: Any = T5EncoderModel(config)
    t5.to(dtype).save_pretrained(folder / "text_encoder")
    shutil.copytree(BUILT_IN_FOLDER / "tokenizer", folder / "tokenizer")
