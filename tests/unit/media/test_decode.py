"""Pictures of files, as they should be seen."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorTrc
from PIL import Image

from daifuku.errors import MediaError
from daifuku.media.decode import Limits, Picture, pictures
from daifuku.media.write import VideoWriter


def picture(pixels: np.ndarray, ratio: Fraction = Fraction(1), form: str = "rgb24") -> Picture:
    return Picture(time_s=0.0, frame=av.VideoFrame.from_ndarray(pixels, format=form), pixel_ratio=ratio)


def halves(height: int, width: int) -> np.ndarray:
    """Black on the left, white on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.webm", "clip.gif"])
def test_times_begin_at_zero_and_are_those_of_the_frames(name: str, tmp_path: Path) -> None:
    path = tmp_path / (name if name != "clip.mov" else "clip.mp4")
    with VideoWriter(path, fps=20, size=(32, 48)) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), np.uint8))
    path = path.rename(tmp_path / name)
    assert [each.time_s for each in pictures(path, Limits())] == pytest.approx([i / 20 for i in range(9)], abs=2e-3)


def test_the_middle_is_kept_and_covers_the_size() -> None:
    wide = picture(halves(32, 96)).covering((32, 32))
    assert wide.shape == (32, 32, 3) and np.array_equal(wide, halves(32, 32))
    assert picture(halves(30, 50)).covering((16, 64)).shape == (16, 64, 3)


def test_what_is_made_smaller_does_not_flicker() -> None:
    """Stripes of one pixel become their mean, wherever they begin."""
    stripes = np.zeros((64, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    for shift in (0, 1):
        small = picture(np.roll(stripes, shift, 1)).covering((16, 64))
        assert np.abs(small[:, 4:-4].astype(int) - 127).max() <= 6


def test_pixels_that_are_not_square_are_stretched() -> None:
    assert picture(halves(32, 48), Fraction(4, 3)).size == (32, 64)
    assert np.array_equal(picture(halves(32, 48), Fraction(4, 3)).covering((32, 64))[:, :24], halves(32, 64)[:, :24])


def test_what_is_transparent_lies_on_white() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    seen = picture(pixels, form="rgba").covering((8, 8))
    assert (seen[0] == 0).all() and (seen[-1] == 255).all()


def test_a_film_that_lies_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=20, size=(32, 64)) as writer:
        writer.write(np.repeat(halves(32, 64)[None], 3, axis=0))
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    one, minus = (1 << 16).to_bytes(4, "big"), (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    quarter = bytes(4) + one + bytes(4) + minus + bytes(4 * 4) + (1 << 30).to_bytes(4, "big")
    path.write_bytes(content[:at] + quarter[:36] + content[at + 36 :])
    first = next(pictures(path, Limits()))
    assert first.size == (64, 32)
    upright = first.covering((64, 32))
    # Turned clockwise, what was on the left is at the top.
    assert upright[4].mean() < 20 and upright[-4].mean() > 235


def test_a_picture_that_changes_nothing_in_size_is_given_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (16, 32, 3), np.uint8)
    assert np.array_equal(picture(pixels).covering((16, 32)), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_pictures_are_told_by_their_first_bytes(suffix: str, tmp_path: Path) -> None:
    """FFmpeg takes a JPEG of noise for something else."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    [found] = pictures((tmp_path / f"a.{suffix}").rename(tmp_path / "a.mp4"), Limits())
    assert found.size == (40, 60) and abs(found.covering((40, 60)).mean() - noise.mean()) < 5


def test_a_photograph_that_lies_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    photograph = Image.fromarray(halves(32, 64))
    exif = photograph.getexif()
    exif[274] = 6
    photograph.save(tmp_path / "a.jpg", exif=exif)
    [found] = pictures(tmp_path / "a.jpg", Limits())
    upright = found.covering((64, 32))
    assert upright[4].mean() < 20 and upright[-4].mean() > 235


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_pixels=1000), "damaged|cannot be read|more than 1000 pixels"),
        (Limits(max_frames=2), "more than 2 frames"),
        (Limits(max_duration_s=0.12), "longer than 0.12 s"),
    ],
)
def test_decoding_stops_where_a_limit_is_passed(limits: Limits, message: str, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=20, size=(32, 48)) as writer:
        writer.write(np.zeros((9, 32, 48, 3), np.uint8))
    with pytest.raises(MediaError, match=message):
        list(pictures(tmp_path / "clip.mp4", limits))


def test_hdr_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt, stream.color_trc = 48, 32, "yuv420p", ColorTrc.SMPTE2084
        container.mux(stream.encode(av.VideoFrame.from_ndarray(halves(32, 48)).reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="HDR"):
        list(pictures(tmp_path / "clip.mp4", Limits()))
