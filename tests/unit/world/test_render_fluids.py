import sys
import tracemalloc
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from daifuku.world import BACKGROUNDS, COLOURS, FLUIDS, Clip, render, sample_fluid
from daifuku.world.fluids import Flag, Grass, Smoke, Splash
from daifuku.world.render import tether_colour
from daifuku.world.render_fluids import SMOKE, layer_of
from daifuku.world.scene import Fluid, Scene

SIZE, NUM_FRAMES, FPS = 96, 37, 24
TIME = np.arange(NUM_FRAMES) / FPS


def scenes(motion: str, count: int) -> list[Scene]:
    drawn = (sample_fluid(np.random.default_rng([6, index]), "any") for index in range(400))
    return list(islice((one for one in drawn if fluid_of(one).motion == motion), count))


def fluid_of(scene: Scene) -> Fluid:
    assert scene.fluid is not None
    return scene.fluid


def shown(scene: Scene, num_frames: int = NUM_FRAMES) -> Clip:
    return render(scene, size=SIZE, num_frames=num_frames, fps=FPS)


def centres(weights: np.ndarray) -> np.ndarray:
    """Centre of mass of every frame, in pixels, x first."""
    middles = np.arange(weights.shape[1]) + 0.5
    mass = weights.sum(axis=(1, 2))
    return np.stack([weights.sum(axis=1) @ middles, weights.sum(axis=2) @ middles], axis=-1) / mass[:, None]


def test_the_track_of_a_drop_is_the_middle_of_what_is_seen_above_the_pool() -> None:
    for scene in scenes("splash", 4):
        clip, law = shown(scene), fluid_of(scene).law
        assert isinstance(law, Splash)
        falling = np.flatnonzero(~np.isnan(clip.tracks[0, :, 0]))
        assert len(falling) >= 10
        above = clip.mask[falling, : round((law.level - 0.02) * SIZE)]
        whole = clip.tracks[0, falling, 1] + law.radius * SIZE < above.shape[1]
        pixels = np.zeros((whole.sum(), SIZE, SIZE))
        pixels[:, : above.shape[1]] = above[whole]
        np.testing.assert_allclose(centres(pixels), clip.tracks[0, falling][whole], atol=0.4)


def test_the_area_of_a_splash_stays_the_same_but_for_its_droplets() -> None:
    for scene in scenes("splash", 4):
        law = fluid_of(scene).law
        assert isinstance(law, Splash)
        area = layer_of(law, TIME, SIZE).cover.sum(axis=(1, 2)) / SIZE**2
        assert area[:5] == pytest.approx(1 - law.level + np.pi * law.radius**2, rel=0.02)
        droplets = 2 * sum(np.pi * one.radius**2 for one in law.droplets)
        assert area.min() > 0.96 * area[0]
        assert area.max() < 1.03 * area[0] + droplets


def test_the_picture_holds_the_smoke_of_all_puffs_and_its_centre_is_the_track() -> None:
    for scene in scenes("smoke", 4):
        law = fluid_of(scene).law
        assert isinstance(law, Smoke)
        time = TIME[:16]
        smoke = -np.log1p(-layer_of(law, time, SIZE).cover.astype(float))
        puffs = law.amount(time).sum(axis=0) * SMOKE * law.width * SIZE**2
        np.testing.assert_allclose(smoke.sum(axis=(1, 2)), puffs, rtol=0.03)
        np.testing.assert_allclose(centres(smoke), shown(scene).tracks[0, :16], atol=0.7)


def test_the_track_of_a_flag_is_the_middle_of_its_free_end_and_its_cloth_keeps_its_height() -> None:
    for scene in scenes("flag", 4):
        clip, law = shown(scene), fluid_of(scene).law
        assert isinstance(law, Flag)
        for frame in range(0, NUM_FRAMES, 4):
            x, y = clip.tracks[0, frame]
            columns = np.flatnonzero(clip.mask[frame].any(axis=0))
            end = columns[-1] + 1 if law.towards > 0 else columns[0]
            assert end == pytest.approx(x, abs=0.8)
            edge = np.flatnonzero(clip.mask[frame, :, columns[-1] if law.towards > 0 else columns[0]])
            assert edge.mean() + 0.5 == pytest.approx(y, abs=1.2)
            heights = clip.mask[frame].sum(axis=0)[columns[1:-1]]
            assert heights.mean() == pytest.approx(law.height * SIZE, rel=0.04)


