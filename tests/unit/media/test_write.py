"""Writing and reading clips."""

import json
import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from daifuku.errors import MediaError, UnwritableOutput
from daifuku.media.formats import check_output
from daifuku.media.read import read_metadata, read_video
from daifuku.media.write import VideoWriter

COLOURS = {"gray": (128, 128, 128), "navy": (0, 0, 128), "red": (220, 30, 30), "white": (255, 255, 255)}
RECORD = {"request": {"prompt": 'ein Ball hüpft ☃ "=;#\n'}, "seconds": 1.5, "long": list(range(500))}


def moving_squares(num_frames: int = 13, side: int = 64) -> np.ndarray:
    """Four flat stripes of colour, with a yellow square going down."""
    frames = np.empty((num_frames, side, side, 3), np.uint8)
    for i, colour in enumerate(COLOURS.values()):
        frames[:, :, i * side // 4 : (i + 1) * side // 4] = colour
    for i, frame in enumerate(frames):
        frame[2 * i : 2 * i + 16, 24:40] = (240, 220, 20)
    return frames


def write(path: str | Path, frames: np.ndarray, metadata: dict | None = None, fps: int | float = 30) -> Path:
    with VideoWriter(path, fps=fps, size=frames.shape[1:3], metadata=metadata) as writer:
        for start in range(0, len(frames), 5):
            writer.write(frames[start : start + 5])
    return writer.path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip/", "CLIP.MP4"])
def test_every_format_gives_back_frames_and_record(tmp_path, name):
    frames = moving_squares()
    path = write(f"{tmp_path}/{name}", frames, RECORD)
    clip = read_video(path)
    assert clip.frames.shape == frames.shape
    assert clip.metadata == RECORD
    assert np.abs(clip.frames.astype(int) - frames).mean() < 3
    assert read_metadata(path.with_suffix(".json")) == RECORD


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
def test_flat_colours_survive_within_five_levels_and_are_tagged_bt709(tmp_path, name):
    path = write(tmp_path / name, moving_squares())
    last = read_video(path).frames[-1]
    for i, colour in enumerate(COLOURS.values()):
        assert np.abs(last[8, 16 * i + 6].astype(int) - colour).max() <= 5
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.pix_fmt, codec.colorspace, codec.color_range) == ("yuv420p", 1, 1)
        assert (codec.color_primaries, codec.color_trc) == (1, 1)


def test_png_frames_are_lossless_and_numbered(tmp_path):
    frames = moving_squares()
    path = write(f"{tmp_path}/frames/", frames)
    assert sorted(os.listdir(path))[:2] == ["00000.png", "00001.png"]
    assert np.array_equal(read_video(path).frames, frames)


def test_a_gif_of_few_colours_is_lossless_and_lasts_as_long_as_the_clip(tmp_path):
    frames = moving_squares(num_frames=30)
    path = write(tmp_path / "clip.gif", frames)
    assert np.array_equal(read_video(path).frames, frames)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert packets[-1].pts + packets[-1].duration == 100


@pytest.mark.parametrize("fps", [7, 24, 30, 29.97, 120])
def test_the_frame_rate_is_exact(tmp_path, fps):
    path = write(tmp_path / "clip.mp4", moving_squares(), fps=fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        exact = Fraction(fps).limit_denominator(1001)
        assert stream.average_rate == exact
        assert times == [i / exact for i in range(13)]
        assert stream.duration * stream.time_base == 13 / exact


def test_an_mp4_starts_with_its_index_so_that_it_plays_while_it_downloads(tmp_path):
    content = write(tmp_path / "clip.mp4", moving_squares()).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_the_same_frames_always_make_the_same_file(tmp_path):
    """Networks run between the frames, as in a real run: that is when the encoder's chance shows."""
    rng = np.random.default_rng(0)
    texture, (row, col) = rng.integers(-25, 25, (64, 64, 3)), np.mgrid[:64, :64]
    frames = []
    for t in range(31):
        frame = 128 + np.roll(texture, t, axis=1) // 2 + rng.integers(-12, 13, (64, 64, 3))
        frame[(col - 10 - 1.4 * t) ** 2 + (row - 32 - 15 * np.sin(t / 4)) ** 2 < 150] = (220, 30, 40)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    network = torch.nn.Conv3d(16, 16, 3, padding=1).requires_grad_(False)
    files = set()
    for turn in range(16):
        with VideoWriter(tmp_path / f"{turn}.mp4", fps=20, size=(64, 64)) as writer:
            for frame in frames:
                network(torch.randn(1, 16, 3, 8 + turn, 24))
                writer.write(frame[None])
        files.add((tmp_path / f"{turn}.mp4").read_bytes())
    assert len(files) == 1


def test_a_smaller_crf_makes_a_larger_file(tmp_path):
    sizes = []
    for crf in (10, 40):
        with VideoWriter(tmp_path / "clip.mp4", fps=30, size=(64, 64), crf=crf) as writer:
            writer.write(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8))
        sizes.append(writer.path.stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_the_record_may_be_completed_while_the_clip_is_written(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fps=30, size=(64, 64), metadata={"a": 1}) as writer:
        writer.write(moving_squares())
        writer.metadata["seconds"] = 2.5
    assert read_metadata(writer.path) == {"a": 1, "seconds": 2.5}


def test_a_file_that_exists_is_never_overwritten(tmp_path):
    paths = [write(tmp_path / "clip.mp4", moving_squares(), RECORD) for _ in range(3)]
    assert [path.name for path in paths] == ["clip.mp4", "clip-1.mp4", "clip-2.mp4"]
    assert (tmp_path / "clip-2.json").exists()


def test_a_foreign_record_or_folder_with_content_is_never_overwritten(tmp_path):
    (tmp_path / "clip.json").write_text("mine")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00000.png").write_text("mine")
    assert write(tmp_path / "clip.mp4", moving_squares(), RECORD).name == "clip-1.mp4"
    assert write(f"{tmp_path}/frames/", moving_squares()).name == "frames-1"
    assert (tmp_path / "clip.json").read_text() == "mine"
    assert os.listdir(tmp_path / "frames") == ["00000.png"]
    assert not (tmp_path / "clip.mp4").exists()


def test_writers_that_finish_at_once_all_get_names_of_their_own(tmp_path):
    barrier, paths = threading.Barrier(4), []

    def run(seed: int) -> None:
        with VideoWriter(tmp_path / "clip.mp4", fps=30, size=(64, 64), metadata={"seed": seed}) as writer:
            writer.write(moving_squares(3))
            barrier.wait()
        paths.append((writer.path, seed))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for path, _ in paths}) == 4
    for path, seed in paths:
        assert read_metadata(path) == read_metadata(path.with_suffix(".json")) == {"seed": seed}
    assert len(os.listdir(tmp_path)) == 8


