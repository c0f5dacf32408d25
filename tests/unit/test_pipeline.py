"""From a prompt to a video, on networks small enough to run in a blink."""

import inspect
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from daifuku.config import MOCHI_STATS, DecoderConfig, DiTConfig, EncoderConfig, RuntimeConfig
from daifuku.errors import InvalidRequest, NonFiniteLatent, NotEnoughMemory
from daifuku.events import Done, Frames, Planned, Step, TextReady
from daifuku.media.read import read_metadata, read_video
from daifuku.model.dit import AsymmDiT
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder
from daifuku.pipeline import Pipeline
from daifuku.request import GenerateRequest
from daifuku.runtime.build import Parts
from daifuku.runtime.checkpoint import Start
from daifuku.runtime.estimate import ModelSizes
from daifuku.sample.noise import seeded_noise
from daifuku.sample.solvers import heun
from daifuku.text import PromptCut, TextEncoder
from daifuku.video import provenance

WIDTH = 16
DEFAULTS = {"height": 16, "width": 32, "num_frames": 13, "num_inference_steps": 3, "guidance_scale": 2.0, "fps": 20}
LATENT_SHAPE = (12, 3, 2, 4)


class Letters:
    """A tokenizer that knows one token per letter, and 1 as the end mark."""

    model_max_length = 12

    def encode(self, text: str, *, verbose: bool) -> list[int]:
        return [ord(letter) % 50 + 2 for letter in text] + [1]

    def decode(self, token_ids: list[int]) -> str:
        return " ".join(map(str, token_ids))


class Embedding(nn.Module):
    """In place of T5: a vector for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pipeline, and its networks to look at."""

    pipe: Pipeline
    dit: AsymmDiT
    vae: AsymmVAE
    t5: Embedding
    calls: list[str]
    """One entry for each time a network ran."""


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    calls: list[str] = []
    dit = AsymmDiT(
        DiTConfig(
            num_blocks=2, num_heads=2, head_dim=16, text_width=16, video_mlp_width=32, text_mlp_width=16,
            text_features=WIDTH, time_features=16,
        )
    )  # fmt: skip
    decoder = Decoder(DecoderConfig(channels=(32, 32, 32, 32), num_blocks=(0, 1, 1, 1, 1)))
    t5, vae = Embedding(), AsymmVAE(None, decoder, MOCHI_STATS)
    for name, network in (("text", t5), ("dit", dit), ("decoder", decoder)):
        network.eval().register_forward_hook(lambda *_, name=name: calls.append(name))
    text = TextEncoder(t5, Letters(), width=WIDTH, zero_empty=True)
    sizes = ModelSizes(dit=dit.config, decoder=decoder.config, text_parameters=960, text_tokens=12)
    parts = Parts(
        text=lambda *_: text,
        dit=lambda *_: dit,
        vae=lambda *_: vae,
        read=lambda _, name: dit.state_dict()[name],
        sizes=lambda: sizes,
        defaults=DEFAULTS,
    )
    # Tests count passes, so it is not left to a measurement how many there are.
    return Model(
        pipe=Pipeline(parts, runtime=RuntimeConfig(batch_guidance=False)), dit=dit, vae=vae, t5=t5, calls=calls
    )


def never(*_: object) -> Any:
    raise AssertionError("weights were read")


BARE = Pipeline(Parts(text=never, dit=never, vae=never, read=never, sizes=never, defaults=DEFAULTS))
"""A pipeline whose weights must not be touched."""


def ask(**values: Any) -> GenerateRequest:
    return GenerateRequest(**{"prompt": "ball", "seed": 7, **values})


def test_a_run_tells_its_whole_story_in_order(model: Model) -> None:
    events = list(model.pipe.run(ask()))
    assert [type(event) for event in events] == [Planned, TextReady, *[Step] * 3, *[Frames] * 3, Done]
    steps = [event for event in events if isinstance(event, Step)]
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0].sigma > steps[1].sigma > steps[2].sigma == 0.0
    chunks = [event for event in events if isinstance(event, Frames)]
    assert [(chunk.start, len(chunk.frames)) for chunk in chunks] == [(0, 1), (1, 6), (7, 6)]
    assert all(event.seconds > 0 for event in events if isinstance(event, TextReady | Step | Frames))


