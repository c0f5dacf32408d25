"""From what the sources hold to clips, and from clips to shards. Pure: the same scans and settings, the same plan."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from daifuku.config import PATCH, SPACE_FACTOR, TIME_FACTOR
from daifuku.errors import InvalidRequest
from daifuku.train.prepare.scan import Scan
from daifuku.train.prepare.sources import Skipped, Source

STEP = SPACE_FACTOR * PATCH
"""Sides of a clip are multiples of this many pixels."""

MAX_SIDE = 4096
MAX_FRAMES = 1 + TIME_FACTOR * 200

MAX_REPEATS = 2.0
"""A source of fewer than 1 / MAX_REPEATS of the wanted frames a second would stutter."""

_SLACK = 1e-6
"""Frames that rounding of times may cost."""

Bucket = tuple[int, int, int]
"""(frames, height, width) in latent cells."""


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How sources become clips. Raises InvalidRequest for what no model takes."""

    sizes: tuple[tuple[int, int], ...]
    """(height, width) of the clips, in pixels."""
    lengths: tuple[int, ...]
    """Frames of the clips."""
    fps: int
    max_clips: int | None = None
    """Of one source: that many, spread evenly over it."""
    max_upscale: float = 1.0
    """How many times a picture may be enlarged."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            for side in size:
                if side % STEP or not STEP <= side <= MAX_SIDE:
                    near = min(max(round(side / STEP) * STEP, STEP), MAX_SIDE)
                    raise InvalidRequest(
                        f"a side of {side} pixels does not fit: it is a multiple of {STEP}, at most {MAX_SIDE}. "
                        f"Try {near}."
                    )
        for length in self.lengths:
            if length % TIME_FACTOR != 1 or not 1 <= length <= MAX_FRAMES:
                below = min(max(length - (length - 1) % TIME_FACTOR, 1), MAX_FRAMES)
                raise InvalidRequest(
                    f"{length} frames do not fit: it is {TIME_FACTOR}k+1, at most {MAX_FRAMES}. Try {below}."
                )
        if not self.sizes or not self.lengths:
            raise InvalidRequest("clips need a size and a number of frames.")
        if not 1 <= self.fps <= 120:
            raise InvalidRequest(f"fps={self.fps} is out of range: from 1 to 120 works. Try 30.")
        if self.max_upscale < 1 or not math.isfinite(self.max_upscale):
            raise InvalidRequest(f"max_upscale={self.max_upscale} is out of range. Try 1, which enlarges nothing.")
        if self.max_clips is not None and self.max_clips < 1:
            raise InvalidRequest(f"max_clips={self.max_clips} is too small. Try 1.")


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """A clip that will be a sample."""

    source: Source
    sha256: str
    start_s: float
    num_frames: int
    size: tuple[int, int]
    """(height, width) in pixels."""

    @property
    def id(self) -> str:
        """Unique among the clips of a preparation."""
        return f"{self.source.name}@{self.start_s:.3f}"

    @property
    def bucket(self) -> Bucket:
        height, width = self.size
        return 1 + (self.num_frames - 1) // TIME_FACTOR, height // SPACE_FACTOR, width // SPACE_FACTOR


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """Clips of one bucket that share a file."""

    number: int
    clips: tuple[PlannedClip, ...]


def plan_clips(
    sources: Sequence[Source], scans: Mapping[str, Scan], cutting: Cutting
) -> tuple[list[PlannedClip], list[Skipped]]:
    """The clips of every source that was scanned, and the sources that give none, with the reason."""
    clips: list[PlannedClip] = []
    skipped: list[Skipped] = []
    for source in sources:
        if (found := scans.get(source.name)) is None:
            continue
        try:
            clips += _clips_of(source, found, cutting)
        except InvalidRequest as error:
            skipped.append(Skipped(source=source.name, reason=str(error)))
    return clips, skipped


def plan_shards(clips: Sequence[PlannedClip], samples_per_shard: int) -> list[PlannedShard]:
    """Clips of one bucket together, the buckets by size, the clips of each in their order."""
    groups: list[tuple[PlannedClip, ...]] = []
    for bucket in sorted({clip.bucket for clip in clips}):
        same = [clip for clip in clips if clip.bucket == bucket]
        groups += [tuple(same[i : i + samples_per_shard]) for i in range(0, len(same), samples_per_shard)]
    return [PlannedShard(number=number, clips=group) for number, group in enumerate(groups)]


def _clips_of(source: Source, found: Scan, cutting: Cutting) -> list[PlannedClip]:
    """Raises InvalidRequest where there is none."""
    size = _choose_size(found.size, cutting)
    if found.is_picture:
        spans = [(0.0, 1)]
    else:
        if found.rate * MAX_REPEATS < cutting.fps * (1 - _SLACK):
            raise InvalidRequest(
                f"it has {found.rate:.1f} frames a second, too few for {cutting.fps}: "
                f"try --fps {max(int(found.rate * MAX_REPEATS), 1)}"
            )
        spans = [span for start_s, end_s in found.shots for span in _spans(start_s, end_s, cutting)]
        if not spans:
            longest = max(_num_frames(start_s, end_s, cutting.fps) for start_s, end_s in found.shots)
            raise InvalidRequest(
                f"its longest shot has {longest} frames at {cutting.fps} a second, "
                f"fewer than {min(cutting.lengths)}: try --frames {longest - (longest - 1) % TIME_FACTOR}"
            )
    return [
        PlannedClip(source=source, sha256=found.sha256, start_s=start_s, num_frames=num_frames, size=size)
        for start_s, num_frames in _spread(spans, cutting.max_clips)
    ]


def _spans(start_s: float, end_s: float, cutting: Cutting) -> Iterator[tuple[float, int]]:
    """Start and frames of clips, one after the other, each as long as still fits. What is left over is not used."""
    num_frames, used = _num_frames(start_s, end_s, cutting.fps), 0
    while fitting := [length for length in cutting.lengths if length <= num_frames - used]:
        yield start_s + used / cutting.fps, max(fitting)
        used += max(fitting)


def _num_frames(start_s: float, end_s: float, fps: int) -> int:
    return math.floor((end_s - start_s) * fps + _SLACK) + 1


def _spread(spans: Sequence[tuple[float, int]], most: int | None) -> Sequence[tuple[float, int]]:
    if most is None or len(spans) <= most:
        return spans
    return [spans[(2 * i + 1) * len(spans) // (2 * most)] for i in range(most)]


def _choose_size(size: tuple[int, int], cutting: Cutting) -> tuple[int, int]:
    """The one nearest in aspect of those that do not enlarge too much, and the largest of these."""

    def scale(other: tuple[int, int]) -> float:
        return max(other[0] / size[0], other[1] / size[1])

    def distance(other: tuple[int, int]) -> float:
        return abs(math.log(other[0] / other[1]) - math.log(size[0] / size[1]))

    good = [other for other in cutting.sizes if scale(other) <= cutting.max_upscale]
    if not good:
        least = min(map(scale, cutting.sizes))
        raise InvalidRequest(
            f"it is {size[1]}x{size[0]} and would be enlarged {least:.2f} times: try a smaller --size, "
            f"or --max-upscale {math.ceil(least * 100) / 100:g}"
        )
    return min(good, key=lambda other: (round(distance(other), 6), -other[0] * other[1]))