def test_without_hard_links_a_file_is_still_not_overwritten(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    paths = [write(tmp_path / "clip.mp4", moving_squares(3), RECORD) for _ in range(2)]
    assert [path.name for path in paths] == ["clip.mp4", "clip-1.mp4"]
    assert all(len(read_video(path).frames) == 3 for path in paths)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip/"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_clip_leaves_nothing_behind(tmp_path, name, error):
    with pytest.raises(error), VideoWriter(f"{tmp_path}/{name}", fps=30, size=(64, 64), metadata=RECORD) as writer:
        writer.write(moving_squares())
        writer.attach(".latents.safetensors", b"latents")
        raise error
    assert os.listdir(tmp_path) == []


def test_nothing_of_the_clip_is_visible_before_it_is_complete(tmp_path):
    with VideoWriter(f"{tmp_path}/clip/", fps=30, size=(64, 64), metadata=RECORD) as writer:
        writer.write(moving_squares())
        assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
    assert sorted(os.listdir(tmp_path)) == ["clip", "clip.json"]


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MediaError, match=r"clip\.mp4 could not be written: No space left"):
        write(tmp_path / "clip.mp4", moving_squares(), RECORD)
    assert os.listdir(tmp_path) == []


def test_a_clip_without_frames_is_an_error(tmp_path):
    with pytest.raises(MediaError, match="no frames"):
        write(tmp_path / "clip.mp4", moving_squares(0))
    assert os.listdir(tmp_path) == []


def test_attached_files_share_the_clip_s_name(tmp_path):
    write(tmp_path / "clip.mp4", moving_squares())
    with VideoWriter(tmp_path / "clip.mp4", fps=30, size=(64, 64)) as writer:
        writer.write(moving_squares())
        writer.attach(".latents.safetensors", b"latents")
    assert (tmp_path / "clip-1.latents.safetensors").read_bytes() == b"latents"


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.png", "a.b/clip", ".mp4"])
def test_a_name_of_no_known_format_is_refused_with_names_that_work(tmp_path, name):
    with pytest.raises(UnwritableOutput, match=r"\.mp4, .*\.webm, .*\.gif or .*/ \(PNG frames\)"):
        check_output(f"{tmp_path}/{name}")
    with pytest.raises(UnwritableOutput):
        VideoWriter(f"{tmp_path}/{name}", fps=30, size=(64, 64))


def test_a_name_whose_parent_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnwritableOutput, match="Not a directory"):
        check_output(tmp_path / "file" / "clip.mp4")


@pytest.mark.parametrize("name", ["/", "./", "../", "a/../", "a\0b.mp4", "a\0b/"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnwritableOutput):
        check_output(name)


def test_a_folder_with_a_dot_in_its_name_finds_its_record(tmp_path):
    path = write(f"{tmp_path}/frames.v1/", moving_squares(3), RECORD)
    assert read_metadata(path) == RECORD and (tmp_path / "frames.v1.json").exists()


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UnwritableOutput, match="too long"):
        check_output(tmp_path / ("long" * 70 + ".mp4"))


def test_checking_an_output_that_works_leaves_nothing_behind(tmp_path):
    check_output(tmp_path / "new" / "folder" / "clip.mp4")
    check_output(f"{tmp_path}/frames/")
    assert os.listdir(tmp_path) == []
    assert write(tmp_path / "new" / "folder" / "clip.mp4", moving_squares(3)).exists()


def test_names_with_colons_and_percent_signs_are_only_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write("http:%03d.mp4", moving_squares(3)) == Path("http:%03d.mp4")
    assert len(read_video("http:%03d.mp4").frames) == 3


def test_a_clip_of_other_origin_has_no_record(tmp_path):
    assert read_metadata(write(tmp_path / "clip.mp4", moving_squares(3))) is None
    assert read_metadata(write(tmp_path / "clip.gif", moving_squares(3))) is None


def test_files_that_are_no_clips_are_reported(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "bad.json").write_text(json.dumps([1]))
    (tmp_path / "empty").mkdir()
    for name, message in {
        "text.mp4": "cannot be read",
        "none.mp4": "no file",
        "bad.json": "damaged",
        "empty": "no frames",
    }.items():
        with pytest.raises(MediaError, match=message):
            read_video(tmp_path / name)
