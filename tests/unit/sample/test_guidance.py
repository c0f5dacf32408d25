"""Two captions and one direction."""

import pytest
import torch
from torch import Tensor

from daifuku.sample.guidance import Caption, conditioned, guided, scale_at
from daifuku.sample.noise import seeded_noise

LATENT = seeded_noise([1], (12, 2, 4, 6))


class Network:
    """Says plainly what it was asked: its velocity is the latent, plus the mean feature that counts, plus sigma."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.batches: list[int] = []

    def __call__(self, latent: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        self.batches.append(len(latent))
        count = mask.sum(dim=1).clamp(min=1)
        mean = (text * mask.unsqueeze(-1)).sum(dim=(1, 2)) / count
        return (latent + (mean + sigma)[:, None, None, None, None]).to(self.dtype)


def caption(value: float, length: int, valid: int) -> Caption:
    return Caption(torch.full((1, length, 1), value), torch.arange(length).unsqueeze(0) < valid)


PROMPT, NEGATIVE = caption(5.0, 6, 4), caption(2.0, 3, 3)


def test_guidance_goes_on_in_the_direction_of_the_difference() -> None:
    velocity = guided(Network(), PROMPT, NEGATIVE, lambda sigma: 3.0)
    assert torch.allclose(velocity(LATENT, 0.5), LATENT + 2.0 + 3.0 * (5.0 - 2.0) + 0.5)


@pytest.mark.parametrize("negative", [NEGATIVE, caption(2.0, 9, 1), caption(2.0, 1, 0)])
def test_one_pass_over_both_captions_equals_two_passes(negative: Caption) -> None:
    one, two = Network(), Network()
    batched = guided(one, PROMPT, negative, lambda sigma: 4.5, batched=True)(LATENT, 0.25)
    apart = guided(two, PROMPT, negative, lambda sigma: 4.5)(LATENT, 0.25)
    assert torch.allclose(batched, apart, atol=1e-5)
    assert (one.batches, two.batches) == ([2], [1, 1])


@pytest.mark.parametrize("batched", [False, True])
def test_guidance_of_one_asks_once(batched: bool) -> None:
    network = Network()
    velocity = guided(network, PROMPT, NEGATIVE, lambda sigma: 1.0, batched=batched)
    assert torch.equal(velocity(LATENT, 0.5), conditioned(Network(), PROMPT)(LATENT, 0.5))
    assert network.batches == [1]


def test_without_a_negative_prompt_only_the_prompt_is_asked() -> None:
    network = Network()
    assert torch.equal(
        guided(network, PROMPT, None, lambda sigma: 1.0)(LATENT, 0.5), conditioned(Network(), PROMPT)(LATENT, 0.5)
    )
    assert network.batches == [1]


def test_guidance_zero_follows_the_negative_prompt() -> None:
    velocity = guided(Network(), PROMPT, NEGATIVE, lambda sigma: 0.0)
    assert torch.allclose(velocity(LATENT, 0.5), conditioned(Network(), NEGATIVE)(LATENT, 0.5))


def test_a_bfloat16_network_is_guided_in_float32() -> None:
    velocity = guided(Network(torch.bfloat16), PROMPT, NEGATIVE, lambda sigma: 3.3)(LATENT, 0.5)
    towards, away = (conditioned(Network(torch.bfloat16), one)(LATENT, 0.5) for one in (PROMPT, NEGATIVE))
    assert velocity.dtype == torch.float32
    assert torch.equal(velocity, away + 3.3 * (towards - away))


def test_each_step_has_its_own_scale_and_what_lies_between_belongs_to_the_step() -> None:
    scale = scale_at([4.0, 3.0, 1.0], [1.0, 0.9, 0.4, 0.0])
    assert [scale(sigma) for sigma in (1.0, 0.95, 0.9, 0.5, 0.4, 0.1, 0.0)] == [4.0, 4.0, 3.0, 3.0, 1.0, 1.0, 1.0]
