import numpy as np
import pytest

from daifuku.world import clip, render
from daifuku.world.factors import BACKGROUNDS, COLOURS, SHAPES, SIZES
from daifuku.world.motions import Flight
from daifuku.world.scene import Scene, Thing, sample_scene
from daifuku.world.shapes import AREA, DEPTH, REACH, SIGNED_DISTANCE


def still(shape: str, *, size: str = "large", motion: str = "rest", angle: float = 0.0) -> Scene:
    path = Flight(x=0.5, y=0.5, angle=angle)
    return Scene(background="black", things=(Thing(shape=shape, colour="red", size=size, motion=motion, path=path),))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_shape_has_the_area_of_its_formula(shape: str) -> None:
    red = render(still(shape), size=128, num_frames=1).frames[0, :, :, 0] / COLOURS["red"][0]
    assert red.sum() == pytest.approx(AREA[shape] * (SIZES["large"] * 128) ** 2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_outline_lies_within_its_reach_and_depth(shape: str) -> None:
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j]
    inside = SIGNED_DISTANCE[shape](x, y) < 0
    assert np.sqrt(x**2 + y**2)[inside].max() == pytest.approx(REACH[shape], abs=0.05)
    assert y[inside].max() == pytest.approx(DEPTH[shape], abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_a_shape_is_its_centre_of_mass(shape: str) -> None:
    mask = render(still(shape, motion="spin", angle=0.3), size=128, num_frames=1).mask[0]
    rows, columns = np.nonzero(mask)
    assert columns.mean() + 0.5 == pytest.approx(64, abs=0.4)
    assert rows.mean() + 0.5 == pytest.approx(64, abs=0.4)


def test_the_mask_is_where_the_frames_show_the_object() -> None:
    scene = sample_scene(np.random.default_rng(3))
    shown = render(scene)
    away = np.abs(shown.frames.astype(int) - np.array(BACKGROUNDS[scene.background])).sum(-1)
    assert np.all(away[shown.mask] > 20)
    outside = away[~shown.mask]
    assert (outside == 0).mean() > 0.95


def test_tracks_follow_the_mask_below_one_pixel() -> None:
    for index in range(6):
        shown = render(sample_scene(np.random.default_rng(index)))
        touches_edge = shown.mask[:, [0, -1]].any((1, 2)) | shown.mask[:, :, [0, -1]].any((1, 2))
        for frame in np.flatnonzero(~touches_edge & shown.mask.any((1, 2))):
            rows, columns = np.nonzero(shown.mask[frame])
            centre = np.array([columns.mean(), rows.mean()]) + 0.5
            np.testing.assert_allclose(centre, shown.tracks[0, frame], atol=0.7)


def test_motion_smaller_than_a_pixel_changes_the_picture() -> None:
    path = Flight(x=0.5, y=0.5, vx=0.1 * 20 / 64)
    thing = Thing(shape="ball", colour="red", size="small", motion="rise", path=path)
    shown = render(Scene(background="black", things=(thing,)), num_frames=2)
    assert np.abs(np.diff(shown.frames.astype(int), axis=0)).max() > 5


def test_a_scene_looks_the_same_at_twice_the_size() -> None:
    for index in range(4):
        scene = sample_scene(np.random.default_rng(index), num_objects=1 + index % 2)
        small, large = render(scene, size=64, num_frames=7), render(scene, size=128, num_frames=7)
        np.testing.assert_allclose(large.tracks, 2 * small.tracks, rtol=1e-5)
        shrunk = large.frames.reshape(7, 64, 2, 64, 2, 3).mean((2, 4))
        assert np.abs(shrunk - small.frames).mean() < 2


def test_more_frames_continue_the_same_clip() -> None:
    scene = sample_scene(np.random.default_rng(1))
    np.testing.assert_array_equal(render(scene, num_frames=49).frames[:19], render(scene, num_frames=19).frames)


def test_an_object_outside_the_picture_leaves_only_background() -> None:
    path = Flight(x=3.0, y=-2.0)
    thing = Thing(shape="star", colour="red", size="large", motion="rise", path=path)
    shown = render(Scene(background="beige", things=(thing,)), num_frames=1)
    assert np.all(shown.frames == BACKGROUNDS["beige"])
    assert not shown.mask.any()


def test_a_mark_shows_a_spin_and_nothing_else() -> None:
    spinning, resting = (render(still("ball", motion=motion, angle=1.0), num_frames=1) for motion in ("spin", "rest"))
    dark = [(shown.frames[0, ..., 0][shown.mask[0]] < 100).sum() for shown in (spinning, resting)]
    assert dark[0] > 10
    assert dark[1] == 0


def test_a_clip_of_the_stream_depends_on_its_number_alone() -> None:
    together = [clip(4, index, size=64, num_frames=7, pair_share=0.5) for index in range(10, 14)]
    alone = clip(4, 12, size=64, num_frames=7, pair_share=0.5)
    np.testing.assert_array_equal(together[2].frames, alone.frames)
    assert together[2].caption == alone.caption
    assert together[2].scene == alone.scene
    assert len({one.caption for one in together}) == 4
