"""Scenes of the world for tests of what reads them, and damage for their frames."""

from collections.abc import Callable

import numpy as np

from daifuku.world import Clip, Fluid, Scene, render, sample_fluid, sample_scene


def clips(draw: Callable[[np.random.Generator], Scene], count: int, fits: Callable[[Scene], bool]) -> list[Clip]:
    """The first renders of drawn scenes that fit."""
    found = []
    for index in range(2000):
        scene = draw(np.random.default_rng([17, index]))
        if fits(scene):
            found.append(render(scene))
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} of {count} scenes fit")


def pair(rng: np.random.Generator) -> Scene:
    return sample_scene(rng, num_objects=2, split="any")


def single(rng: np.random.Generator) -> Scene:
    return sample_scene(rng, split="any")


def fluid(rng: np.random.Generator) -> Scene:
    return sample_fluid(rng, "any")


def spoilt(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    """A little blur in space, and noise of 4/255."""
    frames = frames.astype(np.float32)
    for axis in (1, 2):
        edge = [(1, 1) if axis == one else (0, 0) for one in range(4)]
        padded = np.pad(frames, edge, mode="edge")
        low, high = np.roll(padded, 1, axis), np.roll(padded, -1, axis)
        frames = (0.25 * low + 0.5 * padded + 0.25 * high).take(np.arange(1, frames.shape[axis] + 1), axis)
    noise = np.random.default_rng(seed).normal(0, 4, frames.shape)
    return np.clip(frames + noise + 0.5, 0, 255).astype(np.uint8)


def frozen(clip: Clip) -> np.ndarray:
    """The first frame, as often as the clip has frames."""
    return clip.frames[:1].repeat(len(clip.frames), axis=0)


def fluid_of(scene: Scene | Clip) -> Fluid:
    """The fluid of a scene that has one."""
    found = (scene.scene if isinstance(scene, Clip) else scene).fluid
    assert found is not None
    return found
