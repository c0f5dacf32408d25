"""Which of the world's motions explains a track best: every law is fitted, and the best fit wins.

Every law is linear in all its parameters but one to three (a frequency, a contact time), which a grid covers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import log

import numpy as np
from jaxtyping import Float, Shaped

Times = Float[np.ndarray, "n"]
Points = Float[np.ndarray, "n 2"]
Errors = Float[np.ndarray, "options"]
Basis = Shaped[np.ndarray, "n columns"]

POSITION_NOISE = 0.004
"""Size of a tracking error that is of no account, in picture sides."""

LEAST_GRAVITY = 0.8
"""Fitted acceleration from which a track counts as a throw, a fall or a bounce; a third of the world's gravity."""

STILL_RANGE = 0.05
"""An object whose centre keeps within a range this small does not move, in picture sides."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """The best fit of one kind of motion to a track."""

    motion: str
    residual: float
    """Root mean square distance from the track, in picture sides."""
    num_parameters: int
    gravity: float | None = None
    """Fitted acceleration in picture sides per second squared, for motions under gravity."""
    free: float | None = None
    """What the motion's pace is told by, as `daifuku.world.pace` has it: a speed, a rate or a period."""

    def cost(self, num_points: int) -> float:
        """Bayesian information criterion, with an error of the tracker's own size counted as no error."""
        variance = self.residual**2 + POSITION_NOISE**2
        return 2 * num_points * log(variance) + self.num_parameters * log(2 * num_points)


def explain(time: Times, points: Points) -> Law | None:
    """The law that explains a track best; `rest` stands for any object whose centre stays where it is.

    Times in seconds, points in picture sides with y downwards. None if there are fewer than five points.
    """
    if len(time) < 5:
        return None
    spread = np.percentile(points, 95, axis=0) - np.percentile(points, 5, axis=0)
    if spread.max() < STILL_RANGE:
        return Law(motion="rest", residual=float(np.linalg.norm(points.std(axis=0))), num_parameters=2)
    fits = (fit(time, points) for fit in (_roll, _rise, _throw, _fall, _bounce, _spring, _orbit, _pendulum))
    laws = [law for law in fits if law is not None]
    return min(laws, key=lambda law: law.cost(len(time)), default=None)


def _roll(time: Times, points: Points) -> Law | None:
    (x, x_left), (_, y_left) = _fit(_powers(time, 1), points[:, 0]), _fit(_powers(time, 0), points[:, 1])
    motion = "roll_right" if x[1] > 0 else "roll_left"
    return Law(motion=motion, residual=_joined(x_left, y_left), num_parameters=3, free=abs(float(x[1])))


def _rise(time: Times, points: Points) -> Law | None:
    (_, x_left), (y, y_left) = _fit(_powers(time, 0), points[:, 0]), _fit(_powers(time, 1), points[:, 1])
    if y[1] >= 0:
        return None
    return Law(motion="rise", residual=_joined(x_left, y_left), num_parameters=3, free=-float(y[1]))


def _throw(time: Times, points: Points) -> Law | None:
    """A parabola that opens downwards and crosses the picture."""
    (x, x_left), (y, y_left) = _fit(_powers(time, 1), points[:, 0]), _fit(_powers(time, 2), points[:, 1])
    if 2 * y[2] < LEAST_GRAVITY or abs(x[1]) < 0.3:
        return None
    motion = "throw_right" if x[1] > 0 else "throw_left"
    return Law(motion=motion, residual=_joined(x_left, y_left), num_parameters=5, gravity=float(2 * y[2]))


def _fall(time: Times, points: Points) -> Law | None:
    """A fall from rest at time zero, and stillness after a contact."""
    _, x_left = _fit(_powers(time, 0), points[:, 0])

    def basis(contact: float) -> Basis:
        return np.stack([np.ones_like(time), np.minimum(time, contact) ** 2 / 2], axis=1)

    contacts = [(contact,) for contact in np.linspace(time[0] + 0.1, time[-1] + 0.1, 60)]
    y, y_left, _ = _search(basis, contacts, points[:, 1], steps=(0.03,))
    if y[1] < LEAST_GRAVITY:
        return None
    return Law(motion="fall", residual=_joined(x_left, y_left), num_parameters=4, gravity=float(y[1]))


def _bounce(time: Times, points: Points) -> Law | None:
    """A fall, and flights that get shorter by one share at every contact, all under one gravity."""
    x, x_left = _fit(_powers(time, 1), points[:, 0])
    if abs(x[1]) > 0.3:
        return None

    def basis(first: float, flight: float, share: float) -> Basis:
        since = time - first
        shape = since**2 / 2
        contact, length = 0.0, flight
        while contact <= since[-1] and length > 0.02:
            after = since >= contact
            inside = since - contact
            shape = np.where(after, -inside * (length - inside) / 2, shape)
            contact, length = contact + length, length * share
        return np.stack([np.ones_like(time), np.minimum(since, 0), shape], axis=1)

    grid = list(product(np.arange(0.15, min(0.8, time[-1]), 0.03), np.arange(0.4, 1.3, 0.06), (0.7, 0.8, 0.9)))
    if not grid:
        return None
    y, y_left, _ = _search(basis, grid, points[:, 1], steps=(0.02, 0.04, 0.05))
    if y[2] < LEAST_GRAVITY:
        return None
    return Law(motion="bounce", residual=_joined(x_left, y_left), num_parameters=8, gravity=float(y[2]))


