"""daifuku prepare, as a user types it."""

from pathlib import Path

import numpy as np
import pytest

from daifuku.media.encode import png
from daifuku.media.write import VideoWriter
from daifuku.train.prepared import read_manifest


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two films and a picture, 48x32."""
    (tmp_path / "films").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (15, 32, 48, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        with VideoWriter(tmp_path / "films" / name, fps=20, size=(32, 48)) as writer:
            writer.write(noise)
    (tmp_path / "films" / "c.png").write_bytes(png(noise[0]))
    for name in "abc":
        (tmp_path / "films" / f"{name}.txt").write_text("a small red ball")
    return tmp_path / "films"


def test_the_models_own_size_length_and_rate_are_taken(daifuku, model_folder, films):
    run = daifuku("prepare", "films", "out", "--model", model_folder)
    assert (run.code, run.out) == (0, "out\n"), run.err
    manifest = read_manifest(Path("out"))
    assert manifest.fps == 20 and [shard.bucket for shard in manifest.shards] == [(1, 2, 4), (2, 2, 4)]
    assert [len(shard.samples) for shard in manifest.shards] == [1, 4]
    assert "3 of 3 sources give 5 clips" in run.err and "4 of 32x16, 7 frames" in run.err
    assert "5 samples in 2 shards" in run.err and "out/contact_sheet.png" in run.err
    again = daifuku("prepare", "films", "out", "--model", model_folder)
    assert "5 samples in 2 shards; shards kept from an earlier run: 2" in again.err


def test_sizes_and_lengths_are_buckets(daifuku, model_folder, films):
    flags = ("--size", "48x32", "--size", "32x32", "--frames", 7, "--frames", 13, "--max-clips-per-video", 1)
    run = daifuku("prepare", "films", "out", "--model", model_folder, *flags, "--json")
    assert run.json["num_clips"] == 3 and run.json["path"] == "out"
    assert run.json["buckets"] == [
        {"width": 48, "height": 32, "frames": 1, "num_clips": 1},
        {"width": 48, "height": 32, "frames": 13, "num_clips": 2},
    ]


def test_bad_files_are_named_and_too_many_of_them_end_with_1(daifuku, model_folder, films):
    (films / "d.mp4").write_bytes(b"nothing")
    run = daifuku("prepare", "films", "out", "--model", model_folder)
    assert run.code == 1 and "skipped d.mp4: it has no caption" in run.err and "--max-bad-share 0.26" in run.err
    assert not Path("out/manifest.json").exists()
    (films / "d.txt").write_text("nothing")
    run = daifuku("prepare", "films", "out", "--model", model_folder, "--max-bad-share", 0.26)
    assert run.code == 0 and "skipped d.mp4: it cannot be read" in run.err
    assert read_manifest(Path("out")).skipped[0]["source"] == "d.mp4"


def test_a_dry_run_tells_and_writes_nothing(daifuku, model_folder, films):
    run = daifuku("prepare", "films", "out", "--model", model_folder, "--dry-run")
    assert (run.code, run.out) == (0, "") and "3 of 3 sources give 5 clips" in run.err
    assert not Path("out").exists()
    run = daifuku("prepare", "films", "out", "--model", model_folder, "--dry-run", "--size", "64x64", "--json")
    assert run.code == 1 and run.json["num_clips"] == 0 and len(run.json["skipped"]) == 3


def test_captions_that_fill_the_model_are_counted(daifuku, model_folder, films):
    (films / "a.txt").write_text("ball " * 400)
    run = daifuku("prepare", "films", "out", "--model", model_folder)
    assert run.code == 0 and "warning: 2 captions fill the 256 tokens" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "there is no folder"),
        (("films", "films/out"), "inside each other"),
        (("films", "out", "--size", "big"), "Try 848x480"),
        (("films", "out", "--size", "30x32"), "Try 32"),
        (("films", "out", "--frames", 8), "Try 7"),
        (("films", "out", "--fps", 0), "fps=0"),
        (("films", "out", "--model", "nowhere"), "nowhere"),
        (("films", "out", "--text-on", "moon"), "text_on='moon'"),
        (("films", "out", "--dtype", "int3"), "dtype='int3'"),
        (("films", "out", "--max-upscale", "nan"), "max_upscale"),
    ],
)
def test_what_cannot_work_is_refused_at_once(daifuku, model_folder, films, arguments, message):
    model = () if "--model" in arguments else ("--model", model_folder)
    run = daifuku("prepare", *arguments, *model)
    assert run.code == 2 and message in run.err and not Path("out").exists()
