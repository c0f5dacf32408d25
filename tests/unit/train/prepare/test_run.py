"""Whole preparations by the built-in model: what they give, and what is left of one that was stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from daifuku.config import RuntimeConfig
from daifuku.errors import InvalidRequest, TrainingError
from daifuku.media.decode import Limits, pictures
from daifuku.media.read import read_video
from daifuku.runtime.build import load_parts
from daifuku.train.prepare.executors import OnRay, ThisMachine
from daifuku.train.prepare.run import Planned, Prepared, Settings, prepare
from daifuku.train.prepare.settings import settings_for
from daifuku.train.prepared import MANIFEST, ShardReader, check_shard, read_manifest
from daifuku.train.vae import to_video

CPU = torch.device("cpu")


def settings(videos: Path, out: Path, **about) -> Settings:
    found = settings_for(
        videos, out, **{"sizes": ((64, 64),), "lengths": (7,), "fps": 20, "max_bad_share": 0.2, **about}
    )
    return replace(found, samples_per_shard=2)


def run(videos: Path, out: Path, **about) -> Prepared:
    *_, last = prepare(settings(videos, out, **about), ThisMachine())
    assert isinstance(last, Prepared)
    return last


def contents(out: Path) -> dict[str, bytes]:
    """Everything but the notes of the way there."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in ("scans.jsonl", "lock")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def shown(path: Path) -> np.ndarray:
    """All pictures of a file, in their own size."""
    return np.stack([picture.covering(picture.size) for picture in pictures(path, Limits())])


