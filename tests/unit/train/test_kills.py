"""A run that is killed again and again, also while it saves, ends as one that nobody touched."""

import hashlib
import json
import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from daifuku.train.checkpoint import HOME
from tests.unit.train import killed_run
from tests.unit.train.prepared_data import write_prepared

NUM_STEPS = 200
NUM_KILLS = 20

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "scratch": {
        "method": "scratch",
        "scratch": {
            "num_blocks": 2,
            "num_heads": 2,
            "head_dim": 16,
            "text_width": 16,
            "video_mlp_width": 85,
            "text_mlp_width": 42,
        },
    },
}


def content_of(folder: Path, data: Path, method: str, num_steps: int, **more: Any) -> dict[str, Any]:
    return (
        METHODS[method]
        | {
            "output": str(folder),
            "data": [{"folder": str(data), "weight": 1.5}],
            "batch": {"size": 2, "accumulate": 2},
            "schedule": {"steps": num_steps, "warmup": 5},
            "checkpoints": {"every": 2},
            "watch": {"tensorboard": False},
        }
        | more
    )


def start(content: dict[str, Any]) -> BaseProcess:
    # Forked from a server that has imported everything: a start costs no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([killed_run.__name__, "peft"])
    process = context.Process(target=killed_run.work, args=(content,))
    process.start()
    return process


def outcome(folder: Path) -> tuple[list[Any], dict[str, str]]:
    """Every logged step but for its seconds, and hashes of the last checkpoint and of what was shipped."""
    steps = []
    for line in (folder / "log.jsonl").read_text().splitlines():
        about = json.loads(line)
        del about["seconds"]
        steps.append(about)
    newest = max((folder / HOME).glob("[0-9]*"))
    files = [*newest.glob("*.safetensors"), *folder.glob("*.safetensors")]
    return steps, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def num_logged(folder: Path) -> int:
    path = folder / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(folder: Path) -> bool:
    return any((folder / HOME).glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_twenty_times_equals_an_untouched_one(method: str, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", [((2, 4, 4), 7), ((1, 4, 6), 5)])
    whole = start(content_of(tmp_path / "whole", data, method, NUM_STEPS))
    whole.join()
    assert whole.exitcode == 0
    content, folder, draw = (
        content_of(tmp_path / "killed", data, method, NUM_STEPS),
        tmp_path / "killed",
        random.Random(0),
    )
    in_saves = 0
    for kill, step in enumerate(sorted(draw.sample(range(NUM_STEPS - 20), NUM_KILLS))):
        process, delay_s = start(content), draw.uniform(0, 0.02)
        while process.is_alive() and num_logged(folder) < step:
            time.sleep(0.002)
        time.sleep(delay_s)
        # Every other kill waits for a save, the rest come at whatever moment it is.
        while process.is_alive() and kill % 2 == 0 and not is_saving(folder):
            time.sleep(0.0005)
        assert process.is_alive(), f"the run ended after {kill} kills"
        in_saves += is_saving(folder)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = start(content)
    last.join()
    assert last.exitcode == 0
    assert in_saves >= NUM_KILLS // 4
    (steps, files), (expected_steps, expected_files) = outcome(folder), outcome(tmp_path / "whole")
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert steps == expected_steps
    assert files == expected_files
