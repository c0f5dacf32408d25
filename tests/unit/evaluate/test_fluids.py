import numpy as np
import pytest

from daifuku.evaluate.fluids import read_fluid
from daifuku.evaluate.judge import LAWS
from daifuku.world import FLUIDS, Clip
from tests.unit.evaluate.scenes import clips, fluid, fluid_of, frozen, single, spoilt

LARGEST_ERRORS = {"splash": 0.01, "smoke": 0.12, "flag": 0.03, "grass": 0.08}


@pytest.fixture(scope="module", params=FLUIDS)
def shown(request: pytest.FixtureRequest) -> list[Clip]:
    """Clips of one fluid."""
    return clips(fluid, 6, lambda scene: fluid_of(scene).motion == request.param)


def test_fluids_are_read_off_true_renders(shown: list[Clip]) -> None:
    for clip in shown:
        reading, true = read_fluid(clip.frames), fluid_of(clip)
        assert reading.background == clip.scene.background
        assert (reading.motion, reading.colour, reading.direction) == (true.motion, true.colour, true.direction)
        assert reading.size == true.size
        assert true.pace in (None, reading.pace)


def test_the_number_of_a_fluids_law_is_fitted(shown: list[Clip]) -> None:
    motion = fluid_of(shown[0]).motion
    for clip in shown:
        assert read_fluid(clip.frames).law == pytest.approx(
            LAWS[motion](fluid_of(clip).law), rel=LARGEST_ERRORS[motion]
        )


def test_blur_and_noise_do_not_confuse_a_fluid(shown: list[Clip]) -> None:
    reading, true = read_fluid(spoilt(shown[0].frames)), fluid_of(shown[0])
    assert (reading.motion, reading.colour, reading.direction) == (true.motion, true.colour, true.direction)


def test_what_looks_like_a_fluid_but_stands_still_has_no_motion(shown: list[Clip]) -> None:
    reading = read_fluid(frozen(shown[0]))
    assert (reading.motion, reading.law) == (None, None)
    assert reading.colour == fluid_of(shown[0]).colour


def test_a_fluid_in_slow_motion_has_another_law(shown: list[Clip]) -> None:
    clip = shown[0]
    law = LAWS[fluid_of(clip).motion](fluid_of(clip).law)
    found = read_fluid(clip.frames.repeat(2, axis=0)[: len(clip.frames)]).law
    assert found is None or found < 0.7 * law


def test_drops_do_not_rise_and_smoke_does_not_sink() -> None:
    for motion in ("splash", "smoke"):
        (clip,) = clips(fluid, 1, lambda scene, motion=motion: fluid_of(scene).motion == motion)
        assert read_fluid(clip.frames[::-1]).motion is None


def test_single_objects_are_hardly_taken_for_fluids() -> None:
    shown = [read_fluid(clip.frames).motion for clip in clips(single, 12, lambda scene: True)]
    assert shown.count(None) >= 11


def test_an_empty_picture_shows_no_fluid() -> None:
    reading = read_fluid(np.zeros((7, 64, 64, 3), np.uint8))
    assert (reading.background, reading.colour, reading.motion, reading.law) == ("black", None, None, None)
