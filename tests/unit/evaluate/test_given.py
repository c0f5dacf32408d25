import pytest

from daifuku.errors import InvalidRequest
from daifuku.evaluate.given import measure_given
from daifuku.world import Clip
from tests.unit.evaluate.scenes import clips, fluid, fluid_of, frozen, single


@pytest.fixture(scope="module")
def shown() -> list[Clip]:
    return clips(single, 3, lambda scene: scene.things[0].motion == "roll_right")


def test_a_clip_that_goes_on_as_the_true_one_is_right_in_all(shown: list[Clip]) -> None:
    scores = measure_given("true", [(clip.frames, clip) for clip in shown], num_first=1).scores
    assert (scores["colour"].value, scores["motion"].value, scores["all"].value) == (100, 100, 100)
    assert scores["given_psnr"].value > 58


def test_a_clip_that_keeps_its_first_frame_and_stands_still_fails_by_its_motion(shown: list[Clip]) -> None:
    scores = measure_given("frozen", [(frozen(clip), clip) for clip in shown], num_first=1).scores
    assert scores["given_psnr"].value > 58
    assert (scores["colour"].value, scores["motion"].value) == (100, 0)


def test_only_given_frames_count_for_their_likeness(shown: list[Clip]) -> None:
    def likeness(damaged: int, num_first: int = 1, num_last: int = 0) -> float:
        pairs = []
        for clip in shown:
            frames = clip.frames.copy()
            frames[damaged] = 255 - frames[damaged]
            pairs.append((frames, clip))
        return measure_given("damaged", pairs, num_first=num_first, num_last=num_last).scores["given_psnr"].value

    assert likeness(0, num_first=1) < 10
    assert likeness(1, num_first=1) > 58 and likeness(-1, num_first=1) > 58
    assert likeness(-1, num_first=1, num_last=1) < 15
    assert likeness(6, num_first=7) < 20


def test_fluids_can_be_given_too() -> None:
    pairs = [(clip.frames, clip) for clip in clips(fluid, 2, lambda scene: fluid_of(scene).motion == "flag")]
    told = measure_given("flags", pairs, num_first=1)
    assert (told.kind, told.scores["all_four"].value) == ("fluid", 100)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (-1, 2), (20, 12)])
def test_more_frames_than_there_are_or_none_cannot_be_given(shown: list[Clip], first: int, last: int) -> None:
    with pytest.raises(InvalidRequest, match="Try num_first=1"):
        measure_given("wrong", [(shown[0].frames, shown[0])], num_first=first, num_last=last)
