"""The autoencoder: nothing sees the future, frames share no statistics, and streaming is the whole decode."""

import pytest
import torch

from daifuku.config import MOCHI_STATS, DecoderConfig, EncoderConfig
from daifuku.errors import InvalidRequest
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.model.vae.encoder import Encoder, Posterior, add_fourier_features
from daifuku.model.vae.layers import FrameGroupNorm, TemporalAttention, depth_to_space_time
from daifuku.model.vae.past_frames import Replicate


@pytest.fixture(scope="module")
def vae() -> AsymmVAE:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(channels=(8, 32, 32, 64), num_blocks=(0, 1, 1, 1, 1)))
    decoder = Decoder(DecoderConfig(channels=(32, 32, 64, 64), num_blocks=(1, 0, 1, 2, 1)))
    return AsymmVAE(encoder, decoder, MOCHI_STATS).eval().requires_grad_(False)


@pytest.mark.parametrize("num_latent_frames", [1, 2, 4])
def test_decoding_frame_by_frame_equals_decoding_at_once(vae: AsymmVAE, num_latent_frames: int) -> None:
    assert vae.decoder is not None
    latent = torch.randn(1, 12, num_latent_frames, 2, 3, generator=torch.Generator().manual_seed(1))
    chunks = list(vae.decoder.chunks(latent))
    assert [chunk.shape[2] for chunk in chunks] == [1] + [6] * (num_latent_frames - 1)
    assert torch.allclose(torch.cat(chunks, dim=2), vae.decode(latent), atol=1e-5)


@pytest.mark.parametrize("num_frames", [1, 7, 19])
@pytest.mark.parametrize("piece", [1, 4, 6, 19])
def test_encoding_piece_by_piece_equals_encoding_at_once(vae: AsymmVAE, num_frames: int, piece: int) -> None:
    video = torch.rand(1, 3, num_frames, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = list(vae.encode_chunks(video.split(piece, dim=2)))
    assert [latent.mean.shape[2] for latent in found] == [1] * (num_frames // 6 + 1)
    whole = vae.encode(video)
    assert torch.allclose(torch.cat([latent.mean for latent in found], dim=2), whole.mean, atol=1e-5)
    assert torch.allclose(torch.cat([latent.logvar for latent in found], dim=2), whole.logvar, atol=1e-5)


def test_a_clip_that_ends_in_the_middle_of_a_latent_frame_is_refused(vae: AsymmVAE) -> None:
    with pytest.raises(InvalidRequest, match=r"9 came\. Try 7 or 13"):
        list(vae.encode_chunks(torch.zeros(1, 3, 9, 16, 16).split(3, dim=2)))


def test_a_frame_never_depends_on_later_ones(vae: AsymmVAE) -> None:
    video = torch.rand(1, 3, 19, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    changed = video.clone()
    changed[:, :, 7:] *= -1
    one, two = vae.encode(video).mean, vae.encode(changed).mean
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert not torch.allclose(one[:, :, 2:], two[:, :, 2:], atol=1e-3)
    latent = torch.randn(1, 12, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    other = latent.clone()
    other[:, :, 2] += 1
    assert torch.equal(vae.decode(latent)[:, :, :7], vae.decode(other)[:, :, :7])


def test_the_first_frame_alone_has_the_latent_it_has_in_a_clip(vae: AsymmVAE) -> None:
    video = torch.rand(1, 3, 7, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    assert torch.allclose(vae.encode(video[:, :, :1]).mean, vae.encode(video).mean[:, :, :1], atol=1e-5)


def test_norm_statistics_stay_within_a_frame() -> None:
    norm = FrameGroupNorm(32)
    video = torch.randn(1, 32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    louder = video.clone()
    louder[:, :, 2] *= 100
    assert torch.equal(norm(video)[:, :, :2], norm(louder)[:, :, :2])


def test_attention_over_one_frame_is_its_value_projected() -> None:
    torch.manual_seed(0)
    layer = TemporalAttention(32)
    video = torch.randn(1, 32, 1, 2, 2)
    value = layer.qkv(layer.norm(video))[:, 64:]
    assert torch.allclose(layer(video, Replicate()), video + layer.out(value), atol=1e-5)


def test_depth_to_space_time_unfolds_channel_time_row_column() -> None:
    video = torch.zeros(1, 2 * 3 * 4, 1, 1, 1)
    video[0, 1 * 12 + 2 * 4 + 1 * 2 + 0] = 1.0  # second channel, third frame, second row, first column
    assert depth_to_space_time(video, 3, 2).nonzero().tolist() == [[0, 1, 2, 1, 0]]


def test_fourier_features_stand_colour_by_colour_sines_first() -> None:
    video = torch.full((1, 3, 1, 1, 1), 0.01)
    features = add_fourier_features(video)[0, :, 0, 0, 0]
    angles = 2 * torch.pi * 0.01 * torch.tensor([64.0, 128.0]).repeat(3)
    assert torch.allclose(features, torch.cat([video.flatten(), angles.sin(), angles.cos()]), atol=1e-4)


def test_whitening_goes_there_and_back(vae: AsymmVAE) -> None:
    latent = torch.randn(2, 12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(vae.unwhiten(vae.whiten(latent)), latent, atol=1e-6)
    mean = torch.tensor(MOCHI_STATS.mean).reshape(1, 12, 1, 1, 1)
    assert vae.whiten(mean).abs().max() < 1e-6


def test_a_posterior_draws_from_its_gaussian() -> None:
    posterior = Posterior(mean=torch.full((1, 1, 1, 100, 100), 3.0), logvar=torch.full((1, 1, 1, 100, 100), -2.0))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)
    assert drawn.var().log().item() == pytest.approx(-2.0, abs=0.05)


def test_a_missing_half_says_which_file_to_load(vae: AsymmVAE) -> None:
    alone = AsymmVAE(None, vae.decoder, MOCHI_STATS)
    with pytest.raises(ValueError, match=r"encoder\.safetensors"):
        alone.encode(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match=r"decoder\.safetensors"):
        AsymmVAE(vae.encoder, None, MOCHI_STATS).decode(torch.zeros(1, 12, 1, 2, 2))
