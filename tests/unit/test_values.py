"""Values as users write them."""

from pathlib import PurePosixPath
from typing import Any

import pytest

from daifuku.errors import InvalidRequest
from daifuku.values import as_loras


@pytest.mark.parametrize(
    "written, meant",
    [
        ([], ()),
        (["style.safetensors"], (("style.safetensors", 1.0),)),
        ("style.safetensors:0.8", (("style.safetensors", 0.8),)),
        (["a:-1", "b:0"], (("a", -1.0), ("b", 0.0))),
        ([["a", 1], ("b", 0.5)], (("a", 1.0), ("b", 0.5))),
        ([{"path": "a"}, {"path": "b:c", "strength": 2}], (("a", 1.0), ("b:c", 2.0))),
        ([r"C:\loras\style.safetensors"], ((r"C:\loras\style.safetensors", 1.0),)),
        ([r"C:\loras\style.safetensors:.5"], ((r"C:\loras\style.safetensors", 0.5),)),
        (["12:30:0.5"], (("12:30", 0.5),)),
        ([":0.5"], ((":0.5", 1.0),)),
        ([PurePosixPath("a/b"), (PurePosixPath("c"), 0.5)], (("a/b", 1.0), ("c", 0.5))),
    ],
)
def test_every_spelling_of_loras_is_understood(written: Any, meant: Any) -> None:
    found = as_loras("loras", written)
    assert found == meant and all(type(strength) is float for _, strength in found)
    assert as_loras("loras", [list(pair) for pair in found]) == found


@pytest.mark.parametrize(
    "written, message",
    [
        ([["a", "strong"]], "'strong', not a number"),
        ([["a", True]], "not a number"),
        (["a:nan"], "not a number"),
        (["a:1e9"], "from -100.0 to 100.0"),
        ([["a", 1, 2]], "names no LoRA file"),
        ([{"file": "a"}], "names no LoRA file"),
        ([""], "names no LoRA file"),
        (["a\0b"], "names no LoRA file"),
        (["\ud800"], "names no LoRA file"),
        ([5], "names no LoRA file"),
        (5, "no list of LoRAs"),
        ({"a": 0.5}, "no list of LoRAs"),
        (["a"] * 65, "at most 64"),
    ],
)
def test_what_is_no_lora_is_refused_with_a_spelling_that_works(written: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=r"loras.*Try") as refusal:
        as_loras("loras", written)
    assert message in str(refusal.value)
