import json

import numpy as np
import pytest

from daifuku.errors import InvalidRequest
from daifuku.evaluate.world import METRICS, WorldReport, evaluate_world, measure, true_clip
from daifuku.world import KINDS, Clip, describe, is_held_out, render, sample_scene
from daifuku.world.captions import BACKGROUND_WORDS, SIZE_WORDS

NUM_PROMPTS = 8

WIDE = ("single", "fluid")

OF_OTHER_KINDS = ("direction", "pace", "sides", "bound", "law_error", "momentum_error")
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
    head, rule, *lines = [line for line in report.as_markdown().splitlines() if line.startswith("|")]
    assert head == f"|  | {' | '.join(row.name for row in report.rows)} |"
    assert rule.count("---") == 1 + len(report.rows)
    titles = [metric.title for key, metric in METRICS.items() if key not in OF_OTHER_KINDS]
    assert [line.split(" | ")[0] for line in lines] == [f"| {title}" for title in titles]
    assert f"| {METRICS['colour'].title} | 100.0 | 100.0 | 100.0 |" in "".join(lines)
    told = json.loads(report.to_json())
    assert told["rows"][2]["scores"]["colour"]["value"] == 100


@pytest.fixture(scope="module")
def wide() -> WorldReport:
    """Two kinds with all rows; what is generated are true renders, but for those of unseen phrases."""
    clips = {}
    for kind in WIDE:
        for index in range(2):
            clip = true_clip(0, index, 64, 31, 20, kind=kind, pace=True)
            clips[clip.caption] = clip.frames
    black = np.zeros((31, 64, 64, 3), np.uint8)
    return evaluate_world(
        lambda prompt, seed: clips.get(prompt, black),
        kinds=WIDE,
        num_prompts=2,
        num_frames=31,
        pace=True,
        controls=True,
        paraphrases=True,
        reconstruct=lambda frames: frames // 4 * 4,
        untrained=lambda prompt, seed: black,
    )


def test_every_kind_has_all_rows_in_one_order(wide: WorldReport) -> None:
    names = [
        "true renders",
        "VAE reconstructions",
        "generated",
        "generated, held-out paraphrases",
        "what the paraphrases change",
        "generated, captions shuffled",
        "untrained model",
        "true renders, first frame frozen",
    ]
    assert [(row.kind, row.name) for row in wide.rows] == [(kind, name) for kind in WIDE for name in names]


@pytest.mark.parametrize(("kind", "key"), [("single", "all"), ("fluid", "all")])
def test_controls_score_badly_and_true_renders_well(wide: WorldReport, kind: str, key: str) -> None:
    found = {row.name: row.scores[key].value for row in wide.rows if row.kind == kind}
    assert found["true renders"] == found["VAE reconstructions"] == found["generated"] == 100
    assert found["generated, held-out paraphrases"] == 0 and found["what the paraphrases change"] == -100
    controls = ("generated, captions shuffled", "untrained model", "true renders, first frame frozen")
    assert [found[name] for name in controls] == [0, 0, 0]


def test_the_untrained_model_is_asked_with_the_first_seed_alone() -> None:
    asked = []

    def generate(prompt: str, seed: int) -> np.ndarray:
        asked.append(seed)
        return np.zeros((7, 64, 64, 3), np.uint8)

    *_, control = evaluate_world(generate, num_prompts=2, num_frames=7, seeds=(3, 1), untrained=generate).rows
    assert control.name == "untrained model"
    assert sorted(asked) == sorted([3, 4] * 2 + [1_000_001, 1_000_002]), (
        "twice with the first seed, once with the other"
    )


def test_a_prompt_is_asked_with_noise_of_its_own_for_each_seed() -> None:
    asked = []

    def generate(prompt: str, seed: int) -> np.ndarray:
        asked.append((prompt, seed))
        return np.zeros((7, 64, 64, 3), np.uint8)

    evaluate_world(generate, num_prompts=3, num_frames=7, seeds=(5, 0))
    assert len({prompt for prompt, _ in asked}) == 3 and len({seed for _, seed in asked}) == 6
    one = [(prompt, seed) for prompt, seed in asked if seed < 100]
    asked.clear()
    evaluate_world(generate, num_prompts=3, num_frames=7, seeds=(5,))
    assert asked == one


def test_held_out_phrases_show_the_same_scene() -> None:
    for kind in KINDS:
        seen, unseen = (true_clip(0, 1, 64, 7, 20, kind=kind, phrasing=phrasing) for phrasing in ("train", "unseen"))
        assert seen.scene == unseen.scene and seen.caption != unseen.caption


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"kinds": ("pairs",)}, "Try pair"),
        ({"kinds": ()}, "Try single"),
        ({"seeds": ()}, "Try 0"),
        ({"seeds": (1, 1)}, "Try 1"),
    ],
)
def test_kinds_and_seeds_that_cannot_be_are_refused(painter: Painter, wrong: dict, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=hint):
        evaluate_world(painter, **wrong)
