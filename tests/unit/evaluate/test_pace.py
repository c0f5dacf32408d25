import pytest

from daifuku.evaluate.pace import read_pace
from daifuku.evaluate.tracker import read
from daifuku.world.pace import FREE
from tests.unit.evaluate.scenes import clips, single

FREE_MOTIONS = ("roll_left", "roll_right", "spin", "orbit", "rise", "spring")


@pytest.mark.parametrize("motion", FREE_MOTIONS)
def test_slow_and_fast_are_told_apart_on_true_renders(motion: str) -> None:
    shown = clips(single, 4, lambda scene: scene.things[0].motion == motion and scene.things[0].pace is not None)
    assert {clip.scene.things[0].pace for clip in shown} <= {"slow", "fast"}
    for clip in shown:
        assert read(clip.frames).pace == clip.scene.things[0].pace


def test_what_gravity_sets_has_no_pace() -> None:
    for motion in ("bounce", "fall", "throw_left", "pendulum"):
        (clip,) = clips(single, 1, lambda scene, motion=motion: scene.things[0].motion == motion)
        assert read(clip.frames).pace is None


def test_a_short_period_is_a_fast_spring_and_a_high_speed_a_fast_roll() -> None:
    for motion, ends in (("spring", ("fast", "slow")), ("roll_left", ("slow", "fast"))):
        low, high = FREE[motion]
        assert (read_pace(motion, low), read_pace(motion, (low + high) / 2), read_pace(motion, high)) == (
            ends[0],
            None,
            ends[1],
        )
    assert read_pace("rest", 1.0) is None and read_pace("rise", None) is None
