from dataclasses import replace
from math import pi
from typing import TypeVar

import numpy as np
import pytest

from daifuku.world.factors import FLUIDS, SIZES
from daifuku.world.fluids import Flag, Grass, Law, Smoke, Splash
from daifuku.world.motions import GRAVITY
from daifuku.world.scene import Fluid, sample_fluid

L = TypeVar("L", bound=Law)


def fluids(motion: str, count: int, split: str = "train") -> list[Fluid]:
    found, index = [], 0
    while len(found) < count:
        fluid = sample_fluid(np.random.default_rng([3, index]), split).fluid
        index += 1
        if fluid is not None and fluid.motion == motion:
            found.append(fluid)
    return found


def laws(kind: type[L], count: int = 4) -> list[L]:
    motion = kind.__name__.lower()
    return [one.law for one in fluids(motion, count) if isinstance(one.law, kind)]


def fitted_acceleration(values: np.ndarray, time: np.ndarray) -> float:
    return float(2 * np.polyfit(time, values, 2)[0])


def test_a_drop_falls_with_the_worlds_gravity_until_it_touches_the_pool() -> None:
    for law in laws(Splash):
        time = np.arange(0, 1.5, 1e-3)
        track = law.track(time)
        falling = ~np.isnan(track[:, 1])
        assert fitted_acceleration(track[falling, 1], time[falling]) == pytest.approx(GRAVITY, rel=1e-6)
        assert track[falling, 1][-1] + law.radius == pytest.approx(law.level, abs=2e-3)
        assert np.all(track[falling, 0] == law.x)


def test_droplets_fly_on_parabolas_of_the_same_gravity_alike_on_both_sides() -> None:
    for law in laws(Splash):
        time = law.contact + np.arange(0.01, 0.5, 0.01)
        spray = law.spray(time)
        left, right = np.split(spray, 2)
        np.testing.assert_allclose(left[..., 0] + right[..., 0], 2 * law.x)
        np.testing.assert_allclose(left[..., 1], right[..., 1])
        for path in spray:
            assert fitted_acceleration(path[:, 1], time) == pytest.approx(GRAVITY, rel=1e-6)
            assert fitted_acceleration(path[:, 0], time) == pytest.approx(0, abs=1e-6)
        assert np.isnan(law.spray(np.array([law.contact - 0.01]))).all()


def test_the_pool_rises_by_the_area_that_it_has_swallowed() -> None:
    for law in laws(Splash):
        law = replace(law, x=0.5)
        time = law.contact + np.array([-0.1, 0.02, 0.05, 0.1, 0.3])
        x = (np.arange(4000) + 0.5) / 4000
        rise = (law.level - law.surface(time, x)).mean(axis=1)
        np.testing.assert_allclose(rise, law.swallowed(time), atol=2e-3)
        assert law.swallowed(time)[0] == 0
        assert law.swallowed(time)[-1] == pytest.approx(pi * law.radius**2)


def test_waves_run_outwards_at_their_speed_and_die_down() -> None:
    for law in laws(Splash):
        still = replace(law, x=0.0, crater=0.0)
        time = law.contact + np.array([0.6, 0.9, 3.0])
        x = np.linspace(0, 4, 4000)
        heights = law.level - still.swallowed(time)[:, None] - still.surface(time, x)
        energy = heights**2
        middles = (energy * x).sum(axis=1) / energy.sum(axis=1)
        assert (middles[1] - middles[0]) / 0.3 == pytest.approx(law.wave_speed, rel=0.03)
        assert heights[0].max() > 0.04 * law.radius
        assert heights[2].max() < 0.01 * law.radius


def test_every_puff_of_smoke_rises_at_its_speed_and_all_smoke_half_as_fast() -> None:
    for law in laws(Smoke):
        time = np.linspace(0.5, 1.5, 200)
        heights = law.puffs(time)[..., 1]
        moving = law.age(time) > 0.01
        rates = np.gradient(heights, time, axis=1)
        np.testing.assert_allclose(rates[:, 1:-1][moving[:, :-2]], -law.speed, rtol=1e-6)
        slope = np.polyfit(time, law.track(time)[:, 1], 1)[0]
        assert slope == pytest.approx(-law.speed / 2, rel=0.05)


def test_smoke_drifts_to_the_side_it_is_said_to() -> None:
    for fluid in fluids("smoke", 12):
        track = fluid.law.track(np.linspace(0, 1.5, 40))
        moved = float(track[-1, 0] - track[0, 0])
        assert {"left": moved < -0.03, None: abs(moved) < 0.06, "right": moved > 0.03}[fluid.direction], fluid


