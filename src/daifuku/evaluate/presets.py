"""What presets save and what they cost: each beside the exact run of the same prompt and seed."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median

from daifuku.evaluate.pixels import Frames
from daifuku.evaluate.world import METRICS, Row, measure, true_clip


@dataclass(frozen=True, kw_only=True)
class Made:
    """One clip, and what it took."""

    frames: Frames
    num_passes: int
    """Passes through all blocks of the transformer."""
    sampling_s: float


@dataclass(frozen=True, kw_only=True)
class PresetRow:
    """One preset over all prompts. The PSNR is that to the clips of the first preset."""

    quality: Row
    num_passes: float
    """Mean number for a clip."""
    speedup: float
    """Median over prompts of the first preset's sampling time divided by this one's."""


@dataclass(frozen=True, kw_only=True)
class PresetReport:
    """Presets in the order in which they were asked for."""

    num_prompts: int
    seed: int
    rows: tuple[PresetRow, ...]

    def to_json(self) -> str:
        """The whole report as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def as_markdown(self) -> str:
        """The report as one table, with 95 % bootstrap intervals over prompts in brackets."""
        titles = ["", "passes", "times faster", METRICS["all_four"].title, f"{METRICS['psnr'].title} to the first"]
        lines = [titles, ["---"] * len(titles), *(_cells(row) for row in self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.num_prompts} prompts never trained on, seed {self.seed}.\n\n{table}\n"


def evaluate_presets(
    generate: Callable[[str, int, str], Made],
    presets: tuple[str, ...],
    *,
    num_prompts: int = 100,
    seed: int = 0,
    size: int = 64,
    num_frames: int = 31,
    fps: int = 20,
) -> PresetReport:
    """Compare presets with the first of them on the prompts and seeds of `evaluate_world`.

    `generate` takes a prompt, a seed and a preset. All presets of a prompt run one after another, so that whatever else
    the machine does slows them all alike.
    """
    clips = [true_clip(seed, index, size, num_frames, fps) for index in range(num_prompts)]
    runs: list[Mapping[str, Made]] = [
        {preset: generate(clip.caption, seed + index, preset) for preset in presets} for index, clip in enumerate(clips)
    ]

    def row(preset: str) -> PresetRow:
        pairs = (
            (run[preset].frames, replace(clip, frames=run[presets[0]].frames))
            for run, clip in zip(runs, clips, strict=True)
        )
        return PresetRow(
            quality=measure(preset, pairs, fps=fps, compare_pixels=True),
            num_passes=fmean(run[preset].num_passes for run in runs),
            speedup=median(run[presets[0]].sampling_s / run[preset].sampling_s for run in runs),
        )

    return PresetReport(num_prompts=num_prompts, seed=seed, rows=tuple(row(preset) for preset in presets))


def _cells(row: PresetRow) -> list[str]:
    scores = [row.quality.scores[key] for key in ("all_four", "psnr")]
    measured = [f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]" for score in scores]
    return [row.quality.name, f"{row.num_passes:.0f}", f"{row.speedup:.2f}", *measured]
