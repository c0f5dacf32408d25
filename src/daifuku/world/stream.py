"""An endless, numbered stream of clips for training: clip i depends on the seed and i alone."""

import numpy as np

from daifuku.world.captions import describe
from daifuku.world.render import Clip, render
from daifuku.world.scene import sample_fluid, sample_scene


def clip(
    seed: int,
    index: int,
    *,
    size: int,
    num_frames: int,
    fps: int = 20,
    pair_share: float = 0.0,
    fluid_share: float = 0.0,
    pace: bool = False,
    split: str = "train",
) -> Clip:
    """Clip number `index` of the stream, with a varied caption.

    A share of the clips shows a fluid, and a share of the others two objects. With `pace`, captions say how fast.
    """
    rng = np.random.default_rng([seed, index])
    if fluid_share and rng.random() < fluid_share:
        scene = sample_fluid(rng, split)
    else:
        scene = sample_scene(rng, num_objects=2 if rng.random() < pair_share else 1, split=split)
    return render(scene, size=size, num_frames=num_frames, fps=fps, caption=describe(scene, rng, pace=pace))
