import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daifuku.errors import ModelNotFound
from daifuku.server.asks import Served, find_loras, from_form, resolved
from daifuku.server.bodies import _form, parse_json
from daifuku.server.problems import Problem

DEFAULTS = {"width": 64, "height": 64, "num_frames": 31, "num_inference_steps": 32, "fps": 20}
SERVED = Served(name="tiny", defaults=DEFAULTS, loras={"style": Path("/models/style.safetensors")}, max_work=1e8)
EXTREMES = [
    0,
    -1,
    2**31,
    -(2**31),
    2**63,
    2**64,
    10**400,
    1e308,
    -1e308,
    1.5,
    "10",
    "",
    True,
    None,
    [],
    {},
    [[]],
    17,
    65,
    -0.0,
    1e-320,
    2**53 + 1,
    "NaN",
    "1e3",
    " 7 ",
    "7; 8",
    "\u0667",
    [7],
    {"value": 7},
    [None, True],
]


def ask(**body: Any) -> Any:
    return resolved(SERVED, {"prompt": "a ball", **body})


def test_what_openai_s_clients_send_becomes_frames_and_sides() -> None:
    found = ask(size="128x96", seconds="4", model="tiny")
    assert (found.width, found.height, found.num_frames) == (128, 96, 79)
    assert ask(seconds=1.5, fps=10).num_frames == 13
    assert ask(seconds="0.001").num_frames == 1


def test_short_names_mean_the_same() -> None:
    found = ask(steps=5, guidance=2.0)
    assert (found.num_inference_steps, found.guidance_scale) == (5, 2.0)


@pytest.mark.parametrize(
    "body, code, hint",
    [
        ({"widht": 64}, "unknown_field", "width"),
        ({"width": 50}, "invalid_value", "48 or 64"),
        ({"num_frames": 30}, "invalid_value", "25 or 31"),
        ({"size": "64 x 64"}, "invalid_value", "848x480"),
        ({"size": "64x64", "width": 64}, "invalid_value", "one of them"),
        ({"seconds": "0"}, "invalid_value", "'4'"),
        ({"seconds": "4", "num_frames": 7}, "invalid_value", "one of them"),
        ({"steps": 4, "num_inference_steps": 4}, "invalid_value", "twice"),
        ({"model": "sora-2"}, "model_not_found", "'tiny'"),
        ({"solver": "eular"}, "invalid_value", "euler"),
        ({"width": 2048, "height": 2048}, "too_much_work", "fewer steps"),
        ({"num_frames": 1201}, "too_much_work", "num_frames=757"),
        ({"loras": ["stile"]}, "unknown_lora", "'style'"),
        ({"loras": ["/models/style.safetensors"]}, "unknown_lora", "Try"),
        ({"loras": ["../style"]}, "unknown_lora", "'style'"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(body: dict, code: str, hint: str) -> None:
    with pytest.raises(Problem) as caught:
        ask(**body)
    assert caught.value.code == code and hint in caught.value.message


def test_a_frame_count_that_is_proposed_works() -> None:
    assert ask(num_frames=757).num_frames == 757


@pytest.mark.parametrize("value", EXTREMES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "name",
    [
        "width",
        "height",
        "num_frames",
        "num_inference_steps",
        "guidance_scale",
        "seed",
        "fps",
        "seconds",
        "size",
        "loras",
        "linear_steps",
        "solver",
        "preset",
        "negative_prompt",
    ],
)
def test_an_extreme_value_is_refused_in_words_or_works(name: str, value: Any) -> None:
    try:
        found = ask(**{name: value})
    except Problem as problem:
        assert problem.status == 400 and len(problem.message) < 400
    else:
        assert found.width * found.height * found.num_frames * found.num_inference_steps <= SERVED.max_work


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from([*DEFAULTS, "prompt", "solver", "loras", "size", "model"]), st.text(min_size=4)))
def test_no_answer_repeats_a_text_that_was_sent(body: dict) -> None:
    try:
        resolved(SERVED, {"prompt": "x", **body})
    except Problem as problem:
        known = json.dumps(SERVED.schema()) + "what was sent"
        assert not [text for text in body.values() if text in problem.message and text not in known]


def test_a_prompt_is_not_repeated_by_the_answer_that_refuses_it() -> None:
    for prompt in ("the unmentionable\0", "the unmentionable " * 1000):
        with pytest.raises(Problem) as caught:
            ask(prompt=prompt)
        assert caught.value.param == "prompt" and "unmentionable" not in caught.value.message


def test_loras_go_by_the_names_of_their_files(tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.gguf", "three.bin", "notes.txt"):
        (tmp_path / name).touch()
    assert find_loras(tmp_path) == {"one": tmp_path / "one.safetensors", "two": tmp_path / "two.gguf"}
    assert find_loras(None) == {}
    with pytest.raises(ModelNotFound):
        find_loras(tmp_path / "missing")
    assert ask(loras=[["style", 0.5]]).loras == (("style", 0.5),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:16]),
)
def test_a_body_that_is_no_sound_json_is_refused(content: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse_json(content)
    assert caught.value.status == 400


def form(*parts: str, boundary: str = "x") -> bytes:
    return "".join(f"--{boundary}\r\n{part}\r\n" for part in parts).encode() + f"--{boundary}--\r\n".encode()


def test_a_form_means_what_the_same_json_means() -> None:
    fields = {"prompt": "10", "seed": "7", "guidance": "2.5", "size": "64x64", "seconds": "4", "loras[]": "style"}
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    found = from_form(_form(form(*parts), "multipart/form-data; boundary=x"))
    assert found == {"prompt": "10", "seed": 7, "guidance": 2.5, "size": "64x64", "seconds": "4", "loras": ["style"]}


@pytest.mark.parametrize(
    "content, kind",
    [
        (form("nothing"), "boundary=x"),
        (form('Content-Disposition: form-data; name="a"\r\n\r\n1'), ""),
        (form('Content-Disposition: form-data; name="a"\r\n\r\n1'), "boundary=y"),
        (form(*['Content-Disposition: form-data; name="a"\r\n\r\n1'] * 2), "boundary=x"),
        (form(*['Content-Disposition: form-data; name="a[]"\r\n\r\n1'] * 99), "boundary=x"),
        (form('Content-Disposition: form-data; name="a"; filename="../../x"\r\n\r\n1'), "boundary=x"),
        (b"--x\r\n", "boundary=x"),
        (b"", "boundary=x"),
    ],
)
def test_a_broken_form_and_a_file_are_refused(content: bytes, kind: str) -> None:
    with pytest.raises(Problem) as caught:
        _form(content, f"multipart/form-data; {kind}")
    assert caught.value.status == 400
