"""Counting bytes and operations on the meta device."""

import pytest
import torch
from torch import Tensor

from daifuku.config import DecoderConfig, DiTConfig
from daifuku.model.vae.decoder import Decoder
from daifuku.request import LatentShape
from daifuku.runtime.estimate import block_footprint, decode_footprint
from daifuku.runtime.footprint import footprint

KIB = torch.float32.itemsize * 256


def kib(number: int) -> Tensor:
    return torch.empty(number, 256, device="meta")


def test_the_peak_is_the_most_that_lives_at_once() -> None:
    def run() -> Tensor:
        first = kib(3)
        second = first + 1
        del first
        return second.sum()

    assert footprint(run).peak_bytes == 6 * KIB


def test_a_view_costs_nothing_and_keeps_its_storage_alive() -> None:
    def run() -> Tensor:
        row = kib(8)[0]
        return row + 1

    assert footprint(run).peak_bytes == 9 * KIB


def test_work_in_place_costs_nothing() -> None:
    assert footprint(lambda: kib(8).add_(1)).peak_bytes == 8 * KIB


def test_a_product_of_matrices_counts_two_operations_for_each_multiply_add() -> None:
    left, right = torch.empty(5, 7, device="meta"), torch.empty(7, 11, device="meta")
    assert footprint(lambda: left @ right).flops == 2 * 5 * 7 * 11


def test_a_streaming_decode_needs_as_much_memory_for_any_number_of_frames() -> None:
    config = DecoderConfig(channels=(32, 32, 32, 32), num_blocks=(1, 1, 1, 1, 1))
    seven, thirty = (
        decode_footprint(config, LatentShape(frames=n, height=8, width=8), torch.float32, False, 0) for n in (7, 30)
    )
    assert seven.peak_bytes == thirty.peak_bytes
    assert thirty.flops / seven.flops == pytest.approx((6 * 29 + 1) / (6 * 6 + 1))


def test_a_streaming_decode_of_a_clip_needs_less_than_a_whole_one() -> None:
    config, shape = DecoderConfig(channels=(32, 32, 32, 32)), LatentShape(frames=9, height=8, width=8)
    streaming, whole = (decode_footprint(config, shape, torch.float32, way, 0) for way in (False, True))
    assert streaming.peak_bytes < 0.9 * whole.peak_bytes


def test_the_operations_of_a_decode_are_counted_on_the_real_decoder() -> None:
    config, shape = DecoderConfig(channels=(32, 32, 32, 32)), LatentShape(frames=4, height=8, width=8)
    with torch.device("meta"):
        decoder, latent = Decoder(config), torch.empty(1, *shape.as_tuple)
    counted = decode_footprint(config, shape, torch.float32, False, 0).flops
    assert 0.8 < counted / footprint(lambda: decoder(latent)).flops < 1.25


def test_the_published_transformer_takes_the_published_number_of_operations() -> None:
    shape = LatentShape.from_pixels(163, 480, 848)
    block = block_footprint(DiTConfig(), shape, 256, 1, torch.bfloat16, 0)
    assert 1600e12 < DiTConfig().num_blocks * block.flops < 1720e12
