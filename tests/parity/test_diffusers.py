"""A pipeline that diffusers made and saved, read by this package: the same velocities, pixels and clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import AutoencoderKLMochi
from diffusers.models.transformers.transformer_mochi import MochiTransformer3DModel
from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import daifuku
from daifuku.text import load_text_encoder

TOLERANCE = 2e-4
PROMPT, NEGATIVE = "a small red ball bouncing on a gray background", "large blue square"
WORDS = ("a", "small", "red", "ball", "bouncing", "on", "gray", "background", "large", "blue", "square")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model that diffusers holds in memory and has saved."""

    pipeline: Any
    """A MochiPipeline, whose annotations are looser than what it takes and gives."""
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


def vae() -> Any:
    build: Any = AutoencoderKLMochi
    return build(
        encoder_block_out_channels=(32, 64, 32, 64),
        decoder_block_out_channels=(32, 64, 32, 64),
        layers_per_block=(1, 1, 2, 1, 1),
        latents_mean=tuple(0.1 * i - 0.5 for i in range(12)),
        latents_std=tuple(0.5 + 0.1 * i for i in range(12)),
    ).eval()


def drop_phantom_frames(model: Any) -> Any:
    """Makes the decoder of diffusers drop frames where the original does.

    An up stage unfolds the first latent frame into frames that precede the clip. The original drops them right there;
    diffusers carries them to the end, and on the way they leak into the frames that are kept.
    """

    def drop(stage: Any, _: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
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


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1, "a test on vanishing numbers shows nothing"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", [(1, 4, 4), (3, 6, 10), (2, 8, 4)], ids=str)
@pytest.mark.parametrize("lengths", [(5, 12), (0, 9), (0, 0), (12, 12)], ids=str)
@torch.no_grad()
def test_the_transformer_gives_the_same_velocity(
    published: Published, lengths: tuple[int, int], size: tuple[int, int, int]
):
    torch.manual_seed(1)
    latent, text, sigma = torch.randn(2, 12, *size), torch.randn(2, 12, 32), torch.tensor([0.3, 0.9])
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    theirs = published.pipeline.transformer(latent, text, (1 - sigma) * 1000, mask, return_dict=False)[0]
    assert_same(daifuku.load_dit(published.folder)(latent, sigma, text, mask), theirs)


@pytest.mark.parametrize("size", [(13, 32, 48), (7, 48, 16), (1, 16, 16)], ids=str)
@torch.no_grad()
def test_the_vae_encodes_and_decodes_the_same(published: Published, size: tuple[int, int, int]):
    torch.manual_seed(2)
    ours, theirs = daifuku.load_vae(published.folder), published.pipeline.vae
    video = torch.rand(2, 3, *size) * 2 - 1
    posterior, expected = ours.encode(video), theirs.encode(video).latent_dist
    assert_same(posterior.mean, expected.mean)
    assert_same(posterior.logvar, expected.logvar)
    assert_same(ours.decode(posterior.mean), theirs.decode(posterior.mean).sample)


@torch.no_grad()
def test_diffusers_as_it_comes_decodes_the_same_once_its_phantom_frames_are_out_of_reach(tmp_path: Path):
    torch.manual_seed(4)
    theirs = spread(vae())
    theirs.save_pretrained(tmp_path / "vae")
    latent = torch.randn(1, 12, 6, 2, 4)
    ours, expected = daifuku.load_vae(tmp_path).decode(latent), theirs.decode(latent).sample
    # A residual block looks four frames back. After the first up stage come two blocks at half the frame rate, then two
    # at the full one.
    reach = 2 * 4 * 2 + 2 * 4
    assert_same(ours[:, :, reach:], expected[:, :, reach:])
    assert (ours - expected)[:, :, :6].abs().max() > 0.1, "the difference is gone: compare all frames again"


@pytest.mark.parametrize("prompt", [PROMPT, "zebra", "a " * 300], ids=["words", "letters", "too long"])
@pytest.mark.filterwarnings("ignore::daifuku.text.PromptCut")
@torch.no_grad()
def test_text_features_are_the_same(published: Published, prompt: str):
    encoder = load_text_encoder(published.folder / "text_encoder", published.folder / "tokenizer", zero_empty=True)
    ours = encoder.encode([prompt])
    features, mask, *_ = published.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    length = int(mask.sum())
    assert ours.mask.all() and ours.mask.shape == (1, length)
    assert_same(ours.features, features[:, :length])


@pytest.mark.parametrize(
    "prompt, negative, guidance",
    [(PROMPT, "", 4.5), (PROMPT, NEGATIVE, 3.0), ("", NEGATIVE, 4.5), (PROMPT, "", 1.0)],
    ids=["no negative prompt", "negative prompt", "empty prompt", "no guidance"],
)
def test_the_whole_pipeline_makes_the_same_clip(published: Published, prompt: str, negative: str, guidance: float):
    noise = torch.randn(12, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    settings = {"height": 32, "width": 48, "num_frames": 13, "num_inference_steps": 6, "guidance_scale": guidance}
    ours = daifuku.load(published.folder, device="cpu", dtype="float32")(
        prompt, negative_prompt=negative, latents=noise, **settings
    )
    theirs = published.pipeline(prompt, negative_prompt=negative, latents=noise[None], output_type="pt", **settings)
    frames = theirs.frames[0].movedim(1, -1)
    assert frames.std() > 0.1, "a grey clip shows nothing"
    assert (torch.from_numpy(ours.frames) / 255 - frames).abs().max() < 2 / 255
