from math import cos, pi, sqrt

import numpy as np
import pytest

from daifuku.world.factors import COLLIDE, MOTIONS
from daifuku.world.motions import GRAVITY, Bounce, Collision, Flight, Pendulum, elastic
from daifuku.world.render import render
from daifuku.world.scene import FLOOR, Scene, Thing, sample_scene
from daifuku.world.shapes import AREA, HALF_WIDTH


def scenes_of(motion: str, count: int, *, num_objects: int = 1) -> list[Scene]:
    found, index = [], 0
    while len(found) < count:
        scene = sample_scene(np.random.default_rng([7, index]), num_objects=num_objects)
        index += 1
        if scene.things[0].motion == motion:
            found.append(scene)
    return found


def fitted_gravity(y: np.ndarray, fps: int) -> float:
    """Twice the leading coefficient of the best parabola."""
    return float(2 * np.polyfit(np.arange(len(y)) / fps, y, 2)[0])


@pytest.mark.parametrize("motion", ["throw_left", "throw_right"])
def test_a_throw_has_the_worlds_gravity_and_its_direction(motion: str) -> None:
    for scene in scenes_of(motion, 3):
        track = render(scene, size=96, num_frames=31).tracks[0] / 96
        assert fitted_gravity(track[:, 1], 20) == pytest.approx(GRAVITY, rel=1e-3)
        assert np.sign(track[-1, 0] - track[0, 0]) == (1 if motion == "throw_right" else -1)


def test_a_falling_object_has_the_worlds_gravity_and_then_lies_on_the_floor() -> None:
    for scene in scenes_of("fall", 3):
        path = scene.things[0].path
        assert isinstance(path, Bounce)
        y = path.position(np.arange(61) / 20)[:, 1]
        flying = np.arange(61) / 20 < path.first_contact
        assert fitted_gravity(y[flying], 20) == pytest.approx(GRAVITY, rel=1e-6)
        assert np.all(y[~flying] == path.floor)


def test_a_bounce_loses_its_share_of_speed_at_every_contact_and_never_passes_the_floor() -> None:
    path = Bounce(x=0.5, y=0.2, floor=0.8)
    time = np.arange(0, 4, 1e-3)
    y = path.position(time)[:, 1]
    inner = y[1:-1]
    tops = inner[(inner < y[:-2]) & (inner <= y[2:])]
    heights = path.floor - np.concatenate([[0.2], tops])
    assert y.max() <= path.floor + 1e-12
    assert len(tops) >= 4
    np.testing.assert_allclose(heights[1:] / heights[:-1], path.restitution**2, rtol=1e-3)


def test_an_object_that_rolls_turns_by_the_distance_over_the_radius_and_stays_on_the_floor() -> None:
    for scene in scenes_of("roll_left", 2) + scenes_of("roll_right", 2):
        path = scene.things[0].path
        assert isinstance(path, Flight)
        time = np.array([0.0, 1.0])
        x, y = path.position(time).T
        turned = np.diff(path.rotation(time))[0]
        assert turned == pytest.approx(np.diff(x)[0] / (FLOOR - y[0]))


@pytest.mark.parametrize("amplitude", [0.05, 0.6, 1.4])
def test_a_pendulum_keeps_its_energy_and_returns_after_its_period(amplitude: float) -> None:
    path = Pendulum(pivot_x=0.5, pivot_y=0.0, length=0.5, amplitude=amplitude, start=0.3)
    time = np.linspace(0, path.period, 20001)
    angle = path.swing(time)
    rate = np.gradient(angle, time)[2:-2]
    energy = 0.5 * rate**2 * path.length**2 + GRAVITY * path.length * (1 - np.cos(angle[2:-2]))
    np.testing.assert_allclose(energy, GRAVITY * path.length * (1 - cos(amplitude)), rtol=1e-4)
    np.testing.assert_allclose(path.position(time[-1:]), path.position(time[:1]), atol=1e-9)


def test_a_small_swing_takes_the_textbook_time_and_a_wide_one_longer() -> None:
    textbook = 2 * pi * sqrt(0.5 / GRAVITY)
    small = Pendulum(pivot_x=0.5, pivot_y=0.0, length=0.5, amplitude=0.01)
    wide = Pendulum(pivot_x=0.5, pivot_y=0.0, length=0.5, amplitude=pi / 2)
    assert small.period == pytest.approx(textbook, rel=1e-4)
    assert wide.period == pytest.approx(1.18034 * textbook, rel=1e-5)


def test_a_collision_keeps_momentum_and_energy() -> None:
    after = elastic(2.0, 3.0, 0.4, -0.3)
    assert 2 * after[0] + 3 * after[1] == pytest.approx(2 * 0.4 - 3 * 0.3)
    assert 2 * after[0] ** 2 + 3 * after[1] ** 2 == pytest.approx(2 * 0.4**2 + 3 * 0.3**2)


def test_colliding_objects_touch_at_the_contact_and_never_overlap() -> None:
    for scene in scenes_of(COLLIDE, 5, num_objects=2):
        left, right = (thing.path for thing in scene.things)
        assert isinstance(left, Collision)
        assert isinstance(right, Collision)
        time = np.linspace(0, 2, 400)
        gap = right.position(time)[:, 0] - left.position(time)[:, 0]
        widths = sum(HALF_WIDTH[thing.shape] * thing.radius for thing in scene.things)
        assert gap.min() >= widths - 1e-9
        assert right.x - left.x == pytest.approx(widths)
        masses = [AREA[thing.shape] * thing.radius**2 for thing in scene.things]
        momentum = [masses[0] * a + masses[1] * b for a, b in ((left.before, right.before), (left.after, right.after))]
        assert momentum[1] == pytest.approx(momentum[0])


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_shows_most_of_the_object_for_most_of_the_clip(motion: str) -> None:
    for scene in scenes_of(motion, 4):
        track = render(scene, num_frames=31).tracks[0] / 64
        inside = np.all((track > 0) & (track < 1), axis=1).mean()
        assert inside >= (0.6 if motion.startswith("throw") else 0.95)


def test_only_objects_that_spin_or_roll_turn() -> None:
    for motion in MOTIONS:
        thing: Thing = scenes_of(motion, 1)[0].things[0]
        turns = np.ptp(thing.path.rotation(np.arange(31) / 20)) > 0
        assert turns == (motion in ("spin", "roll_left", "roll_right"))
