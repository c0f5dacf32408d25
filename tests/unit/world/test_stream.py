"""The streams of clips. What trained weights were trained on and are measured with must never change."""

from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import sha256
from math import ceil
from typing import Any

import numpy as np
import pytest

from daifuku.world import Clip, clip, describe, is_held_out, render, sample_fluid, sample_scene
from daifuku.world.factors import COLLIDE
from daifuku.world.motions import Collision
from daifuku.world.shapes import AREA, HALF_WIDTH


def digest(parts: Iterable[bytes]) -> str:
    """A short hash of many parts."""
    whole = sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]


def clips(seed: int, start: int, count: int, **shown: Any) -> list[Clip]:
    """Consecutive clips of the stream."""
    return [clip(seed, index, **shown) for index in range(start, start + count)]


def content(made: list[Clip]) -> Iterable[bytes]:
    """All that a clip shows and says."""
    for one in made:
        yield from (one.frames.tobytes(), one.mask.tobytes(), one.caption.encode(), repr(one.scene.things).encode())


@pytest.mark.parametrize(
    "made, expected",
    [
        (lambda: clips(0, 0, 6, size=64, num_frames=31, pair_share=0.1), "c7b8555b8686cd3d"),
        (lambda: clips(3, 100, 8, size=64, num_frames=31, pair_share=0.6), "fa7b00bd4c466ecb"),
        (lambda: clips(4, 0, 6, size=64, num_frames=31, split="unseen"), "fddea39e2bb601f9"),
        (lambda: clips(5, 0, 6, size=96, num_frames=37, fps=24, pair_share=0.5), "167e4c7a6ab1d91f"),
    ],
)
def test_clips_of_objects_are_the_same_for_ever(made: Callable[[], list[Clip]], expected: str) -> None:
    assert digest(content(made())) == expected


def test_captions_of_objects_are_the_same_for_ever() -> None:
    captions = []
    for index in range(200):
        rng = np.random.default_rng([9, index])
        scene = sample_scene(rng, num_objects=1 + index % 2, split="any")
        captions.append(describe(scene, rng, ("train", "unseen")[index // 2 % 2], complete=index % 3 == 0))
    assert digest(["\n".join(captions).encode()]) == "03848bdf4b0c89ba"


def test_a_share_of_the_clips_shows_fluids_and_a_share_of_the_others_pairs() -> None:
    made = clips(1, 0, 200, size=16, num_frames=1, fluid_share=0.5, pair_share=0.5)
    kinds = Counter(one.scene.kind for one in made)
    assert 80 < kinds["fluid"] < 120
    assert 35 < kinds["pair"] < 65
    assert 35 < kinds["single"] < 65


def test_fluids_that_were_not_trained_on_are_held_out() -> None:
    made = clips(2, 5, 12, size=32, num_frames=7, fps=24, pair_share=0.3, fluid_share=0.6, pace=True, split="unseen")
    fluids = [one.scene.fluid for one in made if one.scene.fluid is not None]
    assert fluids and all(is_held_out(None, fluid.colour, fluid.motion) for fluid in fluids)


def test_a_higher_rate_shows_less_time() -> None:
    slow, fast = (clip(0, 3, size=32, num_frames=13, fps=fps) for fps in (20, 40))
    np.testing.assert_array_equal(fast.frames[::2], slow.frames[:7])


def test_colliding_objects_touch_and_keep_their_momentum_at_96_pixels_and_24_frames_a_second() -> None:
    scenes = (sample_scene(np.random.default_rng([8, index]), num_objects=2) for index in range(24))
    colliding = [scene for scene in scenes if scene.things[0].motion == COLLIDE]
    assert len(colliding) >= 6
    for scene in colliding:
        made = render(scene, size=96, num_frames=37, fps=24)
        left, right = (thing.path for thing in scene.things)
        assert isinstance(left, Collision)
        assert isinstance(right, Collision)
        contact = ceil(left.contact * 24)
        assert 8 <= contact <= 17
        masses = [AREA[thing.shape] * thing.radius**2 for thing in scene.things]
        steps = np.diff(made.tracks[..., 0], axis=1)
        before, after = (float(np.dot(masses, steps[:, frame])) for frame in (contact - 3, contact + 2))
        assert after == pytest.approx(before, abs=1e-2 * float(np.dot(masses, np.abs(steps[:, 0]))))
        touch = (left.x + HALF_WIDTH[scene.things[0].shape] * scene.things[0].radius) * 96
        gaps = np.flatnonzero(made.mask[round(left.contact * 24), round(left.y * 96)]) + 0.5 - touch
        assert gaps[gaps < 0].max() > -3
        assert gaps[gaps > 0].min() < 3
        assert all(thing.colour in made.caption and thing.shape in made.caption for thing in scene.things)


def test_a_fluid_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, again, other = (sample_fluid(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