def test_grass_bows_when_its_track_does() -> None:
    for scene in scenes("grass", 4):
        law = fluid_of(scene).law
        assert isinstance(law, Grass)
        uniform = replace(law, wavelength=50.0)
        layer, tips = layer_of(uniform, TIME, SIZE), uniform.track(TIME)
        heights = SIZE - layer.top - centres(np.pad(layer.cover, ((0, 0), (0, layer.top), (0, 0))))[:, 1]
        assert np.corrcoef(heights, tips[:, 1])[0, 1] < -0.9


@pytest.mark.parametrize("motion", FLUIDS)
def test_the_mask_is_where_the_colour_shows_and_poles_are_outside_of_it(motion: str) -> None:
    for scene in scenes(motion, 3):
        clip, fluid = shown(scene), fluid_of(scene)
        paint, ground = (np.array(each, float) for each in (COLOURS[fluid.colour], BACKGROUNDS[scene.background]))
        away = np.abs(clip.frames - ground).sum(axis=-1)
        assert 0.01 < clip.mask.mean() < 0.8
        assert (away[clip.mask] > 20).mean() > 0.97
        if isinstance(fluid.law, Flag):
            pole = round(fluid.law.x * SIZE)
            assert not clip.mask[:, -10:].any()
            ink = np.array(tether_colour(scene.background))
            assert np.abs(clip.frames[:, -10:, pole - 1 : pole + 1] - ink).max() <= np.abs(ground - ink).max()
            assert (clip.frames[:, -10:, pole - 2 : pole + 2] != ground).any()
        else:
            assert (away[~clip.mask] == 0).mean() > 0.3
        hue = np.median(clip.frames[clip.mask], axis=0)
        assert np.dot(hue, paint) / np.linalg.norm(hue) / np.linalg.norm(paint) > 0.97


@pytest.mark.parametrize("motion", FLUIDS)
def test_a_fluid_moves_by_less_than_a_pixel_and_shows_it(motion: str) -> None:
    for scene in scenes(motion, 3):
        frames = render(scene, size=SIZE, num_frames=100, fps=200).frames[[80, 81]].astype(int)
        assert 2 <= np.abs(np.diff(frames, axis=0)).max() < 200


@pytest.mark.parametrize("motion", FLUIDS)
def test_a_fluid_looks_the_same_at_twice_the_size(motion: str) -> None:
    for scene in scenes(motion, 2):
        small, large = (render(scene, size=size, num_frames=13, fps=8) for size in (64, 128))
        np.testing.assert_allclose(large.tracks, 2 * small.tracks, rtol=1e-5)
        shrunk = large.frames.reshape(13, 64, 2, 64, 2, 3).mean((2, 4))
        assert np.abs(shrunk - small.frames).mean() < 2.5


@pytest.mark.parametrize("motion", FLUIDS)
def test_more_frames_continue_the_same_clip(motion: str) -> None:
    scene = scenes(motion, 1)[0]
    short, long = shown(scene, 13), shown(scene, 37)
    assert np.abs(long.frames[:13].astype(int) - short.frames).max() <= 1
    np.testing.assert_allclose(long.tracks[:, :13], short.tracks, rtol=1e-6)


def test_droplets_may_leave_the_picture_on_every_side() -> None:
    scene = scenes("splash", 1)[0]
    law = fluid_of(scene).law
    assert isinstance(law, Splash)
    for vx, vy in ((3.0, 0.5), (0.3, 5.0)):
        far = replace(law, droplets=tuple(replace(one, vx=vx, vy=vy) for one in law.droplets))
        late = layer_of(far, TIME, SIZE).cover[-1]
        assert late[: round((law.level - 0.1) * SIZE)].max() == 0


def calls(scene: Scene, num_frames: int) -> int:
    """Functions that rendering calls, Python's and numpy's."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    shown(scene, num_frames)
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        shown(scene, num_frames)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("motion", FLUIDS)
def test_more_frames_hardly_take_more_calls_and_a_frame_the_memory_of_a_dozen_fields(motion: str) -> None:
    """What keeps rendering fast: whole arrays, and not too many of them."""
    scene = scenes(motion, 1)[0]
    assert calls(scene, 2 * NUM_FRAMES) < 1.3 * calls(scene, NUM_FRAMES)
    tracemalloc.start()
    shown(scene)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 4 * NUM_FRAMES * SIZE**2
