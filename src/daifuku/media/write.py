"""Writing a clip while it is being decoded."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

from daifuku.errors import MediaError
from daifuku.media.encode import Encoder, FileEncoder, FolderEncoder
from daifuku.media.formats import format_of, is_folder_name
from daifuku.media.publish import publish, temporary_name


class VideoWriter:
    """Encodes chunks of frames as they come; at the clean end of its `with` block the clip appears, whole.

    `path` ends in .mp4, .webm or .gif, or in a slash for a folder of PNG frames. `size` is (height, width) in pixels.
    `metadata` goes into an .mp4 or .webm and into a .json beside any clip; it may be filled until the block ends.
    `crf` is the constant quality of .mp4 and .webm, smaller is better; None takes the format's own.

    An existing file is never overwritten: clip.mp4 becomes clip-1.mp4, and `path` tells so after the block. After an
    exception nothing is left on the disk. Raises UnwritableOutput for a name that no format answers to, and
    MediaError where the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int | float | Fraction,
        size: tuple[int, int],
        metadata: Mapping[str, Any] | None = None,
        crf: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.metadata = dict(metadata or {})
        self._format = format_of(path)
        self._is_folder = is_folder_name(path)
        self._fps = Fraction(fps).limit_denominator(1001)
        self._size = size
        self._crf = self._format.crf if crf is None else crf
        self._num_frames = 0
        self._temporaries: list[tuple[Path, str]] = []
        self._encoder: Encoder | None = None

    def __enter__(self) -> "VideoWriter":
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._encoder = self._open(self._new_temporary("" if self._is_folder else self.path.suffix))
        return self

    def write(self, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
        """Encode the next frames of the clip."""
        assert self._encoder is not None, "write() belongs inside the writer's with block"
        assert frames.shape[1:3] == self._size, f"frames of {frames.shape[1:3]}, the clip is {self._size}"
        with self._disk_errors():
            for frame in frames:
                self._encoder.add(frame)
        self._num_frames += len(frames)

    def attach(self, ending: str, content: bytes) -> None:
        """Have another file appear together with the clip: its name is the clip's, with this ending for its suffix."""
        with self._disk_errors():
            self._new_temporary(ending).write_bytes(content)

    def beside(self, ending: str) -> Path:
        """Where a file that was attached lies, once the block has ended."""
        stem = self.path.name if self._is_folder else self.path.stem
        return self.path.with_name(stem + ending)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._disk_errors():
                    self._finish()
        finally:
            assert self._encoder is not None
            self._encoder.close()
            for temporary, _ in self._temporaries:
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                else:
                    temporary.unlink(missing_ok=True)

    def _open(self, temporary: Path) -> Encoder:
        if self._is_folder:
            return FolderEncoder(temporary)
        return FileEncoder(temporary, self._format, fps=self._fps, size=self._size, crf=self._crf)

    def _finish(self) -> None:
        assert self._encoder is not None
        if not self._num_frames:
            raise MediaError(f"{self.path}: the clip has no frames, so no file was written.")
        self._encoder.finish(json.dumps(self.metadata) if self.metadata else None)
        if self.metadata:
            self.attach(".json", (json.dumps(self.metadata, indent=2, ensure_ascii=False) + "\n").encode())
        clip, *attached = self._temporaries
        self.path = publish([*attached, clip], self.path)

    def _new_temporary(self, ending: str) -> Path:
        temporary = temporary_name(self.path)
        self._temporaries.append((temporary, ending))
        return temporary

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, FFmpegError) as error:
            raise MediaError(f"{self.path} could not be written: {error.strerror or error}.") from error
