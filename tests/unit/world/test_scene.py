from collections import Counter
from itertools import product

import numpy as np

from daifuku.world.factors import BACKGROUNDS, COLOURS, FLUIDS, KINDS, MOTIONS, SHAPES, SIZES, is_held_out
from daifuku.world.scene import Fluid, sample_fluid, sample_scene


def test_one_combination_in_ten_is_held_out_evenly_over_motions_colours_and_shapes() -> None:
    held_out = [one for one in product(SHAPES, COLOURS, MOTIONS) if is_held_out(*one)]
    shapes, colours, motions = (Counter(one[i] for one in held_out) for i in range(3))
    assert len(held_out) == 48
    assert [motions[motion] for motion in MOTIONS] == [4] * 12
    assert [colours[colour] for colour in COLOURS] == [6] * 8
    assert all(shapes[shape] in (9, 10) for shape in SHAPES)


def test_every_pair_of_factors_is_still_seen_in_training() -> None:
    seen = [one for one in product(SHAPES, COLOURS, MOTIONS) if not is_held_out(*one)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = {(one[first], one[second]) for one in seen}
        sizes = (len(SHAPES), len(COLOURS), len(MOTIONS))
        assert len(pairs) == sizes[first] * sizes[second]


def test_splits_hold_what_they_promise_for_one_and_two_objects() -> None:
    for num_objects, split in product((1, 2), ("train", "unseen")):
        for index in range(60):
            scene = sample_scene(np.random.default_rng(index), num_objects=num_objects, split=split)
            assert len(scene.things) == num_objects
            for thing in scene.things:
                assert is_held_out(thing.shape, thing.colour, thing.motion) == (split == "unseen")


def test_training_scenes_show_every_value_of_every_factor() -> None:
    scenes = [sample_scene(np.random.default_rng(index)) for index in range(400)]
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    for factor, values in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("motion", MOTIONS)):
        assert {getattr(scene.things[0], factor) for scene in scenes} == set(values)


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (sample_scene(np.random.default_rng(seed), num_objects=2) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_two_objects_never_share_a_colour() -> None:
    for index in range(100):
        left, right = sample_scene(np.random.default_rng(index), num_objects=2, split="any").things
        assert left.colour != right.colour


def fluids(count: int, split: str = "train") -> list[Fluid]:
    scenes = (sample_fluid(np.random.default_rng(index), split) for index in range(count))
    return [scene.fluid for scene in scenes if scene.fluid is not None]


def test_every_fluid_loses_two_colours_and_every_colour_one_fluid() -> None:
    held_out = [one for one in product(FLUIDS, COLOURS) if is_held_out(None, one[1], one[0])]
    motions, colours = (Counter(one[i] for one in held_out) for i in range(2))
    assert motions == dict.fromkeys(FLUIDS, 2)
    assert colours == dict.fromkeys(COLOURS, 1)


def test_splits_hold_what_they_promise_for_fluids() -> None:
    for split in ("train", "unseen"):
        for one in fluids(80, split):
            assert is_held_out(None, one.colour, one.motion) == (split == "unseen")
    looks = {(one.motion, one.colour) for one in fluids(600, "any")}
    assert looks == set(product(FLUIDS, COLOURS))


def test_training_shows_every_fluid_in_every_size_and_direction() -> None:
    seen = {(one.motion, one.size, one.direction) for one in fluids(600)}
    directions = {
        "splash": (None,),
        "smoke": ("left", None, "right"),
        "flag": ("left", "right"),
        "grass": ("left", "right"),
    }
    assert seen == {(motion, size, way) for motion, ways in directions.items() for size in SIZES for way in ways}


def test_a_scene_knows_its_kind() -> None:
    rng = np.random.default_rng(0)
    scenes = (sample_scene(rng), sample_scene(rng, num_objects=2), sample_fluid(rng))
    assert tuple(scene.kind for scene in scenes) == KINDS
    assert scenes[2].things == ()
