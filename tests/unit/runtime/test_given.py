"""From given pictures to a clip that begins, or begins and ends, with their latents bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import daifuku
from daifuku.errors import InvalidRequest
from daifuku.events import Done, Step
from daifuku.pipeline import Pipeline
from daifuku.request import GenerateRequest
from daifuku.runtime.checkpoint import Checkpoints, Start, read_checkpoint
from daifuku.runtime.given import encode_given, start_from
from daifuku.sample.noise import seeded_noise

SIDE, NUM_FRAMES, SHAPE = 32, 19, (12, 4, 4, 4)
PICTURES = np.random.default_rng(0).integers(0, 256, (13, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return daifuku.load(device="cpu")


def ask(**values: Any) -> GenerateRequest:
    size = {"height": SIDE, "width": SIDE, "num_frames": NUM_FRAMES, "num_inference_steps": 3, "seed": 1}
    return GenerateRequest(prompt="a red ball", **{**size, **values})


def made(pipe: Pipeline, start: Start, **values: Any) -> tuple[torch.Tensor, list[Step]]:
    events = list(pipe.run(ask(**values), start=start))
    assert isinstance(events[-1], Done)
    return events[-1].video.latents, [event for event in events if isinstance(event, Step)]


def test_pictures_take_the_places_of_the_latent_frames_that_stand_for_them(pipe: Pipeline) -> None:
    latents, given = encode_given(pipe.encode, NUM_FRAMES, PICTURES[:7], PICTURES[12])
    assert latents.shape == SHAPE and given.tolist() == [True, True, False, True]
    assert torch.equal(latents[:, :2], pipe.encode(PICTURES[:7]))
    still = pipe.encode(np.repeat(PICTURES[12:], 7, axis=0))
    assert torch.equal(latents[:, 3:], still[:, 1:]) and not latents[:, 2].any()
    _, first = encode_given(pipe.encode, NUM_FRAMES, PICTURES[:1])
    assert first.tolist() == [True, False, False, False]


def test_a_clip_without_room_for_what_is_given_is_refused_with_one_that_has_it(pipe: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="Try 19 or more"):
        encode_given(pipe.encode, 13, PICTURES, None)
    with pytest.raises(InvalidRequest, match="Try 13 or more"):
        encode_given(pipe.encode, 7, PICTURES[:1], PICTURES[0])
    assert encode_given(pipe.encode, 13, PICTURES[:1], PICTURES[0])[1].tolist() == [True, False, True]


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"guidance_every": 2, "step_cache": "first_block"}])
def test_given_latents_come_out_bit_for_bit_and_the_rest_of_the_clip_follows_them(
    pipe: Pipeline, solver: str, settings: dict[str, Any]
) -> None:
    noise, results = seeded_noise([1], SHAPE)[0], []
    for picture in PICTURES[:2]:
        latents, given = encode_given(pipe.encode, NUM_FRAMES, picture[None])
        found, _ = made(pipe, start_from(noise, latents, given), solver=solver, **settings)
        assert torch.equal(found[:, given], latents[:, given])
        results.append(found[:, ~given])
    assert not torch.equal(*results)


def test_with_nothing_given_a_run_is_the_same_bit_for_bit(pipe: Pipeline) -> None:
    noise = seeded_noise([1], SHAPE)[0]
    found, _ = made(pipe, start_from(noise, torch.zeros(SHAPE), torch.zeros(4, dtype=torch.bool)))
    *_, last = pipe.run(ask())
    assert isinstance(last, Done) and torch.equal(found, last.video.latents)


def test_a_run_that_was_stopped_goes_on_with_what_it_was_given(pipe: Pipeline, tmp_path: Path) -> None:
    latents, given = encode_given(pipe.encode, NUM_FRAMES, PICTURES[:1], PICTURES[1])
    whole, steps = made(pipe, start_from(seeded_noise([1], SHAPE)[0], latents, given))
    kept = Checkpoints(tmp_path / "clip.resume.safetensors", {}, every_s=0.0)
    kept.take(steps[1])
    _, start = read_checkpoint(kept.path)
    rest, _ = made(pipe, start)
    assert start.index == 2 and torch.equal(rest, whole)
