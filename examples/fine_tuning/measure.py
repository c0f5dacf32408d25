"""Measures the LoRA of docs/fine-tuning.md: python examples/fine_tuning/measure.py LORA

How many clips show the new motion, what other prompts lose, and whether strength 0 is exactly no LoRA. Classical vision
reads the motion off the pixels.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
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

Answers = tuple[world.Clip, tuple[np.ndarray, ...]]
"""A true clip, and frames of several origins for its caption: the clip's own, without the LoRA, with it."""
Judge = Callable[[np.ndarray, world.Clip], bool]
"""(frames, the true clip of the same caption) -> whether they are right."""

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


def shows_zigzag(frames: np.ndarray, _: world.Clip | None = None) -> bool:
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


def share(values: np.ndarray) -> Interval:
    """The mean in percent, with its 95 % bootstrap interval."""
    percent = 100.0 * values
    draws = np.random.default_rng(0).integers(len(percent), size=(NUM_DRAWS, len(percent)))
    low, high = np.percentile(percent[draws].mean(axis=1), (2.5, 97.5))
    return Interval(value=float(percent.mean()), low=float(low), high=float(high))


def table(pool: Executor, lora: Path, *, num_prompts: int, num_others: int, num_steps: int | None) -> str:
    """What can be counted, in Markdown; with and without the LoRA always on the same prompts and noise."""
    make = partial(_both, pool, lora, num_steps)
    others = [true_clip(0, index, SIDE, NUM_FRAMES, FPS) for index in range(num_others)]
    right, false_alarms = _judged([as_asked, shows_zigzag], make(others))
    asked = [zigzag(TEST_SEED, index, UNTAUGHT) for index in range(num_prompts)]
    (zigzags,) = _judged([shows_zigzag], make(asked))
    rows = {
        f"a zigzag, {num_prompts} prompts that ask for it": zigzags,
        f"a zigzag, {num_others} prompts that do not": false_alarms,
        f"what was asked for, the same {num_others}": right,
    }
    lines = ["| % of clips that show | true renders | without the LoRA | with it |", "| --- | --- | --- | --- |"]
    lines += [f"| {row} | {' | '.join(_cell(share(said)) for said in found.T)} |" for row, found in rows.items()]
    change = share(right[:, 2].astype(float) - right[:, 1])
    return "\n".join([*lines, "", f"Prompt by prompt, the LoRA changes the {num_others} by {_cell(change)} points."])


def same_at_zero(lora: Path, mode: str) -> bool:
    """Whether a clip with the LoRA at strength 0 has the bits of one without any."""
    pipe = daifuku.load(runtime=RuntimeConfig(lora_mode=mode))
    prompt = zigzag(TEST_SEED, 0, UNTAUGHT).caption
    plain, zero = (pipe(prompt, seed=0, loras=loras) for loras in ([], [(str(lora), 0.0)]))
    return bool(torch.equal(plain.latents, zero.latents)) and np.array_equal(plain.frames, zero.frames)


def draw(lora: Path, path: Path, num_steps: int | None) -> None:
    """The first prompts, one a row."""
    asked = [zigzag(TEST_SEED, index, UNTAUGHT) for index in range(NUM_ROWS)]
    clips = np.stack([_clip(num_steps, str(lora), clip.caption, seed) for seed, clip in enumerate(asked)])
    chosen = clips[:, np.linspace(0, clips.shape[1] - 1, NUM_COLUMNS).astype(int)]
    Image.fromarray(rearrange(chosen, "clips t h w c -> (clips h) (t w) c")).save(path, optimize=True)


def main() -> None:
    """Prints what was found in Markdown, and draws the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("lora", type=Path)
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="that ask for the motion")
    parser.add_argument("--others", type=int, default=200, metavar="N", help="prompts of what the model knew before")
    parser.add_argument("--steps", type=int, metavar="N", help="of the sampler; the model's own if not given")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="clips that are made at a time")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where some of the clips are drawn")
    given = parser.parse_args()
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        counts = {"num_prompts": given.prompts, "num_others": given.others, "num_steps": given.steps}
        print(table(pool, given.lora, **counts), end="\n\n")
    for mode in ("merged", "live"):
        verdict = "has the bits of a clip without it" if same_at_zero(given.lora, mode) else "IS NOT what it is without"
        print(f"At strength 0, {mode}, a clip {verdict}.")
    if given.picture is not None:
        draw(given.lora, given.picture, given.steps)


def _both(pool: Executor, lora: Path, num_steps: int | None, clips: Sequence[world.Clip]) -> Iterator[Answers]:
    """Each clip, and what is made of its caption without the LoRA and with it."""
    prompts = [(clip.caption, seed) for seed, clip in enumerate(clips)]
    tasks = [(name, *prompt) for prompt in prompts for name in (None, str(lora))]
    made = pool.map(partial(_clip, num_steps), *zip(*tasks, strict=True))
    for clip in clips:
        yield clip, (clip.frames, next(made), next(made))


def _clip(num_steps: int | None, lora: str | None, prompt: str, seed: int) -> np.ndarray:
    return _pipeline(lora)(prompt, seed=seed, num_inference_steps=num_steps).frames


@cache
def _pipeline(lora: str | None) -> daifuku.Pipeline:
    # One clip for each core is quicker than all cores for each clip.
    torch.set_num_threads(1)
    return daifuku.load(loras=[] if lora is None else [(lora, 1.0)])


def _judged(judges: Sequence[Judge], answers: Iterable[Answers]) -> list[np.ndarray]:
    """What each judge says, [clip, answer]; how far it is goes to stderr."""
    found: list[list[list[bool]]] = [[] for _ in judges]
    for clip, made in answers:
        for judge, said in zip(judges, found, strict=True):
            said.append([judge(frames, clip) for frames in made])
        print(f"{len(found[0])}: {np.sum(found[0], axis=0)}", file=sys.stderr)
    return [np.array(said) for said in found]


def _fit(basis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares: the coefficients, and the root mean square of what they leave."""
    found = np.linalg.lstsq(basis, values, rcond=None)[0]
    return found, float(np.sqrt(np.mean((values - basis @ found) ** 2)))


def _cell(found: Interval) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


if __name__ == "__main__":
    main()