def test_a_video_has_the_size_that_was_asked_for(model: Model) -> None:
    video = model.pipe("ball", height=32, width=16, num_frames=7, num_inference_steps=1, seed=3, fps=12)
    assert video.frames.shape == (7, 32, 16, 3) and video.frames.dtype == np.uint8
    assert video.latents.shape == (12, 2, 4, 2) and video.latents.dtype == torch.float32
    assert (video.fps, video.request.seed, video.request.height) == (12, 3, 32)


def test_the_video_is_what_the_events_showed(model: Model) -> None:
    events = list(model.pipe.run(ask()))
    video = events[-1].video
    assert np.array_equal(video.frames, np.concatenate([each.frames for each in events if isinstance(each, Frames)]))
    assert torch.equal(video.latents, events[4].latent)


def test_frames_that_are_streamed_are_those_of_the_whole_decode(model: Model) -> None:
    video = model.pipe("ball", seed=1)
    with torch.no_grad():
        rgb = model.vae.decode(model.vae.unwhiten(video.latents.unsqueeze(0)))[0]
    whole = (((rgb + 1) / 2).clamp(0, 1) * 255).permute(1, 2, 3, 0).numpy()
    assert np.abs(video.frames - whole).max() <= 0.501


def test_latents_decode_again_to_the_same_frames(model: Model) -> None:
    video = model.pipe("ball", seed=1)
    again = np.concatenate([chunk.frames for chunk in model.pipe.decode(video.latents)])
    assert np.array_equal(again, video.frames)


def test_frames_become_the_whitened_latents_that_decode_takes(model: Model) -> None:
    torch.manual_seed(1)
    channels, num_blocks = (32, 32, 32, 32), (0, 1, 1, 1, 1)
    encoder = Encoder(EncoderConfig(channels=channels, num_blocks=num_blocks, attention=(False,) * 5)).eval()
    vae = AsymmVAE(encoder, model.vae.decoder, MOCHI_STATS)
    pipe = Pipeline(replace(model.pipe.parts, vae=lambda *_: vae))
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 32, 3), dtype=np.uint8)
    latents = pipe.encode(frames)
    assert latents.shape == LATENT_SHAPE
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    assert torch.allclose(vae.unwhiten(latents[None]), vae.encode(video).mean, atol=1e-5)
    assert sum(len(chunk.frames) for chunk in pipe.decode(latents)) == 13


def test_a_seed_means_the_same_video_whatever_ran_before(model: Model) -> None:
    first = model.pipe("ball", seed=7)
    other = model.pipe("ball", seed=8)
    again = model.pipe("ball", seed=7)
    assert np.array_equal(first.frames, again.frames) and torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)


def test_a_seed_that_was_drawn_is_recorded_and_makes_the_same_video(model: Model) -> None:
    video = model.pipe("ball")
    assert torch.equal(model.pipe("ball", seed=video.request.seed).latents, video.latents)


def test_the_prompt_and_the_negative_prompt_both_matter(model: Model) -> None:
    plain = model.pipe("ball", seed=7).latents
    assert not torch.allclose(model.pipe("star", seed=7).latents, plain, atol=1e-4)
    assert not torch.allclose(model.pipe("ball", negative_prompt="star", seed=7).latents, plain, atol=1e-4)


@pytest.mark.parametrize(
    "guidance, passes", [(3.0, 6), (1, 3), ([3.0, 1.0, 1.0], 4), ([1, 1, 1], 3), ([1.0, 2.0, 0.0], 5)]
)
def test_a_step_at_guidance_one_runs_one_pass(model: Model, guidance: Any, passes: int) -> None:
    model.pipe("ball", guidance_scale=guidance, seed=7)
    assert model.calls.count("dit") == passes


