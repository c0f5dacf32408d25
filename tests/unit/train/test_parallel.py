"""Runs of many processes: what one process computes, whoever computes which part."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train import many_runs
from tests.unit.train.prepared_data import write_prepared

SIZES = {
    "num_blocks": 2, "num_heads": 4, "head_dim": 16, "text_width": 16, "video_mlp_width": 170, "text_mlp_width": 42
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "scratch", "scratch": SIZES},
    "lora": {"method": "lora", "lora": {"video_qkv": {"rank": 3}, "text_mlp": {"rank": 2}}},
}
SHAPES: dict[str, dict[str, int]] = {
    "one": {},
    "shard 2": {"shard": 2},
    "replicate 2": {"replicate": 2},
    "context 2": {"context": 2},
    "shard 2, replicate 2": {"shard": 2, "replicate": 2},
    "shard 2, context 2": {"shard": 2, "context": 2},
    "context 4": {"context": 4},
}
NUM_STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token counts that four processes cannot share evenly, among them."""
    return write_prepared(tmp_path_factory.mktemp("data"), [((3, 4, 6), 5), ((1, 4, 6), 3)])


def content_of(method: str, folder: Path, data: Path, shape: str, **changes: Any) -> dict[str, Any]:
    plain = METHODS[method] | {
        "output": str(folder),
        "data": [{"folder": str(data)}],
        "validation": {"folder": str(data), "num_samples": 2, "every": 10},
        "batch": {"size": 2, "accumulate": 4},
        "optimiser": {"lr": 1e-3},
        "schedule": {"steps": NUM_STEPS, "warmup": 2},
        "checkpoints": {"every": 7},
        "parallel": SHAPES[shape],
        "watch": {"tensorboard": False},
    }
    return plain | changes


def run(content: dict[str, Any], meeting: Path) -> None:
    num = math.prod(content["parallel"].values())
    processes = many_runs.start(many_runs.train, num, meeting, content)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * num


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one process, by method."""
    folders = {method: tmp_path_factory.mktemp(method) for method in METHODS}
    for method, folder in folders.items():
        run(content_of(method, folder, data, "one"), folder / "meeting")
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", list(SHAPES)[1:])
def test_losses_of_many_processes_are_those_of_one(
    method: str, shape: str, data: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    run(content_of(method, tmp_path / "run", data, shape), tmp_path / "meeting")
    found, expected = log(tmp_path / "run"), log(alone[method])
    assert len(found) == NUM_STEPS
    for step, one in zip(found, expected, strict=True):
        assert step["samples"] == one["samples"]
        assert step["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert step.get("val") == pytest.approx(one.get("val"), abs=1e-5)
