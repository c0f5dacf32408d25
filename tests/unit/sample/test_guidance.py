"""Two captions and one direction."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from daifuku.sample.guidance import Caption, Scale, conditioned, guided, guided_together, scale_at
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import State, Velocity

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


def apart(network: Network, scale: Scale, *, every: int = 1, state: State | None = None) -> Velocity:
    """Guidance in two passes of one network."""
    return guided(conditioned(network, PROMPT), conditioned(network, NEGATIVE), scale, every=every, state=state)


def together(network: Network, scale: Scale, *, every: int = 1, state: State | None = None) -> Velocity:
    """Guidance in one pass over a batch of two."""
    return guided_together(network, PROMPT, NEGATIVE, scale, every=every, state=state)


both_ways = pytest.mark.parametrize("way", [apart, together])


@both_ways
def test_guidance_goes_on_in_the_direction_of_the_difference(way) -> None:
    velocity = way(Network(), lambda sigma: 3.0)
    assert torch.allclose(velocity(LATENT, 0.5), LATENT + 2.0 + 3.0 * (5.0 - 2.0) + 0.5)


@pytest.mark.parametrize("negative", [NEGATIVE, caption(2.0, 9, 1), caption(2.0, 1, 0)])
def test_one_pass_over_both_captions_equals_two_passes(negative: Caption) -> None:
    one, two = Network(), Network()
    batched = guided_together(one, PROMPT, negative, lambda sigma: 4.5)(LATENT, 0.25)
    separate = guided(conditioned(two, PROMPT), conditioned(two, negative), lambda sigma: 4.5)(LATENT, 0.25)
    assert torch.allclose(batched, separate, atol=1e-5)
    assert (one.batches, two.batches) == ([2], [1, 1])


@both_ways
def test_guidance_of_one_asks_once(way) -> None:
    network = Network()
    velocity = way(network, lambda sigma: 1.0)
    assert torch.equal(velocity(LATENT, 0.5), conditioned(Network(), PROMPT)(LATENT, 0.5))
    assert network.batches == [1]


def test_without_a_negative_prompt_only_the_prompt_is_asked() -> None:
    network = Network()
    velocity = guided(conditioned(network, PROMPT), None, lambda sigma: 1.0)
    assert torch.equal(velocity(LATENT, 0.5), conditioned(Network(), PROMPT)(LATENT, 0.5))
    assert network.batches == [1]


@both_ways
def test_guidance_zero_follows_the_negative_prompt(way) -> None:
    velocity = way(Network(), lambda sigma: 0.0)
    assert torch.allclose(velocity(LATENT, 0.5), conditioned(Network(), NEGATIVE)(LATENT, 0.5))


@both_ways
def test_a_bfloat16_network_is_guided_in_float32(way) -> None:
    velocity = way(Network(torch.bfloat16), lambda sigma: 3.3)(LATENT, 0.5)
    towards, away = (conditioned(Network(torch.bfloat16), one)(LATENT, 0.5) for one in (PROMPT, NEGATIVE))
    assert velocity.dtype == torch.float32
    assert torch.equal(velocity, away + 3.3 * (towards - away))


@both_ways
@pytest.mark.parametrize("every, passes", [(1, [2, 2, 2, 2, 2]), (2, [2, 1, 2, 1, 2]), (3, [2, 1, 1, 2, 1])])
def test_the_negative_prompt_is_asked_at_every_nth_guided_call_from_the_first(way, every: int, passes: list[int]):
    network, state = Network(), {}
    velocity = way(network, lambda sigma: 3.0, every=every, state=state)
    asked = []
    for sigma in (1.0, 0.9, 0.8, 0.7, 0.6):
        velocity(LATENT, sigma)
        asked.append(sum(network.batches))
    assert [after - before for before, after in pairwise([0, *asked])] == passes
    assert state.get("reused", 0) == passes.count(1)


@both_ways
def test_in_between_the_last_difference_is_used_again(way) -> None:
    network = Network()
    velocity = way(network, lambda sigma: 3.0, every=2)
    velocity(LATENT, 1.0)
    assert torch.allclose(velocity(2 * LATENT, 0.5), 2 * LATENT + 5.0 + 0.5 + 2.0 * (5.0 - 2.0), atol=1e-5)


@both_ways
def test_calls_without_guidance_do_not_count(way) -> None:
    network = Network()
    velocity = way(network, lambda sigma: 3.0 if sigma < 0.75 else 1.0, every=2)
    for sigma in (1.0, 0.8, 0.7, 0.6):
        velocity(LATENT, sigma)
    assert sum(network.batches) == 1 + 1 + 2 + 1


def test_by_default_nothing_large_is_remembered() -> None:
    state: State = {}
    apart(Network(), lambda sigma: 3.0, state=state)(LATENT, 1.0)
    assert not any(isinstance(value, Tensor) for value in state.values())


@both_ways
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_reuse_goes_on_bit_for_bit_from_its_state(way, stop: int) -> None:
    sigmas = linear_quadratic(5, 0.1)[:-1]
    whole = way(Network(), lambda sigma: 3.0, every=3)
    expected = [whole(LATENT + sigma, sigma) for sigma in sigmas][stop:]
    state: State = {}
    before = way(Network(), lambda sigma: 3.0, every=3, state=state)
    for sigma in sigmas[:stop]:
        before(LATENT + sigma, sigma)
    after = way(Network(), lambda sigma: 3.0, every=3, state=dict(state))
    for sigma, velocity in zip(sigmas[stop:], expected, strict=True):
        assert torch.equal(after(LATENT + sigma, sigma), velocity)


def test_each_step_has_its_own_scale_and_what_lies_between_belongs_to_the_step() -> None:
    scale = scale_at([4.0, 3.0, 1.0], [1.0, 0.9, 0.4, 0.0])
    assert [scale(sigma) for sigma in (1.0, 0.95, 0.9, 0.5, 0.4, 0.1, 0.0)] == [4.0, 4.0, 3.0, 3.0, 1.0, 1.0, 1.0]


def test_outside_of_its_interval_guidance_is_one_and_both_ends_belong_to_it() -> None:
    scale = scale_at([4.0, 3.0, 2.0], [1.0, 0.9, 0.4, 0.0], start=0.9, end=0.4)
    assert [scale(sigma) for sigma in (1.0, 0.95, 0.9, 0.5, 0.4, 0.3, 0.0)] == [1.0, 1.0, 3.0, 3.0, 2.0, 1.0, 1.0]


def test_the_whole_range_guides_every_sigma() -> None:
    scale = scale_at([3.0], [1.0, 0.5, 0.0], start=1.0, end=0.0)
    assert all(scale(sigma) == 3.0 for sigma in (1.0, 0.5, 0.0))
