"""Files that lie, break or never end: each is named with a reason, none stops the rest, none takes much memory."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from daifuku.errors import MediaError
from daifuku.media.decode import Limits
from daifuku.media.write import VideoWriter
from daifuku.train.prepare.executors import ThisMachine
from daifuku.train.prepare.run import Planned, prepare
from daifuku.train.prepare.scan import scan
from daifuku.train.prepare.settings import settings_for
from daifuku.train.prepare.sources import Source, find_sources

LIMITS = Limits(max_pixels=256 * 256, max_frames=40, max_duration_s=20.0)
MAX_MEMORY_BYTES = 200 * 2**20


def moving(num_frames: int = 12, height: int = 32, width: int = 48) -> np.ndarray:
    """A bright bar that goes to the right."""
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index, frame in enumerate(frames):
        frame[:, 2 * index : 2 * index + 6] = 220
    return frames


def clip(path: Path, frames: np.ndarray | None = None, fps: int = 20) -> bytes:
    """Writes a sound video, and returns its bytes."""
    frames = moving() if frames is None else frames
    with VideoWriter(path, fps=fps, size=frames.shape[1:3]) as writer:
        writer.write(frames)
    return path.read_bytes()


def png(width: int, height: int, rows: bytes = b"", body: bool = True) -> bytes:
    """A PNG whose header may promise anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"") if body else b""
    return b"\x89PNG\r\n\x1a\n" + head + data


