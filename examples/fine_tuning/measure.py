"""Measures the LoRA of docs/fine-tuning.md: python examples/fine_tuning/measure.py LORA

How many clips show the new motion, what other prompts lose, and whether strength 0 is exactly no LoRA. Classical vision
reads the motion off the pixels.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from clips import FPS, NUM_FRAMES, SIDE, UNTAUGHT, triangle_wave, zigzag
from einops import rearrange
from PIL import Image

import daifuku
from daifuku import world
from daifuku.config import RuntimeConfig
from daifuku.evaluate.laws import Law, explain
from daifuku.evaluate.tracker import read
from daifuku.evaluate.world import Interval, measure, true_clip

Make = Callable[[str, int], np.ndarray]
"""(prompt, seed) -> frames."""

TEST_SEED = 1
"""Draws size, background and path of what is asked for; the clips of training are of seed 0."""
PERIODS_S = np.arange(0.75, 1.35, 0.025)
PHASES = np.arange(-0.25, 0.25, 0.025)
"""In turns. The wave may also be upside down."""
MAX_RESIDUAL = 0.035
"""Root mean square distance from the best zigzag that still counts as one, in picture sides."""
NUM_DRAWS = 2000
"""Bootstrap draws behind every interval."""
NUM_ROWS, NUM_COLUMNS = 6, 8
"""Clips, and frames of each, in the picture."""


def fit_zigzag(time: np.ndarray, points: np.ndarray) -> Law | None:
    """The zigzag to the right that explains a track best, or None where the best one is none.

    Times in seconds, points [t, 2] in picture sides.
    """
    ones = np.ones_like(time)
    (_, speed), x_left = _fit(np.stack([ones, time], axis=1), points[:, 0])
    waves = (triangle_wave(time / period + phase) for period, phase in product(PERIODS_S, PHASES))
    fits = (_fit(np.stack([ones, wave], axis=1), points[:, 1]) for wave in waves)
    (_, amplitude), y_left = min(fits, key=lambda fit: fit[1])
    residual = float(np.hypot(x_left, y_left))
    if residual > MAX_RESIDUAL or speed < 0.2 or abs(amplitude) < 0.08:
        return None
    return Law(motion="zigzag", residual=residual, num_parameters=6)


def shows_zigzag(frames: np.ndarray) -> bool:
    """Whether a zigzag explains the path of a clip's object, and does so better than any motion of the world."""
    track = read(frames, fps=FPS).track / frames.shape[1]
    seen = ~np.isnan(track[:, 0])
    # Less than two thirds of a clip is too little to tell.
    if seen.mean() < 2 / 3:
        return False
    time, points = np.flatnonzero(seen) / FPS, track[seen]
    own, other = fit_zigzag(time, points), explain(time, points)
    return own is not None and (other is None or own.cost(len(time)) < other.cost(len(time)))


def as_asked(frames: np.ndarray, clip: world.Clip) -> bool:
    """Whether a clip of the world shows its shape, colour, motion and background."""
    return measure("", [(frames, clip)], fps=FPS).scores["all_four"].value == 100


def share(values: Sequence[bool] | np.ndarray) -> Interval:
    """The mean in percent, with its 95 % bootstrap interval."""
    percent = 100 * np.asarray(values, float)
    draws = np.random.default_rng(0).integers(len(percent), size=(NUM_DRAWS, len(percent)))
    low, high = np.percentile(percent[draws].mean(axis=1), (2.5, 97.5))
    return Interval(value=float(percent.mean()), low=float(low), high=float(high))


