"""daifuku decode, as a user types it."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from daifuku.media.read import read_metadata, read_video


@pytest.fixture
def saved(daifuku, model_folder):
    """A clip as PNG frames, with its latents."""
    run = daifuku("generate", "a ball", "--model", model_folder, "-o", "clip/", "--save-latents", "--seed", 3)
    assert run.code == 0
    return "clip.latents.safetensors"


def test_latents_decode_to_the_same_clip_and_record(daifuku, saved, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("only the VAE is needed")

    monkeypatch.setattr("daifuku.runtime.build._read_dit", never)
    monkeypatch.setattr("daifuku.runtime.build._read_text", never)
    run = daifuku("decode", saved, "-o", "again/")
    assert (run.code, run.out) == (0, "again\n")
    assert np.array_equal(read_video("again").frames, read_video("clip").frames)
    assert read_metadata("again.json") == read_metadata("clip.json")


def test_the_decoded_clip_is_named_after_its_latents(daifuku, saved):
    run = daifuku("decode", saved, "--json")
    # clip.json stands beside clip/ already, so the name is taken.
    assert run.json["path"] == "clip-1.mp4"


def test_another_frame_rate_may_be_chosen_and_is_recorded(daifuku, saved):
    daifuku("decode", saved, "-o", "slow.mp4", "--fps", 5)
    assert read_video("slow.mp4").fps == 5 and read_metadata("slow.mp4")["request"]["fps"] == 5


def test_another_model_may_decode_but_such_a_clip_is_not_replayed(daifuku, saved, other_model_folder):
    run = daifuku("decode", saved, "-o", "other.mp4", "--model", other_model_folder)
    assert run.code == 0
    assert read_metadata("other.mp4")["decoded_by"]["name"] == str(other_model_folder)
    run = daifuku("generate", "--replay", "other.mp4")
    assert run.code == 2 and "decoded by another model" in run.err


def test_latents_without_a_record_decode_with_the_model_that_is_named(daifuku, model_folder):
    save_file({"latents": torch.zeros(12, 2, 4, 2)}, "plain.safetensors")
    assert daifuku("decode", "plain.safetensors", "--model", model_folder).out == "plain.mp4\n"
    clip = read_video("plain.mp4")
    assert clip.frames.shape == (7, 32, 16, 3) and clip.fps == 20


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"latents": torch.zeros(11, 2, 4, 2)}, "[12, frames, height, width]"),
        ({"latents": torch.zeros(1, 12, 2, 4, 2)}, "[12, frames, height, width]"),
        ({"latents": torch.zeros(12, 2, 4, 2, dtype=torch.int32)}, "floats"),
        ({"latents": torch.zeros(12, 2, 3, 2)}, "even"),
        ({"weights": torch.zeros(12, 2, 4, 2)}, 'no tensor "latents"'),
    ],
)
def test_a_file_that_holds_no_latents_is_refused(daifuku, model_folder, tensors, message):
    save_file(tensors, "wrong.safetensors")
    run = daifuku("decode", "wrong.safetensors", "--model", model_folder)
    assert run.code == 2 and message in run.err


def test_files_that_cannot_be_read_or_written_are_refused(daifuku, tmp_path):
    (tmp_path / "text.safetensors").write_text("text")
    for arguments, message in {
        ("nowhere.safetensors",): "no such file",
        ("text.safetensors",): "text.safetensors",
        ("text.safetensors", "-o", "clip.avi"): "clip.mp4",
    }.items():
        run = daifuku("decode", *arguments)
        assert run.code == 2 and message in run.err and len(run.err.splitlines()) == 1


def test_latents_that_are_not_finite_end_with_1(daifuku, model_folder, tmp_path):
    save_file({"latents": torch.full((12, 2, 4, 2), float("nan"))}, "nan.safetensors")
    run = daifuku("decode", "nan.safetensors", "--model", model_folder)
    assert run.code == 1 and "NaN" in run.err
    assert not (tmp_path / "nan.mp4").exists()
