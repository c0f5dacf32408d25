from collections import Counter

import numpy as np
import pytest

from daifuku.world import FLUIDS, MOTIONS, sample_fluid, sample_scene
from daifuku.world.fluids import Smoke
from daifuku.world.motions import Collision, Flight, Path, Spring
from daifuku.world.pace import FREE, pace_of
from daifuku.world.scene import Scene


def scenes(count: int) -> list[Scene]:
    made = []
    for index in range(count):
        rng = np.random.default_rng([2, index])
        made.append(sample_fluid(rng) if index % 3 == 0 else sample_scene(rng, num_objects=index % 3))
    return made


def test_motions_with_a_free_speed_are_slow_fast_and_in_between_alike_often_and_others_never() -> None:
    found: dict[str, Counter[str | None]] = {}
    for scene in scenes(1500):
        for one in (scene.fluid,) if scene.fluid else scene.things:
            found.setdefault(one.motion, Counter())[one.pace] += 1
    assert set(found) == {*MOTIONS, *FLUIDS, "collide"}
    for motion, paces in found.items():
        if motion in FREE:
            assert all(paces[pace] > 0.2 * paces.total() for pace in ("slow", None, "fast")), (motion, paces)
        else:
            assert set(paces) == {None}, motion


def flying(vx: float, vy: float, turn_rate: float) -> Flight:
    return Flight(x=0.5, y=0.5, vx=vx, vy=vy, turn_rate=turn_rate)


def swinging(period: float) -> Spring:
    return Spring(x=0.5, y=0.5, amplitude=0.1, period=period, phase=0.0)


def meeting(before: float) -> Collision:
    return Collision(x=0.5, y=0.5, contact=0.5, before=before, after=-before)


@pytest.mark.parametrize(
    "motion, slow, fast",
    [
        ("roll_left", flying(-0.33, 0.0, -2.0), flying(-0.5, 0.0, -3.0)),
        ("rise", flying(0.0, -0.31, 0.0), flying(0.0, -0.47, 0.0)),
        ("spin", flying(0.0, 0.0, -2.6), flying(0.0, 0.0, 4.9)),
        ("spring", swinging(1.1), swinging(0.8)),
        ("collide", meeting(-0.21), meeting(0.44)),
    ],
)
def test_the_lowest_third_is_slow_and_the_highest_one_fast(motion: str, slow: Path, fast: Path) -> None:
    assert pace_of(motion, slow) == "slow"
    assert pace_of(motion, fast) == "fast"


def test_the_pace_of_a_fluid_is_that_of_its_law() -> None:
    fluids = [sample_fluid(np.random.default_rng(index)).fluid for index in range(60)]
    paces = {one.law.speed: one.pace for one in fluids if one is not None and isinstance(one.law, Smoke)}
    assert [paces[speed] for speed in (min(paces), max(paces))] == ["slow", "fast"]
