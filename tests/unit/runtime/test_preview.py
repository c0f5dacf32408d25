"""A map from latents to colours, fitted to clips."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from daifuku.errors import CheckpointError
from daifuku.runtime.preview import LatentToRGB, clean_estimate, fit, read_latent_to_rgb


@pytest.fixture
def truth() -> LatentToRGB:
    torch.manual_seed(0)
    return LatentToRGB(weight=0.03 * torch.randn(3, 12), bias=torch.tensor([0.4, 0.5, 0.6]))


def latents(seed: int) -> Tensor:
    return torch.randn(12, 3, 4, 6, generator=torch.Generator().manual_seed(seed))


def decoded(truth: LatentToRGB, latent: Tensor) -> np.ndarray:
    """Frames in which every cell has its colour: one for the first latent frame, six for each other."""
    cells = truth(latent).repeat(8, axis=1).repeat(8, axis=2)
    return np.concatenate([cells[:1], cells[1:].repeat(6, axis=0)])


def test_a_linear_world_is_learnt_from_two_clips(truth: LatentToRGB) -> None:
    learnt = fit((latent, decoded(truth, latent)) for latent in (latents(1), latents(2)))
    assert torch.allclose(learnt.weight, truth.weight, atol=2e-3)
    assert torch.allclose(learnt.bias, truth.bias, atol=2e-3)
    assert np.abs(learnt(latents(3)).astype(int) - truth(latents(3)).astype(int)).max() <= 2


def test_each_latent_frame_is_compared_with_the_frames_it_stands_for(truth: LatentToRGB) -> None:
    frames = decoded(truth, latents(1))
    late = fit([(latents(1), np.roll(frames, 3, axis=0))])
    assert (late.weight - truth.weight).abs().max() > 5e-3


def test_a_clip_of_one_colour_still_gives_a_map() -> None:
    learnt = fit([(torch.zeros(12, 2, 2, 2), np.full((7, 16, 16, 3), 51, dtype=np.uint8))])
    assert (learnt(torch.zeros(12, 1, 2, 2)) == 51).all()


def test_colours_stay_within_a_byte() -> None:
    bright = LatentToRGB(weight=torch.eye(3, 12), bias=torch.zeros(3))
    colours = bright(torch.full((12, 1, 1, 1), 9.0)), bright(torch.full((12, 1, 1, 1), -9.0))
    assert [int(each.max()) for each in colours] == [255, 0]


def test_a_step_along_a_straight_way_shows_its_end() -> None:
    clean, noise = latents(1), latents(2)
    at = {sigma: (1 - sigma) * clean + sigma * noise for sigma in (0.9, 0.6)}
    assert torch.allclose(clean_estimate(at[0.9], at[0.6], 0.9, 0.6), clean, atol=1e-5)


def test_the_last_step_shows_its_own_latent() -> None:
    assert torch.equal(clean_estimate(latents(1), latents(2), 0.1, 0.0), latents(2))


def test_a_map_that_was_saved_comes_back(truth: LatentToRGB, tmp_path: Path) -> None:
    truth.save(tmp_path / "new" / "map.json")
    again = read_latent_to_rgb(tmp_path / "new" / "map.json")
    assert again is not None and torch.equal(again.weight, truth.weight) and torch.equal(again.bias, truth.bias)
    assert read_latent_to_rgb(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight": [[1]], "bias": [0, 0, 0]}', '{"weight": 1, "bias": [0]}'])
def test_a_damaged_map_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"map\.json"):
        read_latent_to_rgb(tmp_path / "map.json")
