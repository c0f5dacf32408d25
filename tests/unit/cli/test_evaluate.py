"""The measuring of a model, on one that draws nothing in particular."""

import json
import shutil

import numpy as np
import pytest

from daifuku.cli.evaluate import untrained
from daifuku.pipeline import load
from daifuku.runtime.build import BUILT_IN_FOLDER


def test_kinds_seeds_controls_and_paraphrases_are_measured(daifuku, model_folder):
    run = daifuku(
        *(
            "evaluate",
            "world",
            "--model",
            str(model_folder),
            "--prompts",
            "1",
            "--kinds",
            "single, fluid",
            "--seeds",
            "0,3",
        ),
        *("--controls", "--paraphrases", "--pace", "--json"),
    )
    assert run.code == 0
    told = json.loads(run.out)
    assert told["seeds"] == [0, 3]
    names = [(row["kind"], row["name"]) for row in told["rows"]]
    assert {("fluid", "untrained model"), ("fluid", "generated, captions shuffled")} < set(names)


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--kinds", "triple"), "single"),
        (("--kinds", "single,single"), "Try single"),
        (("--seeds", "0,x"), "Try 0, or 0,1"),
        (("--seeds", "-1"), "Try 0, or 0,1"),
    ],
)
def test_wrong_kinds_and_seeds_are_told_before_anything_is_made(daifuku, flags, hint):
    run = daifuku("evaluate", "world", *flags)
    assert run.code == 2 and hint in run.err and "Traceback" not in run.err
    assert run.out == ""


@pytest.fixture
def quick_model(tmp_path):
    """The built-in model, but that it approximates where it is not asked for more."""
    folder = tmp_path / "quick_model"
    shutil.copytree(BUILT_IN_FOLDER, folder)
    defaults = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(defaults | {"preset": "draft"}))
    return folder


def test_the_exact_row_takes_the_steps_that_are_asked_for(daifuku, quick_model):
    def found(num_steps: int) -> dict:
        steps = ("--exact-steps", str(num_steps))
        run = daifuku("evaluate", "world", "--model", str(quick_model), "--prompts", "1", *steps, "--json")
        return {row["name"]: row["scores"] for row in json.loads(run.out)["rows"]}

    one, two = found(1), found(2)
    assert one["generated"] == two["generated"]
    assert one["generated, preset exact"] != two["generated, preset exact"]


def test_steps_for_an_exact_row_that_there_is_none_of_are_refused(daifuku, model_folder):
    run = daifuku("evaluate", "world", "--model", str(model_folder), "--exact-steps", "2")
    assert run.code == 2 and "Try without it" in run.err and run.out == ""


def test_an_untrained_model_is_the_same_but_for_its_transformer(model_folder):
    pipe = load(model_folder)
    fresh = untrained(pipe)
    clips = [each("a small red ball", seed=1) for each in (pipe, fresh, fresh)]
    assert not np.array_equal(clips[0].frames, clips[1].frames)
    assert np.array_equal(clips[1].frames, clips[2].frames)
    assert clips[0].frames.shape == clips[1].frames.shape
