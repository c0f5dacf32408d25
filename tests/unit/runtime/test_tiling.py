"""Decoding in tiles."""

from itertools import pairwise

import pytest
import torch

from daifuku.config import DecoderConfig
from daifuku.errors import InvalidRequest
from daifuku.model.vae.autoencoder import AsymmVAE
from daifuku.model.vae.decoder import Decoder
from daifuku.request import LatentShape
from daifuku.runtime.build import BUILT_IN_FOLDER
from daifuku.runtime.estimate import decode_footprint
from daifuku.runtime.footprint import footprint
from daifuku.runtime.tiling import tile_spans, tiled_chunks
from daifuku.weights.load import load_vae

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae() -> AsymmVAE:
    """The built-in one: how far tiles are off is a matter of real weights."""
    return load_vae(BUILT_IN_FOLDER).requires_grad_(False)


def latent(vae: AsymmVAE) -> torch.Tensor:
    """A clip of a bright square that moves over a dark ground, 96 by 128 pixels, as the VAE sees it."""
    video = torch.full((1, 3, 7, 96, 128), -0.6)
    for frame in range(7):
        video[:, 0, frame, 20 + 6 * frame : 50 + 6 * frame, 40 + 8 * frame : 70 + 8 * frame] = 0.8
    with torch.inference_mode():
        return vae.encode(video).mean


def test_one_tile_that_covers_everything_gives_the_same_bits(vae: AsymmVAE) -> None:
    assert vae.decoder is not None
    z = latent(vae)
    with torch.inference_mode():
        whole, tiled = (
            torch.cat(list(each), dim=2) for each in (vae.decoder.chunks(z), tiled_chunks(vae.decoder, z, 16, CPU))
        )
    assert torch.equal(whole, tiled)


@pytest.mark.parametrize("tile", [8, 12])
def test_tiles_are_off_by_a_few_shades_at_most(vae: AsymmVAE, tile: int) -> None:
    assert vae.decoder is not None
    z = latent(vae)
    with torch.inference_mode():
        whole, tiled = (
            torch.cat(list(each), dim=2) for each in (vae.decoder.chunks(z), tiled_chunks(vae.decoder, z, tile, CPU))
        )
    shades = 127.5 * (whole.clamp(-1, 1) - tiled.clamp(-1, 1)).abs()
    assert tiled.shape == whole.shape
    assert 0 < shades.mean() < 4


def test_chunks_come_as_from_the_decoder(vae: AsymmVAE) -> None:
    assert vae.decoder is not None
    with torch.inference_mode():
        sizes = [chunk.shape for chunk in tiled_chunks(vae.decoder, latent(vae), 8, CPU)]
    assert sizes == [(1, 3, 1, 96, 128), (1, 3, 6, 96, 128)]


@pytest.mark.parametrize(("length", "tile"), [(60, 32), (106, 32), (106, 16), (9, 8), (33, 32), (64, 32)])
def test_tiles_cover_everything_and_overlap_by_a_quarter(length: int, tile: int) -> None:
    spans = tile_spans(length, tile)
    assert spans[0].start == 0 and spans[-1].stop == length
    assert all(span.stop - span.start == tile for span in spans)
    assert all(here.stop - there.start >= tile // 4 for here, there in pairwise(spans))


def test_a_tile_without_room_to_overlap_is_refused(vae: AsymmVAE) -> None:
    assert vae.decoder is not None
    with pytest.raises(InvalidRequest, match="Try 8"):
        next(tiled_chunks(vae.decoder, latent(vae), 3, CPU))


def test_tiles_need_less_memory_than_whole_frames() -> None:
    config, shape = DecoderConfig(), LatentShape.from_pixels(19, 480, 848)
    whole, tiled = (decode_footprint(config, shape, torch.bfloat16, False, tile) for tile in (0, 16))
    assert tiled.peak_bytes < 0.75 * whole.peak_bytes


def test_one_tile_tells_what_all_of_them_cost() -> None:
    config = DecoderConfig(channels=(32, 32, 32, 32), num_blocks=(1, 1, 1, 1, 1))
    shape = LatentShape(frames=3, height=12, width=14)
    told = decode_footprint(config, shape, torch.float32, False, 8)
    with torch.device("meta"):
        decoder, latent = Decoder(config), torch.empty(1, *shape.as_tuple)
    all_of_them = footprint(lambda: [None for _ in tiled_chunks(decoder, latent, 8, torch.device("meta"))])
    assert told.flops == all_of_them.flops
    gathered = 4 * shape.pixel_height * shape.pixel_width * (3 * shape.num_frames + 1)
    assert told.peak_bytes + gathered == pytest.approx(all_of_them.peak_bytes, rel=0.05)
