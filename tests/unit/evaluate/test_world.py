import json

import numpy as np
import pytest

from daifuku.evaluate.world import METRICS, WorldReport, evaluate_world, measure
from daifuku.world import Clip, describe, is_held_out, render, sample_scene
from daifuku.world.captions import BACKGROUND_WORDS, SIZE_WORDS

NUM_PROMPTS = 8

OF_OTHER_KINDS = ("given_psnr", "direction", "pace", "sides", "bound", "law_error", "momentum_error")
"""Metrics of what a single object, with no pace asked for, has nothing to measure of."""


class Painter:
    """Generates the true render of every prompt it was told of, and keeps the prompts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.clips: dict[str, Clip] = {}
        for index in range(NUM_PROMPTS):
            rng = np.random.default_rng([0, index])
            scene = sample_scene(rng, split="unseen")
            caption = describe(scene, rng, complete=True)
            self.clips[caption] = render(scene, num_frames=19, caption=caption)

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        self.asked.append((prompt, seed))
        return self.clips[prompt].frames


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter()


@pytest.fixture(scope="module")
def report(painter: Painter) -> WorldReport:
    painter.asked.clear()
    return evaluate_world(painter, num_prompts=NUM_PROMPTS, num_frames=19, reconstruct=lambda frames: frames // 4 * 4)


def test_a_perfect_generator_scores_as_well_as_true_renders(report: WorldReport) -> None:
    true, _, generated = report.rows
    assert [row.name for row in report.rows] == ["true renders", "VAE reconstructions", "generated"]
    assert generated.scores == true.scores
    assert generated.scores["all_four"].value == 100
    assert generated.scores["gravity_error"].value < 5
    assert generated.scores["flicker"].value == 0


def test_another_way_to_make_the_same_clips_has_a_row_of_its_own(painter: Painter) -> None:
    def black(prompt: str, seed: int) -> np.ndarray:
        return np.zeros_like(painter.clips[prompt].frames)

    *_, found, exact = evaluate_world(black, num_prompts=2, num_frames=19, exact=painter).rows
    assert (found.name, exact.name) == ("generated", "generated, preset exact")
    assert found.scores["all_four"].value == 0 and exact.scores["all_four"].value == 100


def test_prompts_are_unseen_complete_and_asked_with_seeds_of_their_own(report: WorldReport, painter: Painter) -> None:
    assert len({seed for _, seed in painter.asked}) == NUM_PROMPTS == report.num_prompts
    for prompt, _ in painter.asked:
        scene = painter.clips[prompt].scene
        thing = scene.things[0]
        assert is_held_out(thing.shape, thing.colour, thing.motion)
        assert any(word in prompt.lower() for word in SIZE_WORDS[thing.size])
        assert any(word in prompt.lower() for word in BACKGROUND_WORDS[scene.background])


def test_reconstructions_also_get_their_signal_to_noise_ratio(report: WorldReport) -> None:
    true, reconstructed, _ = report.rows
    assert set(reconstructed.scores) - set(true.scores) == {"psnr", "object_psnr"}
    assert 35 < reconstructed.scores["psnr"].value < 60


def test_answers_to_other_prompts_score_badly(painter: Painter) -> None:
    clips = list(painter.clips.values())
    shuffled = zip([clip.frames for clip in clips[1:] + clips[:1]], clips, strict=True)
    scores = measure("shuffled", shuffled).scores
    assert scores["all_four"].value == 0
    assert scores["shape"].value < 70


def test_an_empty_picture_scores_nothing_and_its_gravity_is_all_wrong(painter: Painter) -> None:
    pairs = [(np.zeros((7, 64, 64, 3), np.uint8), clip) for clip in painter.clips.values()]
    scores = measure("empty", pairs).scores
    assert scores["motion"].value == scores["colour"].value == scores["shape"].value == 0
    assert scores["gravity_error"].value == 100


def test_intervals_hold_their_value_and_more_prompts_narrow_them(painter: Painter) -> None:
    right, wrong = [(clip.frames, clip) for clip in painter.clips.values()], []
    wrong = [(np.zeros_like(frames), clip) for frames, clip in right]
    few, many = (measure("half right", (right[:3] + wrong[3:6]) * repeat).scores["colour"] for repeat in (1, 4))
    assert few.low < few.value == 50 < few.high
    assert many.high - many.low < few.high - few.low


def test_the_report_is_one_table_and_valid_json(report: WorldReport) -> None:
    table = report.as_markdown()
    columns = set(METRICS) - set(OF_OTHER_KINDS)
    titles = [metric.title for key, metric in METRICS.items() if key in columns]
    assert table.splitlines()[2].split(" | ") == ["| ", *titles[:-1], f"{titles[-1]} |"]
    assert "| generated | 100.0 [100.0, 100.0] |" not in table.splitlines()[0]
    assert table.count("\n| ") == 5
    told = json.loads(report.to_json())
    assert told["rows"][2]["scores"]["colour"]["value"] == 100
