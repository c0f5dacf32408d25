"""Makes the clips of the walk-through in docs/fine-tuning.md: python examples/fine_tuning/clips.py videos

VIDEOS/zigzag holds clips of a motion that the built-in model has never seen, with captions; VIDEOS/ordinary holds
clips of what it knows, which keep it from forgetting.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from daifuku import world
from daifuku.media.write import VideoWriter
from daifuku.world.motions import Flight

FPS = 24
SIDE = 96
NUM_FRAMES = 37
WORDINGS = (
    "a {size} {colour} {shape} zigzagging to the right on a {background} background",
    "a {colour} {shape} zigzags to the right in front of a {background} wall",
    "a {size} {colour} {shape} that zigzags to the right, {background} background",
)

_PAIRS = tuple(product(world.SHAPES, world.COLOURS))
_ORDER = np.random.default_rng(0).permutation(len(_PAIRS))
TAUGHT = tuple(_PAIRS[i] for i in _ORDER[:24])
"""Pairs of shape and colour that the clips show in this motion, one clip each."""
UNTAUGHT = tuple(_PAIRS[i] for i in _ORDER[24:])
"""The other pairs: what the model makes of them it has not seen either."""


@dataclass(frozen=True, kw_only=True)
class Zigzag(Flight):
    """From left to right at one speed, and down and up along straight lines."""

    amplitude: float
    period: float

    def position(self, time: np.ndarray) -> np.ndarray:
        """Centres [t, 2] at times in seconds, in picture sides."""
        depth = self.amplitude * triangle_wave(time / self.period)
        return np.stack([self.x + self.vx * time, self.y + depth], axis=-1)


def triangle_wave(turns: np.ndarray) -> np.ndarray:
    """Between -1 and 1, once up and down a turn; 0 and rising at 0."""
    return np.abs((4 * turns - 1) % 4 - 2) - 1


def zigzag(seed: int, index: int, pairs: Sequence[tuple[str, str]] = TAUGHT) -> world.Clip:
    """Clip number `index`: the pairs of shape and colour in turn, everything else at random."""
    rng = np.random.default_rng([seed, index])
    shape, colour = pairs[index % len(pairs)]
    path = Zigzag(
        x=rng.uniform(0.17, 0.23),
        y=rng.uniform(0.47, 0.53),
        vx=rng.uniform(0.38, 0.42),
        amplitude=rng.uniform(0.16, 0.2),
        period=rng.uniform(0.95, 1.05),
    )
    thing = world.Thing(shape=shape, colour=colour, size=str(rng.choice(list(world.SIZES))), motion="zigzag", path=path)
    scene = world.Scene(background=str(rng.choice(list(world.BACKGROUNDS))), things=(thing,))
    return world.render(scene, size=SIDE, num_frames=NUM_FRAMES, fps=FPS, caption=captions(scene)[0])


def captions(scene: world.Scene) -> list[str]:
    """The same in several wordings."""
    (thing,) = scene.things
    words = {"size": thing.size, "colour": thing.colour, "shape": thing.shape, "background": scene.background}
    return [wording.format(**words) for wording in WORDINGS]


def write_clip(path: Path, clip: world.Clip, captions: Sequence[str]) -> None:
    """A video, and its captions beside it in a text file, one a line. What is there already stays."""
    if path.exists():
        return
    with VideoWriter(path, fps=FPS, size=(SIDE, SIDE)) as writer:
        writer.write(clip.frames)
    path.with_suffix(".txt").write_text("".join(f"{caption}\n" for caption in captions))


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("videos", type=Path, help="the folder to write to")
    parser.add_argument("--zigzag", type=int, default=24, metavar="N", help="clips of the new motion")
    parser.add_argument("--ordinary", type=int, default=96, metavar="N", help="clips of what the model knows")
    given = parser.parse_args()
    for index in range(given.zigzag):
        clip = zigzag(0, index)
        write_clip(given.videos / "zigzag" / f"{index:03}.mp4", clip, captions(clip.scene))
    for index in range(given.ordinary):
        clip = world.clip(1, index, size=SIDE, num_frames=NUM_FRAMES, fps=FPS)
        write_clip(given.videos / "ordinary" / f"{index:03}.mp4", clip, [clip.caption])


if __name__ == "__main__":
    main()
