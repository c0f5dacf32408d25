"""An endless, numbered stream of clips for training: clip i depends on the seed and i alone."""

import numpy as np

from daifuku.world.captions import describe
from daifuku.world.render import Clip, render
from daifuku.world.scene import sample_scene


def clip(
    seed: int, index: int, *, size: int, num_frames: int, fps: int = 20, pair_share: float = 0.0, split: str = "train"
) -> Clip:
    """Clip number `index` of the stream, with a varied caption; a share of the clips shows two objects."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng, num_objects=2 if rng.random() < pair_share else 1, split=split)
    return render(scene, size=size, num_frames=num_frames, fps=fps, caption=describe(scene, rng))


def clips(
    seed: int,
    start: int,
    count: int,
    *,
    size: int,
    num_frames: int,
    pair_share: float = 0.0,
    split: str = "train",
) -> list[Clip]:
    """Clips `start` up to `start + count` of the stream, at 20 frames a second."""
    return [
        clip(seed, index, size=size, num_frames=num_frames, pair_share=pair_share, split=split)
        for index in range(start, start + count)
    ]
