from collections import Counter
from itertools import product

import numpy as np

from daifuku.world.factors import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, is_held_out
from daifuku.world.scene import sample_scene


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
