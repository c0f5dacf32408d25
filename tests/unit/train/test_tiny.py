"""The recipe of the built-in model, run end to end for a few steps."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, T5EncoderModel

import daifuku
from daifuku import world
from daifuku.errors import InvalidRequest, TrainingError
from daifuku.model.dit import AsymmDiT
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.train import tiny
from daifuku.train.ahead import made_ahead
from daifuku.train.captions import new_tokenizer
from daifuku.train.dit import DiTLossSettings
from daifuku.train.fast import FILE, FastSettings
from daifuku.train.latents import channel_stats, encode_clips, read_clips
from daifuku.train.tiny_clips import CutSettings, WorldSettings, captioned_clips, vae_batch
from daifuku.train.tiny_settings import TinySettings, read_settings
from daifuku.train.vae import pixel_weights, to_video
from daifuku.weights.load import load_dit, load_vae

LARGER_WORLD = Path(__file__).parents[3] / "examples" / "built_in" / "larger_world.toml"
"""The settings of the shipped model."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinySettings:
    """All stages, a few steps each."""
    settings = TinySettings(folder=tmp_path_factory.mktemp("run"), few_steps=True)
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
        fast_lora=replace(settings.fast_lora, num_steps=1),
        fast_student=FastSettings(rank=2, batch_size=2),
        num_clips=8,
        num_validation_latents=1,
        num_validation_clips=1,
    )
    for name in tiny.stages(settings):
        for report in tiny.STAGES[name](settings):
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


def test_windows_are_cut_from_the_clips_of_whatever_world_it_is() -> None:
    other = WorldSettings(size=96, num_frames=37, fps=24, fluid_share=1.0)
    cuts = CutSettings(windows=((7, 3), (37, 2)), crop=0.6, crop_share=0.5)
    early, late = vae_batch(other, 4, 10, cuts), vae_batch(other, 5, 10, cuts)
    assert early[0].shape == (3, 7, 56, 56, 3), "whole latent cells"
    assert late[0].shape == (2, 37, 96, 96, 3) and late[1].shape == late[0].shape[:4]
    whole = [
        world.clip(0, index, size=96, num_frames=37, fps=24, fluid_share=1.0, pair_share=0.1)
        for index in range(5 * 3, 5 * 3 + 2)
    ]
    assert np.array_equal(late[0], np.stack([clip.frames for clip in whole])), "each step has clips of its own"


def test_the_models_defaults_are_the_clips_that_it_learnt() -> None:
    found = tiny.defaults(TinySettings(folder=Path("unused"), world=WorldSettings(size=32, num_frames=25, fps=30)))
    assert [found[name] for name in ("height", "width", "num_frames", "fps")] == [32, 32, 25, 30]


def test_what_ships_is_what_the_recipe_makes() -> None:
    settings = read_settings(LARGER_WORLD, Path("unused"), "cpu")
    assert tiny.defaults(settings) == json.loads((BUILT_IN_FOLDER / "generation_config.json").read_text())
    assert load_dit(BUILT_IN_FOLDER, device="meta").config == settings.networks.dit
    vae = load_vae(BUILT_IN_FOLDER)
    assert vae.encoder is not None and vae.encoder.config == settings.networks.encoder
    assert vae.decoder is not None and vae.decoder.config == settings.networks.decoder
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUILT_IN_FOLDER / "tokenizer")
    assert len(tokenizer) <= settings.networks.vocabulary
    assert sum(path.stat().st_size for path in BUILT_IN_FOLDER.rglob("*") if path.is_file()) < 16_000_000


def test_steps_are_only_saved_where_the_settings_ask_for_it() -> None:
    plain = TinySettings(folder=Path("unused"))
    assert tiny.stages(plain) == ["vae", "decoder", "latents", "dit"]
    assert tiny.stages(replace(plain, few_steps=True)) == list(tiny.STAGES)


def test_a_vae_goes_on_from_that_of_another_model_with_the_sizes_that_it_has() -> None:
    settings = TinySettings(folder=Path("unused"), vae_from=BUILT_IN_FOLDER)
    began, shipped = tiny.new_vae(settings), load_vae(BUILT_IN_FOLDER)
    assert all(p.requires_grad for p in began.parameters())
    assert all(torch.equal(p, q) for p, q in zip(began.parameters(), shipped.parameters(), strict=True))


