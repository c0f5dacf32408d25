import numpy as np
import pytest

from daifuku.evaluate.turning import turn_rate
from daifuku.world import Clip
from daifuku.world.motions import Flight
from tests.unit.evaluate.scenes import clips, single


def true_rate(clip: Clip) -> float:
    path = clip.scene.things[0].path
    assert isinstance(path, Flight)
    return path.turn_rate


def test_the_rate_and_the_sense_of_turning_are_read_off_every_shape() -> None:
    shapes = set()
    for clip in clips(single, 12, lambda scene: scene.things[0].motion == "spin"):
        (thing,) = clip.scene.things
        shapes.add(thing.shape)
        time = np.arange(len(clip.frames)) / 20
        found = turn_rate(clip.frames, time, clip.tracks[0, 0].astype(np.float64), thing.radius * 64)
        assert found == pytest.approx(true_rate(clip), rel=0.02)
    assert len(shapes) >= 4


def test_frames_that_are_left_out_do_not_change_the_rate() -> None:
    (clip,) = clips(single, 1, lambda scene: scene.things[0].motion == "spin")
    (thing,) = clip.scene.things
    kept = np.r_[:9, 14:31]
    found = turn_rate(clip.frames[kept], kept / 20, clip.tracks[0, 0].astype(np.float64), thing.radius * 64)
    assert found == pytest.approx(true_rate(clip), rel=0.02)
