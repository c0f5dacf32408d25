"""Steps along the mean of the velocities at both of their ends."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from daifuku.sample.solver import Latent, Solver, Velocity


def heun(velocity: Velocity, latent: Latent, sigmas: Sequence[float]) -> Iterator[Latent]:
    """The explicit trapezoidal rule: an Euler step, then the mean of the velocities before and after it."""
    for now, after in pairwise(sigmas):
        here = velocity(latent, now)
        there = velocity(latent + (now - after) * here, after)
        latent = latent + (now - after) * (here + there) / 2
        yield latent


SOLVER = Solver(name="heun", help="Two velocities for each step: half as many steps do as well.", order=2, run=heun)
