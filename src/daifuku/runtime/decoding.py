"""Latents to pixels, in the way the plan says."""

from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from daifuku.config import RuntimeConfig
from daifuku.errors import NonFiniteLatent
from daifuku.model.vae.decoder import Decoder
from daifuku.runtime.machine import trim_heap
from daifuku.runtime.tiling import tiled_chunks


def pixel_chunks(
    decoder: Decoder, latent: Float[Tensor, "1 c t h w"], run: RuntimeConfig
) -> Iterator[UInt8[np.ndarray, "n height width 3"]]:
    """Frames of an un-whitened latent, a few at a time and in order. Raises NonFiniteLatent."""
    for index, rgb in enumerate(_chunks(decoder, latent, run)):
        if not rgb.isfinite().all():
            raise NonFiniteLatent(
                f"latent frame {index} decodes to NaN or infinity, so the run stops. Try dtype float32."
            )
        shades = ((rgb[0].float() + 1) / 2).clamp(0, 1).mul(255).round().to(torch.uint8)
        yield rearrange(shades, "colour n height width -> n height width colour").cpu().contiguous().numpy()
        # Between two pieces the heap is nearly empty, and what it would keep grows with every piece.
        trim_heap()


def _chunks(decoder: Decoder, latent: Tensor, run: RuntimeConfig) -> Iterator[Tensor]:
    if run.decoding == "whole":
        return iter([decoder(latent)])
    if run.decoding == "tiled":
        assert run.tile is not None, "a plan settles every setting"
        return tiled_chunks(decoder, latent, run.tile, torch.device("cpu"))
    return decoder.chunks(latent)
