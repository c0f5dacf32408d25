"""Measures how well videos show what their prompts ask for, in the procedural world, where every answer is known."""

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

from daifuku.errors import InvalidRequest
from daifuku.evaluate.judge import KINDS
from daifuku.evaluate.pixels import Frames
from daifuku.evaluate.report import METRICS, Interval, Row, WorldReport, difference, row
from daifuku.world import Clip, describe, render, sample_fluid, sample_scene

__all__ = ["METRICS", "Frames", "Interval", "Row", "WorldReport", "evaluate_world", "measure", "true_clip"]

Generate = Callable[[str, int], Frames]
"""(prompt, seed) -> clip."""

ROUNDING_ERROR = 1 / 12
"""Mean squared error of rounding to whole numbers; a smaller one says nothing."""

SEED_STRIDE = 1_000_000
"""Between the noise of a prompt's clips, on top of their seeds, so that no two prompts share any."""


TRUE, FROZEN = "true renders", "true renders, first frame frozen"
DECODED, GENERATED, EXACT = "VAE reconstructions", "generated", "generated, preset exact"
PARAPHRASED, PARAPHRASING = "generated, held-out paraphrases", "what the paraphrases change"
SHUFFLED, UNTRAINED = "generated, captions shuffled", "untrained model"
ORDER = (TRUE, DECODED, GENERATED, EXACT, PARAPHRASED, SHUFFLED, UNTRAINED, FROZEN)
"""Names of rows as the report lists them."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a report is made of."""

    num_prompts: int
    seeds: tuple[int, ...]
    size: int
    num_frames: int
    fps: int
    pace: bool
    controls: bool
    makers: Mapping[str, tuple[Generate, str]]
    """By the names of rows, which are made from prompts in seen or unseen phrases."""
    reconstruct: Callable[[Frames], Frames] | None

    def clip(self, kind: str, index: int, phrasing: str = "train") -> Clip:
        return true_clip(
            self.seeds[0],
            index,
            self.size,
            self.num_frames,
            self.fps,
            kind=kind,
            pace=self.pace,
            phrasing=phrasing,
        )

    def noise(self, index: int) -> list[int]:
        """The seed of each clip of a prompt."""
        return [seed + index + SEED_STRIDE * number for number, seed in enumerate(self.seeds)]


def evaluate_world(
    generate: Generate,
    *,
    kinds: tuple[str, ...] = ("single",),
    num_prompts: int = 200,
    seeds: tuple[int, ...] = (0,),
    size: int = 64,
    num_frames: int = 31,
    fps: int = 20,
    pace: bool = False,
    controls: bool = False,
    paraphrases: bool = False,
    reconstruct: Callable[[Frames], Frames] | None = None,
    exact: Generate | None = None,
    untrained: Generate | None = None,
) -> WorldReport:
    """Compare generated clips with their prompts, beside true renders and, if given a VAE, its reconstructions.

    `generate` takes a prompt and a seed; so do `exact`, where there is another way to make them, and `untrained`. The
    prompts show combinations of shape, colour and motion that training holds out, of each of the kinds, and always say
    size and background; with `pace` also how fast, where a motion is a slow or a fast one. The first seed draws them,
    and each is made once a seed, by `untrained` with the first seed alone. `controls` adds rows that must score badly:
    clips judged by the prompt after theirs, and first frames that stand still. `paraphrases` adds the same scenes in
    phrases that training holds out. Raises InvalidRequest for a kind that is none, and for seeds that are none or not
    all different.
    """
    check_asked(kinds, seeds)
    makers = {GENERATED: (generate, "train"), EXACT: (exact, "train"), UNTRAINED: (untrained, "train")}
    if paraphrases:
        makers[PARAPHRASED] = (generate, "unseen")
    asked = _Asked(
        num_prompts=num_prompts,
        seeds=seeds,
        size=size,
        num_frames=num_frames,
        fps=fps,
        pace=pace,
        controls=controls,
        makers={name: (make, phrasing) for name, (make, phrasing) in makers.items() if make is not None},
        reconstruct=reconstruct,
    )
    rows = tuple(row for kind in kinds for row in _rows(kind, asked))
    return WorldReport(num_prompts=num_prompts, seeds=seeds, size=size, num_frames=num_frames, fps=fps, rows=rows)


