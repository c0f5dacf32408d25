"""What was read off a clip, against what is true of the scene that was asked for: one number a metric.

NaN stands for what the scene has nothing to measure of. Where a law is not recognised, its number counts as wrong by
all of its value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from daifuku.evaluate.fluids import FluidReading, read_fluid
from daifuku.evaluate.pairs import PairReading, read_pair
from daifuku.evaluate.tracker import Reading, read
from daifuku.world import Fluid, Scene, Thing
from daifuku.world.factors import COLLIDE
from daifuku.world.motions import GRAVITY, Bounce, Flight

Judged = dict[str, float]
"""By the keys of `METRICS`."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one kind of scene is read off frames, and what is said of it."""

    read: Callable[..., Any]
    """(frames, fps) -> reading."""
    judge: Callable[..., Judged]
    """(reading, scene, whether the pace was asked for) -> scores."""


def judge_single(reading: Reading, scene: Scene, pace: bool = False) -> Judged:
    """One object. `all_four` is background, colour, shape and motion; `all` is all of it."""
    (thing,) = scene.things
    right = _background(reading, scene) | _right(reading, thing) | _pace(reading, thing, pace)
    falls = isinstance(thing.path, Bounce | Flight) and thing.path.gravity > 0
    return {
        **{key: float(value) for key, value in right.items()},
        "all_four": _all(right, "background", "colour", "shape", "motion"),
        "all": _all(right, *right),
        "gravity_error": relative_error(reading.gravity, GRAVITY) if falls else np.nan,
        "area_variation": _or_nan(reading.area_variation),
        "flicker": reading.flicker,
    }


def judge_pair(reading: PairReading, scene: Scene, pace: bool = False) -> Judged:
    """Two objects, each beside that one of what was read which is most like it; attributes count by halves.

    `bound` is background, and colour, shape and motion of both, each its own; `all` adds both sizes. The pace of two
    objects is not judged.
    """
    sides = range(2)
    nothing = dict.fromkeys(("colour", "shape", "size", "motion"), False)
    options = [
        [
            _right(reading.things[side], thing) if side < len(reading.things) else nothing
            for side, thing in zip(order, scene.things, strict=True)
        ]
        for order in permutations(sides)
    ]
    # Objects differ in colour, so that colour says first which is which.
    best = max(options, key=lambda both: (sum(one["colour"] for one in both), sum(sum(one.values()) for one in both)))
    collide = scene.things[0].motion == COLLIDE
    variations = [one.area_variation for one in reading.things if one.area_variation is not None]
    background = _background(reading, scene)["background"]
    bound = background and all(one[key] for one in best for key in ("colour", "shape", "motion"))
    return {
        "background": float(background),
        **{key: float(np.mean([one[key] for one in best])) for key in nothing},
        "sides": float([one.colour for one in reading.things] == [one.colour for one in scene.things]),
        "bound": float(bound),
        "all": float(bound and all(one["size"] for one in best)),
        "momentum_error": _momentum_error(reading) if collide else np.nan,
        "area_variation": float(np.mean(variations)) if variations else np.nan,
        "flicker": reading.flicker,
    }


def judge_fluid(reading: FluidReading, scene: Scene, pace: bool = False) -> Judged:
    """A fluid. `all_four` is background, colour, motion and direction, but for splashes; `all` is all of it."""
    fluid = scene.fluid
    assert fluid is not None, scene
    known = reading.law if reading.motion == fluid.motion else None
    right = _background(reading, scene) | _pace(reading, fluid, pace)
    right |= {key: getattr(reading, key) == getattr(fluid, key) for key in ("colour", "size", "motion")}
    if fluid.motion != "splash":
        right["direction"] = right["motion"] and reading.direction == fluid.direction
    return {
        **{key: float(value) for key, value in right.items()},
        "all_four": _all(right, *(key for key in right if key not in ("size", "pace"))),
        "all": _all(right, *right),
        "law_error": relative_error(known, LAWS[fluid.motion](fluid.law)),
        "flicker": reading.flicker,
    }


def relative_error(value: float | None, truth: float) -> float:
    """At most 1, which is also the error of what could not be read."""
    return 1.0 if value is None else min(abs(value / truth - 1), 1.0)


def _background(reading: Reading | PairReading | FluidReading, scene: Scene) -> dict[str, bool]:
    return {"background": reading.background == scene.background}


def _right(reading: Reading, thing: Thing) -> dict[str, bool]:
    return {key: getattr(reading, key) == getattr(thing, key) for key in ("colour", "shape", "size", "motion")}


def _pace(reading: Reading | FluidReading, mover: Thing | Fluid, asked: bool) -> dict[str, bool]:
    """Whether the pace is right, where it was asked for; that of another motion cannot be."""
    if not asked or mover.pace is None:
        return {}
    return {"pace": reading.motion == mover.motion and reading.pace == mover.pace}


def _all(right: dict[str, bool], *keys: str) -> float:
    return float(all(right[key] for key in keys))


def _momentum_error(reading: PairReading) -> float:
    return 1.0 if reading.momentum_error is None else min(reading.momentum_error, 1.0)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


LAWS: dict[str, Callable[[Any], float]] = {
    "splash": lambda law: law.gravity,
    "smoke": lambda law: law.speed,
    "flag": lambda law: law.frequency,
    "grass": lambda law: law.frequency,
}
"""The number that each fluid's law is known by."""

KINDS = {
    "single": Kind(read=read, judge=judge_single),
    "pair": Kind(read=read_pair, judge=judge_pair),
    "fluid": Kind(read=read_fluid, judge=judge_fluid),
}
"""By the names of `daifuku.world.factors.KINDS`."""
