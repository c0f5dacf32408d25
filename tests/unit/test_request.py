"""What can be asked for, and what is answered to what cannot."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.presets import PRESETS
from daifuku.request import GenerateRequest, LatentShape, choices
from daifuku.request_schema import json_schema

HUGE = pytest.param(10**5000, id="huge")  # too many digits for Python to print, so it needs a name

NAMES = [each.name for each in fields(GenerateRequest)]


def request(**values: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "a red ball", **values})


@pytest.mark.parametrize(
    "values, hint",
    [
        ({"num_frames": 40}, "Try 37 or 43."),
        ({"num_frames": 2}, "Try 1 or 7."),
        ({"num_frames": 0}, "Try 1."),
        ({"num_frames": 9999}, "Try 1201."),
        ({"height": 100}, "Try 96 or 112."),
        ({"width": 855}, "Try 848 or 864."),
        ({"width": -16}, "Try 16."),
        ({"num_inference_steps": 0}, "Try 1."),
        ({"fps": 0}, "Try 1."),
        ({"fps": 1000}, "Try 120."),
        ({"seed": -1}, "Try 0."),
        ({"seed": 2**63}, f"Try {2**63 - 1}."),
        ({"guidance_scale": -0.5}, "Try 0.0."),
        ({"solver": "hein"}, "the choices are euler, heun. Try heun."),
        ({"solver": "dpm"}, "Try euler or heun."),
        ({"threshold_noise": 0.0}, "Try 0.001."),
        ({"preset": "fast"}, "Try fast8."),
        ({"step_cache": "tea_cache"}, "the choices are none, first_block, teacache. Try teacache."),
        ({"cache_threshold": -0.1}, "Try 0.0."),
        ({"guidance_every": 0}, "Try 1."),
        ({"guidance_start_sigma": 2.0}, "Try 1.0."),
        (
            {"guidance_start_sigma": 0.2, "guidance_end_sigma": 0.9},
            "Try guidance_start_sigma=0.9, guidance_end_sigma=0.2.",
        ),
        ({"num_inference_steps": 8, "linear_steps": 8}, "Try 4, or at most 7."),
        (
            {"num_inference_steps": 3, "guidance_scale": [1.0, 2.0]},
            "Try 3 values, a single one, or num_inference_steps=2.",
        ),
        ({"guidance_scale": []}, "Try one number"),
        ({"guidance_scale": [1.0, 500.0]}, "guidance_scale[1]=500.0 is out of range"),
    ],
)
def test_a_wrong_value_is_refused_with_the_nearest_that_works(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request(**values)
    assert hint in str(refusal.value)
    assert next(reversed(values)) in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "prompt"])
@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), {}, b"9", object(), "9\0", HUGE])
def test_no_field_takes_a_value_of_the_wrong_kind(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        request(**{name: value})


@pytest.mark.parametrize("name", ["height", "num_frames", "num_inference_steps", "seed", "fps", "linear_steps"])
@pytest.mark.parametrize("value", ["16", 16.0, [16]])
def test_a_whole_number_is_not_guessed_from_anything_else(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="whole number"):
        request(**{name: value})


@pytest.mark.parametrize("prompt", [None, 3, ["a", "b"], "a\0b", "\ud800", "a" * 10_001])
def test_a_prompt_is_a_text_that_can_be_written_down(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        request(prompt=prompt)


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), HUGE])
def test_an_error_message_stays_short_whatever_was_asked(value: Any) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request(height=value)
    assert len(str(refusal.value)) < 300
    str(refusal.value).encode()


def test_numbers_of_numpy_are_numbers() -> None:
    asked = request(height=np.int64(64), guidance_scale=np.float32(1.5), seed=np.uint8(3))
    assert asked == request(height=64, guidance_scale=1.5, seed=3)
    assert json.loads(json.dumps(asked.to_dict())) == asked.to_dict()


def test_the_empty_prompt_is_allowed() -> None:
    assert request(prompt="").prompt == ""


def test_a_list_and_a_tuple_of_guidance_are_the_same() -> None:
    assert request(guidance_scale=[3, 1]) == request(guidance_scale=(3.0, 1.0))


def test_without_defaults_a_request_means_those_of_the_published_model() -> None:
    asked = request(seed=1).resolved()
    assert (asked.height, asked.width, asked.num_frames, asked.fps) == (480, 848, 163, 30)
    assert (asked.num_inference_steps, asked.guidance_scale, asked.solver) == (64, 6.0, "euler")
    assert (asked.threshold_noise, asked.linear_steps, asked.negative_prompt, asked.seed) == (0.025, 32, "", 1)
    assert (asked.preset, asked.step_cache, asked.guidance_every) == ("exact", "none", 1)
    assert (asked.guidance_start_sigma, asked.guidance_end_sigma) == (1.0, 0.0)


def test_the_models_own_defaults_fill_what_was_left_open() -> None:
    asked = request(width=64).resolved({"width": 128, "height": 96, "fps": None, "architectures": ["something"]})
    assert (asked.width, asked.height, asked.fps) == (64, 96, 30)


def test_a_resolved_request_leaves_nothing_open_and_stays_as_it_is() -> None:
    asked = request().resolved()
    assert all(getattr(asked, name) is not None for name in NAMES)
    assert asked.resolved({"width": 64, "solver": "heun"}) == asked


@pytest.mark.parametrize("steps, linear", [(8, 6), (4, 3), (16, 12), (1, 0), (2, 1), (7, 5)])
def test_linear_steps_keep_the_defaults_share_when_the_steps_change(steps: int, linear: int) -> None:
    few_step = {"num_inference_steps": 8, "linear_steps": 6, "threshold_noise": 0.1, "guidance_scale": 1.5}
    assert request(num_inference_steps=steps).resolved(few_step).linear_steps == linear


@pytest.mark.parametrize("steps", range(1, 12))
def test_half_of_the_steps_are_linear_when_nobody_says_otherwise(steps: int) -> None:
    assert request(num_inference_steps=steps).resolved().linear_steps == steps // 2


def test_a_preset_changes_the_models_defaults_and_what_is_given_changes_the_preset() -> None:
    own = {"num_inference_steps": 32, "guidance_scale": 3.0, "threshold_noise": 0.2, "linear_steps": 8}
    preset = request(preset="fast8").resolved(own)
    assert (preset.num_inference_steps, preset.guidance_scale) == (8, 1.5)
    assert (preset.threshold_noise, preset.linear_steps) == (0.1, 6)
    given = request(preset="fast8", guidance_scale=2.0, threshold_noise=0.05).resolved(own)
    assert (given.num_inference_steps, given.guidance_scale, given.threshold_noise) == (8, 2.0, 0.05)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("own", [{}, {"num_inference_steps": 1}, {"num_inference_steps": 8, "linear_steps": 6}])
def test_every_preset_suits_every_model(name: str, own: dict[str, Any]) -> None:
    asked = request(preset=name, seed=1).resolved(own)
    assert asked.preset == name
    assert asked == request(seed=1).resolved(own | {"preset": name})


def test_fewer_steps_of_a_preset_are_a_share_of_the_models_own() -> None:
    for steps in (64, 32, 8):
        own = {"num_inference_steps": steps, "linear_steps": steps // 4}
        few = request(preset="draft").resolved(own)
        assert few.num_inference_steps == round(PRESETS["draft"].steps_share * steps) < steps
        assert few.linear_steps == few.num_inference_steps // 4


def test_the_preset_that_approximates_nothing_undoes_what_a_model_would_approximate() -> None:
    asked = request().resolved({"step_cache": "teacache", "guidance_every": 3, "guidance_end_sigma": 0.5})
    assert (asked.step_cache, asked.guidance_every, asked.guidance_end_sigma) == ("none", 1, 0.0)


def test_a_record_stays_what_it_was_when_a_preset_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = request(preset="draft", seed=1).resolved().to_dict()
    monkeypatch.setitem(PRESETS, "draft", PRESETS["fast8"])
    assert GenerateRequest.from_dict(recorded).resolved().to_dict() == recorded


@pytest.mark.parametrize("defaults", [{"num_frames": 40}, {"linear_steps": "many"}, {"solver": "unknown"}])
def test_wrong_defaults_are_the_models_fault_and_not_the_users(defaults: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(defaults))):
        request().resolved(defaults)


def test_a_default_guidance_list_that_no_longer_fits_the_steps_is_refused() -> None:
    defaults = {"num_inference_steps": 2, "guidance_scale": [3.0, 1.0]}
    assert request().resolved(defaults).guidance_scales == (3.0, 1.0)
    with pytest.raises(InvalidRequest, match="Try 5 values"):
        request(num_inference_steps=5).resolved(defaults)


def test_one_guidance_scale_holds_for_every_step() -> None:
    assert request(num_inference_steps=3, guidance_scale=2).resolved().guidance_scales == (2.0, 2.0, 2.0)


def test_a_threshold_that_would_overshoot_is_refused_and_the_one_it_names_works() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        request(num_inference_steps=8, linear_steps=1, threshold_noise=0.5)
    limit = float(str(refusal.value).split("Try ")[1].split()[0])
    request(num_inference_steps=8, linear_steps=1, threshold_noise=limit)
    with pytest.raises(InvalidRequest):
        request(num_inference_steps=8, linear_steps=1, threshold_noise=limit + 0.002)


def test_a_seed_that_was_not_given_is_drawn_anew_each_time() -> None:
    assert len({request().resolved().seed for _ in range(5)}) == 5


def test_a_request_survives_json() -> None:
    asked = request(guidance_scale=[3, 1], num_inference_steps=2, seed=2**63 - 1, negative_prompt="")
    assert GenerateRequest.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    resolved = asked.resolved()
    assert GenerateRequest.from_dict(json.loads(json.dumps(resolved.to_dict()))).resolved() == resolved


def test_fields_left_open_are_not_written_down() -> None:
    assert request(fps=24).to_dict() == {"prompt": "a red ball", "fps": 24}


@pytest.mark.parametrize(
    "key, near",
    [("steps", "num_inference_steps"), ("promt", "prompt"), ("guidence_scale", "guidance_scale"), (3, "seed")],
)
def test_an_unknown_key_is_refused_with_the_nearest_field(key: Any, near: str) -> None:
    with pytest.raises(InvalidRequest, match=near):
        GenerateRequest.from_dict({"prompt": "a red ball", key: 1})


def test_a_request_without_a_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs a prompt"):
        GenerateRequest.from_dict({"seed": 1})


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        request().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", NAMES)
def test_every_field_says_what_flags_and_forms_need_to_know(name: str) -> None:
    about = next(each for each in fields(GenerateRequest) if each.name == name).metadata
    assert about["help"].endswith(".")
    assert about["placeholder"].isupper()
    numbers = {"min", "max", "step", "per_step"}
    limits = {str: {"max_length", "choices"}, tuple: {"flag"}}.get(about["type"], numbers)
    assert about.keys() == {"help", "type", "default", "placeholder"} | limits


def test_the_choices_of_a_field_are_its_plugins_and_what_stands_for_none() -> None:
    by_name = {each.name: choices(each) for each in fields(GenerateRequest)}
    assert by_name.pop("solver") == ("euler", "heun")
    assert by_name.pop("step_cache") == ("none", "first_block", "teacache")
    assert by_name.pop("preset") == ("exact", "balanced", "draft", "fast8")
    assert set(by_name.values()) == {None}


def test_the_json_schema_covers_every_field_with_its_limits() -> None:
    schema = json_schema({"height": 64})
    json.dumps(schema)
    properties = schema["properties"]
    assert list(properties) == NAMES
    assert schema["required"] == ["prompt"] and schema["additionalProperties"] is False
    assert {"type": "integer", "minimum": 16, "maximum": 2048, "multipleOf": 16, "default": 64}.items() <= properties[
        "height"
    ].items()
    assert properties["num_frames"]["maximum"] == 1201 and "multipleOf" not in properties["num_frames"]
    assert properties["solver"]["enum"] == ["euler", "heun"]
    assert properties["step_cache"]["default"] == "none" and properties["negative_prompt"]["maxLength"] == 10_000
    assert [kind["type"] for kind in properties["guidance_scale"]["anyOf"]] == ["number", "array"]
    assert "default" not in properties["seed"]


def test_the_published_clip_has_the_published_number_of_tokens() -> None:
    shape = LatentShape.from_pixels(163, 480, 848)
    assert shape.as_tuple == (12, 28, 60, 106)
    assert shape.num_tokens == 44_520


@pytest.mark.parametrize("size", [(1, 16, 16), (7, 32, 48), (163, 480, 848)])
def test_pixels_to_latent_and_back_is_the_same_size(size: tuple[int, int, int]) -> None:
    shape = LatentShape.from_pixels(*size)
    assert (shape.num_frames, shape.pixel_height, shape.pixel_width) == size


def test_a_size_that_no_latent_has_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Try 1 or 7"):
        LatentShape.from_pixels(6, 64, 64)


def test_requests_are_made_and_checked_without_torch() -> None:
    code = (
        "import sys; from daifuku.request_schema import GenerateRequest, json_schema; json_schema(); "
        "GenerateRequest(prompt='', solver='heun').resolved(); assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
