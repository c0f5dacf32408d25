"""A VAE trained on video files: windows, exact resume, and a VAE that loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daifuku import world
from daifuku.errors import InvalidRequest, MediaError
from daifuku.media.write import VideoWriter
from daifuku.train.clips import ClipFolders
from daifuku.train.config import parse_config
from daifuku.train.vae_run import run_vae
from daifuku.weights.load import load_vae


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        clip = world.clip(0, index, size=32, num_frames=13)
        with VideoWriter(folder / f"{index}.mp4", fps=20, size=(32, 32), metadata={}) as writer:
            writer.write(clip.frames)
    return folder


def folders(videos: Path, **changes: Any) -> ClipFolders:
    return ClipFolders([videos], **{"num_frames": 7, "side": 16, "size": 2, "seed": 0} | changes)


def run(videos: Path, output: Path, **changes: Any) -> list[int]:
    plain = {
        "method": "vae",
        "output": str(output),
        "data": [{"folder": str(videos)}],
        "validation": {"folder": str(videos), "num_samples": 1, "every": 2},
        "vae": {"num_frames": 7, "side": 16},
        "schedule": {"steps": 3, "warmup": 0},
        "checkpoints": {"every": 2},
    }
    return [report.step for report in run_vae(parse_config(plain | changes))]


def test_windows_are_a_function_of_the_step_and_every_epoch_sees_every_clip(videos: Path) -> None:
    one, again = folders(videos), folders(videos)
    assert np.array_equal(one.batch(4), again.batch(4))
    assert one.batch(4).shape == (2, 7, 16, 16, 3)
    assert sorted(name for micro in range(3) for name in one.ids(micro)) == sorted(2 * ["0.mp4", "1.mp4", "2.mp4"])
    assert not np.array_equal(one.batch(4), one.batch(7)), "other steps cut other windows"


def test_a_clip_that_is_too_small_is_named(videos: Path) -> None:
    with pytest.raises(MediaError, match=r"0\.mp4 has 13x32x32 .* windows of 7x64x64"):
        folders(videos, side=64).first(1)


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="holds no video"):
        folders(tmp_path)


def test_the_decoder_learns_the_encoder_stays_and_a_run_that_was_left_ends_bit_identical(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(videos, tmp_path / "whole") == [1, 2, 3]
    stopped = parse_config(
        {
            "method": "vae",
            "output": str(tmp_path / "left"),
            "data": [{"folder": str(videos)}],
            "validation": {"folder": str(videos), "num_samples": 1, "every": 2},
            "vae": {"num_frames": 7, "side": 16},
            "schedule": {"steps": 3, "warmup": 0},
        }
    )
    assert [report.step for report in run_vae(stopped, stop=lambda: True)] == [1]
    assert run(videos, tmp_path / "left") == [2, 3]
    whole, left, before = load_vae(tmp_path / "whole"), load_vae(tmp_path / "left"), load_vae_of_the_package()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, left.state_dict()[name])
        if name.startswith("encoder"):
            assert torch.equal(weight, before.state_dict()[name])
    assert not torch.equal(whole.decoder.input.weight, before.decoder.input.weight)  # pyright: ignore
    assert whole.stats == before.stats
    last = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert last["psnr"] > 10 and last["samples"]


def test_after_both_halves_learnt_the_statistics_are_those_of_the_data(videos: Path, tmp_path: Path) -> None:
    run(videos, tmp_path, vae={"num_frames": 7, "side": 16, "parts": "both"}, schedule={"steps": 1, "warmup": 0})
    trained, before = load_vae(tmp_path), load_vae_of_the_package()
    assert trained.stats != before.stats
    assert not torch.equal(trained.encoder.output.weight, before.encoder.output.weight)  # pyright: ignore


def load_vae_of_the_package() -> Any:
    from daifuku.runtime.build import BUILT_IN_FOLDER

    return load_vae(BUILT_IN_FOLDER)
