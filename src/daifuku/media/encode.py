"""Two ways to turn frames into bytes: one compressed file, or a folder of PNG frames."""

from fractions import Fraction
from pathlib import Path
from typing import Protocol, runtime_checkable

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from jaxtyping import UInt8

from daifuku.media.formats import Format

TAG = "daifuku"
"""The name of our entry among a file's metadata."""

_GIF_TICK = Fraction(1, 100)
"""A GIF counts time in hundredths of a second: at 30 fps its frames last 3, 3 and 4 of them in turn."""

_CAREFULLY = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
"""How swscale makes chroma: from both pixels of a pair, and rounded rather than cut off."""


@runtime_checkable
class Encoder(Protocol):
    """Takes frames one by one, then completes what stands at its path."""

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Encode the next frame."""
        ...

    def finish(self, tag: str | None) -> None:
        """Write the rest, with `tag` as the file's own metadata where the format has any."""
        ...

    def close(self) -> None:
        """Let go of the path, complete or not."""
        ...


class FileEncoder:
    """Compresses each frame as it comes and keeps the packets; the file is written in one go at the end.

    So the metadata at the front of the file may hold what is known only at the end, and a run that is killed leaves
    nothing behind. The packets of a whole clip are smaller than a few of its raw frames.
    """

    def __init__(self, path: Path, form: Format, *, fps: Fraction, size: tuple[int, int], crf: int | None) -> None:
        # Absolute, because FFmpeg reads a relative name with a colon in it as an internet address.
        self._container = av.open(str(path.absolute()), "w", form.container, dict(form.container_options))
        self._form, self._fps, self._num_frames = form, fps, 0
        self._tick = _GIF_TICK if form.codec == "gif" else 1 / fps
        self._packets: list[av.Packet] = []
        options = dict(form.options) | ({} if crf is None else {"crf": str(crf)})
        stream = self._container.add_stream(form.codec, rate=1 / self._tick, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = form.pixels
        if form.pixels == "yuv420p":
            stream.colorspace, stream.color_range = Colorspace.ITU709, ColorRange.MPEG
            stream.color_primaries, stream.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._stream = stream

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = _to_palette(picture) if self._form.codec == "gif" else _to_yuv(picture)
        picture.time_base = self._tick
        picture.pts, picture.duration = self._ticks(self._num_frames), self._ticks(self._num_frames + 1)
        picture.duration -= picture.pts
        self._num_frames += 1
        for packet in self._stream.encode(picture):
            # The GIF encoder forgets it, and then the last frame would flash by.
            packet.duration = packet.duration or picture.duration
            self._packets.append(packet)

    def finish(self, tag: str | None) -> None:
        self._packets += self._stream.encode(None)
        if tag is not None:
            self._container.metadata[TAG] = tag
        self._container.mux(self._packets)
        self._container.close()

    def close(self) -> None:
        self._container.close()

    def _ticks(self, frame: int) -> int:
        return round(frame / self._fps / self._tick)


class FolderEncoder:
    """Writes each frame as it comes, as 00000.png, 00001.png and so on."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path, self._num_frames = path, 0

    def add(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        (self._path / f"{self._num_frames:05d}.png").write_bytes(png(frame))
        self._num_frames += 1

    def finish(self, tag: str | None) -> None:
        """The frames are complete already; a PNG has no place for `tag`."""

    def close(self) -> None:
        """Nothing is held open."""


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """One picture as the content of a PNG file."""
    codec = av.CodecContext.create("png", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt, codec.time_base = "rgb24", Fraction(1)
    packets = codec.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
    return b"".join(map(bytes, packets))


def _to_yuv(picture: av.VideoFrame) -> av.VideoFrame:
    """The same picture in the colour space that the file's tags name: BT.709 with limited range."""
    yuv = picture.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=_CAREFULLY,
    )
    yuv.color_primaries, yuv.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return yuv


def _to_palette(picture: av.VideoFrame) -> av.VideoFrame:
    """The same picture in the 256 colours that suit it best."""
    graph = Graph()
    source = graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1))
    split, make, use = (
        graph.add("split"),
        graph.add("palettegen", "stats_mode=single"),
        graph.add("paletteuse", "new=1"),
    )
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(make, 0, 0)
    split.link_to(use, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    graph.vpush(picture)
    graph.vpush(None)
    return graph.vpull()