def test_the_negative_prompt_is_not_encoded_when_no_step_listens_to_it(model: Model) -> None:
    model.pipe("ball", guidance_scale=1, seed=7)
    assert model.calls.count("text") == 1
    model.pipe("ball", negative_prompt="cube", guidance_scale=2, seed=7)
    assert model.calls.count("text") == 3


def test_an_empty_negative_prompt_takes_no_pass_of_the_text_encoder(model: Model) -> None:
    model.pipe("ball", guidance_scale=2, seed=7)
    assert model.calls.count("text") == 1


def test_heun_asks_twice_per_step(model: Model) -> None:
    model.pipe("ball", guidance_scale=1, seed=7, solver="heun")
    assert model.calls.count("dit") == 6


def test_the_seeds_own_noise_given_as_latents_makes_the_same_video(model: Model) -> None:
    noise = seeded_noise([7], LATENT_SHAPE)[0]
    given = model.pipe("ball", seed=99, latents=noise)
    assert torch.equal(given.latents, model.pipe("ball", seed=7).latents)
    assert not given.noise_from_seed and model.pipe("ball", seed=7).noise_from_seed


def test_closing_the_generator_cancels_the_run(model: Model) -> None:
    run = model.pipe.run(ask(guidance_scale=1))
    next(run), next(run), next(run)
    run.close()
    assert model.calls == ["text", "dit"]
    with pytest.raises(StopIteration):
        next(run)


def test_nothing_happens_before_the_next_event_is_asked_for(model: Model) -> None:
    run = model.pipe.run(ask(guidance_scale=1))
    assert model.calls == []
    for so_far in ([], ["text"], ["text", "dit"], ["text", "dit", "dit"]):
        next(run)
        assert model.calls == so_far


def test_inference_mode_is_on_inside_the_run_and_never_for_the_caller(model: Model) -> None:
    inside: list[bool] = []
    for network in (model.t5, model.dit, model.vae.decoder):
        assert network is not None
        network.register_forward_hook(lambda *_: inside.append(torch.is_inference_mode_enabled()))
    run = model.pipe.run(ask())
    outside = [(torch.is_inference_mode_enabled(), torch.is_grad_enabled()) for _ in run]
    assert inside and all(inside)
    assert set(outside) == {(False, True)}


@pytest.mark.parametrize("stop", ["close", "fail"])
def test_a_run_that_ends_early_leaves_the_callers_thread_as_it_was(model: Model, stop: str) -> None:
    run = model.pipe.run(ask())
    next(run), next(run), next(run)
    if stop == "close":
        run.close()
    else:
        model.dit.final.linear.bias.data.fill_(float("nan"))
        with pytest.raises(NonFiniteLatent):
            list(run)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_latents_are_ordinary_tensors_that_autograd_takes(model: Model) -> None:
    events = list(model.pipe.run(ask()))
    for latent in (events[2].latent, events[-1].video.latents):
        weight = torch.ones((), requires_grad=True)
        (weight * latent).sum().backward()
        assert weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_stops_the_run_and_names_the_step(model: Model, value: float) -> None:
    run = model.pipe.run(ask())
    next(run), next(run), next(run)
    model.dit.final.linear.bias.data.fill_(value)
    with pytest.raises(NonFiniteLatent, match="after step 2"):
        list(run)


def test_frames_that_are_not_finite_stop_the_run(model: Model) -> None:
    assert model.vae.decoder is not None
    model.vae.decoder.output.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLatent, match="latent frame 0"):
        model.pipe("ball", seed=7)


def test_a_step_handed_out_may_be_changed_without_harm(model: Model) -> None:
    expected = model.pipe("ball", seed=7).latents
    for event in model.pipe.run(ask()):
        if isinstance(event, Step) and event.index < event.total:
            event.latent.zero_()
    assert isinstance(event, Done) and torch.equal(event.video.latents, expected)