def audio(path: Path, cover: bool = False) -> None:
    """A file with sound and no moving picture."""
    with av.open(str(path), "w", "mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def without(content: bytes, atom: bytes) -> bytes:
    """An mp4 one of whose atoms nobody will find."""
    assert atom in content
    return content.replace(atom, b"xxxx", 1)


def patched(content: bytes, atom: bytes, offset: int, value: int) -> bytes:
    """An mp4 with another number at a place of one of its atoms."""
    at = content.index(atom) + 4 + offset
    return content[:at] + struct.pack(">I", value) + content[at + 4 :]


def raw(codec: str, form: str, path: Path, pixels: str) -> None:
    """A video in a container and a codec that are not read."""
    with av.open(str(path), "w", form) as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixels
        for frame in moving(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format=pixels)))
        container.mux(stream.encode(None))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.mp4": (lambda p: p.write_bytes(b""), "it is empty"),
    "zeros.mp4": (lambda p: p.write_bytes(bytes(5000)), "cannot be read"),
    "noise.mp4": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot be read"),
    "text.mp4": (lambda p: p.write_text("a red ball\n" * 100), "cannot be read"),
    "html.mov": (lambda p: p.write_text("<html><body>404 not found</body></html>"), "cannot be read"),
    "script.webm": (lambda p: p.write_text("#!/bin/sh\nexit 1\n"), "cannot be read"),
    "archive.mp4": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(300)), "cannot be read"),
    "half.mp4": (lambda p: p.write_bytes(clip(p)[:900]), "cannot be read|damaged|cut short|no frames"),
    "half.webm": (lambda p: p.write_bytes((c := clip(p))[: len(c) // 4]), "damaged|cannot be read|no frames|single"),
    "half.gif": (lambda p: p.write_bytes(clip(p)[:40]), "damaged|cannot be read|no frames|no video"),
    "head.mp4": (lambda p: p.write_bytes(clip(p)[:8]), "cannot be read"),
    "no_index.mp4": (lambda p: p.write_bytes(without(clip(p), b"moov")), "cannot be read"),
    "no_samples.mp4": (lambda p: p.write_bytes(without(clip(p), b"stsz")), "cannot be read|no frames|no video|short"),
    "no_media.mp4": (lambda p: p.write_bytes((c := clip(p))[: c.index(b"mdat") - 4]), "no frames|damaged|cannot"),
    "noise_inside.mp4": (
        lambda p: p.write_bytes((c := clip(p))[: (at := c.index(b"mdat") + 4)] + bytes(len(c) - at)),
        "damaged|no frames|cut short|cannot be read",
    ),
    "many_promised.mp4": (lambda p: p.write_bytes(patched(clip(p), b"stsz", 8, 2**31 - 1)), "cannot|short|no"),
    "huge_times.mp4": (lambda p: p.write_bytes(patched(clip(p), b"stts", 12, 2**30)), "longer than 20 s|cut short"),
    "no_timescale.mp4": (lambda p: p.write_bytes(patched(clip(p), b"mdhd", 12, 0)), ""),
    "wide_header.mp4": (lambda p: p.write_bytes(patched(clip(p), b"avc1", 24, 0xFFFFFFFF)), ""),
    "long.mp4": (lambda p: clip(p, moving(24), fps=1), "longer than 20 s"),
    "many_frames.mp4": (lambda p: clip(p, moving(60)), "more than 40 frames"),
    "large.mp4": (lambda p: clip(p, moving(2, 512, 512)), "damaged|pixels|cannot be read"),
    "one_frame.mp4": (lambda p: clip(p, moving(1)), "a single frame"),
    "sound.mp4": (lambda p: audio(p), "holds no video"),
    "sound.mov": (lambda p: audio(p), "holds no video"),
    "playlist.mp4": (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"), "cannot be read"),
    "concat.mp4": (lambda p: p.write_text("ffconcat version 1.0\nfile /etc/passwd\n"), "cannot be read"),
    "manifest.mp4": (lambda p: p.write_text('<?xml version="1.0"?><MPD><Period/></MPD>'), "cannot be read"),
    "other_format.mp4": (lambda p: raw("mpeg2video", "mpegts", p, "yuv420p"), "cannot be read"),
    "other_codec.mov": (lambda p: raw("qtrle", "mov", p, "rgb24"), "codec qtrle is not among"),
    "avi.mkv": (lambda p: raw("mpeg4", "avi", p, "yuv420p"), "cannot be read"),
    "film.avi": (lambda p: raw("mpeg4", "avi", p, "yuv420p"), ".avi is not read"),
    "film.ts": (lambda p: p.write_bytes(b"G" * 376), ".ts is not read"),
    "noname": (lambda p: p.write_bytes(b"1"), "a name without suffix is not read"),
    "empty.png": (lambda p: p.write_bytes(b""), "it is empty"),
    "bomb.png": (lambda p: p.write_bytes(png(30_000, 30_000)), "damaged|cannot be read|pixels"),
    "bomb_full.png": (lambda p: p.write_bytes(png(13_000, 13_000, bytes(13_000 * 2_000))), "damaged|cannot|pixels"),
    "endless.png": (lambda p: p.write_bytes(png(2**31 - 1, 2**31 - 1)), "damaged|cannot be read"),
    "flat.png": (lambda p: p.write_bytes(png(0, 16)), "damaged|cannot be read"),
    "no_data.png": (lambda p: p.write_bytes(png(64, 64, body=False)), "damaged|cannot be read|no frames"),
    "torn.jpg": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"), "damaged|cannot be read|no frames"),
    "svg.png": (lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be read"),
    "jpeg2000.png": (lambda p: p.write_bytes(b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(200)), "cannot be read"),
    "bomb.gif": (
        lambda p: p.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(40)),
        "damaged|cannot be read|no frames|no video",
    ),
    "torn.webp": (lambda p: p.write_bytes(b"RIFF\xff\xff\xff\xffWEBPVP8 "), "damaged|cannot be read|no frames"),
    "loop.mp4": (lambda p: p.symlink_to(p.name), "symbolic links"),
    "gone.mp4": (lambda p: p.symlink_to("nowhere.mp4"), "No such file"),
    "pipe.mp4": (lambda p: os.mkfifo(p), "no ordinary file"),
    "device.mp4": (lambda p: p.symlink_to("/dev/zero"), "no ordinary file"),
    "folder_of_nothing": (lambda p: p.mkdir(), "no pictures"),
    "folder_link": (lambda p: p.symlink_to(".", target_is_directory=True), "a link to a folder"),
    "folder_of_sizes": (
        lambda p: (p.mkdir(), [(p / f"{n}.png").write_bytes(png(n, 16, bytes(n * 49))) for n in (16, 32)]),
        "32.png is 32x16",
    ),
    "folder_of_torn": (
        lambda p: (p.mkdir(), (p / "0.png").write_bytes(png(16, 16, bytes(49 * 16))), (p / "1.png").write_bytes(b"x")),
        "1.png: it cannot be read",
    ),
    "folder_of_pipes": (lambda p: (p.mkdir(), os.mkfifo(p / "0.png")), "0.png: it cannot be read: it is no ordinary"),
    "folder_of_links": (lambda p: (p.mkdir(), (p / "0.png").symlink_to("nowhere")), "0.png: it cannot be read"),
}
"""By name: how the file is made, and what the reason says. Where it says nothing, the file may also be used."""

CAPTIONS: dict[str, tuple[bytes | None, str]] = {
    "none.mp4": (None, "it has no caption"),
    "blank.mp4": (b" \n\n\t\n", "it has no caption"),
    "latin.mp4": ("ein gr\xfcner Ball".encode("latin-1"), "no UTF-8"),
    "utf16.mp4": ("a ball".encode("utf-16"), "no UTF-8"),
    "nul.mp4": (b"a red\0ball", "characters that are no text"),
    "endless.mp4": (b"ball " * 10_000, "49999 characters"),
    "many.mp4": (b"a ball\n" * 1000, "more than 64"),
}
"""Captions beside a sound video."""

LINES = {
    "{": "no JSON",
    "[1, 2]": "names no file",
    '{"caption": "a ball"}': "names no file",
    '{"file": 3, "caption": "a ball"}': "names no file",
    '{"file": "good.mp4"}': "no caption",
    '{"file": "good.mp4", "captions": "a ball"}': "no caption",
    '{"file": "good.mp4", "captions": [1]}': "no caption",
    '{"file": "../../etc/passwd", "caption": "a ball"}': "leads out",
    '{"file": "/etc/passwd", "caption": "a ball"}': "leads out",
    '{"file": ".", "caption": "a ball"}': "leads out",
    '{"file": "nowhere.mp4", "caption": "a ball"}': "it is not there",
    "[" * 100_000: "no JSON",
}
"""Lines of captions.jsonl."""


def reason(root: Path, name: str) -> str | None:
    """Why a source is not used; None where it is."""
    sources, skipped = find_sources(root)
    for each in skipped:
        if each.source.startswith(name):
            return each.reason
    [source] = [source for source in sources if source.name == name]
    try:
        scan(root, source, 20, LIMITS)
    except MediaError as error:
        return str(error)
    return None


def test_the_list_is_long() -> None:
    assert len(HOSTILE) + len(CAPTIONS) + len(LINES) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_named_with_a_reason(name: str, tmp_path: Path) -> None:
    make, expected = HOSTILE[name]
    make(tmp_path / name)
    (tmp_path / f"{name if '.' not in name else Path(name).stem}.txt").write_text("a red ball")
    found = reason(tmp_path, name)
    if not expected:
        return
    assert found is not None and any(each in found for each in expected.split("|")), found
    assert str(tmp_path) not in found


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_caption_that_is_none_is_named_with_a_reason(name: str, tmp_path: Path) -> None:
    content, expected = CAPTIONS[name]
    clip(tmp_path / name)
    if content is not None:
        (tmp_path / name).with_suffix(".txt").write_bytes(content)
    found = reason(tmp_path, name)
    assert found is not None and expected in found


def test_every_line_of_a_list_that_is_wrong_is_named_and_the_others_count(tmp_path: Path) -> None:
    clip(tmp_path / "good.mp4")
    lines = [*LINES, json.dumps({"file": "good.mp4", "caption": "a red ball"}), ""]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    sources, skipped = find_sources(tmp_path)
    assert sources == [Source(name="good.mp4", captions=("a red ball",))]
    told = {each.source: each.reason for each in skipped}
    for number, (line, expected) in enumerate(LINES.items(), start=1):
        key = "nowhere.mp4" if "nowhere" in line else f"captions.jsonl, line {number}"
        assert expected in told[key]


def test_a_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    raw_name = os.fsencode(tmp_path) + b"/\xff.mp4"
    clip(tmp_path / "a.mp4")
    os.rename(tmp_path / "a.mp4", raw_name)
    assert "no UTF-8" in (reason(tmp_path, os.fsdecode(b"\xff.mp4")) or "")


def test_loops_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path, target_is_directory=True)
    clip(tmp_path / "a" / "good.mp4")
    (tmp_path / "a" / "good.txt").write_text("a red ball")
    sources, skipped = find_sources(tmp_path)
    assert [source.name for source in sources] == ["a/good.mp4"]
    assert [(each.source, "link" in each.reason) for each in skipped] == [("a/b", True)]


def test_all_of_them_in_one_folder_harm_nothing_and_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    for name, (make, _) in HOSTILE.items():
        make(folder / name)
    clip(folder / "good.mp4")
    lines = [{"file": name, "caption": "a red ball"} for name in (*HOSTILE, "good.mp4")]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = settings_for(folder, tmp_path / "out", sizes=[(32, 48)], lengths=[7], fps=20, max_bad_share=1.0)
    settings = replace(settings, encoding=replace(settings.encoding, limits=LIMITS))
    *_, planned = prepare(settings, ThisMachine(), dry_run=True)
    assert isinstance(planned, Planned)
    bad = {name for name, (_, expected) in HOSTILE.items() if expected}
    skipped = {each.source for each in planned.skipped}
    used = {clip.source.name for clip in planned.clips}
    assert bad <= skipped and "good.mp4" in used and not skipped & used
    assert skipped | used == {*HOSTILE, "good.mp4"}, (skipped | used) ^ {*HOSTILE, "good.mp4"}
    assert planned.num_sources == len(HOSTILE) + 1


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    [skipped] = find_sources(tmp_path)[1]
    assert skipped.source == "closed" and "Permission denied" in skipped.reason


MEASURE = """
import resource, sys
from pathlib import Path
from daifuku.errors import MediaError
from daifuku.media.decode import Limits, pictures
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        for picture in pictures(Path(name), Limits()):
            picture.thumbnail()
        sys.exit(f"{name} was read")
    except MediaError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_bombs_take_little_memory(tmp_path: Path) -> None:
    names = ("bomb.png", "bomb_full.png", "endless.png", "bomb.gif")
    for name in names:
        HOSTILE[name][0](tmp_path / name)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_MEMORY_BYTES
