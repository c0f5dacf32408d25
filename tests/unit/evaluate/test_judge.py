from dataclasses import replace

import numpy as np
import pytest

from daifuku.evaluate.judge import KINDS, judge_fluid, judge_pair, judge_single
from daifuku.evaluate.pairs import PairReading, read_pair
from daifuku.evaluate.tracker import Reading, read
from daifuku.world import Clip, Scene, Thing, render
from daifuku.world.factors import COLLIDE
from daifuku.world.motions import Flight
from tests.unit.evaluate.scenes import clips, fluid, fluid_of, frozen, pair, single

STILL = Flight(x=0.25, y=0.5)


def thing(colour: str, shape: str, x: float) -> Thing:
    return Thing(shape=shape, colour=colour, size="medium", motion="rest", path=replace(STILL, x=x))


def beside(left: Thing, right: Thing) -> Scene:
    return Scene(background="black", things=(left, right))


@pytest.fixture(scope="module")
def balls() -> Clip:
    """A red ball beside a blue square."""
    return render(beside(thing("red", "ball", 0.25), thing("blue", "square", 0.75)), num_frames=13)


def seen(scene: Scene) -> PairReading:
    return read_pair(render(scene, num_frames=13).frames)


def test_two_objects_as_asked_for_are_bound_rightly(balls: Clip) -> None:
    scores = judge_pair(read_pair(balls.frames), balls.scene)
    assert (scores["bound"], scores["all"], scores["sides"], scores["colour"]) == (1, 1, 1, 1)
    assert np.isnan(scores["momentum_error"])


def test_swapped_colours_bind_wrongly_though_every_colour_and_shape_is_there(balls: Clip) -> None:
    scores = judge_pair(seen(beside(thing("blue", "ball", 0.25), thing("red", "square", 0.75))), balls.scene)
    assert (scores["bound"], scores["all"]) == (0, 0)
    assert (scores["colour"], scores["shape"], scores["sides"]) == (1, 0, 0)


def test_swapped_places_bind_rightly_but_are_on_the_wrong_sides(balls: Clip) -> None:
    scores = judge_pair(seen(beside(thing("blue", "square", 0.25), thing("red", "ball", 0.75))), balls.scene)
    assert (scores["bound"], scores["sides"]) == (1, 0)


def test_one_object_of_two_counts_half(balls: Clip) -> None:
    alone = read_pair(render(Scene(background="black", things=(thing("red", "ball", 0.3),)), num_frames=13).frames)
    scores = judge_pair(alone, balls.scene)
    assert (scores["colour"], scores["shape"], scores["motion"], scores["bound"]) == (0.5, 0.5, 0.5, 0)


def test_a_wrong_size_or_background_spoils_all_but_a_wrong_size_no_binding(balls: Clip) -> None:
    left, right = balls.scene.things
    scores = judge_pair(seen(beside(replace(left, size="large"), right)), balls.scene)
    assert (scores["bound"], scores["all"], scores["size"]) == (1, 0, 0.5)
    assert judge_pair(seen(replace(balls.scene, background="white")), balls.scene)["bound"] == 0


def test_a_collision_that_is_not_seen_has_all_of_the_momentum_wrong() -> None:
    (clip,) = clips(pair, 1, lambda scene: scene.things[0].motion == COLLIDE)
    assert judge_pair(read_pair(frozen(clip)), clip.scene)["momentum_error"] == 1
    assert judge_pair(read_pair(clip.frames), clip.scene)["momentum_error"] < 0.06


def test_pace_counts_only_where_it_was_asked_for() -> None:
    (clip,) = clips(single, 1, lambda scene: scene.things[0].pace is not None)
    reading = read(clip.frames)
    assert "pace" not in judge_single(reading, clip.scene)
    wrong = replace(reading, pace=None)
    assert judge_single(reading, clip.scene, pace=True)["pace"] == 1
    scores = judge_single(wrong, clip.scene, pace=True)
    assert (scores["pace"], scores["all_four"], scores["all"]) == (0, 1, 0)


def test_a_wrong_size_spoils_all_but_not_all_four() -> None:
    (clip,) = clips(single, 1, lambda scene: scene.things[0].motion == "roll_left")
    reading: Reading = replace(read(clip.frames), size="huge")
    scores = judge_single(reading, clip.scene)
    assert (scores["all_four"], scores["all"]) == (1, 0)


def test_the_direction_of_another_fluid_is_not_right_by_chance() -> None:
    (clip,) = clips(fluid, 1, lambda scene: fluid_of(scene).motion == "smoke" and fluid_of(scene).direction is None)
    scores = judge_fluid(KINDS["fluid"].read(frozen(clip)), clip.scene)
    assert (scores["motion"], scores["direction"], scores["law_error"], scores["colour"]) == (0, 0, 1, 1)
    (clip,) = clips(fluid, 1, lambda scene: fluid_of(scene).motion == "splash")
    scores = judge_fluid(KINDS["fluid"].read(clip.frames), clip.scene)
    assert "direction" not in scores and scores["all"] == 1
