"""What every solver keeps, whoever writes it: dropping a file into `sample/solvers/` is enough to be tested here."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from daifuku import registry
from daifuku.request import SOLVERS
from daifuku.sample.given import holding
from daifuku.sample.noise import seeded_noise
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import Solver

NOISE = seeded_noise([3], (12, 1, 2, 2))


@pytest.fixture(params=registry.names(SOLVERS))
def solver(request: pytest.FixtureRequest) -> Solver:
    plugin = registry.load(SOLVERS, request.param, Solver)
    if (reason := plugin.available()) is not None:
        pytest.skip(reason)
    return plugin


def decay(latent: Tensor, sigma: float) -> Tensor:
    """An equation with a known answer: d latent / d time = -latent * cos(time), where time = 1 - sigma."""
    return -latent * math.cos(1 - sigma)


EXACT = NOISE.double() * math.exp(-math.sin(1.0))


def error(solver: Solver, num_steps: int) -> float:
    sigmas = [1 - i / num_steps for i in range(num_steps)] + [0.0]
    *_, last = solver.run(decay, NOISE.double(), sigmas)
    return float((last - EXACT).abs().max())


def test_halving_the_steps_divides_the_error_as_the_declared_order_says(solver: Solver) -> None:
    measured = math.log2(error(solver, 32) / error(solver, 64))
    assert abs(measured - solver.order) < 0.1


def test_it_gives_one_finite_latent_per_step_of_the_shape_and_precision_of_the_noise(solver: Solver) -> None:
    latents = list(solver.run(decay, NOISE, linear_quadratic(5, 0.1)))
    assert len(latents) == 5
    assert all(each.shape == NOISE.shape and each.dtype == torch.float32 and each.isfinite().all() for each in latents)


def test_it_arrives_at_sigma_zero(solver: Solver) -> None:
    """Along a straight path every solver is exact, so where it ends tells how far it went."""
    clean = torch.ones_like(NOISE)
    for num_steps in (1, 2, 7):
        *_, last = solver.run(lambda latent, sigma: clean - NOISE, NOISE, linear_quadratic(num_steps, 0.025))
        assert torch.allclose(last, clean, atol=1e-5)


def test_after_each_step_the_latent_belongs_to_that_steps_sigma(solver: Solver) -> None:
    clean = torch.ones_like(NOISE)
    sigmas = linear_quadratic(6, 0.1)
    for latent, sigma in zip(solver.run(lambda *_: clean - NOISE, NOISE, sigmas), sigmas[1:], strict=True):
        assert torch.allclose(latent, sigma * NOISE + (1 - sigma) * clean, atol=1e-5)


def test_it_asks_for_velocities_between_noise_and_clean_only(solver: Solver) -> None:
    asked: list[float] = []

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return -latent

    list(solver.run(velocity, NOISE, linear_quadratic(6, 0.1)))
    assert asked[0] == 1.0 and min(asked) >= 0.0
    assert all(now >= after for now, after in pairwise(asked))


def test_it_does_the_same_twice_and_leaves_the_noise_as_it_was(solver: Solver) -> None:
    before = NOISE.clone()
    first, second = (list(solver.run(decay, NOISE, linear_quadratic(4, 0.1))) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(NOISE, before)


def test_it_does_no_work_before_its_next_latent_is_asked_for(solver: Solver) -> None:
    calls = 0

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return -latent

    latents = solver.run(velocity, NOISE, linear_quadratic(4, 0.1))
    assert calls == 0
    next(latents)
    after_one = calls
    next(latents)
    assert calls == 2 * after_one


def test_the_place_in_a_batch_does_not_change_a_latent(solver: Solver) -> None:
    batch = seeded_noise([9, 3], (12, 1, 2, 2))
    *_, alone = solver.run(decay, NOISE, linear_quadratic(4, 0.1))
    *_, together = solver.run(decay, batch, linear_quadratic(4, 0.1))
    assert torch.equal(together[1], alone[0])


@pytest.mark.parametrize("done", [1, 2, 4])
def test_started_at_a_later_sigma_from_the_latent_there_it_goes_on_bit_for_bit(solver: Solver, done: int) -> None:
    sigmas = linear_quadratic(5, 0.1)
    latents = list(solver.run(decay, NOISE, sigmas))
    rest = list(solver.run(decay, latents[done - 1].clone(), sigmas[done:]))
    assert len(rest) == 5 - done
    assert all(torch.equal(one, other) for one, other in zip(rest, latents[done:], strict=True))


def test_frames_that_are_given_come_out_bit_for_bit_and_the_network_sees_them_clean_at_every_noise_level(
    solver: Solver,
) -> None:
    start, given = seeded_noise([3], (12, 4, 2, 2)), torch.tensor([True, False, False, True])
    seen: list[Tensor] = []

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        seen.append(latent)
        return torch.sin(latent) - sigma * latent.mean(dim=2, keepdim=True)

    latents = list(solver.run(holding(velocity, given), start, linear_quadratic(6, 0.1)))
    for latent in (*latents, *seen):
        assert torch.equal(latent[:, :, given], start[:, :, given])
    assert (latents[0][:, :, ~given] != start[:, :, ~given]).any()
