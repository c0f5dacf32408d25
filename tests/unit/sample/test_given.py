"""Given frames stay where they are; all others follow the velocity. `tests/conformance/` asks every solver."""

import torch
from torch import Tensor

from daifuku.sample.given import holding
from daifuku.sample.noise import seeded_noise

LATENT = seeded_noise([3, 4], (12, 5, 2, 2))
GIVEN = torch.tensor([True, False, False, False, True])


def mixing(latent: Tensor, sigma: float) -> Tensor:
    """Every frame's velocity depends on all frames, as in a transformer."""
    return torch.sin(latent) - sigma * latent.mean(dim=2, keepdim=True)


def test_given_frames_do_not_move_and_the_others_move_as_the_whole_latent_tells_them() -> None:
    found, plain = holding(mixing, GIVEN)(LATENT, 0.5), mixing(LATENT, 0.5)
    assert not found[:, :, GIVEN].any()
    assert torch.equal(found[:, :, ~GIVEN], plain[:, :, ~GIVEN])


def test_with_no_frame_given_the_velocity_is_the_same_bit_for_bit() -> None:
    assert torch.equal(holding(mixing, torch.zeros(5, dtype=torch.bool))(LATENT, 0.5), mixing(LATENT, 0.5))
