import json
import re

import numpy as np
import pytest

from daifuku.evaluate.report import METRICS, WorldReport, difference, row

VALUES = np.random.default_rng(3).random(40).round(2)
RIGHT = (VALUES > 0.4).astype(float)


def scores(*seeds: np.ndarray, key: str = "colour") -> list[list[dict[str, float]]]:
    """One dictionary a clip; an array a seed."""
    return [[{key: float(value)} for value in clips] for clips in zip(*seeds, strict=True)]


@pytest.mark.parametrize("key", ["colour", "gravity_error", "flicker"])
def test_two_seeds_that_agree_tell_no_more_than_one(key: str) -> None:
    one = row("one", scores(VALUES, key=key)).scores[key]
    two = row("two", scores(VALUES, VALUES, key=key)).scores[key]
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))


def test_two_seeds_that_differ_narrow_the_interval() -> None:
    one = row("one", scores(RIGHT)).scores["colour"]
    two = row("two", scores(RIGHT, 1 - RIGHT)).scores["colour"]
    assert two.value == 50
    assert two.high - two.low < 0.1 * (one.high - one.low)


def test_a_difference_is_taken_prompt_by_prompt() -> None:
    shifted = scores(VALUES + 0.25)
    told = difference("change", shifted, scores(VALUES)).scores["colour"]
    assert (told.value, told.low, told.high) == pytest.approx((25, 25, 25))
    apart = difference("change", scores(1 - VALUES), scores(VALUES)).scores["colour"]
    assert apart.high - apart.low > 10


def test_what_could_not_be_measured_takes_no_part() -> None:
    some = VALUES.copy()
    some[::2] = np.nan
    assert row("some", scores(some)).scores["colour"].value == pytest.approx(100 * VALUES[1::2].mean())
    told = row("seeds", scores(VALUES, some)).scores["colour"]
    assert told.value == pytest.approx(100 * np.concatenate([VALUES, VALUES[1::2]]).mean())
    assert row("none", scores(np.full(5, np.nan))).scores == {}


def report(**kinds: str) -> WorldReport:
    rows = tuple(row("true renders", scores(VALUES, key=key), kind=kind) for kind, key in kinds.items())
    return WorldReport(num_prompts=40, seeds=(0, 1), size=64, num_frames=31, fps=20, rows=rows)


def test_kinds_have_tables_of_their_own_with_only_their_figures() -> None:
    lines = report(single="shape", fluid="law_error").as_markdown().splitlines()
    assert lines[0] == "40 prompts of each kind never trained on, seeds 0, 1, 31 frames of 64x64 at 20 fps."
    assert [line for line in lines if line.startswith("**")] == ["**One object**", "**Fluids**"]
    assert lines.count("|  | true renders |") == 2
    found = [line.split(" | ")[0] for line in lines if re.match(r"\| \w", line)]
    assert found == [f"| {METRICS[key].title}" for key in ("shape", "law_error")]


def test_only_intervals_with_a_width_are_in_brackets() -> None:
    told = WorldReport(
        num_prompts=40,
        seeds=(0,),
        size=64,
        num_frames=31,
        fps=20,
        rows=(row("all", scores(np.ones(40))), row("some", scores(RIGHT))),
    )
    (line,) = [line for line in told.as_markdown().splitlines() if line.startswith("| colour")]
    some = told.rows[1].scores["colour"]
    assert line == f"| colour % | 100.0 | {some.value:.1f} [{some.low:.1f}, {some.high:.1f}] |"


def test_one_kind_is_one_table() -> None:
    told = report(pair="bound")
    assert told.as_markdown().count("**Two objects**") == told.as_markdown().count("|  |") == 1
    assert told.as_markdown().startswith("40 prompts never trained on")
    assert json.loads(told.to_json())["rows"][0]["kind"] == "pair"
