import pytest

from daifuku.request import GenerateRequest
from daifuku.studio import form
from daifuku.studio.client import Model
from daifuku.studio.form import Form
from tests.unit.studio.samples import FIELDS, video

MODEL = Model(name="tiny", loras=["style"], fields=FIELDS)


def test_the_form_opens_with_the_models_own_values() -> None:
    own = form.own_form(MODEL)
    assert (own.width, own.num_frames, own.fps, own.steps, own.guidance, own.seed) == (64, 31, 20, 32, 3.0, "")


@pytest.mark.parametrize("size", [(64, 64), (848, 480), (480, 848), (1280, 720), (16, 16)])
def test_every_size_that_is_offered_works(size: tuple[int, int]) -> None:
    choices = form.sizes(*size)
    assert choices[0][1] == f"{size[0]}x{size[1]}" and choices[-1][1] == form.CUSTOM
    assert len({value for _, value in choices}) == len(choices)
    for _, value in choices[:-1]:
        width, height = form.chosen_size(value, 0, 0)
        GenerateRequest(prompt="", width=width, height=height)


def test_another_size_is_that_of_the_sliders() -> None:
    assert form.chosen_size(form.CUSTOM, 96, 32) == (96, 32)


@pytest.mark.parametrize("num_frames", [1, 7, 31, 163, 1201])
def test_the_longest_length_is_one_that_a_video_can_have(num_frames: int) -> None:
    assert form.longest(num_frames) % 6 == 1 and form.longest(num_frames) >= num_frames


def test_a_video_put_into_the_form_asks_for_the_same_again() -> None:
    made = video(seed=2**63 - 1, loras=[["style", 0.5], ["other", 0.5]], num_frames=7, preset="draft")
    body = form.form_of(made).body()
    assert (body["seed"], body["num_frames"], body["preset"]) == (2**63 - 1, 7, "draft")
    assert body["loras"] == [["style", 0.5], ["other", 0.5]]
    GenerateRequest.from_dict({**{k: v for k, v in body.items() if k not in ("steps", "guidance")}})


def test_what_the_form_leaves_empty_is_not_sent() -> None:
    assert {"seed", "loras", "steps", "guidance"}.isdisjoint(Form(steps=None, guidance=None).body())


@pytest.mark.parametrize("seed, sent", [("7", 7), ("0", 0), ("-1", "-1"), ("x", "x"), ("٣", "٣"), ("9" * 99, "9" * 99)])
def test_a_seed_that_is_no_number_is_sent_as_it_is_for_the_api_to_refuse(seed: str, sent: object) -> None:
    assert Form(seed=seed).body()["seed"] == sent


def test_numbers_of_the_browser_become_whole() -> None:
    values = dict.fromkeys(("prompt", "negative_prompt", "seed", "loras", "strength", "steps", "guidance"))
    found = form.from_values(
        values | {"size": "64x32", "num_frames": 7.0, "fps": 20.0, "preset": "exact", "width": 1.0, "height": 1}
    )
    assert (found.width, found.height, found.num_frames, found.strength) == (64, 32, 7, 1.0)
    assert isinstance(found.num_frames, int) and isinstance(found.fps, int)


def test_a_preset_stands_for_steps_and_guidance() -> None:
    assert form.preset_values("exact", MODEL) == (32, 3.0)
    assert form.preset_values("draft", MODEL) == (8, 3.0)
    assert form.preset_values("fast8", MODEL) == (8, 1.5)
    assert form.preset_help("of a newer server") == ""


def test_of_a_guidance_for_each_step_the_first_that_guides_is_shown() -> None:
    assert form.one_number([1, 4.5, 3.0]) == 4.5 and form.one_number([1, 1]) == 1 and form.one_number(3.0) == 3.0


def test_a_variation_has_another_seed_each_time() -> None:
    assert form.varied() != form.varied()
