"""Decoding in overlapping tiles: less memory than a whole frame takes, and approximate.

Each tile has group norms of its own, so its colours differ a little from those of the whole frame; the overlap blends
them. A tile goes through all of time before the next begins: what it remembers then never stands beside another's. So
no frame is complete before the last tile, and the clip is gathered in the host's memory.
"""

import math
from collections.abc import Iterator
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from daifuku.config import SPACE_FACTOR, TIME_FACTOR
from daifuku.errors import InvalidRequest
from daifuku.model.vae.decoder import Decoder

OVERLAP_SHARE = 4
"""Neighbouring tiles share at least a quarter of their side."""


def tiled_chunks(
    decoder: Decoder, latent: Float[Tensor, "b c t h w"], tile: int, gather_on: torch.device
) -> Iterator[Float[Tensor, "b 3 frames height width"]]:
    """The chunks of `Decoder.chunks`, from tiles of at most `tile` by `tile` latent cells, blended on `gather_on`.

    One tile that covers everything gives the same bits. Raises InvalidRequest for a tile without room to overlap.
    """
    if tile < OVERLAP_SHARE:
        raise InvalidRequest(f"tile={tile} leaves no room to overlap. Try {2 * OVERLAP_SHARE} or more.")
    batch, _, num_latents, height, width = latent.shape
    rows, cols = tile_spans(height, tile), tile_spans(width, tile)
    if len(rows) == len(cols) == 1:
        yield from decoder.chunks(latent)
        return
    num_frames = (num_latents - 1) * TIME_FACTOR + 1
    size = height * SPACE_FACTOR, width * SPACE_FACTOR
    clip = torch.zeros(batch, 3, num_frames, *size, device=gather_on)
    total = torch.zeros(size, device=gather_on)
    for row, col in product(rows, cols):
        weight = _ramp(row, height, gather_on)[:, None] * _ramp(col, width, gather_on)
        total[_pixels(row), _pixels(col)] += weight
        start = 0
        for piece in decoder.chunks(latent[..., row, col]):
            frames = slice(start, start + piece.shape[2])
            clip[:, :, frames, _pixels(row), _pixels(col)] += piece.to(gather_on, torch.float32) * weight
            start = frames.stop
    clip.div_(total)
    yield from clip.tensor_split(list(range(1, num_frames, TIME_FACTOR)), dim=2)


def tile_spans(length: int, tile: int) -> list[slice]:
    """Evenly spread, overlapping spans of `tile` cells that cover `length` cells."""
    if length <= tile:
        return [slice(0, length)]
    count = math.ceil((length - tile // OVERLAP_SHARE) / (tile - tile // OVERLAP_SHARE))
    starts = (round(i * (length - tile) / (count - 1)) for i in range(count))
    return [slice(start, start + tile) for start in starts]


def _ramp(span: slice, length: int, device: torch.device) -> Float[Tensor, " pixels"]:
    """Weight of each pixel along one side: it rises and falls where tiles overlap, not at the edge of a picture."""
    pixels = (span.stop - span.start) * SPACE_FACTOR
    place = torch.arange(pixels, device=device) + 0.5
    rising = place if span.start > 0 else torch.full_like(place, torch.inf)
    falling = pixels - place if span.stop < length else torch.full_like(place, torch.inf)
    return torch.minimum(rising, falling).clamp(max=pixels / OVERLAP_SHARE)


def _pixels(span: slice) -> slice:
    return slice(span.start * SPACE_FACTOR, span.stop * SPACE_FACTOR)
