"""Reads two objects of different colours off a clip: each alone, with the other painted over, and how they meet."""

from dataclasses import dataclass, replace
from math import log

import numpy as np
from jaxtyping import Bool, Float

from daifuku.evaluate.laws import POSITION_NOISE, explain
from daifuku.evaluate.pixels import Cover, Frames, Paint, View, along_line, centres_of, flicker, look, paints
from daifuku.evaluate.tracker import Reading, read
from daifuku.world.factors import COLLIDE
from daifuku.world.render import tether_colour

Ragged = Float[np.ndarray, "..."]
"""Times or places of one of two objects, which need not be seen equally often."""

FAR = 1.7
"""Radius within which all of an object lies, in radii of the disc of its area: a star reaches 1.55 of them far."""

CONTACTS_S = 0.02
"""Steps in which the moment of a collision is looked for."""

NUM_PARAMETERS = 9
"""Of a collision: the moment, and of each object its height, its place then, and two velocities."""

LEAST_TURN = 0.1
"""Change of each object's velocity in a collision, in picture sides per second; the smallest of the world is 0.25."""

LEAST_SPEED = 0.25
"""Speed at which two objects approach each other and part again, in picture sides per second; the world has 0.4."""


@dataclass(frozen=True, kw_only=True)
class PairReading:
    """What a clip of two objects shows, the left one first; fewer where they were not found."""

    background: str
    things: tuple[Reading, ...]
    momentum_error: float | None
    """|momentum after - before| / (sum of both objects' |momentum| before), where they collide; masses are areas."""
    flicker: float
    """Mean change of background pixels from frame to frame, in 1/255."""


@dataclass(frozen=True, kw_only=True)
class _Meeting:
    """Two level tracks that each change velocity at one moment."""

    before: Float[np.ndarray, "2"]
    after: Float[np.ndarray, "2"]
    residual: float
    """Root mean square distance from the tracks, in picture sides."""


def read_pair(frames: Frames, *, fps: int = 20) -> PairReading:
    """Read background, both objects and their collision off a clip.

    Where only one colour is found there is one object, as `tracker.read` sees it.
    """
    view = look(frames)
    found = paints(view)[:2]
    empty = PairReading(background=view.background, things=(), momentum_error=None, flicker=flicker(view))
    if len(found) < 2:
        return replace(empty, things=tuple(read(frames, fps=fps) for _ in found))
    covers = _covers(view, found)
    things = [read(_painted_over(view, *pair), fps=fps) for pair in (covers, covers[::-1])]
    places = [np.median(centres_of(cover)[cover.any(axis=(1, 2)), 0]) for cover in covers]
    (left, left_cover), (right, right_cover) = ((things[one], covers[one]) for one in np.argsort(places, kind="stable"))
    meeting = _meeting(left, right, frames.shape[1], fps)
    if meeting is None:
        return replace(empty, things=(left, right))
    masses = np.array([_area(left, left_cover), _area(right, right_cover)])
    error = abs(masses @ (meeting.after - meeting.before)) / (masses @ np.abs(meeting.before))
    met = tuple(replace(thing, motion=COLLIDE, gravity=None) for thing in (left, right))
    return replace(empty, things=met, momentum_error=float(error))


def _covers(view: View, found: list[Paint]) -> list[Cover]:
    """Share of every pixel that each object covers.

    A pixel lies on the line in colour space from the background to its object's colour. Where it is near both lines,
    since all lines begin at the background, it belongs to the object that is at its place, and else to the nearer line.
    """
    offset = view.frames - view.ground.astype(np.float32)
    _, off_ink = along_line(offset, np.array(tether_colour(view.background)) - view.ground)
    lines = [along_line(offset, paint.rgb - view.ground) for paint in found]
    covers = []
    for (share, off_line), (_, off_other), paint in zip(lines, lines[::-1], found, strict=True):
        contrast = np.linalg.norm(paint.rgb - view.ground)
        core = (share > 0.75) & (off_line < 0.3 * contrast) & (off_line < np.minimum(off_other, off_ink))
        likely = (share > 0.15) & (off_line < 0.4 * contrast) & (off_line < off_ink) & _around(core)
        covers.append(np.where(likely, np.clip(share, 0, 1), 0))
    both = (covers[0] > 0) & (covers[1] > 0)
    first = lines[0][1] <= lines[1][1]
    return [np.where(both & ~first, 0, covers[0]), np.where(both & first, 0, covers[1])]