@pytest.fixture(scope="module")
def done(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("done") / "out"
    run(videos, out)
    return out


def test_every_source_gives_its_clips_and_the_broken_one_its_reason(done: Path) -> None:
    manifest = read_manifest(done)
    found = [(sample.id, shard.bucket) for shard in manifest.shards for sample in shard.samples]
    assert sorted(found) == [
        ("frames@0.000", (2, 8, 8)),
        ("inside/moving.gif@0.000", (2, 8, 8)),
        ("inside/one.webm@0.000", (2, 8, 8)),
        ("inside/one.webm@0.350", (2, 8, 8)),
        ("still.png@0.000", (1, 8, 8)),
        ("two.mp4@0.000", (2, 8, 8)),
        ("two.mp4@0.400", (2, 8, 8)),
    ]
    assert [each["source"] for each in manifest.skipped] == ["broken.mp4"]
    assert manifest.fps == 20 and len(manifest.model["vae_sha256"]) == len(manifest.model["text_encoder_sha256"]) == 64
    for shard in manifest.shards:
        check_shard(done, shard)


def test_latents_and_features_are_those_of_the_model(done: Path, videos: Path) -> None:
    parts = load_parts()
    vae = parts.vae(RuntimeConfig(dtype="float32"), CPU, "encoder")
    text = parts.text(RuntimeConfig(), CPU)
    two = shown(videos / "two.mp4")
    clips = {
        "two.mp4@0.000": two[:7],
        "two.mp4@0.400": two[8:15],
        "frames@0.000": read_video(videos / "frames").frames,
        "still.png@0.000": shown(videos / "still.png"),
    }
    for shard in read_manifest(done).shards:
        reader = ShardReader(done, shard)
        for index, sample in enumerate(shard.samples):
            for caption, words in enumerate(sample.captions):
                torch.testing.assert_close(reader.text(index, caption), text.encode([words]).features[0])
                assert sample.num_tokens[caption] == text.count_tokens(words)
            if (frames := clips.pop(sample.id, None)) is not None:
                with torch.inference_mode():
                    expected = vae.encode(to_video(frames[None], CPU))
                torch.testing.assert_close(reader.posterior(index).mean, expected.mean, atol=1e-3, rtol=1e-3)
                torch.testing.assert_close(reader.posterior(index).logvar, expected.logvar, atol=1e-3, rtol=1e-3)
    assert not clips


def test_the_contact_sheet_shows_every_clip(done: Path) -> None:
    [sheet] = shown(done / "contact_sheet.png")
    rows = sheet[6 : 6 + 7 * 102].reshape(7, 102, -1)
    assert (rows.std((1, 2)) > 10).all()


def test_a_second_run_keeps_everything(done: Path, videos: Path) -> None:
    before = contents(done)
    assert run(videos, done).num_kept == len(read_manifest(done).shards)
    assert contents(done) == before


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_end(done: Path, videos: Path, tmp_path: Path) -> None:
    out, num_events = tmp_path / "out", 1
    while True:
        events = prepare(settings(videos, out), ThisMachine())
        seen = [event for _, event in zip(range(num_events), events, strict=False)]
        events.close()
        if isinstance(seen[-1], Prepared):
            break
        num_events += 1
    assert num_events > 6
    assert contents(out) == contents(done)


def test_what_a_kill_leaves_behind_is_mended_or_removed(done: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out)
    (out / MANIFEST).unlink()
    (out / "shards" / f".000000.safetensors.{'0a' * 16}").write_bytes(b"half")
    (out / "shards" / "000001.safetensors").write_bytes(b"half")
    flipped = bytearray((out / "shards" / "000002.safetensors").read_bytes())
    flipped[-1] ^= 1
    (out / "shards" / "000002.safetensors").write_bytes(flipped)
    (out / "work" / "000003.json").write_text("{")
    log = out / "work" / "scans.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert run(videos, out).num_kept == 1
    assert contents(out) == contents(done)


def test_a_film_that_changed_is_made_again_and_one_that_went_away_is_gone(videos: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    copied(videos, copy)
    run(copy, out)
    (copy / "two.mp4").write_bytes((copy / "inside" / "one.webm").read_bytes())
    (copy / "still.png").unlink()
    (copy / "captions.jsonl").write_text((copy / "captions.jsonl").read_text().replace("still.png", "two.mp4"))
    run(copy, out)
    manifest = read_manifest(out)
    ids = [sample.id for shard in manifest.shards for sample in shard.samples]
    assert "two.mp4@0.350" in ids and "still.png@0.000" not in ids
    assert {path.stem for path in (out / "shards").iterdir()} == {Path(shard.file).stem for shard in manifest.shards}


def test_a_film_that_changes_under_the_run_stops_it(videos: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    copied(videos, copy)
    with pytest.raises(TrainingError, match=r"two\.mp4 has changed since it was looked at"):
        for event in prepare(settings(copy, out), ThisMachine()):
            if isinstance(event, Planned):
                (copy / "two.mp4").write_bytes((copy / "inside" / "one.webm").read_bytes())
    assert not (out / MANIFEST).exists()


def test_too_many_bad_files_stop_it_before_anything_is_encoded(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"1 of 6 sources .*more than 10%.* --max-bad-share 0\.17"):
        run(videos, tmp_path / "out", max_bad_share=0.1)
    assert not list((tmp_path / "out" / "shards").iterdir()) and not (tmp_path / "out" / MANIFEST).exists()


def test_nothing_good_is_an_error_whatever_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(TrainingError, match="none of 1 sources"):
            run(tmp_path / "videos", tmp_path / "out", max_bad_share=1.0)
        (tmp_path / "videos" / "a.txt").write_text("a ball")
    (tmp_path / "videos" / "a.mp4").unlink()
    with pytest.raises(TrainingError, match="no video and no picture"):
        run(tmp_path / "videos", tmp_path / "out", max_bad_share=1.0)


def test_a_dry_run_plans_the_same_and_writes_nothing(videos: Path, tmp_path: Path) -> None:
    *_, last = prepare(settings(videos, tmp_path / "out"), ThisMachine(), dry_run=True)
    assert isinstance(last, Planned) and len(last.clips) == 7 and last.num_sources == 6
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_right_are_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    for source, out, message in [
        (tmp_path / "nowhere", tmp_path / "out", "there is no folder"),
        (videos, videos / "out", "inside each other"),
        (videos, videos.parent, "inside each other"),
        (videos, tmp_path / "file", "is a file"),
        (videos, tmp_path / "mine", "holds other things, such as letter.txt"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            run(source, out)


def test_two_runs_do_not_write_into_one_folder(videos: Path, tmp_path: Path) -> None:
    first = prepare(settings(videos, tmp_path / "out"), ThisMachine())
    next(first)
    with pytest.raises(InvalidRequest, match="another run is at work"):
        run(videos, tmp_path / "out")
    first.close()


def test_without_ray_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'daifuku\[ray\]'"):
        OnRay("local", uses_gpu=False)


def test_an_error_of_a_thread_reaches_the_caller_and_the_rest_is_left() -> None:
    seen: list[int] = []

    def work(item: int) -> int:
        seen.append(item)
        if item == 3:
            raise TrainingError("three")
        time.sleep(0.01)
        return item

    with pytest.raises(TrainingError, match="three"):
        list(ThisMachine().each(work, range(1000)))
    assert len(seen) < 100
    assert sorted(ThisMachine().each(str, range(5))) == list("01234")


def copied(videos: Path, to: Path) -> None:
    for path in videos.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(videos)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def command(videos: Path, out: Path, *more: str) -> Sequence[str]:
    asked = ("--size", "64x64", "--frames", "7", "--fps", "20", "--max-bad-share", "0.2", *more)
    return [sys.executable, "-m", "daifuku", "prepare", str(videos), str(out), *asked]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 at random moments, of copies of this process: a fresh one would mostly be killed while it starts."""
    monkeypatch.setattr("daifuku.train.prepare.run.isolated", lambda function, *given, bounds: function(*given))
    many, killed, rng = tmp_path / "many", tmp_path / "killed", random.Random(0)
    for number in range(12):
        copied(videos, many / f"{number:02}")
    started = time.monotonic()
    run(many, tmp_path / "calm")
    lasts_s, num_kills, moments = time.monotonic() - started, 0, set[tuple[bool, int]]()
    while not (killed / MANIFEST).exists():
        child = os.fork()
        if child == 0:
            run(many, killed)
            os._exit(0)
        # Later and later, so that every run gets further than the one before.
        time.sleep(rng.uniform(0, lasts_s / 6) * (1 + num_kills / 8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        num_kills += 1
        moments.add((any(killed.rglob("*.text.safetensors")), len(list((killed / "shards").glob("0*")))))
    assert num_kills >= 8 and len(moments) >= 5
    run(many, killed)
    assert contents(killed) == contents(tmp_path / "calm")


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same_bits(videos: Path, done: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        subprocess.run(command(videos, tmp_path / "here"), check=True, capture_output=True)
        there = subprocess.run(
            command(videos, tmp_path / "there", "--ray", cluster.address, "--json"), capture_output=True, text=True
        )
        assert there.returncode == 0, there.stderr
        assert len(json.loads(there.stdout)["skipped"]) == 1
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
