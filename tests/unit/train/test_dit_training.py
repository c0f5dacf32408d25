"""Flow matching: its anchors, its noise levels, and a caption dropout that is the sampler's empty prompt."""

import math

import torch
from transformers import T5Config, T5EncoderModel

from daifuku.config import DiTConfig
from daifuku.model.attention import matmul, sdpa
from daifuku.model.dit import AsymmDiT
from daifuku.train.dit import (
    Captioned,
    DiTLossSettings,
    TextToVideo,
    draw_sigmas,
    flow_loss,
    set_kernel,
    validation_loss,
)
from daifuku.train.initialise import initialise_dit


def tiny_model() -> TextToVideo:
    torch.manual_seed(0)
    config = DiTConfig(
        num_blocks=2,
        num_heads=2,
        head_dim=16,
        text_width=16,
        video_mlp_width=64,
        text_mlp_width=32,
        text_features=16,
    )
    encoder = T5EncoderModel(
        T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    )
    model = TextToVideo(AsymmDiT(config), encoder)
    initialise_dit(model.dit, torch.Generator().manual_seed(0))
    return model


def awake_model() -> TextToVideo:
    """With random numbers where initialisation puts zeros, so that text and blocks matter."""
    model = tiny_model()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.dit.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def batch(count: int = 8) -> Captioned:
    generator = torch.Generator().manual_seed(1)
    return Captioned(
        latents=torch.randn(count, 12, 2, 4, 4, generator=generator),
        ids=torch.randint(3, 32, (count, 6), generator=generator),
        mask=torch.arange(6) < torch.randint(1, 7, (count, 1), generator=generator),
    )


def test_an_untrained_model_has_loss_two() -> None:
    samples = batch(64)
    noise = torch.randn(samples.latents.shape, generator=torch.Generator().manual_seed(2))
    nothing = torch.zeros(64, dtype=torch.bool)
    loss = flow_loss(
        tiny_model(), samples, torch.rand(64), noise, nothing, torch.zeros(64, 2, dtype=torch.bool), bfloat16=False
    )
    assert abs(loss.mean().item() - 2.0) < 0.05


def test_knowing_only_the_marginals_gives_half_pi() -> None:
    """The best guess from one noisy value alone: E[z - n | (1-s) z + s n] for independent unit Gaussians."""
    generator = torch.Generator().manual_seed(0)
    sigma = torch.rand(200_000, generator=generator)
    clean, noise = torch.randn(2, 200_000, generator=generator)
    noisy = (1 - sigma) * clean + sigma * noise
    guess = noisy * (1 - 2 * sigma) / ((1 - sigma).square() + sigma.square())
    assert abs((guess - (clean - noise)).square().mean().item() - math.pi / 2) < 0.02


def test_sigmas_are_stratified_and_reach_both_ends() -> None:
    settings = DiTLossSettings(uniform_share=1.0)
    sigmas = draw_sigmas(settings, 100, torch.Generator().manual_seed(0))
    assert torch.equal((sigmas * 100).floor(), torch.arange(100.0))
    bent = draw_sigmas(DiTLossSettings(uniform_share=0.0), 10_001, torch.Generator().manual_seed(0))
    assert abs(bent.median().item() - 1 / (1 + math.exp(-0.5))) < 0.01
    assert bent.min() > 0 and bent.max() < 1


def test_a_dropped_caption_equals_an_empty_prompt() -> None:
    model, samples = awake_model(), batch(2)
    sigma = torch.full((2,), 0.5)
    with torch.no_grad():
        dropped = model(samples.latents, sigma, samples.ids, samples.mask, torch.ones(2, dtype=torch.bool))
        ids, mask = torch.zeros_like(samples.ids), torch.zeros_like(samples.mask)
        empty = model(samples.latents, sigma, ids, mask, torch.zeros(2, dtype=torch.bool))
        kept = model(samples.latents, sigma, samples.ids, samples.mask, torch.zeros(2, dtype=torch.bool))
    assert torch.allclose(dropped, empty, atol=1e-6)
    assert not torch.allclose(dropped, kept, atol=1e-3)


def test_validation_repeats_exactly_and_leaves_the_random_state_alone() -> None:
    model, samples = tiny_model(), batch()
    state = torch.get_rng_state()
    first = validation_loss(model, samples, bfloat16=False)
    assert first == validation_loss(model, samples, bfloat16=False)
    assert torch.equal(state, torch.get_rng_state())
    assert len(first) == 9


def test_both_kernels_give_the_same_loss() -> None:
    model, samples = awake_model(), batch()
    values = []
    for kernel in (sdpa, matmul):
        set_kernel(model.dit, kernel)
        values.append(validation_loss(model, samples, bfloat16=False)["val"])
    assert abs(values[0] - values[1]) < 1e-5
