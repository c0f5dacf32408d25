"""daifuku train at the terminal: where results go, what is refused, and a SIGTERM that costs nothing."""

import json
import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.unit.train.prepared_data import write_prepared

CONFIG = """
method = "scratch"
output = "{output}"
data = [{{ folder = "{data}" }}]
[scratch]
num_blocks = 2
num_heads = 2
head_dim = 16
text_width = 16
video_mlp_width = 85
text_mlp_width = 42
[schedule]
steps = {steps}
warmup = 1
"""


def write_config(folder: Path, steps: int, more: str = "") -> Path:
    data = folder / "data"
    if not data.exists():
        write_prepared(data, [((2, 4, 4), 4)])
    path = folder / "config.toml"
    path.write_text(CONFIG.format(output=folder / "run", data=data, steps=steps) + more)
    return path


def test_a_run_prints_its_folder_and_leaves_curves_clips_and_a_model(tmp_path: Path, daifuku: Any) -> None:
    clips = '[watch.clips]\nprompts = ["a red ball"]\nnum_frames = 7\nheight = 16\nwidth = 16\nnum_inference_steps = 1'
    path = write_config(tmp_path, 2, f'{clips}\n[validation]\nfolder = "{tmp_path}/data"\nnum_samples = 1')
    done = daifuku("train", str(path))
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'run'}\n"
    assert " weights learn from 4 samples on cpu" in done.err
    assert "step 2: loss " in done.err and ", val " in done.err
    found = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert {"checkpoints", "clips", "log.jsonl", "model", "original", "README.md", "tensorboard"} <= found
    assert (tmp_path / "run" / "clips" / "000002-0.mp4").stat().st_size > 0
    assert any("tfevents" in entry.name for entry in (tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_at_hand_and_ends_with_zero(
    number: signal.Signals, tmp_path: Path, daifuku: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daifuku.train import curves

    def send(report: Any) -> None:
        if report.step == 2:
            os.kill(os.getpid(), number)

    path = write_config(tmp_path, 5)
    with monkeypatch.context() as patched:
        patched.setattr(curves, "open_curves", lambda config, say: [send])
        done = daifuku("train", path)
    assert done.code == 0 and done.out == ""
    assert "stopped and saved after step 3 of 5; the same command goes on from there" in done.err
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000003"]
    assert daifuku("train", path).code == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_run_that_is_done_says_so(tmp_path: Path, daifuku: Any) -> None:
    path = write_config(tmp_path, 1)
    first, second = daifuku("train", path), daifuku("train", path)
    assert first.out == second.out
    said = "its 1 steps were done already; for another run give another output"
    assert said not in first.err and said in second.err


def test_clips_that_cannot_be_written_are_told_and_the_run_goes_on(tmp_path: Path, daifuku: Any) -> None:
    path = write_config(tmp_path, 1, '[watch.clips]\nprompts = ["a red ball"]\nnum_frames = 7')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "clips").write_text("in the way")
    done = daifuku("train", path)
    assert done.code == 0
    assert "step 1: no clips, since" in done.err


@pytest.mark.parametrize(
    "more, words",
    [
        ("[optimiser]\nlrr = 1.0", "there is no optimiser.lrr: try lr"),
        ('[model]\nname = "nowhere/at/all"', "nowhere/at/all"),
        ('[compute]\ndevice = "tpu"', "device='tpu' is unknown"),
        ('[optimiser]\nname = "adamw8bit"', "it runs on cuda, not on cpu. Try 'adamw'."),
        ('[watch.clips]\nprompts = ["a ball"]\nnum_frames = 8', "num_frames=8"),
        ('[watch]\nwandb = "project"', "pip install wandb"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(more: str, words: str, tmp_path: Path, daifuku: Any) -> None:
    if "wandb" in more and find_spec("wandb"):
        pytest.skip("wandb is installed here")
    done = daifuku("train", write_config(tmp_path, 1, more))
    assert done.code == 2 and done.out == ""
    assert words in done.err and "Traceback" not in done.err


def test_a_student_is_distilled_by_a_command_of_its_own(tmp_path: Path, daifuku: Any) -> None:
    assert daifuku("train", write_config(tmp_path, 1)).code == 0
    student = (tmp_path / "config.toml").read_text().replace('"scratch"', '"full"').partition("[scratch]")[0]
    student = student.replace(f'{tmp_path / "run"}"', f'{tmp_path / "student"}"')
    student += f'[model]\nname = "{tmp_path}/run/model"\n[schedule]\nsteps = 1\n'
    path = tmp_path / "student.toml"
    path.write_text(student)
    refused = daifuku("distill", path)
    assert refused.code == 2 and "has no table [distill]" in refused.err
    path.write_text(student + '[distill]\nmethod = "guidance"\n')
    refused = daifuku("train", path)
    assert refused.code == 2 and "`daifuku distill`" in refused.err
    done = daifuku("distill", path)
    assert done.code == 0 and done.out == f"{tmp_path / 'student'}\n", done.err
    assert (tmp_path / "student" / "model" / "model_index.json").is_file()


def test_settings_that_changed_need_a_word_to_go_on(tmp_path: Path, daifuku: Any) -> None:
    assert daifuku("train", write_config(tmp_path, 1)).code == 0
    path = write_config(tmp_path, 2)
    refused = daifuku("train", path)
    assert refused.code == 1 and "schedule.steps is 2 and was 1. Put that back, give another output" in refused.err
    assert daifuku("train", path, "--allow-inexact").code == 0
