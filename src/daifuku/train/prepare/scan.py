"""One source looked at from its first frame to its last: what it is, and which shots it has. Needs no torch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from daifuku.errors import MediaError
from daifuku.media.cuts import change, colours, find_cuts
from daifuku.media.decode import IMAGE_SUFFIXES, Limits, Picture, pictures
from daifuku.train.prepare.sources import Source

MAX_GAP_S = 1.0
"""A frame that stays longer than this ends its shot: what follows was not filmed in one go."""

_JUST_UNDER_HALF = 0.49
"""Of the time between two frames: up to there the earlier one is the nearer."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a source holds."""

    name: str
    sha256: str
    """Of its content; of a folder, of the names and contents of its pictures."""
    size: tuple[int, int]
    """(height, width) of the first picture as it is shown."""
    is_picture: bool
    rate: float
    """Frames a second, by the median of the time between them; 0 for a picture."""
    shots: tuple[tuple[float, float], ...]
    """Start and end of each shot in seconds: at every time between them its own frames are the nearest."""


def scan(root: Path, source: Source, fps: int, limits: Limits) -> Scan:
    """Decodes all of a source, a frame at a time. Raises MediaError where it cannot be used."""
    times: list[float] = []
    changes: list[float] = []
    size, before = None, None
    for picture in source_pictures(root, source, fps, limits):
        now = colours(picture.thumbnail())
        size = size or picture.size
        times.append(picture.time_s)
        changes.append(0.0 if before is None else change(before, now))
        before = now
    if size is None:
        raise MediaError("it holds no frames")
    one = len(times) == 1
    if one and not source.is_folder and Path(source.name).suffix.lower() not in IMAGE_SUFFIXES | {".gif"}:
        raise MediaError("it is a video of a single frame")
    interval_s = 0.0 if one else median(later - earlier for earlier, later in pairwise(times))
    return Scan(
        name=source.name,
        sha256=content_sha256(root, source),
        size=size,
        is_picture=one,
        rate=1 / interval_s if interval_s else 0.0,
        shots=tuple(_shots(times, changes, interval_s)),
    )


def source_pictures(root: Path, source: Source, fps: int, limits: Limits) -> Iterator[Picture]:
    """All pictures of a source. Those of a folder come `fps` a second. Raises MediaError."""
    files = source.files(root)
    if not source.is_folder:
        yield from pictures(files[0], limits)
        return
    if len(files) > limits.max_frames:
        raise MediaError(f"it has more than {limits.max_frames} frames: make several folders of it")
    first: Picture | None = None
    for index, file in enumerate(files):
        try:
            picture = next(pictures(file, limits))
        except MediaError as error:
            raise MediaError(f"{file.name}: {error}") from error
        first = first or picture
        if picture.size != first.size:
            raise MediaError(f"{file.name} is {_by(picture.size)}, and the pictures before it are {_by(first.size)}")
        yield Picture(time_s=index / fps, frame=picture.frame, pixel_ratio=picture.pixel_ratio)


def content_sha256(root: Path, source: Source) -> str:
    """Of the content of a source; of a folder, of the names and contents of its pictures."""
    digest = hashlib.sha256()
    for path in source.files(root):
        with open(path, "rb") as file:
            own = hashlib.file_digest(file, "sha256")
        if not source.is_folder:
            return own.hexdigest()
        digest.update(f"{path.name}\n{own.hexdigest()}\n".encode())
    return digest.hexdigest()


def _shots(times: list[float], changes: list[float], interval_s: float) -> Iterator[tuple[float, float]]:
    gaps = [i for i in range(1, len(times)) if times[i] - times[i - 1] > max(MAX_GAP_S, 2 * interval_s)]
    starts = sorted({0, *find_cuts(changes), *gaps})
    for start, stop in zip(starts, [*starts[1:], len(times)], strict=True):
        yield times[start], times[stop - 1] + _JUST_UNDER_HALF * interval_s


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
