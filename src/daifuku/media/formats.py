"""The kinds of file a clip can be written as, and whether one can be written at a given place."""

import os
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError

from daifuku.errors import UnwritableOutput
from daifuku.media.publish import temporary_name

FRAMES = "frames/"
"""The key of the folder of PNG frames: an output whose name ends in a slash."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of file is made. `options` are the encoder's, `container_options` the file's."""

    help: str
    codec: str
    container: str = ""
    pixels: str = "rgb24"
    options: tuple[tuple[str, str], ...] = ()
    container_options: tuple[tuple[str, str], ...] = ()
    crf: int | None = None
    """Constant quality, smaller is better; None where the format has no such setting."""

    def available(self) -> str | None:
        """None if this machine can write the format, otherwise the reason why not."""
        try:
            av.Codec(self.codec, "w")
        except FFmpegError:
            return f"this build of PyAV has no {self.codec} encoder"
        return None


FORMATS: dict[str, Format] = {
    ".mp4": Format(
        help="H.264",
        codec="libx264",
        container="mp4",
        pixels="yuv420p",
        # x264's macroblock tree gives the same frames different bytes from run to run, and a replay has to be exact.
        options=(("preset", "medium"), ("x264-params", "mbtree=0")),
        # use_metadata_tags keeps our own key; without it the mp4 muxer drops every name it does not know.
        container_options=(("movflags", "+faststart+use_metadata_tags"),),
        crf=12,
    ),
    ".webm": Format(
        help="VP9",
        codec="libvpx-vp9",
        container="webm",
        pixels="yuv420p",
        # A bit rate of 0 makes VP9's crf a constant quality rather than a lower limit.
        options=(("b", "0"), ("deadline", "good"), ("cpu-used", "2"), ("row-mt", "1")),
        crf=16,
    ),
    ".gif": Format(help="GIF, a palette for each frame", codec="gif", container="gif", pixels="pal8"),
    FRAMES: Format(help="a folder of PNG frames", codec="png"),
}


def format_of(path: str | Path) -> Format:
    """The format that the name asks for: by its suffix, or PNG frames for a name ending in a slash.

    Raises UnwritableOutput for any other name.
    """
    key = FRAMES if is_folder_name(path) else Path(path).suffix.lower()
    if key not in FORMATS:
        what = f"nothing here writes {key!r} files" if key else "the name has no suffix"
        raise UnwritableOutput(f"{os.fspath(path)}: {what}. Names that work: {_working_names(path)}.")
    if Path(path).name in ("", ".."):
        raise UnwritableOutput(f"{os.fspath(path)}: a clip needs a folder of its own. A name that works: frames/.")
    return FORMATS[key]


def is_folder_name(path: str | Path) -> bool:
    """Whether the name asks for a folder of frames. A `Path` forgets its trailing slash, so it never does."""
    return isinstance(path, str) and path.endswith(("/", os.sep))


def check_output(path: str | Path) -> None:
    """Raise UnwritableOutput unless a clip can be written there, in the format its name asks for.

    Folders that do not exist yet are fine, and so is a name that is taken: the clip then gets the next free one.
    """
    form = format_of(path)
    reason = form.available()
    if reason is not None:
        others = [suffix for suffix, other in FORMATS.items() if other.available() is None]
        raise UnwritableOutput(f"{os.fspath(path)}: {reason}. Formats that work here: {', '.join(others)}.")
    folder = Path(path).absolute().parent
    try:
        while not folder.exists():
            folder = folder.parent
        probe = folder / temporary_name(Path(path)).name
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnwritableOutput(
            f"{os.fspath(path)!r}: no such file can be written in {str(folder)!r} ({reason}). "
            f"Choose a folder you may write to, such as {Path.home()}."
        ) from error


def _working_names(path: str | Path) -> str:
    stem = Path(path).stem or "clip"
    names = [f"{stem}/ (PNG frames)" if key == FRAMES else stem + key for key in FORMATS]
    return ", ".join(names[:-1]) + " or " + names[-1]
