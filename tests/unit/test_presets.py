"""Presets that a model has of its own: what they set, when they give way, and what is refused."""

from typing import Any

import pytest

from daifuku.errors import CheckpointError, InvalidRequest
from daifuku.presets import without_loras
from daifuku.request import GenerateRequest, ResolvedRequest
from daifuku.request_schema import SET, json_schema

FAST = {"loras": ["fast.safetensors"], "guidance_scale": 1.0, "threshold_noise": 0.3, "linear_steps": None}
OWN = {"num_inference_steps": 32, "guidance_scale": 3.0, "preset": "fast8", "presets": {"fast8": FAST}}


def resolved(defaults: dict[str, Any] = OWN, **values: Any) -> ResolvedRequest:
    return GenerateRequest(prompt="a red ball", seed=1, **values).resolved(defaults)


def settings(asked: ResolvedRequest) -> tuple[Any, ...]:
    names = ("preset", "num_inference_steps", "guidance_scale", "threshold_noise", "linear_steps")
    return tuple(getattr(asked, name) for name in names)


def test_a_models_own_preset_wins_over_the_general_one_and_the_request_over_both() -> None:
    assert settings(resolved()) == ("fast8", 8, 1.0, 0.3, 4)
    assert settings(resolved(preset="fast8", threshold_noise=0.2)) == ("fast8", 8, 1.0, 0.2, 4)
    assert settings(resolved(preset="draft")) == ("draft", 8, 3.0, 0.025, 4)


def test_its_loras_are_no_field_of_the_request() -> None:
    assert resolved().loras == ()


@pytest.mark.parametrize(
    "given", [{"num_inference_steps": 16}, {"guidance_scale": 2.0}, {"negative_prompt": "blur"}, {"step_cache": "none"}]
)
def test_a_default_with_loras_gives_way_to_what_it_would_decide(given: dict[str, Any]) -> None:
    asked = resolved(**given)
    assert asked == resolved(preset="exact", **given)
    assert asked.preset == "exact" and asked.threshold_noise == 0.025


@pytest.mark.parametrize("given", [{"negative_prompt": ""}, {"height": 64}, {"solver": "heun"}, {"loras": ["a"]}])
def test_it_stays_where_nothing_is_asked_that_it_decides(given: dict[str, Any]) -> None:
    assert resolved(**given).preset == "fast8"


def test_a_default_that_is_the_model_itself_stays_whatever_is_asked() -> None:
    assert settings(resolved({"preset": "fast8"}, num_inference_steps=4)) == ("fast8", 4, 1.5, 0.1, 3)


def test_a_negative_prompt_that_nobody_would_hear_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"no say without guidance.*Try preset='exact', or guidance_scale=2"):
        resolved(preset="fast8", negative_prompt="blur")
    assert resolved(preset="fast8", negative_prompt="blur", guidance_scale=2.0).captions == ("a red ball", "blur")


def test_weights_that_were_trained_further_keep_no_preset_that_was_made_for_the_old_ones() -> None:
    quick = {"num_inference_steps": 4}
    left = without_loras(OWN | {"presets": {"fast8": FAST, "draft": quick}})
    assert left == {"num_inference_steps": 32, "guidance_scale": 3.0, "presets": {"draft": quick}}
    assert without_loras({"preset": "fast8"}) == {"preset": "fast8"}


def test_what_was_resolved_is_resolved_to_itself() -> None:
    for asked in (resolved(), resolved(num_inference_steps=16), resolved(negative_prompt="blur")):
        assert GenerateRequest.from_dict(asked.to_dict()).resolved(OWN) == asked


def test_the_schema_tells_the_values_of_the_default_preset() -> None:
    shown = {name: about.get("default") for name, about in json_schema(OWN)["properties"].items()}
    assert (shown["preset"], shown["num_inference_steps"], shown["guidance_scale"]) == ("fast8", 8, 1.0)


def test_the_schema_tells_what_each_preset_brings_on_the_model() -> None:
    brought = json_schema(OWN)["properties"]["preset"][SET]
    assert {name: tuple(values.values()) for name, values in brought.items()} == {
        "exact": (32, 3.0),
        "balanced": (22, 3.0),
        "draft": (8, 3.0),
        "fast8": (8, 1.0),
    }


@pytest.mark.parametrize(
    "presets",
    [[], {"fast8": []}, {"fast9": {}}, {"fast8": {"guidance": 1.0}}, {"fast8": {"loras": 3}},
     {"fast8": {"num_inference_steps": 0}}],
)  # fmt: skip
def test_presets_that_are_wrong_in_themselves_are_the_models_fault(presets: Any) -> None:
    with pytest.raises(CheckpointError, match="the model's own defaults do not fit"):
        resolved({"presets": presets})
