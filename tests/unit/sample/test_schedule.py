"""The noise levels of a run."""

from itertools import pairwise

import pytest

from daifuku.errors import InvalidRequest
from daifuku.request import GenerateRequest
from daifuku.sample.schedule import linear_quadratic

PUBLISHED = {
    (8, 0.1, 6): [1.0, 59 / 60, 58 / 60, 0.95, 56 / 60, 55 / 60, 0.9, 2 / 3, 0.0],
    (8, 0.025, None): [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0],
    (30, 0.05, 10): [
        *(1.0, 0.995, 0.99, 0.985, 0.98, 0.975, 0.97, 0.965, 0.96, 0.955, 0.95, 0.942875, 0.9315, 0.915875, 0.896),
        *(0.871875, 0.8435, 0.810875, 0.774, 0.732875, 0.6875, 0.637875, 0.584, 0.525875, 0.4635, 0.396875, 0.326),
        *(0.250875, 0.1715, 0.087875, 0.0),
    ],
}


@pytest.mark.parametrize("settings", PUBLISHED)
def test_the_sigmas_are_the_published_ones(settings: tuple[int, float, int | None]) -> None:
    assert linear_quadratic(*settings) == pytest.approx(PUBLISHED[settings], abs=1e-12)


def test_the_sigmas_of_the_default_run_are_the_published_ones() -> None:
    sigmas = linear_quadratic(64, 0.025)
    assert sigmas[:3] == pytest.approx([1.0, 0.99921875, 0.9984375], abs=1e-12)
    assert sigmas[32:35] == pytest.approx([0.975, 0.973291015625, 0.9697265625], abs=1e-12)
    assert sigmas[-3:] == pytest.approx([0.1166015625, 0.059228515625, 0.0], abs=1e-12)


def test_one_step_goes_the_whole_way() -> None:
    assert linear_quadratic(1, 0.025) == [1.0, 0.0]


@pytest.mark.parametrize("threshold", [0.001, 0.025, 0.1, 0.3, 0.65, 0.9, 0.99])
def test_every_schedule_that_a_request_allows_goes_down_from_one_to_zero(threshold: float) -> None:
    allowed = 0
    for steps in range(1, 20):
        for linear in range(steps):
            try:
                GenerateRequest(prompt="", num_inference_steps=steps, linear_steps=linear, threshold_noise=threshold)
            except InvalidRequest:
                continue
            allowed += 1
            sigmas = linear_quadratic(steps, threshold, linear)
            assert len(sigmas) == steps + 1 and (sigmas[0], sigmas[-1]) == (1.0, 0.0)
            assert all(now > after for now, after in pairwise(sigmas)), (steps, linear)
    assert allowed > 19


def test_the_schedules_that_a_request_refuses_would_not_go_down() -> None:
    for steps in range(2, 20):
        for linear in range(1, steps):
            for threshold in (0.3, 0.65, 0.99):
                sigmas = linear_quadratic(steps, threshold, linear)
                if all(now - after > 1e-9 for now, after in pairwise(sigmas)):
                    GenerateRequest(
                        prompt="", num_inference_steps=steps, linear_steps=linear, threshold_noise=threshold
                    )
