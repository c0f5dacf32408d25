"""Modulations from a table instead of layers."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from daifuku.config import DiTConfig
from daifuku.errors import InvalidRequest
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.modulation import is_modulation, only_at, tabulated, visited_sigmas
from daifuku.sample.guidance import Caption, conditioned, guided
from daifuku.sample.schedule import linear_quadratic
from daifuku.sample.solver import Latent, Solver, Velocity
from daifuku.sample.solvers import euler, heun

SIGMAS = linear_quadratic(6, 0.1)


@pytest.fixture
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    config = DiTConfig(
        num_blocks=3, num_heads=2, head_dim=16, text_width=24, video_mlp_width=32, text_mlp_width=16, text_features=8,
        time_features=16,
    )  # fmt: skip
    model = AsymmDiT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def captions() -> list[Caption]:
    """A prompt of five tokens, the last of which is padding, and an empty negative prompt."""
    torch.manual_seed(1)
    prompt = Caption(torch.randn(1, 5, 8), torch.tensor([[True, True, True, True, False]]))
    return [prompt, Caption(torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.bool))]


def sampled(dit: AsymmDiT, captions: list[Caption], solver: Solver) -> Tensor:
    noise = torch.randn(1, 12, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    towards, away = (conditioned(dit, caption) for caption in captions)
    *_, latent = solver.run(guided(towards, away, lambda _: 3.0), noise, SIGMAS)
    return latent


@pytest.mark.parametrize("solver", [euler.SOLVER, heun.SOLVER])
def test_a_whole_run_from_the_table_is_the_run_of_the_layers(
    dit: AsymmDiT, captions: list[Caption], solver: Solver
) -> None:
    expected = sampled(dit, captions, solver)
    weights = dit.state_dict()
    # Nothing is left that could answer in the table's place.
    for name, parameter in dit.named_parameters():
        if is_modulation(name):
            parameter.data = torch.full_like(parameter, float("nan"))
    kept = {name: tensor for name, tensor in weights.items() if is_modulation(name)}
    with tabulated(dit, captions, visited_sigmas(solver, SIGMAS), kept.__getitem__):
        assert torch.allclose(sampled(dit, captions, solver), expected, atol=2e-5)


def test_without_a_table_the_layers_are_back(dit: AsymmDiT, captions: list[Caption]) -> None:
    before = sampled(dit, captions, euler.SOLVER)
    names = [name for name, _ in dit.named_parameters()]
    with pytest.raises(ZeroDivisionError), tabulated(dit, captions, SIGMAS, dit.get_parameter):
        assert not any(is_modulation(name) for name, _ in dit.named_parameters())
        raise ZeroDivisionError
    assert [name for name, _ in dit.named_parameters()] == names
    assert torch.equal(sampled(dit, captions, euler.SOLVER), before)


def test_layers_are_read_one_at_a_time(dit: AsymmDiT, captions: list[Caption]) -> None:
    read: list[str] = []

    def reading(name: str) -> Tensor:
        read.append(name)
        return dit.get_parameter(name)

    names = [name for name, _ in dit.named_parameters() if is_modulation(name)]
    with tabulated(dit, captions, SIGMAS, lambda name: reading(name) if name in names else reading("?")):
        assert sorted(read) == sorted(names) and len(names) == 2 * (2 * 3 + 1)
        assert [name.rpartition(".")[0] for name in read[::2]] == [name.rpartition(".")[0] for name in read[1::2]]


def test_both_captions_in_one_pass_find_their_own_rows(dit: AsymmDiT, captions: list[Caption]) -> None:
    latent, sigma = torch.randn(2, 12, 1, 4, 4), torch.tensor([SIGMAS[1]] * 2)
    text = torch.cat([captions[0].features, torch.zeros(1, 5, 8)])
    mask = torch.cat([captions[0].mask, torch.zeros(1, 5, dtype=torch.bool)])
    expected = dit(latent, sigma, text, mask)
    with tabulated(dit, captions, SIGMAS[:-1], dit.state_dict().__getitem__):
        assert torch.allclose(dit(latent, sigma, text, mask), expected, atol=1e-5)


@pytest.mark.parametrize(("solver", "expected"), [(euler.SOLVER, SIGMAS[:-1]), (heun.SOLVER, SIGMAS)])
def test_the_sigmas_of_a_run_are_known_beforehand(solver: Solver, expected: list[float]) -> None:
    assert visited_sigmas(solver, SIGMAS) == expected


def test_a_solver_that_asks_between_the_schedules_sigmas_is_followed() -> None:
    def midpoint(velocity: Velocity, latent: Latent, sigmas: Sequence[float]) -> Iterator[Latent]:
        for now in sigmas[:-1]:
            velocity(latent, now)
            velocity(latent, now * 0.9)
            yield latent

    solver = Solver(name="midpoint", help="For this test.", order=2, run=midpoint)
    assert visited_sigmas(solver, [1.0, 0.5, 0.0]) == [1.0, 0.9, 0.5, 0.45]


def test_a_sigma_that_was_not_foreseen_is_an_error_and_no_wrong_row() -> None:
    velocity = only_at(lambda latent, sigma: latent * sigma, [1.0, 0.5])
    latent = torch.ones(1, 1, 1, 1, 1)
    assert velocity(latent, 0.5).item() == 0.5
    with pytest.raises(InvalidRequest, match="--no-tabulate"):
        velocity(latent, 0.25)