def table(base: Make, lora: Make, *, num_prompts: int, num_others: int) -> str:
    """What can be counted, in Markdown; with and without the LoRA always on the same prompts and noise."""
    asked = [zigzag(TEST_SEED, index, UNTAUGHT) for index in range(num_prompts)]
    others = [true_clip(0, index, SIDE, NUM_FRAMES, FPS) for index in range(num_others)]
    columns: dict[str, Make | None] = {"true renders": None, "without the LoRA": base, "with it": lora}
    zigzags, false_alarms, right = {}, {}, {}
    for name, make in columns.items():
        zigzags[name] = [shows_zigzag(frames) for frames, _ in _made(make, asked)]
        pairs = list(_made(make, others))
        false_alarms[name] = [shows_zigzag(frames) for frames, _ in pairs]
        right[name] = np.array([as_asked(frames, clip) for frames, clip in pairs], float)
    rows = {
        f"a zigzag, {num_prompts} prompts that ask for it": zigzags,
        f"a zigzag, {num_others} prompts that do not": false_alarms,
        f"what was asked for, the same {num_others}": right,
    }
    lines = [f"| % of clips that show | {' | '.join(columns)} |", "| --- | --- | --- | --- |"]
    lines += [f"| {row} | {' | '.join(_cell(share(found[name])) for name in columns)} |" for row, found in rows.items()]
    lost = share(right["without the LoRA"] - right["with it"])
    return "\n".join([*lines, "", f"Prompt by prompt, the {num_others} lose {_cell(lost)} points."])


def same_at_zero(lora: Path, mode: str) -> bool:
    """Whether a clip with the LoRA at strength 0 has the bits of one without any."""
    pipe = daifuku.load(runtime=RuntimeConfig(lora_mode=mode))
    prompt = zigzag(TEST_SEED, 0, UNTAUGHT).caption
    plain, zero = (pipe(prompt, seed=0, loras=loras) for loras in ([], [(str(lora), 0.0)]))
    return bool(torch.equal(plain.latents, zero.latents)) and np.array_equal(plain.frames, zero.frames)


def draw(make: Make, path: Path) -> None:
    """The first prompts, one a row."""
    asked = [zigzag(TEST_SEED, index, UNTAUGHT) for index in range(NUM_ROWS)]
    clips = np.stack([frames for frames, _ in _made(make, asked)]).repeat(2, axis=2).repeat(2, axis=3)
    chosen = clips[:, np.linspace(0, clips.shape[1] - 1, NUM_COLUMNS).astype(int)]
    Image.fromarray(rearrange(chosen, "clips t h w c -> (clips h) (t w) c")).save(path, optimize=True)


def main() -> None:
    """Prints what was found in Markdown, and draws the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("lora", type=Path)
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="that ask for the motion")
    parser.add_argument("--others", type=int, default=200, metavar="N", help="prompts of what the model knew before")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where some of the clips are drawn")
    given = parser.parse_args()
    base, taught = daifuku.load(), daifuku.load(loras=[(str(given.lora), 1.0)])

    def without(prompt: str, seed: int) -> np.ndarray:
        return base(prompt, seed=seed).frames

    def with_it(prompt: str, seed: int) -> np.ndarray:
        return taught(prompt, seed=seed).frames

    print(table(without, with_it, num_prompts=given.prompts, num_others=given.others), "\n")
    same = {mode: same_at_zero(given.lora, mode) for mode in ("merged", "live")}
    verdicts = [f"{mode}, the clip {'has the bits' if same[mode] else 'DIFFERS FROM that'} of one" for mode in same]
    print(f"At strength 0, {'; '.join(verdicts)} without the LoRA.")
    if given.picture is not None:
        draw(with_it, given.picture)


def _made(make: Make | None, clips: Sequence[world.Clip]) -> Iterator[tuple[np.ndarray, world.Clip]]:
    """What is made of the captions of clips, beside the clips; without a maker the clips themselves."""
    for seed, clip in enumerate(clips):
        yield clip.frames if make is None else make(clip.caption, seed), clip


def _fit(basis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares: the coefficients, and the root mean square of what they leave."""
    found = np.linalg.lstsq(basis, values, rcond=None)[0]
    return found, float(np.sqrt(np.mean((values - basis @ found) ** 2)))


def _cell(found: Interval) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


if __name__ == "__main__":
    main()
