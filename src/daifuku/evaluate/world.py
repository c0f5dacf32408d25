"""Measures how well videos show what their prompts ask for, in the procedural world, where every answer is known."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import log10

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from daifuku.evaluate.tracker import read
from daifuku.world import Clip, Scene, describe, render, sample_scene
from daifuku.world.motions import GRAVITY, Bounce, Flight

Frames = UInt8[np.ndarray, "t h w 3"]
Values = Float[np.ndarray, "prompts"]
Draws = Shaped[np.ndarray, "draws prompts"]
Statistics = Float[np.ndarray, "draws"]

NUM_DRAWS = 1000
"""Bootstrap draws behind every interval."""

ROUNDING_ERROR = 1 / 12
"""Mean squared error of rounding to whole numbers; a smaller one says nothing."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured on one kind of clip, by the keys of `METRICS`."""

    name: str
    scores: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one number per prompt becomes one number in the report."""

    title: str
    summarise: Callable[[Draws], Statistics]
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class WorldReport:
    """True renders, which show the limits of the measurement itself, beside reconstructions and generated clips."""

    num_prompts: int
    seed: int
    size: int
    num_frames: int
    fps: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def as_markdown(self) -> str:
        """The report as one table, with intervals in brackets."""
        keys = [key for key in METRICS if any(key in row.scores for row in self.rows)]
        lines = [["", *(METRICS[key].title for key in keys)], ["---"] * (len(keys) + 1)]
        lines += [[row.name, *(_cell(row.scores.get(key), METRICS[key].digits) for key in keys)] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        shape = f"{self.num_frames} frames of {self.size}x{self.size} at {self.fps} fps"
        return f"{self.num_prompts} prompts never trained on, seed {self.seed}, {shape}.\n\n{table}\n"


def evaluate_world(
    generate: Callable[[str, int], Frames],
    *,
    num_prompts: int = 200,
    seed: int = 0,
    size: int = 64,
    num_frames: int = 31,
    fps: int = 20,
    reconstruct: Callable[[Frames], Frames] | None = None,
    exact: Callable[[str, int], Frames] | None = None,
) -> WorldReport:
    """Compare generated clips with their prompts, beside true renders and, if given a VAE, its reconstructions.

    `generate` takes a prompt and a seed; so does `exact`, where there is another way to make them. The prompts
    show combinations of shape, colour and motion that training holds out, one object each, and always say size and
    background.
    """
    true_clips = [true_clip(seed, index, size, num_frames, fps) for index in range(num_prompts)]
    rows = [measure("true renders", ((clip.frames, clip) for clip in true_clips), fps=fps)]
    if reconstruct is not None:
        pairs = ((reconstruct(clip.frames), clip) for clip in true_clips)
        rows.append(measure("VAE reconstructions", pairs, fps=fps, compare_pixels=True))
    for name, make in (("generated", generate), ("generated, preset exact", exact)):
        if make is not None:
            pairs = ((make(clip.caption, seed + index), clip) for index, clip in enumerate(true_clips))
            rows.append(measure(name, pairs, fps=fps))
    return WorldReport(num_prompts=num_prompts, seed=seed, size=size, num_frames=num_frames, fps=fps, rows=tuple(rows))


def measure(name: str, pairs: Iterable[tuple[Frames, Clip]], *, fps: int = 20, compare_pixels: bool = False) -> Row:
    """Score clips against the true clips of the same prompts.

    Comparing pixels, for reconstructions, adds the peak signal-to-noise ratio over each whole clip and over its object.
    """
    scored = []
    for frames, clip in pairs:
        scores = _scores(frames, clip.scene, fps)
        if compare_pixels:
            error = (frames.astype(np.float32) - clip.frames) ** 2
            scores |= {"psnr": _decibels(error), "object_psnr": _decibels(error[clip.mask])}
        scored.append(scores)
    columns = {key: np.array([scores[key] for scores in scored]) for key in scored[0]}
    return Row(name=name, scores={key: _interval(values, METRICS[key].summarise) for key, values in columns.items()})


def true_clip(seed: int, index: int, size: int, num_frames: int, fps: int) -> Clip:
    """Clip number `index` of those that a model is measured on: a combination never trained on, and its caption."""
    rng = np.random.default_rng([seed, index])
    scene = sample_scene(rng, split="unseen")
    return render(scene, size=size, num_frames=num_frames, fps=fps, caption=describe(scene, rng, complete=True))


def _scores(frames: Frames, scene: Scene, fps: int) -> dict[str, float]:
    """One number a metric; NaN where the scene has nothing to measure.

    Where a motion under gravity is not recognised, its gravity counts as wrong by all of its value.
    """
    (thing,) = scene.things
    reading = read(frames, fps=fps)
    right = {
        "background": reading.background == scene.background,
        "colour": reading.colour == thing.colour,
        "shape": reading.shape == thing.shape,
        "size": reading.size == thing.size,
        "motion": reading.motion == thing.motion,
    }
    falls = isinstance(thing.path, Bounce | Flight) and thing.path.gravity > 0
    error = 1.0 if reading.gravity is None else min(abs(reading.gravity / GRAVITY - 1), 1.0)
    return {
        **{key: float(value) for key, value in right.items()},
        "all_four": float(all(right[key] for key in ("background", "colour", "shape", "motion"))),
        "gravity_error": error if falls else np.nan,
        "area_variation": np.nan if reading.area_variation is None else reading.area_variation,
        "flicker": reading.flicker,
    }


def _interval(values: Values, summarise: Callable[[Draws], Statistics]) -> Interval:
    """Resamples prompts; the same draws at every call, so that rows of one report differ by their clips alone."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    draws = np.random.default_rng(0).integers(len(values), size=(NUM_DRAWS, len(values)))
    low, high = np.percentile(summarise(values[draws]), (2.5, 97.5))
    return Interval(value=float(summarise(values[None])[0]), low=float(low), high=float(high))


def _cell(score: Interval | None, digits: int) -> str:
    if score is None:
        return ""
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def _percent(draws: Draws) -> Statistics:
    return 100 * draws.mean(axis=1)


def _median_percent(draws: Draws) -> Statistics:
    return 100 * np.median(draws, axis=1)


def _mean(draws: Draws) -> Statistics:
    return draws.mean(axis=1)


def _decibels(squared_error: np.ndarray) -> float:
    """Peak signal-to-noise ratio of one clip, at most that of rounding."""
    return 10 * log10(255**2 / max(float(squared_error.mean()), ROUNDING_ERROR))


METRICS = {
    "background": Metric(title="background %", summarise=_percent),
    "colour": Metric(title="colour %", summarise=_percent),
    "shape": Metric(title="shape %", summarise=_percent),
    "size": Metric(title="size %", summarise=_percent),
    "motion": Metric(title="motion %", summarise=_percent),
    "all_four": Metric(title="all but size %", summarise=_percent),
    "gravity_error": Metric(title="median gravity error %", summarise=_median_percent),
    "area_variation": Metric(title="median area variation %", summarise=_median_percent),
    "flicker": Metric(title="background flicker /255", summarise=_mean, digits=3),
    "psnr": Metric(title="PSNR dB", summarise=_mean),
    "object_psnr": Metric(title="PSNR on the object dB", summarise=_mean),
}
"""Every column of the report, in order."""
