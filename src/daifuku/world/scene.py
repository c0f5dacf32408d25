"""Draws scenes: what is in the picture, and how it moves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import pi, radians, sqrt
from typing import TypeVar

import numpy as np

from daifuku.world import shapes
from daifuku.world.factors import (
    BACKGROUNDS,
    COLLIDE,
    COLLIDING_SHAPES,
    COLOURS,
    FLUID_SIZES,
    FLUIDS,
    MOTIONS,
    SIZES,
    UPRIGHT_MOTIONS,
    Combination,
    combinations,
    is_held_out,
)
from daifuku.world.fluids import Droplet, Flag, Grass, Law, Smoke, Splash
from daifuku.world.motions import (
    GRAVITY,
    Bounce,
    Collision,
    Flight,
    Orbit,
    Path,
    Pendulum,
    Spring,
    elastic,
)
from daifuku.world.pace import FREE, pace_of

T = TypeVar("T")

FLOOR = 0.97
"""Height of the floor in picture sides from the top."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: what it looks like, which motion it shows, and its exact path."""

    shape: str
    colour: str
    size: str
    motion: str
    path: Path

    @property
    def radius(self) -> float:
        """Radius in picture sides."""
        return SIZES[self.size]

    @property
    def has_mark(self) -> bool:
        """Whether a dark dot shows the object's rotation."""
        return self.motion in ("spin", "roll_left", "roll_right")

    @property
    def pace(self) -> str | None:
        """Whether the motion is a slow or a fast one of its kind."""
        return pace_of(self.motion, self.path)


