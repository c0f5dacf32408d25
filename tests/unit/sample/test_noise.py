"""Where a run starts."""

import torch

from daifuku.sample.noise import seeded_noise

SHAPE = (12, 2, 4, 6)


def test_a_seed_means_the_same_noise_at_every_place_of_a_batch() -> None:
    alone = seeded_noise([7], SHAPE)[0]
    batch = seeded_noise([3, 7, 2**63 - 1, 7], SHAPE)
    assert torch.equal(batch[1], alone) and torch.equal(batch[3], alone)
    assert not torch.equal(batch[0], alone) and not torch.equal(batch[2], alone)


def test_the_noise_of_a_seed_is_the_one_it_always_was() -> None:
    start = torch.tensor([-0.8201345205307007, 0.39563116431236267, 0.8989084959030151])
    assert torch.allclose(seeded_noise([7], SHAPE)[0].flatten()[:3], start, atol=1e-6)


def test_noise_is_standard_normal_and_float32() -> None:
    noise = seeded_noise([0], (12, 8, 32, 32))
    assert noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_drawing_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    seeded_noise([5], SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
