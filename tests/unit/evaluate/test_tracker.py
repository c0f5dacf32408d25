import numpy as np
import pytest

from daifuku.evaluate.laws import explain
from daifuku.evaluate.pixels import cielab
from daifuku.evaluate.tracker import read
from daifuku.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, render, sample_scene
from tests.unit.evaluate.scenes import spoilt


def scene_of(motion: str, seed: int = 0) -> Scene:
    for index in range(1000):
        scene = sample_scene(np.random.default_rng([seed, index]), split="any")
        if scene.things[0].motion == motion:
            return scene
    raise AssertionError(motion)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_read_off_true_renders_and_spoilt_ones(motion: str) -> None:
    scene = scene_of(motion)
    thing, clip = scene.things[0], render(scene)
    for frames in (clip.frames, spoilt(clip.frames)):
        reading = read(frames)
        assert reading.background == scene.background
        assert (reading.colour, reading.shape, reading.size) == (thing.colour, thing.shape, thing.size)
        assert reading.motion == motion


@pytest.mark.parametrize("motion", ["bounce", "fall", "throw_left", "throw_right"])
def test_gravity_is_read_off_motions_under_gravity(motion: str) -> None:
    reading = read(render(scene_of(motion, seed=1)).frames)
    assert reading.gravity == pytest.approx(2.5, rel=0.05)


def test_the_track_follows_the_true_centre() -> None:
    clip = render(scene_of("orbit"), size=96)
    seen = read(clip.frames).track
    known = ~np.isnan(seen[:, 0])
    assert known.sum() > 10
    np.testing.assert_allclose(seen[known], clip.tracks[0][known], atol=0.3)


def test_every_shape_and_colour_can_be_read() -> None:
    pairs = {}
    for index in range(400):
        scene = sample_scene(np.random.default_rng(index), split="any")
        pairs.setdefault(scene.things[0].shape, scene)
        pairs.setdefault(scene.things[0].colour, scene)
    assert set(pairs) == {*SHAPES, *COLOURS}
    for scene in pairs.values():
        reading = read(render(scene, num_frames=13).frames)
        assert (reading.shape, reading.colour) == (scene.things[0].shape, scene.things[0].colour)


def test_an_empty_picture_has_a_background_and_nothing_else() -> None:
    frames = np.empty((7, 64, 64, 3), np.uint8)
    frames[:] = BACKGROUNDS["navy"]
    reading = read(frames)
    assert reading.background == "navy"
    assert (reading.colour, reading.shape, reading.size, reading.motion) == (None, None, None, None)
    assert np.isnan(reading.track).all()
    assert reading.flicker == 0


def test_flicker_is_the_change_of_the_background() -> None:
    frames = np.full((7, 64, 64, 3), 128, np.uint8)
    frames[1::2] += 2
    assert read(frames).flicker == pytest.approx(2)


def test_an_object_that_changes_its_area_is_noticed() -> None:
    scene = scene_of("rest")
    small, large = (render(scene, size=size, num_frames=7).frames for size in (64, 96))
    grown = np.concatenate([small, large[:, -64:, 16:80]])
    assert (read(grown).area_variation or 0) > 0.2
    assert read(small).area_variation == pytest.approx(0, abs=0.01)


def test_a_track_of_too_few_points_is_not_explained() -> None:
    assert explain(np.arange(4) / 20, np.zeros((4, 2))) is None


def test_lightness_in_cielab_runs_from_black_to_white() -> None:
    ends = cielab(np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
    np.testing.assert_allclose(ends, [[0, 0, 0], [100, 0, 0]], atol=0.02)
    np.testing.assert_allclose(cielab(np.array([255, 0, 0], np.uint8)), [53.24, 80.09, 67.20], atol=0.05)
