"""Still pictures of a clip: its thumbnail, its frames side by side, and the preview of one that is being made."""

import math

import numpy as np
from einops import rearrange, repeat
from jaxtyping import UInt8

MAX_SIDE = 256
"""Pixels of a frame's longer side on a sheet."""


def chosen(frames: UInt8[np.ndarray, "t h w 3"], number: int) -> UInt8[np.ndarray, "n h w 3"]:
    """Up to `number` frames, evenly spread, the first and the last among them."""
    indices = np.linspace(0, len(frames) - 1, min(len(frames), number)).round().astype(int)
    return frames[indices]


def grid(frames: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Frames in rows, as nearly square as it goes, no frame larger than `MAX_SIDE`; what is left over stays black."""
    every = math.ceil(max(frames.shape[1:3]) / MAX_SIDE)
    frames = frames[:, ::every, ::every]
    columns = math.ceil(math.sqrt(len(frames)))
    missing = -len(frames) % columns
    blank = np.zeros((missing, *frames.shape[1:]), dtype=np.uint8)
    return rearrange(np.concatenate([frames, blank]), "(r c) h w k -> (r h) (c w) k", c=columns)


def strip(frames: UInt8[np.ndarray, "n h w 3"], enlarge: int) -> UInt8[np.ndarray, "height width 3"]:
    """Small frames side by side, each pixel a square of `enlarge` pixels."""
    return repeat(rearrange(frames, "t h w k -> h (t w) k"), "h w k -> (h p) (w q) k", p=enlarge, q=enlarge)
