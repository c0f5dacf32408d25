"""Presets are compared with the first of them, prompt by prompt."""

import json

import numpy as np
import pytest

from daifuku.evaluate.presets import Made, PresetReport, evaluate_presets
from daifuku.evaluate.world import evaluate_world
from daifuku.world import describe, render, sample_scene

NUM_PROMPTS = 3
SECONDS = {"exact": 4.0, "quick": 1.0}


class Painter:
    """Slightly brightened renders for "exact", and the same with a few grey levels less for "quick"."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.frames: dict[str, np.ndarray] = {}
        for index in range(NUM_PROMPTS):
            rng = np.random.default_rng([0, index])
            scene = sample_scene(rng, split="unseen")
            caption = describe(scene, rng, complete=True)
            self.frames[caption] = render(scene, num_frames=7, caption=caption).frames.clip(0, 251) + 4

    def __call__(self, prompt: str, seed: int, preset: str) -> Made:
        self.asked.append((prompt, seed, preset))
        frames = self.frames[prompt]
        slow_machine = 1.0 + seed
        return Made(
            frames=frames if preset == "exact" else frames // 4 * 4,
            num_passes=8 if preset == "exact" else 2 + seed,
            sampling_s=SECONDS[preset] * slow_machine,
        )


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter()


@pytest.fixture(scope="module")
def report(painter: Painter) -> PresetReport:
    painter.asked.clear()
    return evaluate_presets(painter, ("exact", "quick"), num_prompts=NUM_PROMPTS, num_frames=7)


def test_the_presets_of_a_prompt_run_one_after_another_with_its_seed(report: PresetReport, painter: Painter) -> None:
    first, second = painter.asked[0:6:2], painter.asked[1:6:2]
    assert [(prompt, seed) for prompt, seed, _ in first] == [(prompt, seed) for prompt, seed, _ in second]
    assert [preset for *_, preset in painter.asked] == ["exact", "quick"] * NUM_PROMPTS


def test_prompts_and_seeds_are_those_of_the_world(report: PresetReport, painter: Painter) -> None:
    asked = []

    def generate(prompt: str, seed: int) -> np.ndarray:
        asked.append((prompt, seed))
        return painter.frames[prompt]

    evaluate_world(generate, num_prompts=NUM_PROMPTS, num_frames=7)
    assert asked == [(prompt, seed) for prompt, seed, preset in painter.asked if preset == "exact"]


def test_speed_is_compared_prompt_by_prompt_so_that_a_slow_machine_does_not_show(report: PresetReport) -> None:
    exact, quick = report.rows
    assert (exact.speedup, quick.speedup) == (1.0, 4.0)
    assert (exact.num_passes, quick.num_passes) == (8, 3)


def test_quality_is_that_of_the_world_and_the_distance_is_to_the_first_preset(report: PresetReport) -> None:
    exact, quick = (row.quality.scores for row in report.rows)
    assert exact["psnr"].value > 58
    assert 35 < quick["psnr"].value < 50
    assert exact["colour"].value == quick["colour"].value == 100


def test_the_report_is_a_table_and_json(report: PresetReport) -> None:
    lines = report.as_markdown().splitlines()
    assert lines[0] == "3 prompts never trained on, seed 0."
    assert lines[2].startswith("|  | passes | times faster |")
    assert [line.split("|")[1].strip() for line in lines[4:]] == ["exact", "quick"]
    assert lines[5].split("|")[2:4] == [" 3 ", " 4.00 "]
    assert json.loads(report.to_json())["rows"][1]["speedup"] == 4.0
