"""A small random pipeline as diffusers itself makes and saves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import AutoencoderKLMochi
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = ("a", "small", "red", "ball", "bouncing", "on", "gray", "background", "large", "blue", "square")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model that diffusers holds in memory and has saved."""

    pipeline: MochiPipeline
    folder: Path


@pytest.fixture(scope="session", params=[True, False], ids=["empty prompt zeroed", "empty prompt read"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Once with each of the two rules for an empty prompt."""
    torch.manual_seed(0)
    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=drop_phantom_frames(spread(vae())),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        transformer=spread(transformer()),
        force_zeros_for_empty_prompt=request.param,
    )
    pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("published")
    pipeline.save_pretrained(folder)
    return Published(pipeline=pipeline, folder=folder)


def transformer() -> MochiTransformer3DModel:
    return MochiTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=3,
        pooled_projection_dim=24,
        text_embed_dim=32,
        time_embed_dim=64,
    ).eval()


def vae() -> AutoencoderKLMochi:
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 64, 32, 64),
        decoder_block_out_channels=(32, 64, 32, 64),
        layers_per_block=(1, 1, 2, 1, 1),
        latents_mean=tuple(0.1 * i - 0.5 for i in range(12)),
        latents_std=tuple(0.5 + 0.1 * i for i in range(12)),
    ).eval()


def drop_phantom_frames(model: AutoencoderKLMochi) -> AutoencoderKLMochi:
    """Makes the decoder of diffusers drop frames where the original does.

    An up stage unfolds the first latent frame into frames that precede the clip. The original drops them right there;
    diffusers carries them to the end, and on the way they leak into the frames that are kept.
    """

    def drop(stage: torch.nn.Module, _: object, output: tuple[torch.Tensor, object]) -> tuple[torch.Tensor, object]:
        video, cache = output
        return video[:, :, stage.temporal_expansion - 1 :], cache

    for stage in model.decoder.up_blocks:
        stage.register_forward_hook(drop)
    model.drop_last_temporal_frames = False
    return model


def text_encoder() -> T5EncoderModel:
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def tokenizer() -> T5Tokenizer:
    """Knows a few words, and the letters of all others."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS]
    letters = [(letter, -5.0) for letter in LETTERS]
    return T5Tokenizer(vocab=special + words + letters, extra_ids=0, model_max_length=256)


def spread(model: Model) -> Model:
    """Random weights that let every path carry a signal: no zeros, no ones, outputs near one."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name == "pos_frequencies":
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model
