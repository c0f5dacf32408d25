"""Runs of many processes: what one process computes, whoever computes which part; and how they end together."""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from daifuku.errors import InvalidRequest
from daifuku.train.checkpoint import HOME
from daifuku.train.config import TrainConfig, parse_config
from daifuku.train.parallel import joined, shape_of
from tests.unit.processes import finish, start
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
NUM_KILLS = 20
LONGEST_END_S = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 18 and of 6 tokens: four processes cannot share them evenly."""
    return write_prepared(tmp_path_factory.mktemp("data"), [((3, 4, 6), 5), ((1, 4, 6), 3)])


def content_of(method: str, folder: Path, data: Path, shape: str, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
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


def run(content: dict[str, Any], **options: Any) -> list[int | None]:
    num = math.prod(value for key, value in content["parallel"].items() if key != "timeout_s")
    meeting = Path(content["output"]) / "meeting"
    return finish(start(many_runs.train, num, meeting, content, *options.values()))


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines]


def last_checkpoint(folder: Path) -> dict[str, str]:
    """Hashes of its tensors."""
    newest = max((folder / HOME).glob("[0-9]*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.glob("*.safetensors")}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / HOME).glob("[0-9]*")) / "model.safetensors")


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs of one process, by method: a LoRA on the model that the other made."""
    home = tmp_path_factory.mktemp("alone")
    assert run(content_of("full", home / "full", data, "one")) == [0]
    METHODS["lora"]["model"] = {"name": str(home / "full" / "model")}
    assert run(content_of("lora", home / "lora", data, "one")) == [0]
    return {method: home / method for method in METHODS}


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Within rounding."""
    assert len(found) == len(expected) == NUM_STEPS
    for step, one in zip(found, expected, strict=True):
        assert step["samples"] == one["samples"]
        assert step["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert step.get("val") == pytest.approx(one.get("val"), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", list(SHAPES)[1:])
def test_losses_of_many_processes_are_those_of_one(
    method: str, shape: str, data: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    content = content_of(method, tmp_path / "run", data, shape)
    assert set(run(content)) == {0}
    assert_same(log(tmp_path / "run"), log(alone[method]))
    for name, weight in weights(alone[method]).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], weight, rtol=0, atol=1e-4, msg=name)
    made = sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.safetensors"))
    assert made == sorted(path.relative_to(alone[method]) for path in alone[method].rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "compute, within",
    [
        ({"recompute": {"block": -1}, "quantise": "int8"}, 1e-5),
        ({"recompute": {"attention": 1, "mlp": -1}, "precision": "bfloat16"}, 0.02),
    ],
)
def test_quantised_recomputed_and_rounded_weights_are_shared_too(
    compute: dict[str, Any], within: float, data: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    short = {"schedule": {"steps": 4, "warmup": 2}, "compute": compute}
    for shape in ("one", "shard 2, context 2"):
        assert set(run(content_of("lora", tmp_path / shape, data, shape, **short))) == {0}
    losses = [[step["loss"] for step in log(tmp_path / shape)] for shape in ("shard 2, context 2", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=within)


@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["none", "int8"])
def test_a_dora_learns_from_weights_in_shards_what_it_learns_from_whole_ones(
    quantise: str, data: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    lora = METHODS["lora"]["lora"] | {"dora": True}
    short = {"schedule": {"steps": 4, "warmup": 0}, "compute": {"quantise": quantise}, "lora": lora}
    shapes = ("one", "shard 2, context 2")
    for shape in shapes:
        assert set(run(content_of("lora", tmp_path / shape, data, shape, **short))) == {0}
    whole, shared = (weights(tmp_path / shape) for shape in shapes)
    assert any("lora_magnitude_vector" in name for name in whole)
    for name, weight in whole.items():
        torch.testing.assert_close(shared[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_run_that_one_process_is_asked_to_stop_is_saved_by_all_and_goes_on_exactly(
    data: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    whole = content_of("full", tmp_path / "whole", data, "shard 2")
    assert run(whole) == [0, 0]
    stopped = content_of("full", tmp_path / "stopped", data, "shard 2")
    assert run(stopped, stop_at=4) == [0, 0]
    steps = len(log(tmp_path / "stopped"))
    assert 4 <= steps < NUM_STEPS and not (tmp_path / "stopped" / "model").exists()
    other = shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    assert run(stopped) == [0, 0]
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")
    assert last_checkpoint(tmp_path / "stopped") == last_checkpoint(tmp_path / "whole")

    # The same checkpoint is read by any number of processes, if it is said that rounding may differ.
    one = content_of("full", other, data, "one")
    assert run(one) == [1]
    assert "world_size is 1 and was 1 x 2 x 1" in (other / "error.0").read_text()
    assert run(one, stop_at=0, allow_inexact=True) == [0]
    assert_same(log(other), log(alone["full"]))


@pytest.mark.slow
def test_a_loss_of_one_process_that_is_not_finite_stops_all_and_names_the_sample(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", [((2, 4, 4), 4)], broken=(1, math.nan))
    content = content_of("full", tmp_path / "run", data, "shard 2", batch={"size": 1, "accumulate": 2}, validation={})
    assert run(content) == [1, 1]
    told = {path.read_text() for path in (tmp_path / "run").glob("error.*")}
    assert len(told) == 1 and re.search(r"loss nan on the samples 2x4x4-1\. No weight was touched", told.pop())


def lines_of(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_step(folder: Path, step: int, before: list[str]) -> None:
    """Until the log has that step, and not from an earlier life: no two steps take equally long."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = lines_of(folder)
        if len(lines) >= step and lines[step - 1] not in before:
            return
        time.sleep(0.002)
    raise AssertionError("the run makes no steps")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_soon_and_the_run_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    changes = {"schedule": {"steps": 3 * NUM_KILLS, "warmup": 2}, "checkpoints": {"every": 2}, "validation": {}}
    assert run(content_of("full", tmp_path / "whole", data, "shard 2", **changes)) == [0, 0]
    content, draw = content_of("full", tmp_path / "killed", data, "shard 2", **changes), random.Random(0)
    for kill in range(NUM_KILLS):
        done = max((int(path.name) for path in (tmp_path / "killed" / HOME).glob("[0-9]*")), default=0)
        before = lines_of(tmp_path / "killed")
        processes = start(many_runs.train, 2, tmp_path / "meeting", content)
        wait_for_step(tmp_path / "killed", done + draw.randint(1, 4), before)
        time.sleep(draw.uniform(0, 0.05))
        victim = draw.randrange(2)
        assert processes[victim].is_alive(), f"the run ended after {kill} kills: give it more steps"
        processes[victim].kill()
        started = time.monotonic()
        assert finish(processes)[1 - victim] == 1
        assert time.monotonic() - started < LONGEST_END_S
        told = (tmp_path / "killed" / f"error.{1 - victim}").read_text()
        assert "another process of the run has ended" in told
    assert run(content) == [0, 0]
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert last_checkpoint(tmp_path / "killed") == last_checkpoint(tmp_path / "whole")


