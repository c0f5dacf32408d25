"""Pictures of files that nobody vouches for: what is opened, and how much of it is decoded, is bounded.

Headers are not believed. Sizes, numbers of frames and times are those of the frames that come out of the decoder, and
decoding stops where one of them passes its limit.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import ColorTrc, Interpolation
from av.video.stream import VideoStream
from jaxtyping import UInt8

from daifuku.errors import MediaError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".gif"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

THUMBNAIL = 32
"""Side of a thumbnail in pixels."""

_CONTAINERS = "mov,mp4,matroska,webm,gif,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
_CODECS = frozenset(
    {
        *("h264", "hevc", "mpeg4", "prores", "dnxhd", "mjpeg", "ffv1", "vp8", "vp9", "av1"),
        *("libdav1d", "libaom-av1", "libvpx", "libvpx-vp9"),
        *("gif", "png", "webp", "bmp"),
    }
)
"""What is opened at all. FFmpeg knows hundreds more, and its holes are mostly found in those that nobody uses."""

_PICTURES = {"png_pipe": rb"\x89PNG", "jpeg_pipe": rb"\xff\xd8\xff", "webp_pipe": rb"RIFF....WEBP", "bmp_pipe": rb"BM"}

_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)

_CAREFULLY = (
    Interpolation.LANCZOS | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
"""How swscale shrinks: its filter grows with what it has to take together, so nothing flickers."""

_COMPLETE_SHARE = 0.9
"""Share of the frames that a header promises that have to be there."""

_GUESSED_RATE = 25


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of one file is looked at. A file that has more is refused as a whole."""

    max_pixels: int = 8192 * 4352
    """Of one picture."""
    max_frames: int = 250_000
    max_duration_s: float = 7200.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded frame."""

    time_s: float
    """Since the first frame of its file."""
    frame: av.VideoFrame
    pixel_ratio: Fraction = Fraction(1)
    """Width of a pixel by its height."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as it is shown: turned upright, with square pixels."""
        height, width = self.frame.height, max(round(self.frame.width * self.pixel_ratio), 1)
        return (width, height) if self._quarter_turns % 2 else (height, width)

    @property
    def _quarter_turns(self) -> int:
        return round(self.frame.rotation / 90) % 4

    def covering(self, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
        """The middle of the picture, scaled so that it just covers `size` (height, width)."""
        height, width = size
        scale = max(height / self.size[0], width / self.size[1])
        whole = self._scaled((max(round(self.size[0] * scale), height), max(round(self.size[1] * scale), width)))
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        return np.ascontiguousarray(whole[top : top + height, left : left + width])

    def thumbnail(self) -> UInt8[np.ndarray, "32 32 3"]:
        """The whole picture squeezed into a small square, each pixel the mean of an area."""
        return _rgb(self.frame, (THUMBNAIL, THUMBNAIL), Interpolation.AREA)

    def _scaled(self, size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
        """The whole picture upright, of that size."""
        turns = self._quarter_turns
        stored = (size[1], size[0]) if turns % 2 else size
        return np.rot90(_rgb(self.frame, stored, _CAREFULLY), turns)


def pictures(path: Path, limits: Limits) -> Iterator[Picture]:
    """Every picture of a video or image file, in the order of their times.

    Frames whose time stamp does not go forward are left out. Raises MediaError for a file that cannot be read, is cut
    short or passes a limit, when the reading gets there.
    """
    with _opened(path, limits) as container:
        stream = _video_stream(container)
        ratio = stream.sample_aspect_ratio or Fraction(1)
        guessed_s = float(1 / (stream.average_rate or _GUESSED_RATE))
        num_frames, first_s, last_s = 0, None, float("-inf")
        try:
            for frame in container.decode(stream):
                num_frames += 1
                _check_frame(frame, num_frames, limits)
                if frame.pts is None or frame.time_base is None:
                    time_s = max(last_s, -guessed_s) + guessed_s
                else:
                    time_s = float(frame.pts * frame.time_base)
                first_s = time_s if first_s is None else first_s
                if time_s <= last_s:
                    continue
                last_s = time_s
                if time_s - first_s > limits.max_duration_s:
                    raise MediaError(f"it is longer than {limits.max_duration_s:g} s: cut it into several files")
                yield Picture(time_s=time_s - first_s, frame=frame, pixel_ratio=ratio if ratio > 0 else Fraction(1))
        except (FFmpegError, OSError, ValueError) as error:
            where = f"after {num_frames} frames" if num_frames else "at its first frame"
            raise MediaError(f"it is damaged {where}: {_reason(error)}") from error
        if not num_frames:
            raise MediaError("it holds no frames")
        if num_frames < _COMPLETE_SHARE * stream.frames:
            raise MediaError(f"it is cut short: of {stream.frames} frames that it promises {num_frames} are there")


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[InputContainer]:
    """Given as an open file, never as a name: FFmpeg would follow one to devices and internet addresses."""
    with ExitStack() as stack:
        try:
            if not path.is_file():
                # A pipe or a device might never end, or never begin.
                raise MediaError("it cannot be read: it is no ordinary file")
            file = stack.enter_context(path.open("rb"))
            container = av.open(
                file,
                "r",
                format=_picture_format(file),
                metadata_errors="replace",
                container_options={"format_whitelist": _CONTAINERS},
                # Without it a header alone could ask for gigabytes while the file is still being probed.
                options={"max_pixels": str(limits.max_pixels)},
            )
        except (FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"it cannot be read: {_reason(error)}") from error
        yield stack.enter_context(container)


def _picture_format(file: BinaryIO) -> str | None:
    """FFmpeg's name for a picture, by its first bytes; None for anything else. By itself it takes some for sound."""
    head = file.read(16)
    file.seek(0)
    return next((name for name, start in _PICTURES.items() if re.match(start, head, re.DOTALL)), None)


def _video_stream(container: InputContainer) -> VideoStream:
    moving = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise MediaError("it holds no video")
    name = moving[0].codec_context.name if moving[0].codec_context else "unknown"
    if name not in _CODECS:
        raise MediaError(f"its codec {name} is not among those that are read: convert it to H.264")
    return moving[0]


def _check_frame(frame: av.VideoFrame, num_frames: int, limits: Limits) -> None:
    if frame.width * frame.height > limits.max_pixels:
        raise MediaError(
            f"a picture of {frame.width}x{frame.height} has more than {limits.max_pixels} pixels: make it smaller"
        )
    if num_frames > limits.max_frames:
        raise MediaError(f"it has more than {limits.max_frames} frames: cut it into several files")
    if frame.color_trc in _HDR:
        raise MediaError("it is HDR, whose brightness has to be mapped first: convert it to BT.709")


def _rgb(frame: av.VideoFrame, size: tuple[int, int], how: Interpolation) -> UInt8[np.ndarray, "height width 3"]:
    """Scaled; what is transparent lies on white."""
    height, width = size
    clear = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if clear else "rgb24"
    scaled = frame.reformat(width=width, height=height, format=form, interpolation=how).to_ndarray()
    if not clear:
        return scaled
    colours, alpha = scaled[..., :3].astype(np.uint32), scaled[..., 3:].astype(np.uint32)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