@pytest.mark.parametrize(
    "values, complaint",
    [({"num_frames": 14}, "Try 13 or 19"), ({"guidance_scale": [1.0, 2.0]}, "Try 3 values"), ({"height": 8}, "Try 16")],
)
def test_a_wrong_request_is_refused_before_any_weight_is_read(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        BARE.run(ask(**values))
    with pytest.raises(InvalidRequest, match=complaint):
        BARE("ball", **values)


def test_a_solver_that_cannot_run_here_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heun, "SOLVER", replace(heun.SOLVER, available=lambda: "it needs a fast machine"))
    with pytest.raises(InvalidRequest, match="it needs a fast machine"):
        BARE.run(ask(solver="heun"))


@pytest.mark.parametrize("shape", [(12, 3, 4, 2), (1, 12, 3, 2, 4), (11, 3, 2, 4)])
def test_noise_of_another_shape_is_refused_before_any_weight_is_read(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match=r"starts from \[12, 3, 2, 4\]"):
        BARE.run(ask(), latents=torch.zeros(shape))


def test_the_call_knows_every_field_of_a_request() -> None:
    keywords = [name for name in inspect.signature(Pipeline.__call__).parameters if name != "self"]
    assert keywords == [*(each.name for each in fields(GenerateRequest)), "latents"]


def test_every_keyword_of_the_call_reaches_the_request(model: Model, tmp_path: Path) -> None:
    lora = tmp_path / "style.safetensors"
    matrices = {"lora_A": torch.ones(1, 32), "lora_B": torch.ones(32, 1)}
    save_file({f"blocks.0.attn.proj_x.{name}": tensor for name, tensor in matrices.items()}, lora)
    asked = {
        "negative_prompt": "no",
        "height": 32,
        "width": 16,
        "num_frames": 1,
        "num_inference_steps": 2,
        "guidance_scale": (2.0, 1.0),
        "seed": 5,
        "fps": 9,
        "solver": "heun",
        "threshold_noise": 0.2,
        "linear_steps": 0,
        "preset": "draft",
        "guidance_start_sigma": 0.9,
        "guidance_end_sigma": 0.1,
        "guidance_every": 3,
        "step_cache": "first_block",
        "cache_threshold": 0.2,
        "loras": ((str(lora), 0.5),),
    }
    video = model.pipe("ball", **asked)
    assert {"prompt": "ball", **asked} == {
        each.name: getattr(video.request, each.name) for each in fields(GenerateRequest)
    }


def test_a_prompt_that_fits_is_not_cut(model: Model) -> None:
    _, ready, *_ = model.pipe.run(ask(prompt="eleven long"))
    assert isinstance(ready, TextReady)
    assert (ready.num_tokens, ready.max_tokens, ready.cut_text) == (12, 12, "")


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_that_shows_the_tail(model: Model) -> None:
    with pytest.warns(PromptCut, match="13 tokens"):
        _, ready, *_ = model.pipe.run(ask(prompt="twelve long!"))
    assert isinstance(ready, TextReady)
    assert (ready.num_tokens, ready.max_tokens, ready.cut_text) == (13, 12, "!")


def test_the_empty_prompt_runs(model: Model) -> None:
    assert model.pipe("", seed=7).latents.isfinite().all()


def test_a_bfloat16_model_samples_in_float32(model: Model) -> None:
    assert model.vae.decoder is not None
    model.dit.bfloat16(), model.vae.decoder.bfloat16()
    video = model.pipe("ball", seed=7)
    assert video.latents.dtype == torch.float32
    assert not torch.equal(video.latents, video.latents.bfloat16().float())


def test_a_saved_video_can_be_made_again_from_its_file(model: Model, tmp_path: Path) -> None:
    video = model.pipe("ball", guidance_scale=[3.0, 2.0, 1.0])
    path = video.save(tmp_path / "clip.mp4")
    record = read_metadata(path)
    assert record is not None
    again = list(model.pipe.run(GenerateRequest.from_dict(record["request"])))[-1].video
    assert np.array_equal(again.frames, video.frames)
    assert read_video(path).frames.shape == video.frames.shape and read_video(path).fps == 20