def _spring(time: Times, points: Points) -> Law | None:
    """A vertical harmonic oscillation."""
    _, x_left = _fit(_powers(time, 0), points[:, 0])
    rates = [(2 * np.pi / period,) for period in np.linspace(0.6, 1.4, 40)]
    y, y_left, (rate,) = _search(lambda rate: _waves(time, rate), rates, points[:, 1], steps=(0.2,))
    if not 0.05 < np.hypot(y[1], y[2]) < 0.35:
        return None
    period = 2 * np.pi / float(rate)
    return Law(motion="spring", residual=_joined(x_left, y_left), num_parameters=5, free=period)


def _orbit(time: Times, points: Points) -> Law | None:
    """Uniform motion on a circle, either way round."""
    place = points[:, 0] + 1j * points[:, 1]

    def basis(rate: float) -> Basis:
        return np.stack([np.ones_like(time), np.exp(1j * rate * time)], axis=1)

    rates = [(sign * rate,) for sign in (1, -1) for rate in np.linspace(2.0, 6.0, 50)]
    found, left, (rate,) = _search(basis, rates, place, steps=(0.1,))
    if not 0.1 < abs(found[1]) < 0.45:
        return None
    return Law(motion="orbit", residual=left, num_parameters=5, free=abs(float(rate)))


def _pendulum(time: Times, points: Points) -> Law | None:
    """A wave along x, and along y one of twice the rate, highest where x turns."""

    def basis(rate: float) -> Basis:
        x, y = _waves(time, rate), _waves(time, 2 * rate)
        return np.block([[x, np.zeros_like(y)], [np.zeros_like(x), y]])

    rates = [(2 * np.pi / period,) for period in np.linspace(2.2, 3.8, 30)]
    found, left, _ = _search(basis, rates, points.T.reshape(-1), steps=(0.05,))
    wide, high = np.hypot(found[1], found[2]), np.hypot(found[4], found[5])
    # A string of length l makes the second wave wide^2 / 4 l high; lengths from 0.25 to 1.25 will do.
    if not (0.12 < wide < 0.6 and 0.2 < high / wide**2 < 1):
        return None
    return Law(motion="pendulum", residual=left * np.sqrt(2), num_parameters=7)


def _powers(time: Times, degree: int) -> Basis:
    return np.stack([time**power for power in range(degree + 1)], axis=1)


def _waves(time: Times, rate: float) -> Basis:
    return np.stack([np.ones_like(time), np.sin(rate * time), np.cos(rate * time)], axis=1)


def _joined(x_left: float, y_left: float) -> float:
    return float(np.hypot(x_left, y_left))


def _fit(basis: Basis, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares: the coefficients, and the root mean square of what they leave."""
    coefficients = np.linalg.lstsq(basis, values, rcond=None)[0]
    return coefficients, float(np.sqrt(np.mean(np.abs(values - basis @ coefficients) ** 2)))


def _search(
    basis: Callable[..., Basis], grid: list[tuple[float, ...]], values: np.ndarray, *, steps: tuple[float, ...]
) -> tuple[np.ndarray, float, tuple[float, ...]]:
    """The best least-squares fit over a grid of what the basis depends on, refined by ever smaller steps.

    Returns the coefficients, the root mean square of what they leave, and the refined grid point.
    """
    best = grid[int(np.argmin(_leftovers(np.stack([basis(*point) for point in grid]), values)))]
    widths = np.array(steps)
    for _ in range(7):
        moves = np.array(list(product((-1, 0, 1), repeat=len(steps)))) * widths
        near = [tuple(np.add(best, move)) for move in moves]
        best = near[int(np.argmin(_leftovers(np.stack([basis(*point) for point in near]), values)))]
        widths = widths * 0.6
    return *_fit(basis(*best), values), best


def _leftovers(bases: Shaped[np.ndarray, "options n columns"], values: np.ndarray) -> Errors:
    """Squared error of the best fit of every basis, by way of its normal equations."""
    adjoint = bases.conj().swapaxes(1, 2)
    ridge = 1e-9 * np.eye(bases.shape[2])
    coefficients = np.linalg.solve(adjoint @ bases + ridge, adjoint @ values[:, None])
    return np.sum(np.abs(values - (bases @ coefficients)[..., 0]) ** 2, axis=1)
