"""Sources found and looked at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from daifuku.errors import InvalidRequest, MediaError
from daifuku.media.decode import Limits, pictures
from daifuku.media.write import VideoWriter
from daifuku.train.prepare.encode import nearest
from daifuku.train.prepare.scan import scan
from daifuku.train.prepare.sources import Source, find_sources


def numbered(path: Path, fps: int, num_frames: int = 24) -> Path:
    """A film whose frame i is of grey 10 i."""
    frames = np.repeat(10 * np.arange(num_frames, dtype=np.uint8), 16 * 16 * 3).reshape(num_frames, 16, 16, 3)
    with VideoWriter(path, fps=fps, size=(16, 16)) as writer:
        writer.write(frames)
    return path


def test_sources_come_by_name_with_all_their_captions(videos: Path) -> None:
    sources, skipped = find_sources(videos)
    assert [source.name for source in sources] == [
        "broken.mp4", "still.png", "two.mp4", "frames", "inside/moving.gif", "inside/one.webm",
    ]  # fmt: skip
    assert sources[2].captions == ("two shots", "a cut between them")
    assert [source.is_folder for source in sources] == [False, False, False, True, False, False]
    assert skipped == []


def test_pictures_of_a_folder_without_captions_are_pictures(tmp_path: Path) -> None:
    numbered(f"{tmp_path}/loose/", 20, 2)
    (tmp_path / "loose" / "captions.jsonl").write_text('{"file": "00001.png", "captions": ["a", "b"]}')
    sources, skipped = find_sources(tmp_path)
    assert sources == [Source(name="loose/00001.png", captions=("a", "b"))]
    assert [each.source for each in skipped] == ["loose/00000.png"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no folder"):
        find_sources(tmp_path / "nowhere")


def test_a_film_is_looked_at_shot_by_shot(videos: Path) -> None:
    found = scan(videos, Source(name="two.mp4", captions=("",)), 20, Limits())
    assert (found.size, found.is_picture, round(found.rate, 6)) == ((64, 64), False, 20.0)
    assert np.allclose(found.shots, [(0.0, 0.3745), (0.4, 0.8245)])


def test_a_folder_of_frames_is_a_film_of_the_wanted_rate(videos: Path) -> None:
    found = scan(videos, Source(name="frames", captions=("",), is_folder=True), 10, Limits())
    assert round(found.rate, 6) == 10 and np.allclose(found.shots, [(0.0, 0.649)])


def test_content_is_told_apart_by_its_hash(videos: Path, tmp_path: Path) -> None:
    source = Source(name="frames", captions=("",), is_folder=True)
    before = scan(videos, source, 20, Limits())
    (tmp_path / "frames").mkdir()
    for path in (videos / "frames").iterdir():
        (tmp_path / "frames" / path.name).write_bytes(path.read_bytes())
    assert scan(tmp_path, source, 20, Limits()) == before
    (tmp_path / "frames" / "00000.png").write_bytes((videos / "frames" / "00001.png").read_bytes())
    assert scan(tmp_path, source, 20, Limits()).sha256 != before.sha256


def test_a_frame_that_stays_for_long_ends_its_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numbered(tmp_path / "a.mp4", 20)
    found = scan(tmp_path, Source(name="a.mp4", captions=("",)), 20, Limits())
    assert len(found.shots) == 1
    read = list(pictures(path, Limits()))
    late = [replace(each, time_s=each.time_s + 5.0 * (index >= 9)) for index, each in enumerate(read)]
    monkeypatch.setattr("daifuku.train.prepare.scan.source_pictures", lambda *_: iter(late))
    found = scan(tmp_path, Source(name="a.mp4", captions=("",)), 20, Limits())
    assert [start for start, _ in found.shots] == pytest.approx([0.0, 5.45])


@pytest.mark.parametrize(
    ("fps", "wanted", "expected"),
    [
        (20, 20, [0, 1, 2, 3, 4, 5, 6, 7]),
        (40, 20, [0, 2, 4, 6, 8, 10, 12, 14]),
        (60, 20, [0, 3, 6, 9, 12, 15, 18, 21]),
        (24, 30, [0, 1, 2, 2, 3, 4, 5, 6]),
        (25, 20, [0, 1, 2, 4, 5, 6, 7, 9]),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_frames_are_chosen_by_their_times(fps: int, wanted: int, expected: list[int], name: str, tmp_path: Path):
    path = numbered(tmp_path / name, fps)
    shown = nearest(pictures(path, Limits()), [index / wanted for index in range(8)])
    assert [round(picture.covering((16, 16)).mean() / 10) for picture in shown] == expected


def test_a_broken_film_is_refused(videos: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read"):
        scan(videos, Source(name="broken.mp4", captions=("",)), 20, Limits())