def test_a_transformer_goes_on_from_that_of_another_model_whatever_words_it_knew(tmp_path: Path) -> None:
    settings = TinySettings(folder=tmp_path)
    tokenizer = new_tokenizer(["a red ball bounces", "smoke rises"])
    model = tiny.new_text_to_video(settings.networks.dit, len(tokenizer))
    tiny.begin_from(BUILT_IN_FOLDER, model, tokenizer)
    assert torch.equal(model.dit.final.linear.weight, load_dit(BUILT_IN_FOLDER).final.linear.weight)
    theirs = PreTrainedTokenizerFast.from_pretrained(BUILT_IN_FOLDER / "tokenizer")
    known = T5EncoderModel.from_pretrained(BUILT_IN_FOLDER / "text_encoder", dtype=torch.float32)
    for word in ("</s>", "▁red", "▁smoke"):
        pieces = [word] if word in theirs.get_vocab() else theirs.tokenize(word.removeprefix("▁"))
        expected = known.shared.weight[theirs.convert_tokens_to_ids(pieces)].mean(dim=0)
        found = model.text_encoder.shared.weight[tokenizer.convert_tokens_to_ids(word)]
        assert torch.allclose(found, expected, atol=1e-6), word
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids("</s>")]])
    same = torch.tensor([[theirs.convert_tokens_to_ids("</s>")]])
    assert torch.equal(model.text_encoder(ids).last_hidden_state, known(same).last_hidden_state)


def test_one_of_other_sizes_is_refused(tmp_path: Path, exported: Path) -> None:
    tokenizer = new_tokenizer(["a red ball bounces"])
    model = tiny.new_text_to_video(replace(TinySettings(folder=tmp_path).networks.dit, num_blocks=2), len(tokenizer))
    with pytest.raises(InvalidRequest, match="of other sizes"):
        tiny.begin_from(BUILT_IN_FOLDER, model, tokenizer)
    with pytest.raises(InvalidRequest, match="of other sizes"):
        tiny.begin_fast_from(exported, model.dit)


def test_few_steps_go_on_from_what_another_model_learnt_of_them(exported: Path) -> None:
    expected = load_dit(exported, loras=[exported / FILE])
    dit = AsymmDiT(expected.config)
    dit.load_state_dict(load_dit(exported).state_dict())
    tiny.begin_fast_from(exported, dit)
    plain = load_dit(exported)
    assert any(not torch.equal(one, other) for one, other in zip(dit.parameters(), plain.parameters(), strict=True))
    for one, other in zip(dit.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.parametrize(("at_once", "num_workers"), [(16, 0), (3, 0), (1, 1)])
def test_latents_are_the_same_however_many_are_encoded_together_and_whoever_renders(
    at_once: int, num_workers: int, tmp_path: Path
) -> None:
    vae, small = load_vae(BUILT_IN_FOLDER), WorldSettings(size=16, num_frames=7)
    plain = partial(captioned_clips, small, 3, "train")
    for name, chunks, together in (("plain", plain, 1), ("other", made_ahead(plain, num_workers), at_once)):
        assert list(encode_clips(vae, chunks, tmp_path / name, 18, bfloat16=False, at_once=together)) == [18]
    (one, captions), (other, same) = (read_clips(tmp_path / name) for name in ("plain", "other"))
    assert len(one) == len(captions) == 18 and captions == same
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
    if at_once == 1:
        assert torch.equal(one, other)


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


SUCCESSOR = """
world = {size = 96, num_frames = 37, fps = 24, pair_share = 0.3, fluid_share = 0.4, pace = true}
bfloat16 = false
compile = false
num_workers = 1
few_steps = true
num_clips = 18
num_validation_clips = 1
num_validation_latents = 2
clips_at_once = 8
cuts.windows = [[7, 1], [13, 1]]
vae.num_steps = 2
decoder.num_steps = 2
dit.num_steps = 2
dit_losses = {batch_size = 2, given_share = 0.5}
fast.num_steps = 2
fast_student = {rank = 2, batch_size = 2, given_share = 0.5}

[networks]
vocabulary = 120
encoder = {channels = [8, 8, 8, 32], num_blocks = [0, 0, 0, 0, 0]}
decoder = {channels = [8, 8, 8, 32], num_blocks = [0, 0, 0, 0, 0]}

[networks.dit]
num_blocks = 2
num_heads = 2
head_dim = 12
text_width = 12
video_mlp_width = 64
text_mlp_width = 32
text_features = 16
"""


@pytest.mark.slow
def test_another_world_goes_through_every_stage_and_its_model_makes_clips_of_its_size(tmp_path: Path) -> None:
    file, target = tmp_path / "settings.toml", tmp_path / "model"
    file.write_text(SUCCESSOR)
    settings = read_settings(file, tmp_path / "run", "cpu")
    for name in tiny.stages(settings):
        for report in tiny.STAGES[name](settings):
            assert all(np.isfinite(value) for value in report.values.values())
    latents, captions = read_clips(settings.folder / "latents" / "train")
    assert latents.shape == (18, 12, 7, 12, 12) and len(captions) == 18
    tiny.export(settings, target)
    pipe = daifuku.load(target)
    video = pipe("orange smoke", num_inference_steps=1, seed=0)
    assert video.frames.shape == (37, 96, 96, 3) and video.fps == 24