def test_the_record_of_a_video_says_how_it_was_made(model: Model, tmp_path: Path) -> None:
    parts = replace(model.pipe.parts, name="some/model", revision="main", identity=lambda: "0123abcd")
    video = Pipeline(parts)("ball", seed=7)
    record = json.loads(video.save(tmp_path / "clip.mp4").with_suffix(".json").read_text())
    assert record == provenance(video)
    assert record["request"] == video.request.to_dict() and record["request"]["seed"] == 7
    assert record["model"] == {
        "name": "some/model",
        "revision": "main",
        "variant": None,
        "identity": "0123abcd",
        "device": "cpu",
        "loras": [],
    }
    assert record["runtime"]["dtype"] == "float32" and None not in record["runtime"].values()
    assert set(record["versions"]) == {"daifuku", "torch", "python"}
    assert set(record["timings"]) == {"text_s", "sampling_s", "decoding_s"} and record["noise_from_seed"] is True


def test_saving_twice_keeps_both_files(model: Model, tmp_path: Path) -> None:
    video = model.pipe("ball", seed=7)
    first, second = video.save(tmp_path / "clip.mp4"), video.save(str(tmp_path / "clip.mp4"))
    assert first != second and first.exists() and second.exists()


@pytest.mark.parametrize("settings", [{}, {"step_cache": "first_block", "cache_threshold": 0.5, "guidance_every": 2}])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_run_goes_on_from_any_step_to_the_same_bits(model: Model, settings: dict[str, Any], index: int) -> None:
    events = list(model.pipe.run(ask(num_inference_steps=4, **settings)))
    (step,) = (event for event in events if isinstance(event, Step) and event.index == index)
    start = Start(index=index, latent=step.latent, states=step.states)
    rest = list(model.pipe.run(ask(num_inference_steps=4, **settings), start=start))
    assert [event.index for event in rest if isinstance(event, Step)] == list(range(index + 1, 5))
    assert torch.equal(rest[-1].video.latents, events[-1].video.latents)
    assert np.array_equal(rest[-1].video.frames, events[-1].video.frames)


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


class FailsAt:
    """A hook that runs out of memory at one call of a network, and not again."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            full()


@pytest.mark.parametrize(("name", "call"), [("t5", 1), ("dit", 1), ("dit", 4), ("decoder", 1), ("decoder", 3)])
def test_running_out_of_memory_once_costs_nothing_that_was_made(model: Model, name: str, call: int) -> None:
    expected = model.pipe("ball", seed=7, guidance_every=2)
    assert model.vae.decoder is not None
    networks = {"t5": model.t5, "dit": model.dit, "decoder": model.vae.decoder.output}
    networks[name].register_forward_pre_hook(FailsAt(call))
    events = list(model.pipe.run(ask(guidance_every=2)))
    first, second = (event for event in events if isinstance(event, Planned))
    assert (first.out_of_memory, second.out_of_memory) == (False, True)
    assert second.plan.peak_bytes < first.plan.peak_bytes
    assert [event.index for event in events if isinstance(event, Step)] == [1, 2, 3]
    assert [event.start for event in events if isinstance(event, Frames)] == [0, 1, 7]
    assert np.array_equal(events[-1].video.frames, expected.frames)
    assert events[-1].video.runtime == replace(
        second.plan.runtime, kernel=events[-1].video.runtime.kernel, lora_mode="merged"
    )


def test_running_out_of_memory_twice_ends_the_run(model: Model) -> None:
    model.dit.register_forward_pre_hook(full)
    with pytest.raises(NotEnoughMemory, match=r"after 0 of 3 steps.*fewer frames"):
        list(model.pipe.run(ask()))


def test_another_failure_is_not_taken_for_a_lack_of_memory(model: Model) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    model.dit.register_forward_pre_hook(fails)
    run = model.pipe.run(ask())
    planned = [next(run), next(run)][0]
    assert isinstance(planned, Planned)
    with pytest.raises(ZeroDivisionError):
        next(run)
