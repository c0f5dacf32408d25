"""Going on with a run that was stopped, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from daifuku.media.read import read_video
from daifuku.runtime import build, checkpoint

FLAGS = ("--num-inference-steps", 6, "--seed", 3, "--guidance-every", 2, "--step-cache", "first_block")
CHECKPOINT = "clip.resume.safetensors"


@pytest.fixture
def stopped(daifuku, model_folder, monkeypatch):
    """A run that was interrupted after its fourth step; gives the same clip made without interruption."""
    daifuku("generate", "a ball", "--model", model_folder, "-o", "whole.gif", *FLAGS)
    take = checkpoint.Checkpoints.take

    def interrupted(self, step):
        take(self, step)
        if step.index == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, "take", interrupted)
    run = daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.gif", *FLAGS)
    assert run.code == 130 and f"--resume {CHECKPOINT}" in run.err and not Path("clip.gif").exists()
    monkeypatch.setattr(checkpoint.Checkpoints, "take", take)
    return read_video("whole.gif").frames


def test_a_resumed_run_makes_the_clip_that_an_uninterrupted_one_makes(daifuku, stopped):
    run = daifuku("generate", "--resume", CHECKPOINT)
    assert run.code == 0 and run.lines == ["clip.gif"] and "warning" not in run.err
    assert np.array_equal(read_video("clip.gif").frames, stopped)
    assert not Path(CHECKPOINT).exists()


def test_the_clip_of_a_resumed_run_can_be_replayed(daifuku, stopped):
    daifuku("generate", "--resume", CHECKPOINT, "-o", "other.gif")
    assert daifuku("generate", "--replay", "other.gif", "-o", "again.gif").code == 0
    assert np.array_equal(read_video("again.gif").frames, stopped)


def test_a_run_that_is_complete_leaves_no_checkpoint(daifuku, model_folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    assert daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.gif").code == 0
    assert not list(Path().glob("*.safetensors"))


def test_an_older_checkpoint_of_the_same_name_is_left_alone(daifuku, stopped, model_folder):
    before = Path(CHECKPOINT).read_bytes()
    assert daifuku("generate", "a ball", "--model", model_folder, "-o", "clip.gif").code == 0
    assert Path(CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("flags", [["a ball"], ["--seed", 4], ["--count", 2], ["--replay", "whole.gif"]])
def test_flags_that_change_the_clip_are_refused(daifuku, stopped, flags):
    run = daifuku("generate", "--resume", CHECKPOINT, *flags)
    assert run.code == 2 and "leave out" in run.err and Path(CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"versions": {"torch": "1.0"}}, "instead of 1.0"),
        ({"model": {"identity": "0123456789abcdef"}}, "0123456789abcdef"),
    ],
)
def test_a_run_that_would_go_on_differently_is_refused_with_the_reason(daifuku, stopped, change, reason):
    with safe_open(CHECKPOINT, "pt") as file:
        found = json.loads(file.metadata()["daifuku"])
    for name, values in change.items():
        found["about"]["record"][name] |= values
    save_file(load_file(CHECKPOINT), "changed.safetensors", {"daifuku": json.dumps(found)})
    run = daifuku("generate", "--resume", "changed.safetensors")
    assert run.code == 2 and reason in run.err and Path("changed.safetensors").exists()


def test_another_way_of_running_is_refused(daifuku, stopped):
    run = daifuku("generate", "--resume", CHECKPOINT, "--dtype", "bfloat16")
    assert run.code == 2 and "bfloat16 instead of float32" in run.err and Path(CHECKPOINT).exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_what_is_no_checkpoint_is_refused(daifuku, stopped, damage):
    path = Path(CHECKPOINT)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        save_file({"latent": load_file(path)["latent"]}, path)
    run = daifuku("generate", "--resume", CHECKPOINT)
    assert run.code == 2 and CHECKPOINT in run.err


def last_written(path: str) -> int | None:
    """When a file was replaced last; None while there is none."""
    try:
        return Path(path).stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_still_makes_the_same_clip(daifuku, model_folder, tmp_path):
    flags = ["--num-inference-steps", "1000", "--seed", "3", "--num-frames", "31", "--height", "64", "--width", "64"]
    assert daifuku("generate", "a ball", "--model", model_folder, "-o", "whole.gif", *flags).code == 0
    source = str(Path(build.__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    program = (
        "from daifuku.runtime import checkpoint; checkpoint.EVERY_S = 0.2; from daifuku.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "generate"]
    rest = ["a ball", "--model", str(model_folder), "-o", "clip.gif", *flags]
    kills = 0
    while not Path("clip.gif").exists():
        written = last_written(CHECKPOINT)
        process = subprocess.Popen([*command, *rest], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        if kills < 4:
            while last_written(CHECKPOINT) == written and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=300)
        rest = ["--resume", CHECKPOINT]
    assert kills == 4
    assert np.array_equal(read_video("clip.gif").frames, read_video("whole.gif").frames)
