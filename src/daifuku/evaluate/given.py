"""Measures clips that were made from frames of a true one: whether they keep them, and go on as it does."""

from collections.abc import Iterable

import numpy as np

from daifuku.errors import InvalidRequest
from daifuku.evaluate.judge import KINDS
from daifuku.evaluate.pixels import Frames
from daifuku.evaluate.report import Row, row
from daifuku.evaluate.world import decibels
from daifuku.world import Clip


def measure_given(
    name: str,
    pairs: Iterable[tuple[Frames, Clip]],
    *,
    num_first: int,
    num_last: int = 0,
    fps: int = 20,
    pace: bool = False,
) -> Row:
    """Score clips against the true clips whose first and last frames were given, all of one kind.

    `given_psnr` is over the given frames alone; all else is read off the whole clip, and says whether what comes after
    and between them shows what is true of the scene: `motion` and `colour` above all. Raises InvalidRequest where no
    frame is given, or more than there are.
    """
    scores, kind = [], "single"
    for frames, clip in pairs:
        kind = clip.scene.kind
        given = np.r_[:num_first, len(frames) - num_last : len(frames)]
        if min(num_first, num_last) < 0 or not 0 < len(given) <= len(frames):
            raise InvalidRequest(
                f"num_first={num_first} and num_last={num_last} must be 1 to {len(frames)} frames together. "
                "Try num_first=1, num_last=0."
            )
        error = (frames[given].astype(np.float32) - clip.frames[given]) ** 2
        how = KINDS[kind]
        judged = how.judge(how.read(frames, fps=fps), clip.scene, pace=pace)
        scores.append([{"given_psnr": decibels(error)} | judged])
    return row(name, scores, kind=kind)