def measure(
    name: str,
    pairs: Iterable[tuple[Frames, Clip]],
    *,
    fps: int = 20,
    pace: bool = False,
    compare_pixels: bool = False,
) -> Row:
    """Score clips against the true clips of the same prompts, all of one kind.

    Comparing pixels, for reconstructions, adds the peak signal-to-noise ratio over each whole clip and over its object.
    """
    scores, kind = [], "single"
    for frames, clip in pairs:
        kind = clip.scene.kind
        how = KINDS[kind]
        judged = how.judge(how.read(frames, fps=fps), clip.scene, pace=pace)
        scores.append([judged | (_likeness(frames, clip) if compare_pixels else {})])
    return row(name, scores, kind=kind)


def true_clip(
    seed: int,
    index: int,
    size: int,
    num_frames: int,
    fps: int,
    *,
    kind: str = "single",
    pace: bool = False,
    phrasing: str = "train",
) -> Clip:
    """Clip number `index` of those that a model is measured on: a combination never trained on, and its caption."""
    rng = np.random.default_rng([seed, index])
    if kind == "fluid":
        scene = sample_fluid(rng, "unseen")
    else:
        scene = sample_scene(rng, num_objects=2 if kind == "pair" else 1, split="unseen")
    caption = describe(scene, rng, phrasing, complete=True, pace=pace)
    return render(scene, size=size, num_frames=num_frames, fps=fps, caption=caption)


def _rows(kind: str, asked: _Asked) -> Iterator[Row]:
    """Clips are read as they are made, and forgotten: what was read of them is all that is kept."""
    how, scenes = KINDS[kind], []
    readings: dict[str, list[list[Any]]] = defaultdict(list)
    likeness = []
    for index in range(asked.num_prompts):
        clips = {phrasing: asked.clip(kind, index, phrasing) for phrasing in {one for _, one in asked.makers.values()}}
        clip = clips["train"]
        scenes.append(clip.scene)
        frames = {TRUE: [clip.frames]}
        if asked.reconstruct is not None:
            frames[DECODED] = [asked.reconstruct(clip.frames)]
            likeness.append([_likeness(frames[DECODED][0], clip)])
        if asked.controls:
            frames[FROZEN] = [clip.frames[:1].repeat(len(clip.frames), axis=0)]
        for name, (make, phrasing) in asked.makers.items():
            noise = asked.noise(index)[: 1 if name == UNTRAINED else None]
            frames[name] = [make(clips[phrasing].caption, seed) for seed in noise]
        for name, made in frames.items():
            readings[name].append([how.read(one, fps=asked.fps) for one in made])
    if asked.controls:
        readings[SHUFFLED] = [*readings[GENERATED][-1:], *readings[GENERATED][:-1]]
    scores = {
        name: [
            [how.judge(one, scene, pace=asked.pace) for one in made]
            for made, scene in zip(all_made, scenes, strict=True)
        ]
        for name, all_made in readings.items()
    }
    if DECODED in scores:
        scores[DECODED] = [[mine | like] for ([mine], [like]) in zip(scores[DECODED], likeness, strict=True)]
    for name in ORDER:
        if name in scores:
            yield row(name, scores[name], kind=kind)
        if name == PARAPHRASED and name in scores:
            yield difference(PARAPHRASING, scores[name], scores[GENERATED], kind=kind)


def check_asked(kinds: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Raises InvalidRequest as `evaluate_world` does."""
    for name, values, example in (("kinds", kinds, "single"), ("seeds", seeds, 0)):
        if not values or len(set(values)) < len(values):
            others = ",".join(map(str, dict.fromkeys(values))) or example
            raise InvalidRequest(f"{name}={values} must be at least one, and each only once. Try {others}.")
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1) or KINDS
            raise InvalidRequest(f"kinds: there is no kind {kind!r}. Try {' or '.join(near)}.")


def _likeness(frames: Frames, clip: Clip) -> dict[str, float]:
    error = (frames.astype(np.float32) - clip.frames) ** 2
    on_object = _decibels(error[clip.mask]) if clip.mask.any() else np.nan
    return {"psnr": _decibels(error), "object_psnr": on_object}


def _decibels(squared_error: np.ndarray) -> float:
    """Peak signal-to-noise ratio of one clip, at most that of rounding."""
    return 10 * log10(255**2 / max(float(squared_error.mean()), ROUNDING_ERROR))
