"""Cuts found in films of known shots."""

from itertools import pairwise

import numpy as np
import pytest

from daifuku import world
from daifuku.media.cuts import change, colours, find_cuts

SHOTS = 4


def found(frames: np.ndarray) -> set[int]:
    shades = [colours(frame) for frame in frames]
    return set(find_cuts([0.0] + [change(a, b) for a, b in pairwise(shades)]))


def thumbnails(frames: np.ndarray) -> np.ndarray:
    """Means of areas, as a decoder makes them."""
    cell = frames.shape[1] // 32
    return frames.reshape(len(frames), 32, cell, 32, cell, 3).mean((2, 4)).astype(np.uint8)


def texture(rng: np.random.Generator) -> np.ndarray:
    """A picture as detailed as nature's: its spectrum falls with the frequency."""
    side = 256
    falling = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) + 1 / side
    picture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) / falling)
    picture /= picture.std((1, 2), keepdims=True)
    levels, contrast = rng.uniform(60, 190, (3, 1, 1)), rng.uniform(25, 55)
    return np.clip(levels + contrast * picture, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def panned(rng: np.random.Generator) -> tuple[np.ndarray, set[int]]:
    """Shots by a hand that shakes and swings, up to a tenth of the picture in a frame, and where they begin."""
    frames: list[np.ndarray] = []
    starts: set[int] = set()
    for _ in range(SHOTS):
        starts.add(len(frames))
        picture, speed, shaking = texture(rng), rng.uniform(-12, 12, 2), rng.uniform(0, 4)
        for index in range(int(rng.integers(8, 40))):
            shift = (speed * index + rng.normal(0, shaking, 2)).astype(int)
            frames.append(np.roll(picture, tuple(shift), (0, 1))[:128, :128])
    return thumbnails(np.stack(frames)), starts - {0}


def doubled(frames: np.ndarray, starts: set[int]) -> tuple[np.ndarray, set[int]]:
    """24 frames a second shown as 30: every fourth comes twice."""
    order = [index for index in range(len(frames)) for _ in range(2 if index % 4 == 3 else 1)]
    return frames[order], {order.index(start) for start in starts}


def test_cuts_of_the_world_are_found_and_no_others() -> None:
    num_found = 0
    for number in range(15):
        clips = [world.clip(9, SHOTS * number + shot, size=64, num_frames=31) for shot in range(SHOTS)]
        cuts = found(thumbnails(np.concatenate([clip.frames for clip in clips])))
        assert cuts <= {31, 62, 93}
        num_found += len(cuts)
    assert num_found >= 44


@pytest.mark.parametrize("twice", [False, True])
def test_cuts_between_quick_motions_are_found_and_no_others(twice: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        frames, starts = panned(rng)
        frames, starts = doubled(frames, starts) if twice else (frames, starts)
        assert found(frames) == starts


def test_a_fade_and_a_still_are_no_cuts() -> None:
    fading = np.linspace(0, 255, 20).astype(np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    assert found(fading) == set() and found(fading[:1]) == set()
    assert found(np.repeat(fading[3:4], 12, axis=0)) == set()


def test_the_change_of_a_colour_is_the_distance_it_goes() -> None:
    dark, light = np.full((4, 4, 3), 16, np.uint8), np.full((4, 4, 3), 96, np.uint8)
    assert change(colours(dark), colours(light)) == 80
