"""Which noise levels a run visits."""


def linear_quadratic(num_steps: int, threshold_noise: float, linear_steps: int | None = None) -> list[float]:
    """The num_steps + 1 sigmas of Mochi's schedule, from 1 (noise) down to 0 (clean).

    The first `linear_steps` (default: half) take away `threshold_noise` in equal parts. The others follow a parabola
    that goes on from there with the same slope and arrives at 0 after the last step.
    """
    linear_steps = num_steps // 2 if linear_steps is None else linear_steps
    assert 0 <= linear_steps < num_steps, "a request never lets the linear steps fill the whole schedule"
    slope = threshold_noise / linear_steps if linear_steps else 0.0
    bend = (1 - slope * num_steps) / (num_steps - linear_steps) ** 2
    sigmas = [1 - slope * i - bend * max(0, i - linear_steps) ** 2 for i in range(num_steps)]
    return [*sigmas, 0.0]
