"""The transformer's promises to those who wrap it: positions, text without order, three steps that make the forward."""

import pytest
import torch
from torch import Tensor

from daifuku.config import DiTConfig
from daifuku.model.dit import AsymmDiT, pack_valid
from daifuku.model.embed import unpatchify
from daifuku.model.rope import REFERENCE_AREA, rotate, rotation, token_positions

CONFIG = DiTConfig(
    num_blocks=2,
    num_heads=2,
    head_dim=16,
    text_width=16,
    video_mlp_width=64,
    text_mlp_width=32,
    text_features=16,
    time_features=16,
)


@pytest.fixture(scope="module")
def dit() -> AsymmDiT:
    torch.manual_seed(0)
    model = AsymmDiT(CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(model.pos_frequencies, std=0.05)
    return model


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, 12, 2, 4, 6, generator=generator)
    text = torch.randn(batch, 8, 16, generator=generator)
    mask = torch.arange(8) < torch.tensor([[8], [3]])[:batch]
    return latent, torch.tensor([0.3, 0.9])[:batch], text, mask


def test_forward_is_embed_blocks_unembed(dit: AsymmDiT) -> None:
    state = dit.embed(*inputs())
    video, text = state.video, state.text
    for block in dit.blocks:
        video, text = block(video, text, state.conditioning, state.turn, state.lengths)
    assert torch.equal(dit.unembed(video, state), dit(*inputs()))


def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(dit: AsymmDiT) -> None:
    latent, sigma, text, mask = inputs()
    together = dit(latent, sigma, text, mask)
    for i in range(2):
        alone = dit(latent[i : i + 1], sigma[i : i + 1], text[i : i + 1], mask[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_what_stands_behind_the_mask_does_not_matter_nor_where_valid_text_stands(dit: AsymmDiT) -> None:
    latent, sigma, text, mask = inputs()
    expected = dit(latent, sigma, text, mask)
    changed = torch.where(mask.unsqueeze(-1), text, text + 5.0)
    assert torch.allclose(dit(latent, sigma, changed, mask), expected, atol=1e-5)
    order = torch.tensor([7, 2, 5, 0, 4, 1, 6, 3])
    assert torch.allclose(dit(latent, sigma, text[:, order], mask[:, order]), expected, atol=1e-5)


@pytest.mark.parametrize("multiple", [2, 5, 8, 100])
def test_text_kept_to_a_round_length_gives_the_same_velocity(dit: AsymmDiT, multiple: int) -> None:
    latent, sigma, text, mask = inputs()
    expected = dit(latent, sigma, text, mask)
    dit.text_multiple = multiple
    try:
        assert torch.allclose(dit(latent, sigma, text, mask), expected, atol=1e-5)
    finally:
        dit.text_multiple = 1


def test_packing_keeps_the_order_of_valid_tokens_and_says_when_no_mask_is_needed() -> None:
    text = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[True, False, True, False, True], [False, True, False, False, False]])
    packed, kept, lengths = pack_valid(text, mask)
    assert packed[0, :, 0].tolist() == [0.0, 2.0, 4.0]
    assert packed[1, 0, 0] == 6.0
    assert kept.tolist() == [[True, True, True], [True, False, False]]
    assert lengths is not None and lengths.tolist() == [3, 1]
    assert pack_valid(text[:1], mask[:1])[2] is None
    assert pack_valid(text, torch.zeros_like(mask))[0].shape == (2, 0, 1)


def test_every_resolution_covers_the_same_area_around_the_same_middle() -> None:
    for rows, cols in ((4, 4), (3, 7), (30, 53)):
        positions = token_positions(2, rows, cols)
        assert positions[:, 1:].mean(dim=0).abs().max() < 1e-3
        row_step = (positions[cols, 1] - positions[0, 1]).item()
        col_step = (positions[1, 2] - positions[0, 2]).item()
        assert row_step == pytest.approx(col_step, rel=1e-4)
        assert row_step * rows * col_step * cols == pytest.approx(REFERENCE_AREA, rel=1e-4)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone() -> None:
    frequencies = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 2.5], [5.0, 1.0, 2.0], [6.0, 3.0, 2.5]])
    vector = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(1)).expand(1, 1, 4, 8)
    turned = rotate(vector, rotation(frequencies, positions))[0, 0]
    assert torch.allclose(turned.norm(dim=-1), vector[0, 0].norm(dim=-1), atol=1e-5)
    assert torch.allclose(turned[0] @ turned[1], turned[2] @ turned[3], atol=1e-4)


def test_unpatchify_orders_features_as_row_column_channel() -> None:
    patches = torch.zeros(1, 6, 12)
    patches[0, 1, 1 * 6 + 0 * 3 + 2] = 1.0  # second token: lower row of the patch, left column, third channel
    latent = unpatchify(patches, 1, 2, 3)
    assert latent.shape == (1, 3, 1, 4, 6)
    assert latent.nonzero().tolist() == [[0, 2, 0, 1, 2]]
