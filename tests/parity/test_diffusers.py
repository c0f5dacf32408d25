"""Folders written by diffusers, read by this package: the same velocities, pixels and clips."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import daifuku
from daifuku.text import load_text_encoder
from tests.parity.conftest import Published, spread, vae

TOLERANCE = 2e-4
PROMPT, NEGATIVE = "a small red ball bouncing on a gray background", "large blue square"


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
    # The causal convolutions after the first up stage: two at half the frame rate, then four at the full one, each
    # looking two frames back.
    reach = 2 * 2 * 2 + 4 * 2
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