def test_puffs_widen_steadily_and_none_is_lost_or_added_before_it_leaves() -> None:
    law = laws(Smoke, 1)[0]
    early, late = law.amount(np.array([0.0, 1.0])).sum(axis=0)
    assert late - early == pytest.approx(1 / law.interval_s, rel=0.1)
    widths = law.widths(np.array([0.0, 1.0]))
    assert widths[0, 1] - widths[0, 0] == pytest.approx(law.spread)
    longer = law.puffs(np.array([1.0, 5.0]))[:, 0]
    np.testing.assert_array_equal(longer[: len(widths)], law.puffs(np.array([0.5, 1.0]))[:, 1])


def test_a_wave_runs_along_a_flag_at_frequency_times_wavelength_and_grows() -> None:
    for law in laws(Flag):
        time = np.linspace(0, 1 / law.frequency, 50)
        here, there = np.array([0.3]), np.array([0.4])

        def swing(when: np.ndarray, place: np.ndarray, law: Flag = law) -> np.ndarray:
            share = place / law.length
            return (law.offset(when, place, 0.0)[:, 0] - law.sag * share**2) / share

        later = time + 0.1 / (law.frequency * law.wavelength)
        np.testing.assert_allclose(swing(later, there), swing(time, here), atol=1e-9)
        np.testing.assert_allclose(swing(time + 1 / law.frequency, here), swing(time, here), atol=1e-9)
        ranges = np.ptp(law.offset(time, np.array([0.0, 0.2, 0.4]), 0.0), axis=0)
        assert ranges[0] == 0
        assert ranges[2] > 1.8 * ranges[1]


def test_the_cloth_of_a_flag_keeps_its_length_from_pole_to_free_end() -> None:
    for law in laws(Flag):
        time = np.linspace(0, 1, 7)
        for moment, (x, y) in zip(time, law.track(time), strict=True):
            along = np.linspace(1e-9, abs(x - law.x), 2000)
            offset = law.offset(np.array([moment]), along, 0.5)[0]
            assert np.sqrt(np.diff(along) ** 2 + np.diff(offset) ** 2).sum() == pytest.approx(law.length, rel=5e-3)
            corners = [
                law.y + down * law.height + law.offset(np.array([moment]), along[-1:], down) for down in (0.0, 1.0)
            ]
            assert np.mean(corners) == pytest.approx(y, abs=1e-3)


def test_blades_of_grass_keep_their_length_however_they_bend() -> None:
    for law in laws(Grass):
        time = np.linspace(0, 2, 5)
        share = (np.arange(500) + 0.5) / 500
        angle = law.bend(time)[..., None] * share
        lengths = law.lengths[:, None]
        arcs = np.stack(
            [
                law.roots[:, None] + lengths * np.sin(angle).mean(axis=-1),
                law.floor - lengths * np.cos(angle).mean(axis=-1),
            ],
            axis=-1,
        )
        np.testing.assert_allclose(law.tips(time), arcs, atol=1e-5)
        assert law.lengths.max() <= law.length
        assert law.lengths.min() >= 0.75 * law.length


def test_grass_sways_at_its_frequency_and_the_wind_runs_the_way_it_is_said_to() -> None:
    for fluid in fluids("grass", 6):
        law = fluid.law
        assert isinstance(law, Grass)
        time = np.linspace(0, 1, 30)
        np.testing.assert_allclose(law.bend(time + 1 / law.frequency), law.bend(time), atol=1e-9)
        gap = (law.roots[20] - law.roots[10]) * (1 if fluid.direction == "right" else -1)
        later = law.bend(time + gap / (law.frequency * law.wavelength))
        np.testing.assert_allclose(later[20], law.bend(time)[10], atol=1e-9)
        assert np.sign(law.bend(np.linspace(0, 1 / law.frequency, 100)).mean()) == (1 if gap > 0 else -1)


@pytest.mark.parametrize("motion", FLUIDS)
def test_larger_fluids_are_larger(motion: str) -> None:
    extents = {"splash": "radius", "smoke": "width", "flag": "height", "grass": "length"}
    sizes = {one.size: getattr(one.law, extents[motion]) for one in fluids(motion, 30)}
    assert list(SIZES) == sorted(sizes, key=lambda size: sizes[size])