@dataclass(frozen=True, kw_only=True)
class Fluid:
    """A fluid-like motion: what it looks like, where it goes, and its exact law."""

    motion: str
    colour: str
    size: str
    direction: str | None
    """`left` or `right`: where smoke drifts, a flag blows and the wind runs over grass; None for what goes straight."""
    law: Law

    @property
    def pace(self) -> str | None:
        """Whether the motion is a slow or a fast one of its kind."""
        return pace_of(self.motion, self.law)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects, left one first, or else a fluid, in front of a background."""

    background: str
    things: tuple[Thing, ...] = ()
    fluid: Fluid | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "fluid" if self.fluid else "pair" if len(self.things) == 2 else "single"


def sample_scene(rng: np.random.Generator, *, num_objects: int = 1, split: str = "train") -> Scene:
    """Draw a scene of one or two objects.

    Split `train` never shows a held-out combination of shape, colour and motion, `unseen` shows only such, and `any`
    draws from both.
    """
    assert num_objects in (1, 2), num_objects
    assert split in ("train", "unseen", "any"), split
    background = _pick(rng, tuple(BACKGROUNDS))
    if num_objects == 1:
        things = (_single(rng, split),)
    elif rng.random() < 0.5:
        things = _side_by_side(rng, split)
    else:
        things = _collision(rng, split)
    return Scene(background=background, things=things)


def sample_fluid(rng: np.random.Generator, split: str = "train") -> Scene:
    """Draw a scene of one fluid. The splits are those of `sample_scene`, and hold combinations of motion and colour."""
    assert split in ("train", "unseen", "any"), split
    background = _pick(rng, tuple(BACKGROUNDS))
    motion = _pick(rng, FLUIDS)
    colours = tuple(one for one in COLOURS if split == "any" or is_held_out(None, one, motion) == (split == "unseen"))
    colour, size = _pick(rng, colours), _pick(rng, tuple(SIZES))
    direction = _pick(rng, _DIRECTIONS[motion])
    towards = {"left": -1, None: 0, "right": 1}[direction]
    law = _LAWS[motion](rng, FLUID_SIZES[motion][size], towards)
    fluid = Fluid(motion=motion, colour=colour, size=size, direction=direction, law=law)
    return Scene(background=background, fluid=fluid)


def _single(rng: np.random.Generator, split: str) -> Thing:
    shape, colour, motion = _pick(rng, combinations(MOTIONS, split=split))
    size = _pick(rng, tuple(SIZES))
    return Thing(shape=shape, colour=colour, size=size, motion=motion, path=_PATHS[motion](rng, shape, SIZES[size]))


def _side_by_side(rng: np.random.Generator, split: str) -> tuple[Thing, Thing]:
    """Two objects, each moving within its own half of the picture."""
    left, right = _two_colours(rng, combinations(UPRIGHT_MOTIONS, split=split))
    return _beside(rng, left, 0.25), _beside(rng, right, 0.75)


def _beside(rng: np.random.Generator, combination: Combination, x: float) -> Thing:
    shape, colour, motion = combination
    size = _pick(rng, tuple(SIZES))
    path = _UPRIGHT_PATHS[motion](rng, shape, SIZES[size], x)
    return Thing(shape=shape, colour=colour, size=size, motion=motion, path=path)


def _collision(rng: np.random.Generator, split: str) -> tuple[Thing, Thing]:
    """Two objects on one level line that meet head-on near the middle; mass is proportional to area."""
    pair = _two_colours(rng, combinations((COLLIDE,), COLLIDING_SHAPES, split=split))
    sizes = [_pick(rng, ("small", "medium")) for _ in pair]
    masses = [shapes.AREA[one.shape] * SIZES[size] ** 2 for one, size in zip(pair, sizes, strict=True)]
    widths = [shapes.HALF_WIDTH[one.shape] * SIZES[size] for one, size in zip(pair, sizes, strict=True)]
    before = (rng.uniform(*FREE[COLLIDE]), -rng.uniform(*FREE[COLLIDE]))
    after = elastic(masses[0], masses[1], before[0], before[1])
    y, contact, meeting = rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.7), rng.uniform(0.45, 0.55)
    places = (meeting - widths[0], meeting + widths[1])
    left, right = (
        Thing(
            shape=pair[i].shape,
            colour=pair[i].colour,
            size=sizes[i],
            motion=COLLIDE,
            path=Collision(x=places[i], y=y, contact=contact, before=before[i], after=after[i]),
        )
        for i in range(2)
    )
    return left, right


def _pick(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _two_colours(rng: np.random.Generator, options: tuple[Combination, ...]) -> tuple[Combination, Combination]:
    first = _pick(rng, options)
    return first, _pick(rng, tuple(one for one in options if one.colour != first.colour))


def _bounce(rng: np.random.Generator, shape: str, radius: float, x: float | None = None) -> Path:
    vx = rng.uniform(-0.12, 0.12) if x is None else 0.0
    start = 0.5 + rng.uniform(-0.12, 0.12) - 0.75 * vx if x is None else x
    y = rng.uniform(radius, 0.32)
    return Bounce(x=start, y=y, vx=vx, vy=rng.uniform(0, 0.8), floor=_resting_height(shape, radius))


def _fall(rng: np.random.Generator, shape: str, radius: float, x: float | None = None) -> Path:
    start = rng.uniform(0.3, 0.7) if x is None else x
    y = rng.uniform(0.5 * radius, 0.28)
    return Bounce(x=start, y=y, floor=_resting_height(shape, radius), restitution=0.0)


def _throw(rng: np.random.Generator, direction: int) -> Path:
    """A parabola that enters at one side and is back at its first height near the other."""
    y, apex = rng.uniform(0.62, 0.75), rng.uniform(0.2, 0.32)
    speed = sqrt(2 * GRAVITY * (y - apex))
    start, end = rng.uniform(-0.05, 0.12), rng.uniform(0.85, 1.1)
    vx = (end - start) * GRAVITY / (2 * speed)
    return Flight(x=start if direction > 0 else 1 - start, y=y, vx=direction * vx, vy=-speed, gravity=GRAVITY)


def _roll(rng: np.random.Generator, shape: str, radius: float, direction: int) -> Path:
    """Rolling without slipping on the circle around the shape."""
    start, speed = rng.uniform(0.1, 0.28), rng.uniform(*FREE["roll_left"])
    rolling_radius = shapes.REACH[shape] * radius
    return Flight(
        x=start if direction > 0 else 1 - start,
        y=FLOOR - rolling_radius,
        vx=direction * speed,
        turn_rate=direction * speed / rolling_radius,
        angle=rng.uniform(-pi, pi),
    )


def _pendulum(rng: np.random.Generator) -> Path:
    still = Pendulum(
        pivot_x=rng.uniform(0.44, 0.56),
        pivot_y=rng.uniform(0.01, 0.06),
        length=rng.uniform(0.46, 0.58),
        amplitude=radians(rng.uniform(25, 42)),
    )
    return replace(still, start=rng.uniform(0, still.period))


def _spin(rng: np.random.Generator, x: float | None = None) -> Path:
    return Flight(
        x=rng.uniform(0.4, 0.6) if x is None else x,
        y=rng.uniform(0.4, 0.6),
        turn_rate=_either_way(rng, *FREE["spin"]),
        angle=rng.uniform(-pi, pi),
    )


def _orbit(rng: np.random.Generator) -> Path:
    return Orbit(radius=rng.uniform(0.22, 0.28), turn_rate=_either_way(rng, *FREE["orbit"]), phase=rng.uniform(-pi, pi))


def _rise(rng: np.random.Generator, x: float | None = None) -> Path:
    start = rng.uniform(0.3, 0.7) if x is None else x
    return Flight(x=start, y=rng.uniform(0.75, 0.88), vy=-rng.uniform(*FREE["rise"]))


def _spring(rng: np.random.Generator, x: float | None = None) -> Path:
    return Spring(
        x=rng.uniform(0.35, 0.65) if x is None else x,
        y=rng.uniform(0.5, 0.58),
        amplitude=rng.uniform(0.12, 0.18),
        period=rng.uniform(*FREE["spring"]),
        phase=rng.uniform(-pi, pi),
    )


def _rest(rng: np.random.Generator, shape: str, radius: float, x: float | None = None) -> Path:
    start = rng.uniform(0.25, 0.75) if x is None else x
    return Flight(x=start, y=_resting_height(shape, radius))


def _resting_height(shape: str, radius: float) -> float:
    return FLOOR - shapes.DEPTH[shape] * radius


def _either_way(rng: np.random.Generator, low: float, high: float) -> float:
    return rng.uniform(low, high) * (1 if rng.random() < 0.5 else -1)


def _splash(rng: np.random.Generator, radius: float) -> Splash:
    return Splash(
        x=rng.uniform(0.4, 0.6),
        y=rng.uniform(0.02, 0.14) + radius,
        radius=radius,
        level=rng.uniform(0.7, 0.78),
        droplets=tuple(
            Droplet(
                offset=radius * (0.4 + 0.2 * number),
                vx=0.1 * number + rng.uniform(0.04, 0.14),
                vy=rng.uniform(0.6, 1.1),
                radius=radius * rng.uniform(0.19, 0.32),
            )
            for number in range(4)
        ),
        crater=1.1 * radius,
        wave_height=0.28 * radius,
        wave_speed=rng.uniform(0.4, 0.55),
        wave_width=1.4 * radius,
    )


def _smoke(rng: np.random.Generator, width: float, towards: int) -> Smoke:
    return Smoke(
        x=0.5 - towards * rng.uniform(0.1, 0.22) + rng.uniform(-0.06, 0.06),
        y=rng.uniform(0.88, 0.95),
        speed=rng.uniform(*FREE["smoke"]),
        drift=towards * rng.uniform(0.14, 0.24),
        width=width,
        waver=rng.uniform(0.08, 0.14),
        waver_rate=rng.uniform(0.8, 1.4),
        phase=rng.uniform(-pi, pi),
        scatter=rng.random(),
        lead_s=rng.uniform(0.3, 0.7),
    )


def _flag(rng: np.random.Generator, height: float, towards: int) -> Flag:
    pole = rng.uniform(0.08, 0.14)
    return Flag(
        x=pole if towards > 0 else 1 - pole,
        y=rng.uniform(0.14, 0.2),
        height=height,
        length=rng.uniform(0.66, 0.76),
        towards=towards,
        amplitude=rng.uniform(0.04, 0.065),
        frequency=rng.uniform(*FREE["flag"]),
        wavelength=rng.uniform(0.36, 0.5),
        phase=rng.uniform(-pi, pi),
        lag=rng.uniform(0.6, 1.4),
        sag=rng.uniform(0.0, 0.06),
    )


def _grass(rng: np.random.Generator, length: float, towards: int) -> Grass:
    return Grass(
        length=length,
        towards=towards,
        lean=rng.uniform(0.3, 0.5),
        sway=rng.uniform(0.4, 0.6),
        frequency=rng.uniform(*FREE["grass"]),
        wavelength=rng.uniform(0.9, 1.3),
        phase=rng.uniform(-pi, pi),
        scatter=rng.random(),
    )


_DIRECTIONS: dict[str, tuple[str | None, ...]] = {
    "splash": (None,),
    "smoke": ("left", None, "right"),
    "flag": ("left", "right"),
    "grass": ("left", "right"),
}

_LAWS: dict[str, Callable[[np.random.Generator, float, int], Law]] = {
    "splash": lambda rng, radius, towards: _splash(rng, radius),
    "smoke": _smoke,
    "flag": _flag,
    "grass": _grass,
}

_UPRIGHT_PATHS: dict[str, Callable[[np.random.Generator, str, float, float | None], Path]] = {
    "bounce": _bounce,
    "fall": _fall,
    "spin": lambda rng, shape, radius, x: _spin(rng, x),
    "rise": lambda rng, shape, radius, x: _rise(rng, x),
    "spring": lambda rng, shape, radius, x: _spring(rng, x),
    "rest": _rest,
}

_PATHS: dict[str, Callable[[np.random.Generator, str, float], Path]] = {
    "bounce": _bounce,
    "fall": _fall,
    "throw_left": lambda rng, shape, radius: _throw(rng, -1),
    "throw_right": lambda rng, shape, radius: _throw(rng, 1),
    "roll_left": lambda rng, shape, radius: _roll(rng, shape, radius, -1),
    "roll_right": lambda rng, shape, radius: _roll(rng, shape, radius, 1),
    "pendulum": lambda rng, shape, radius: _pendulum(rng),
    "spin": lambda rng, shape, radius: _spin(rng),
    "orbit": lambda rng, shape, radius: _orbit(rng),
    "rise": lambda rng, shape, radius: _rise(rng),
    "spring": lambda rng, shape, radius: _spring(rng),
    "rest": _rest,
}
