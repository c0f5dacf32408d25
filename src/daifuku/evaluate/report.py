"""From what was measured on each clip to tables of numbers, each with its interval."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Shaped

Values = Float[np.ndarray, "prompts seeds"]
"""One number a clip; NaN where there was nothing to measure."""
Draws = Shaped[np.ndarray, "draws clips"]
Statistics = Float[np.ndarray, "draws"]

NUM_DRAWS = 1000
"""Bootstrap draws behind every interval."""

Scores = Sequence[Sequence[Mapping[str, float]]]
"""By the keys of `METRICS`, of each clip of each prompt: one clip a seed."""

HEADINGS = {"single": "One object", "pair": "Two objects", "fluid": "Fluids"}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured on some clips of one kind, by the keys of `METRICS` that there was something to measure of."""

    name: str
    scores: dict[str, Interval]
    kind: str = "single"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one number per clip becomes one number in the report."""

    title: str
    summarise: Callable[[Draws], Statistics]
    digits: int = 1


@dataclass(frozen=True, kw_only=True)
class WorldReport:
    """True renders, which show the limits of the measurement itself, beside reconstructions and generated clips."""

    num_prompts: int
    """Of each kind."""
    seeds: tuple[int, ...]
    size: int
    num_frames: int
    fps: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def as_markdown(self) -> str:
        """One table a kind of clip, a line a figure, with intervals in brackets where they have a width."""
        kinds = list(dict.fromkeys(row.kind for row in self.rows))
        many = len(self.seeds) > 1
        seeds = f"seeds {', '.join(map(str, self.seeds))}" if many else f"seed {self.seeds[0]}"
        each = " of each kind" if len(kinds) > 1 else ""
        shape = f"{self.num_frames} frames of {self.size}x{self.size} at {self.fps} fps"
        parts = [f"{self.num_prompts} prompts{each} never trained on, {seeds}, {shape}.\n"]
        for kind in kinds:
            table = _table([row for row in self.rows if row.kind == kind])
            parts.append(f"**{HEADINGS[kind]}**\n\n{table}\n")
        return "\n".join(parts)


def row(name: str, scores: Scores, *, kind: str = "single") -> Row:
    """Summarise the scores of clips."""
    found = {key: _interval(_values(scores, key), METRICS[key].summarise) for key in _keys(scores)}
    return Row(name=name, kind=kind, scores={key: score for key, score in found.items() if score is not None})


def difference(name: str, scores: Scores, less: Scores, *, kind: str = "single") -> Row:
    """How much higher the first scores are than the second ones of the same prompts, which are drawn together."""
    found = {
        key: _interval(_values(scores, key), METRICS[key].summarise, _values(less, key))
        for key in _keys(scores)
        if key in _keys(less)
    }
    return Row(name=name, kind=kind, scores={key: score for key, score in found.items() if score is not None})


def _table(rows: Sequence[Row]) -> str:
    keys = [key for key in METRICS if any(key in row.scores for row in rows)]
    lines = [["", *(row.name for row in rows)], ["---"] * (len(rows) + 1)]
    lines += [[METRICS[key].title, *(_cell(row.scores.get(key), METRICS[key].digits) for row in rows)] for key in keys]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(score: Interval | None, digits: int) -> str:
    if score is None:
        return ""
    value, low, high = (f"{number:.{digits}f}" for number in (score.value, score.low, score.high))
    return value if low == high else f"{value} [{low}, {high}]"


def _keys(scores: Scores) -> list[str]:
    return list(dict.fromkeys(key for seeds in scores for one in seeds for key in one))


def _values(scores: Scores, key: str) -> Values:
    return np.array([[one.get(key, np.nan) for one in seeds] for seeds in scores])


def _interval(values: Values, summarise: Callable[[Draws], Statistics], less: Values | None = None) -> Interval | None:
    """Resamples prompts, each with the clips of all its seeds; the same draws at every call, so that rows of one report
    differ by their clips alone. None where there is nothing to measure."""
    sides = [values] if less is None else [values, less]
    known = np.all([~np.isnan(side).all(axis=1) for side in sides], axis=0)
    if not known.any():
        return None
    sides = [side[known] for side in sides]
    draws = np.random.default_rng(0).integers(known.sum(), size=(NUM_DRAWS, known.sum()))

    def drawn(prompts: Shaped[np.ndarray, "draws prompts"]) -> Statistics:
        found = [summarise(side[prompts].reshape(len(prompts), -1)) for side in sides]
        return found[0] if less is None else found[0] - found[1]

    low, high = np.percentile(drawn(draws), (2.5, 97.5))
    return Interval(value=float(drawn(np.arange(known.sum())[None])[0]), low=float(low), high=float(high))


def _mean(draws: Draws) -> Statistics:
    return np.nanmean(draws, axis=1)


def _percent(draws: Draws) -> Statistics:
    return 100 * _mean(draws)


def _median_percent(draws: Draws) -> Statistics:
    return 100 * np.nanmedian(draws, axis=1)


METRICS = {
    "background": Metric(title="background %", summarise=_percent),
    "colour": Metric(title="colour %", summarise=_percent),
    "shape": Metric(title="shape %", summarise=_percent),
    "size": Metric(title="size %", summarise=_percent),
    "motion": Metric(title="motion %", summarise=_percent),
    "direction": Metric(title="direction %", summarise=_percent),
    "pace": Metric(title="pace %", summarise=_percent),
    "sides": Metric(title="left and right %", summarise=_percent),
    "all_four": Metric(title="all but size %", summarise=_percent),
    "bound": Metric(title="both bound rightly %", summarise=_percent),
    "all": Metric(title="all at once %", summarise=_percent),
    "gravity_error": Metric(title="median gravity error %", summarise=_median_percent),
    "law_error": Metric(title="median error of the law %", summarise=_median_percent),
    "momentum_error": Metric(title="median momentum error %", summarise=_median_percent),
    "area_variation": Metric(title="median area variation %", summarise=_median_percent),
    "flicker": Metric(title="background flicker /255", summarise=_mean, digits=3),
    "psnr": Metric(title="PSNR dB", summarise=_mean),
    "object_psnr": Metric(title="PSNR on the object dB", summarise=_mean),
}
"""Every figure of a report, in order."""