@pytest.mark.slow
def test_a_process_that_answers_no_more_ends_the_others_after_the_time_limit(data: Path, tmp_path: Path) -> None:
    content = content_of("full", tmp_path / "run", data, "shard 2", parallel={"shard": 2, "timeout_s": 3})
    content["schedule"] = {"steps": 1000}
    processes = start(many_runs.train, 2, tmp_path / "meeting", content)
    wait_for_step(tmp_path / "run", 3, before=[])
    silent = processes[1].pid
    assert silent is not None
    os.kill(silent, signal.SIGSTOP)
    try:
        processes[0].join(LONGEST_END_S)
        assert processes[0].exitcode == 1
        assert "has not answered for parallel.timeout_s=3 s" in (tmp_path / "run" / "error.0").read_text()
    finally:
        processes[1].kill()


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "daifuku")
CONFIG = """
method = "scratch"
output = "{output}"
data = [{{ folder = "{data}" }}]
batch = {{ accumulate = 2 }}
schedule = {{ steps = {steps}, warmup = 1 }}
[scratch]
num_blocks = 2
num_heads = 2
head_dim = 16
text_width = 16
video_mlp_width = 85
text_mlp_width = 42
[watch.clips]
prompts = ["a red ball"]
num_frames = 7
height = 16
width = 16
num_inference_steps = 1
"""


@pytest.mark.slow
def test_torchrun_starts_the_processes_and_only_the_first_talks(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(output=tmp_path / "run", data=data, steps=3))
    done = subprocess.run([*TORCHRUN, "train", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert done.stderr.count("wrote ") == 3
    assert [line["step"] for line in log(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run" / "clips" / "000003-0.mp4").stat().st_size > 0
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_sigterm_to_torchrun_is_passed_on_and_every_process_saves(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(output=tmp_path / "run", data=data, steps=5000))
    with subprocess.Popen([*TORCHRUN, "train", str(path)], stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(tmp_path / "run", 2, before=[])
        process.terminate()
        _, told = process.communicate()
    last = log(tmp_path / "run")[-1]["step"]
    assert f"stopped and saved after step {last} of 5000" in told
    assert [path.name for path in (tmp_path / "run" / HOME).iterdir()] == [f"{last:09}"]


def config_of(data: Path, folder: Path, **changes: Any) -> TrainConfig:
    return parse_config(content_of("full", folder, data, "one", **changes))


@pytest.mark.parametrize(
    "world, changes, message",
    [
        (4, {"parallel": {"replicate": 3}}, r"3 x 1 x 1 = 3, and the number of processes is 4.*--nproc-per-node 3"),
        (1, {"parallel": {"context": 2}}, r"1 x 1 x 2 = 2, and the number of processes is 1.*--nproc-per-node 2"),
        (4, {"batch": {"accumulate": 6}}, r"accumulate=6 .* 4 groups of processes: try 8"),
        (2, {"optimiser": {"name": "muon"}}, r"'muon' needs whole matrices: try 'adamw'"),
        (2, {"parallel": {"context": 2}, "compute": {"compile": True}}, r"does not go with parallel\.context"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    world: int, changes: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        shape_of(config_of(data, tmp_path, **changes), world)


def test_all_weights_are_distilled_by_one_process(data: Path, tmp_path: Path) -> None:
    content = content_of("full", tmp_path, data, "one") | {"method": "full", "distill": {"method": "guidance"}}
    content.pop("scratch")
    assert shape_of(parse_config(content), 1).world == 1
    with pytest.raises(InvalidRequest, match="try method = 'lora'"):
        shape_of(parse_config(content), 2)


def test_weights_are_split_over_all_processes_unless_it_is_said_otherwise(data: Path, tmp_path: Path) -> None:
    shape = shape_of(config_of(data, tmp_path, parallel={"replicate": 2, "context": 2}, batch={"accumulate": 4}), 8)
    assert (shape.replicate, shape.shard, shape.context) == (2, 2, 2)


def test_one_process_needs_no_others(data: Path, tmp_path: Path) -> None:
    with joined(config_of(data, tmp_path)) as ranks:
        assert ranks.is_first and ranks.describe() == "1"
    with (
        pytest.raises(InvalidRequest, match="torchrun --nproc-per-node 2"),
        joined(config_of(data, tmp_path, parallel={"replicate": 2})),
    ):
        pass
