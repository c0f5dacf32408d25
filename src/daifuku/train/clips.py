"""Windows of video files, for training the VAE: where and when each is cut is a function of (seed, step, place)."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from daifuku.errors import InvalidRequest, MediaError
from daifuku.media.read import read_video

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif")

NUM_REMEMBERED = 16
"""Clips that stay decoded in memory."""

Frames = UInt8[np.ndarray, "_t _h _w 3"]


class ClipFolders:
    """Clips in folders, in batches of windows of one length and one side."""

    def __init__(self, folders: Sequence[Path], *, num_frames: int, side: int, size: int, seed: int) -> None:
        """Raises InvalidRequest for a folder without videos."""
        self.paths: list[Path] = []
        for folder in folders:
            found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
            if not found:
                raise InvalidRequest(f"{folder} holds no video: give a folder with {', '.join(SUFFIXES)} files")
            self.paths += found
        self._num_frames, self._side, self._size, self._seed = num_frames, side, size, seed
        self._read = lru_cache(maxsize=NUM_REMEMBERED)(self._checked)

    def batch(self, micro: int) -> UInt8[np.ndarray, "b t h w 3"]:
        """Random windows of the clips of a micro-step."""
        windows = []
        for path, place in zip(self._chosen(micro), range(self._size), strict=True):
            frames = self._read(path)
            limits = [have - need + 1 for have, need in zip(frames.shape, self._window, strict=False)]
            windows.append(self._cut(frames, np.random.default_rng([self._seed, micro, place]).integers(0, limits)))
        return np.stack(windows)

    def first(self, count: int) -> UInt8[np.ndarray, "b t h w 3"]:
        """The beginnings of the first clips, cut from their middles: to measure on."""
        windows = []
        for path in self.paths[:count]:
            frames = self._read(path)
            _, height, width, _ = frames.shape
            windows.append(self._cut(frames, np.array([0, (height - self._side) // 2, (width - self._side) // 2])))
        return np.stack(windows)

    def ids(self, micro: int) -> list[str]:
        """Names of the clips of a micro-step."""
        return [path.name for path in self._chosen(micro)]

    @property
    def _window(self) -> tuple[int, int, int]:
        return self._num_frames, self._side, self._side

    def _chosen(self, micro: int) -> list[Path]:
        """Every epoch sees each clip once, in a new order."""
        chosen = []
        for number in range(micro * self._size, (micro + 1) * self._size):
            epoch, place = divmod(number, len(self.paths))
            order = np.random.default_rng([self._seed, 1, epoch]).permutation(len(self.paths))
            chosen.append(self.paths[order[place]])
        return chosen

    def _cut(self, frames: Frames, corner: np.ndarray) -> Frames:
        time, row, col = (slice(start, start + need) for start, need in zip(corner, self._window, strict=True))
        return frames[time, row, col]

    def _checked(self, path: Path) -> Frames:
        frames = read_video(path).frames
        if any(have < need for have, need in zip(frames.shape, self._window, strict=False)):
            have, need = ("x".join(map(str, shape)) for shape in (frames.shape[:3], self._window))
            raise MediaError(
                f"{path} has {have} frames, rows and columns, and windows of {need} are cut: give a smaller "
                "vae.num_frames or vae.side, or take it out"
            )
        return frames