def _around(core: Bool[np.ndarray, "t h w"]) -> Bool[np.ndarray, "t h w"]:
    """Where the rest of an object can be of which some pixels are known."""
    area = core.sum(axis=(1, 2))
    if not area.any():
        return core
    reach = FAR * np.sqrt(np.median(area[area > 0]) / np.pi) + 2
    middle = centres_of(core.astype(np.float32))[:, :, None, None]
    y, x = np.mgrid[: core.shape[1], : core.shape[2]] + 0.5
    near = (x - middle[:, 0]) ** 2 + (y - middle[:, 1]) ** 2 < reach**2
    return near & (area > 0)[:, None, None]


def _painted_over(view: View, cover: Cover, other: Cover) -> Frames:
    """The clip without the second object, as far as its outline reaches beyond the first."""
    hidden = other > 0
    for axis in (1, 2):
        hidden = hidden | np.roll(hidden, 1, axis) | np.roll(hidden, -1, axis)
    hidden &= cover == 0
    return np.where(hidden[..., None], view.ground.round().astype(np.uint8), view.frames)


def _area(thing: Reading, cover: Cover) -> float:
    """Usual area of an object in pixels, while it is wholly in the picture."""
    return float(np.median(cover.sum(axis=(1, 2))[~np.isnan(thing.track[:, 0])]))


def _meeting(left: Reading, right: Reading, side: int, fps: int) -> _Meeting | None:
    """How two objects collide, or None where other motions explain their tracks better."""
    tracks = [thing.track / side for thing in (left, right)]
    seen = [np.flatnonzero(~np.isnan(track[:, 0])) for track in tracks]
    if min(map(len, seen)) < 5:
        return None
    times = [frame / fps for frame in seen]
    points = [track[frame] for track, frame in zip(tracks, seen, strict=True)]
    first, last = max(time[0] for time in times), max(time[-1] for time in times)
    meetings = [_fit_meeting(times, points, contact) for contact in np.arange(first, last, CONTACTS_S)]
    best = min(meetings, key=lambda meeting: meeting.residual, default=None)
    if best is None or np.abs(best.after - best.before).min() < LEAST_TURN:
        return None
    if min(best.before[0] - best.before[1], best.after[1] - best.after[0]) < LEAST_SPEED:
        return None
    num_points = sum(map(len, times))
    apart = [explain(time, point) for time, point in zip(times, points, strict=True)]
    cost = 2 * num_points * log(best.residual**2 + POSITION_NOISE**2) + NUM_PARAMETERS * log(2 * num_points)
    costs = [np.inf if law is None else law.cost(len(time)) for law, time in zip(apart, times, strict=True)]
    return best if cost < sum(costs) else None


def _fit_meeting(times: list[Ragged], points: list[Ragged], contact: float) -> _Meeting:
    """Two level tracks, each of two straight pieces that join at a moment."""
    speeds, squares = [], []
    for time, place in zip(times, points, strict=True):
        since = time - contact
        basis = np.stack([np.ones_like(since), np.minimum(since, 0), np.maximum(since, 0)], axis=1)
        found = np.linalg.lstsq(basis, place[:, 0], rcond=None)[0]
        speeds.append(found[1:])
        squares.append((place[:, 0] - basis @ found) ** 2 + (place[:, 1] - place[:, 1].mean()) ** 2)
    before, after = np.array(speeds).T
    return _Meeting(before=before, after=after, residual=float(np.sqrt(np.concatenate(squares).mean())))
