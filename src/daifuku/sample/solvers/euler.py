"""Straight steps along the velocity."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from daifuku.sample.solver import Latent, Solver, Velocity


def euler(velocity: Velocity, latent: Latent, sigmas: Sequence[float]) -> Iterator[Latent]:
    """z + (sigma - next sigma) * velocity, for each step."""
    for now, after in pairwise(sigmas):
        latent = latent + (now - after) * velocity(latent, now)
        yield latent


SOLVER = Solver(name="euler", help="One velocity for each step: the published way.", order=1, run=euler)
