import numpy as np
import pytest

from daifuku.evaluate.pairs import read_pair
from daifuku.world import Clip, Scene, Thing, render
from daifuku.world.factors import COLLIDE
from daifuku.world.motions import Collision
from tests.unit.evaluate.scenes import clips, frozen, pair, spoilt


@pytest.fixture(scope="module")
def colliding() -> list[Clip]:
    return clips(pair, 5, lambda scene: scene.things[0].motion == COLLIDE)


@pytest.fixture(scope="module")
def side_by_side() -> list[Clip]:
    return clips(pair, 8, lambda scene: scene.things[0].motion != COLLIDE)


def looks(things) -> list[tuple]:
    return [(one.colour, one.shape, one.size, one.motion) for one in things]


def test_two_objects_beside_each_other_are_both_read_the_left_one_first(side_by_side: list[Clip]) -> None:
    for clip in side_by_side:
        reading = read_pair(clip.frames)
        assert looks(reading.things) == looks(clip.scene.things)
        assert reading.background == clip.scene.background
        assert reading.momentum_error is None


def test_two_objects_that_collide_are_read_and_keep_their_momentum(colliding: list[Clip]) -> None:
    for clip in colliding:
        reading = read_pair(clip.frames)
        assert looks(reading.things) == looks(clip.scene.things)
        assert reading.momentum_error == pytest.approx(0, abs=0.06)


def test_blur_and_noise_do_not_confuse_two_objects(side_by_side: list[Clip], colliding: list[Clip]) -> None:
    for clip in (side_by_side[0], colliding[0]):
        assert looks(read_pair(spoilt(clip.frames)).things) == looks(clip.scene.things)


def test_momentum_that_comes_from_nowhere_is_measured() -> None:
    left = Collision(x=0.35, y=0.5, contact=0.5, before=0.4, after=-0.2)
    right = Collision(x=0.65, y=0.5, contact=0.5, before=-0.3, after=0.5)
    things = tuple(
        Thing(shape="ball", colour=colour, size="small", motion=COLLIDE, path=path)
        for colour, path in (("red", left), ("blue", right))
    )
    reading = read_pair(render(Scene(background="black", things=things)).frames)
    assert reading.momentum_error == pytest.approx((0.3 - 0.1) / 0.7, abs=0.03)


def test_objects_that_stand_still_do_not_collide(colliding: list[Clip]) -> None:
    reading = read_pair(frozen(colliding[0]))
    assert [one.motion for one in reading.things] == ["rest", "rest"]
    assert reading.momentum_error is None


def test_where_one_object_is_only_one_is_read(side_by_side: list[Clip]) -> None:
    clip = side_by_side[0]
    half = clip.frames.shape[2] // 2
    alone = clip.frames.copy()
    alone[:, :, half:] = alone[0, 0, 0]
    found = [one for one in read_pair(alone).things if one.shape is not None]
    assert [one.colour for one in found] == [clip.scene.things[0].colour]


def test_an_empty_picture_shows_no_objects() -> None:
    reading = read_pair(np.full((7, 64, 64, 3), 128, np.uint8))
    assert (reading.things, reading.momentum_error, reading.background) == ((), None, "gray")
