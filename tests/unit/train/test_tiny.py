"""The recipe of the built-in model, run end to end for a few steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import daifuku
from daifuku.errors import TrainingError
from daifuku.train import tiny
from daifuku.train.captions import new_tokenizer
from daifuku.train.dit import DiTLossSettings
from daifuku.train.fast import FastSettings
from daifuku.train.latents import channel_stats, read_clips
from daifuku.train.tiny import TinySettings, vae_batch
from daifuku.train.vae import pixel_weights, to_video


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinySettings:
    """All stages, a few steps each."""
    settings = TinySettings(folder=tmp_path_factory.mktemp("run"))
    settings = replace(
        settings,
        world=replace(settings.world, num_frames=25),
        bfloat16=False,
        compile=False,
        vae=replace(settings.vae, num_steps=1),
        decoder=replace(settings.decoder, num_steps=1),
        dit=replace(settings.dit, num_steps=2),
        dit_losses=DiTLossSettings(batch_size=4),
        fast=replace(settings.fast, num_steps=1),
        fast_student=FastSettings(rank=2, batch_size=2),
        num_clips=8,
        num_validation_latents=4,
        num_validation_clips=1,
    )
    for stage in tiny.STAGES.values():
        for report in stage(settings):
            assert all(np.isfinite(value) for value in report.values.values())
    return settings


@pytest.fixture(scope="module")
def exported(run: TinySettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    tiny.export(run, folder)
    return folder


def test_every_stage_leaves_what_the_next_one_needs_and_the_export_is_a_model_folder(exported: Path) -> None:
    found = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert {
        "model_index.json",
        "generation_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "loras/fast8.safetensors",
    } <= found
    assert sum(path.stat().st_size for path in exported.rglob("*") if path.is_file()) < 16_000_000


def test_what_is_exported_makes_a_clip_in_eight_steps_of_one_pass_where_that_preset_is_asked_for(
    exported: Path,
) -> None:
    pipe = daifuku.load(exported)
    size: dict[str, Any] = {"num_frames": 1, "height": 16, "width": 16, "seed": 0}
    fast = pipe("a red ball", preset="fast8", **size)
    assert fast.request.captions == ("a red ball",) and fast.request.num_inference_steps == 8
    assert len(fast.model.loras) == 1
    exact = pipe("a red ball", num_inference_steps=2, **size)
    assert len(exact.request.captions) == 2 and exact.model.loras == []


def test_latents_are_whitened_for_training(run: TinySettings) -> None:
    latents, captions = read_clips(run.folder / "latents" / "train")
    stats = channel_stats(latents)
    assert len(latents) == len(captions) == 8
    whitened = (latents.float() - torch.tensor(stats.mean)[:, None, None, None]) / torch.tensor(stats.std)[
        :, None, None, None
    ]
    assert whitened.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    assert (whitened.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3


def test_the_decoder_stage_leaves_the_encoder_as_it_was(run: TinySettings) -> None:
    before, after = tiny.trained_vae(run, "vae"), tiny.trained_vae(run, "decoder")
    assert before.encoder is not None and after.encoder is not None
    assert before.decoder is not None and after.decoder is not None
    assert torch.equal(before.encoder.output.weight, after.encoder.output.weight)
    assert not torch.equal(before.decoder.input.weight, after.decoder.input.weight)


def test_a_stage_without_its_predecessor_says_which_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="run the stage 'vae' first"):
        next(tiny.stage_decoder(TinySettings(folder=tmp_path)))


def test_the_batch_of_a_step_depends_on_the_step_alone() -> None:
    settings = TinySettings(folder=Path("unused")).world
    one, two = vae_batch(settings, 5, 10), vae_batch(settings, 5, 10)
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert one[0].shape[2:4] == (48, 48), "early steps see a part of the picture"
    assert vae_batch(settings, 9, 10)[0].shape[2:4] == (64, 64), "late steps see all of it"


def test_object_pixels_and_their_rim_weigh_more() -> None:
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[0, 0, 4, 4] = True
    weights = pixel_weights(mask, 8.0)[0, 0, 0]
    assert weights[4, 4] == weights[2, 6] == 8.0
    assert weights[1, 4] == 1.0


def test_frames_become_video_between_minus_one_and_one() -> None:
    video = to_video(np.array([0, 255], np.uint8).repeat(3).reshape(1, 1, 1, 2, 3), "cpu")
    assert video[0, :, 0, 0].tolist() == [[-1.0, 1.0]] * 3


def test_unknown_words_fall_apart_into_letters_and_case_does_not_matter() -> None:
    tokenizer = new_tokenizer([f"a {colour} ball rolling to the left" for colour in ("red", "blue", "green")] * 50)
    assert tokenizer("A RED Ball")["input_ids"] == tokenizer("a red ball")["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer("a zebra quickly")["input_ids"]
    assert tokenizer.decode(tokenizer("a red ball")["input_ids"], skip_special_tokens=True) == "a red ball"
