"""The paths objects take: closed forms, exact at any time. Lengths in picture sides, y downwards, times in seconds."""

from dataclasses import dataclass
from functools import cached_property
from math import pi, sin, sqrt

import numpy as np
from jaxtyping import Float

GRAVITY = 2.5
"""Picture sides per second squared: 160 px/s^2 in a picture of 64 px."""

RESTITUTION = 0.8
"""Speed after a bounce, as a share of the speed before it."""

Times = Float[np.ndarray, "t"]
Points = Float[np.ndarray, "t 2"]
Angles = Float[np.ndarray, "t"]


@dataclass(frozen=True, kw_only=True)
class Flight:
    """Free flight from a start, under constant downward acceleration; at rest and uniform motion are special cases."""

    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    gravity: float = 0.0
    turn_rate: float = 0.0
    """Rotation in rad/s, clockwise on the screen."""
    angle: float = 0.0

    def position(self, time: Times) -> Points:
        return np.stack([self.x + self.vx * time, self.y + self.vy * time + self.gravity / 2 * time**2], axis=-1)

    def rotation(self, time: Times) -> Angles:
        return self.angle + self.turn_rate * time


@dataclass(frozen=True, kw_only=True)
class Bounce:
    """A fall from a start to a floor, and the bounces after it; with restitution 0 the object stays where it lands."""

    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    floor: float
    """Height of the centre while the object touches the floor."""
    restitution: float = RESTITUTION
    gravity: float = GRAVITY

    @property
    def first_contact(self) -> float:
        """Time of the first touch of the floor."""
        return (sqrt(self.vy**2 + 2 * self.gravity * (self.floor - self.y)) - self.vy) / self.gravity

    def position(self, time: Times) -> Points:
        y = self.y + self.vy * time + self.gravity / 2 * time**2
        contact = self.first_contact
        speed = self.restitution * (self.vy + self.gravity * contact)
        last = float(time[-1]) if len(time) else 0.0
        while contact <= last and speed > 1e-3:
            since = time - contact
            y = np.where(since > 0, self.floor - speed * since + self.gravity / 2 * since**2, y)
            contact += 2 * speed / self.gravity
            speed *= self.restitution
        y = np.where(time > contact, self.floor, y)
        return np.stack([self.x + self.vx * time, y], axis=-1)

    def rotation(self, time: Times) -> Angles:
        return np.zeros_like(time)


@dataclass(frozen=True, kw_only=True)
class Pendulum:
    """A mass point on a massless string, at any amplitude: sin(angle / 2) = k sn(w t), with k = sin(amplitude / 2)."""

    pivot_x: float
    pivot_y: float
    length: float
    amplitude: float
    """Largest angle from the vertical, in rad."""
    start: float = 0.0
    """How long before the clip begins the mass passed its lowest point, in s."""
    gravity: float = GRAVITY

    @cached_property
    def _means(self) -> list[tuple[float, float]]:
        """Arithmetic-geometric means a_n and halved differences c_n, from a_0 = 1 until they have converged."""
        a, b, c = 1.0, sqrt(1 - sin(self.amplitude / 2) ** 2), sin(self.amplitude / 2)
        means = [(a, c)]
        while c > 1e-12:
            a, b, c = (a + b) / 2, sqrt(a * b), (a - b) / 2
            means.append((a, c))
        return means

    @property
    def period(self) -> float:
        """Time of one full swing there and back, in s: 2 pi sqrt(length / gravity) / agm(1, cos(amplitude / 2))."""
        return 2 * pi * sqrt(self.length / self.gravity) / self._means[-1][0]

    def swing(self, time: Times) -> Angles:
        """Angle from the vertical in rad, positive to the right."""
        argument = sqrt(self.gravity / self.length) * (time + self.start)
        phase = 2 ** (len(self._means) - 1) * self._means[-1][0] * argument
        for a, c in reversed(self._means[1:]):
            phase = (phase + np.arcsin(c / a * np.sin(phase))) / 2
        return 2 * np.arcsin(sin(self.amplitude / 2) * np.sin(phase))

    def position(self, time: Times) -> Points:
        angle = self.swing(time)
        return np.stack(
            [self.pivot_x + self.length * np.sin(angle), self.pivot_y + self.length * np.cos(angle)], axis=-1
        )

    def rotation(self, time: Times) -> Angles:
        return np.zeros_like(time)


@dataclass(frozen=True, kw_only=True)
class Spring:
    """A vertical harmonic oscillation below an anchor at the top edge of the picture."""

    x: float
    y: float
    """Height of equilibrium."""
    amplitude: float
    period: float
    phase: float

    def position(self, time: Times) -> Points:
        y = self.y + self.amplitude * np.sin(2 * pi * time / self.period + self.phase)
        return np.stack([np.full_like(time, self.x), y], axis=-1)

    def rotation(self, time: Times) -> Angles:
        return np.zeros_like(time)


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """Uniform motion on a circle around the middle of the picture."""

    radius: float
    turn_rate: float
    """rad/s, clockwise on the screen."""
    phase: float

    def position(self, time: Times) -> Points:
        angle = self.phase + self.turn_rate * time
        return 0.5 + self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def rotation(self, time: Times) -> Angles:
        return np.zeros_like(time)


@dataclass(frozen=True, kw_only=True)
class Collision:
    """Uniform motion along a level line that changes velocity once, when the object meets another."""

    x: float
    """Where the centre is at the moment of contact."""
    y: float
    contact: float
    """Time of contact, in s."""
    before: float
    after: float
    """Velocities along x."""

    def position(self, time: Times) -> Points:
        since = time - self.contact
        x = self.x + np.where(since < 0, self.before, self.after) * since
        return np.stack([x, np.full_like(time, self.y)], axis=-1)

    def rotation(self, time: Times) -> Angles:
        return np.zeros_like(time)


Path = Flight | Bounce | Pendulum | Spring | Orbit | Collision


def elastic(mass_a: float, mass_b: float, speed_a: float, speed_b: float) -> tuple[float, float]:
    """Velocities after a head-on collision that keeps momentum and kinetic energy."""
    centre = (mass_a * speed_a + mass_b * speed_b) / (mass_a + mass_b)
    return 2 * centre - speed_a, 2 * centre - speed_b
